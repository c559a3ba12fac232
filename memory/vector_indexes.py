"""Vector indexes of single users who have so many vectors that comparing all of them would slow down a turn.

Each index covers one user's vectors in the current space and finds what it would find if there were no other users.
One index for all users, filtered by user, finds only half. memory.ranking uses the same predicates, so that the planner
uses the index where there is one.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from zlib import crc32

import structlog
from django.db import connection
from psycopg import sql

from memory import vector_space

# An index is created for a user with so many vectors, and dropped below the lower number.
CREATE_FROM_ROWS: Final = 30_000
DROP_BELOW_ROWS: Final = 20_000
# Each index makes every query on the table a little more expensive to plan.
MAX_INDEXES: Final = 100
# The limit of HNSW for half-precision vectors.
_MAX_DIMENSIONS: Final = 4_000
_PREFIX: Final = "memory_near_"
# How long a process caches which users have an index.
_CACHE_S: Final = 60.0
# Key of the advisory lock: "memory" in ASCII.
_LOCK_KEY: Final = 0x6D656D6F7279

log = structlog.get_logger(__name__)

# Vectors are only looked at of users who have many: the others are counted in the index by user.
_COUNTS: Final = """
SELECT user_id, vector_dims(vector), count(*) FROM memory_embedding
WHERE embedding_model = %(space)s AND user_id = ANY(ARRAY(
    SELECT user_id FROM memory_embedding WHERE embedding_model = %(space)s
    GROUP BY user_id HAVING count(*) >= %(least)s ORDER BY count(*) DESC LIMIT %(most)s
))
GROUP BY 1, 2 HAVING count(*) >= %(least)s ORDER BY count(*) DESC LIMIT %(most)s
"""
_EXISTING: Final = """
SELECT relname, indisvalid FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
WHERE indrelid = 'memory_embedding'::regclass AND starts_with(relname, %s)
"""


def has_index(user_id: uuid.UUID) -> bool:
    """Whether a user has an index. Cached for a minute by each process."""
    global _cache
    read_at, owners = _cache
    if time.monotonic() - read_at > _CACHE_S:
        with connection.cursor() as cursor:
            cursor.execute(_EXISTING, [_PREFIX])
            owners = frozenset(name.removeprefix(_PREFIX).partition("_")[0] for name, _ in cursor.fetchall())
        _cache = time.monotonic(), owners
    return user_id.hex in owners


_cache: tuple[float, frozenset[str]] = (-math.inf, frozenset())


def maintain() -> tuple[int, int]:
    """Create missing indexes and drop those that are not worth it any more. Returns how many of each.

    Call it outside of transactions, from time to time. Reads and writes continue meanwhile. Does nothing while another
    process is doing it.
    """
    space = vector_space.current_space()
    with connection.cursor() as cursor, _exclusively(cursor) as locked:
        if not locked:
            return 0, 0
        cursor.execute(_COUNTS, {"space": space, "least": DROP_BELOW_ROWS, "most": MAX_INDEXES})
        large, wanted = {}, set()
        for user_id, dimensions, count in cursor.fetchall():
            if dimensions <= _MAX_DIMENSIONS:
                name = _name(user_id, space, dimensions)
                large[name] = (user_id, dimensions)
                if count >= CREATE_FROM_ROWS:
                    wanted.add(name)
        cursor.execute(_EXISTING, [_PREFIX])
        existing = dict(cursor.fetchall())
        # The creation of an invalid index was interrupted. We hold the lock, so nobody is creating it now.
        dropped = [name for name, valid in existing.items() if name not in large or not valid]
        for name in dropped:
            _execute(cursor, sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(sql.Identifier(name)))
        missing = [name for name in wanted if not existing.get(name)]
        for name in missing:
            user_id, dimensions = large[name]
            _execute(cursor, _create(name, user_id, space, dimensions))
            log.info("vector_index.created", user_id=str(user_id))
    return len(missing), len(dropped)


def _name(user_id: uuid.UUID, space: str, dimensions: int) -> str:
    return f"{_PREFIX}{user_id.hex}_{crc32(f'{space} {dimensions}'.encode()):08x}"


def _create(name: str, user_id: uuid.UUID, space: str, dimensions: int) -> sql.Composed:
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
def _exclusively(cursor: Any) -> Iterator[bool]:
    cursor.execute("SELECT pg_try_advisory_lock(%s)", [_LOCK_KEY])
    [locked] = cursor.fetchone()
    try:
        yield locked
    finally:
        if locked:
            cursor.execute("SELECT pg_advisory_unlock(%s)", [_LOCK_KEY])
