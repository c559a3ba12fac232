"""An index over vectors for a user who has so many that comparing all of them takes longer than a turn should.

Each is over one user's rows in the present space, so that it finds what it would find if nobody else were there; one
for all, filtered by user, finds half. `memory.recall` names the same predicates, and the planner takes the index when
it is there.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from zlib import crc32

from django.db import connection
from psycopg import sql

from adiuva.core.logging import log
from memory import vector_space

CREATE_FROM_ROWS: Final = 30_000  # vectors of a user
DROP_BELOW_ROWS: Final = 20_000
MAX_INDEXES: Final = 100  # such indexes: each makes every query on the table a little dearer to plan
_MOST_DIMENSIONS: Final = 4_000  # that HNSW takes of half-precision vectors
_PREFIX: Final = "memory_near_"
_KNOWN_S: Final = 60.0  # that a process goes by what it knows of them
_LOCK: Final = 0x6D656D6F7279  # "memory"

_LARGE: Final = """
SELECT user_id, vector_dims(vector) FROM memory_embedding WHERE embedding_model = %s
GROUP BY 1, 2 HAVING count(*) >= %s ORDER BY count(*) DESC LIMIT %s
"""
_THERE: Final = """
SELECT relname, indisvalid FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
WHERE indrelid = 'memory_embedding'::regclass AND starts_with(relname, %s)
"""


def has_index(user_id: uuid.UUID) -> bool:
    """Whether a user has an index of their own, as far as this process knows: it looks once a minute."""
    global _known
    looked_at, owners = _known
    if time.monotonic() - looked_at > _KNOWN_S:
        with connection.cursor() as cursor:
            cursor.execute(_THERE, [_PREFIX])
            owners = frozenset(name.removeprefix(_PREFIX).partition("_")[0] for name, _ in cursor.fetchall())
        _known = time.monotonic(), owners
    return user_id.hex in owners


_known: tuple[float, frozenset[str]] = (-math.inf, frozenset())


def maintain() -> tuple[int, int]:
    """Make the indexes that pay and drop those that do not, of users who are gone too. Returns how many of each.

    Call it outside of transactions, now and then. Reading and writing go on meanwhile. Where another process is at it,
    nothing is done.
    """
    space = vector_space.current_space()
    with connection.cursor() as cursor, _alone(cursor) as alone:
        if not alone:
            return 0, 0
        cursor.execute(_LARGE, [space, DROP_BELOW_ROWS, MAX_INDEXES])
        large = {
            _name(user_id, space, dimensions): (user_id, dimensions)
            for user_id, dimensions in cursor.fetchall()
            if dimensions <= _MOST_DIMENSIONS
        }
        cursor.execute(_LARGE, [space, CREATE_FROM_ROWS, MAX_INDEXES])
        pays = {_name(user_id, space, dimensions) for user_id, dimensions in cursor.fetchall()} & large.keys()
        cursor.execute(_THERE, [_PREFIX])
        there = dict(cursor.fetchall())
        # One that is not valid was cut off while it was made; we are alone, so nobody is at it.
        dropped = [name for name, valid in there.items() if name not in large or not valid]
        for name in dropped:
            _execute(cursor, sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(sql.Identifier(name)))
        made = [name for name in pays if not there.get(name)]
        for name in made:
            user_id, dimensions = large[name]
            _execute(cursor, _made(name, user_id, space, dimensions))
            log.info("memory.index_made", user_id=str(user_id))
    return len(made), len(dropped)


def _name(user_id: uuid.UUID, space: str, dimensions: int) -> str:
    return f"{_PREFIX}{user_id.hex}_{crc32(f'{space} {dimensions}'.encode()):08x}"


def _made(name: str, user_id: uuid.UUID, space: str, dimensions: int) -> sql.Composed:
    return sql.SQL(
        "CREATE INDEX CONCURRENTLY {} ON memory_embedding USING hnsw ((vector::halfvec({dimensions}))"
        " halfvec_cosine_ops) WHERE user_id = {} AND embedding_model = {} AND vector_dims(vector) = {dimensions}"
    ).format(
        sql.Identifier(name),
        sql.Literal(user_id),
        sql.Literal(space),
        dimensions=sql.Literal(dimensions),
    )


def _execute(cursor: Any, statement: sql.Composed) -> None:
    cursor.execute(statement.as_string(cursor.connection))


@contextmanager
def _alone(cursor: Any) -> Iterator[bool]:
    cursor.execute("SELECT pg_try_advisory_lock(%s)", [_LOCK])
    [alone] = cursor.fetchone()
    try:
        yield alone
    finally:
        if alone:
            cursor.execute("SELECT pg_advisory_unlock(%s)", [_LOCK])
