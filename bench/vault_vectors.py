"""Exact search in the vault: what it finds, and what half precision in the row costs beside plain vector columns.

`python -m bench.vault_vectors`: 1,000 and 10,000 vectors of one account among 200,000, of 1,536 dimensions, in an order
in which many accounts would store them. The control has the same vectors, as `vector`, in a table of its own.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from bench.harness import Stopwatch, bench_servers, record

DIMENSIONS: Final = 1536
TOTAL: Final = 200_000
SIZES: Final = (1_000, 10_000)
QUESTIONS: Final = 40
_FILL: Final = """
INSERT INTO vault_vector (space_id, id, vector, tags, blob, checksum, size)
SELECT space, id, vector, '{}', '', %(checksum)s, 0 FROM (
    SELECT space_id AS space, id, vector FROM given WHERE space_id < %(first)s + %(mine)s
    UNION ALL
    SELECT space.id, given.id, vector FROM given JOIN vault_vectorspace AS space
        ON given.space_id = %(first)s + %(mine)s AND space.id >= given.space_id
) AS all_of_them ORDER BY random()
"""

_CONTROL: Final = """
CREATE TABLE plain_vector (space_id bigint NOT NULL, id varchar(200) NOT NULL, vector vector NOT NULL, blob bytea);
INSERT INTO plain_vector SELECT space_id, id, vector::vector, blob FROM vault_vector ORDER BY number;
CREATE UNIQUE INDEX ON plain_vector (space_id, id);
VACUUM ANALYZE plain_vector;
VACUUM ANALYZE vault_vector;
"""
_NEAREST: Final = """
SELECT id, vector <=> %s AS distance, blob FROM {table} WHERE space_id = %s ORDER BY distance, id LIMIT 10
"""


def fill() -> tuple[Any, list[int], list[Any]]:
    """Store all vectors, mixed. Returns whose they are, the two spaces, and the vectors of each in the order of ids."""
    from django.db import connection
    from pgvector import HalfVector
    from pgvector.psycopg import register_vector

    from adiuva.vault.models import VectorSpace
    from tests.factories import somebody

    mine, other = somebody(), somebody()
    others = (TOTAL - sum(SIZES)) // 1_000
    sizes = [*SIZES, *[1_000] * others]
    spaces = VectorSpace.objects.bulk_create(
        VectorSpace(
            user_id=(mine if at < len(SIZES) else other).id, space=at, dimensions=DIMENSIONS, count=size
        )
        for at, size in enumerate(sizes)
    )
    random = np.random.default_rng(19)
    # Those of the other spaces are a thousand, in each of them.
    given = [
        random.standard_normal((size, DIMENSIONS), dtype=np.float32).astype(np.float16) for size in sizes[:3]
    ]
    connection.ensure_connection()
    register_vector(connection.connection)
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE given (space_id bigint, id text, vector halfvec)")
        with cursor.cursor.copy("COPY given FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(["int8", "text", "halfvec"])
            for space, vectors in zip(spaces, given, strict=False):
                for at, vector in enumerate(vectors):
                    copy.write_row((space.pk, f"{at:06}", HalfVector(vector)))
        cursor.execute(
            _FILL, {"mine": len(SIZES), "first": spaces[0].pk, "checksum": hashlib.sha256(b"").digest()}
        )
    return mine, [space.pk for space in spaces[:2]], given[:2]


def nearest(rows: Any, question: Any) -> list[str]:
    """By the definition, in double precision."""
    wide, asked = rows.astype(np.float64), question.astype(np.float64)
    scores = wide @ asked / (np.linalg.norm(wide, axis=1) * np.linalg.norm(asked))
    return [f"{at:06}" for at in np.argsort(-scores, kind="stable")[:10]]


def took(
    search: Callable[[Any], object], questions: Sequence[Any], before: Callable[[], object]
) -> list[float]:
    """The median of each quarter of the questions, in ms."""
    search(questions[0])
    times = []
    for question in questions:
        before()
        with Stopwatch() as watch:
            search(question)
        times.append(watch.wall * 1000)
    quarter = max(1, len(times) // 4)
    return [statistics.median(times[at : at + quarter]) for at in range(0, len(times), quarter)]


def nothing() -> None:
    """The pages are where the question before left them."""


def crowd() -> None:
    """Others read until PostgreSQL holds none of these pages any more, but for what the system's cache still has."""
    from django.db import connection

    with connection.cursor() as cursor:
        # A scan of the whole table would leave the others' pages where they are.
        cursor.execute("SET enable_seqscan = off")
        cursor.execute(
            "SELECT sum(vector_dims(vector)) FROM vault_vector"
            " WHERE space_id > (SELECT max(id) - 30 FROM vault_vectorspace)"
        )
        cursor.fetchall()
        cursor.execute("RESET enable_seqscan")


def main() -> None:
    with bench_servers():
        from django.db import connection
        from pgvector import Vector

        from adiuva.vault import vectors

        with Stopwatch() as watch:
            person, spaces, rows = fill()
            with connection.cursor() as cursor:
                for statement in _CONTROL.strip().split("\n"):
                    cursor.execute(statement)
        print(f"{TOTAL:,} vectors of {DIMENSIONS} dimensions, stored twice in {watch.wall:.0f} s")
        random = np.random.default_rng(20)
        for number, size in enumerate(SIZES):

            def nearest_in(table: str, given: Any) -> Any:
                with connection.cursor() as cursor:
                    cursor.execute(_NEAREST.format(table=table), [given, spaces[number]])  # noqa: B023
                    return cursor.fetchall()

            def half(question: Any) -> object:
                return nearest_in("vault_vector", question)

            def plain(question: Any) -> object:
                return nearest_in("plain_vector", Vector(question.to_numpy().astype(np.float32)))

            def search(question: Any) -> list[Any]:
                return vectors.search(user_id=person.id, space=number, vector=question, top_k=10)  # noqa: B023

            asked = random.standard_normal((QUESTIONS, DIMENSIONS), dtype=np.float32).astype(np.float16)
            questions = [vectors.parse([float(each) for each in one]) for one in asked]
            right = sum(
                len({each.id for each in search(question)} & set(nearest(rows[number], one)))
                for question, one in zip(questions, asked, strict=True)
            )
            record(f"{size:,}: recall of the 10 nearest", right / (10 * QUESTIONS), least=1)
            for name, before in (("again and again", nothing), ("after others read", crowd)):
                ours, plain_ms, whole = (took(way, questions, before) for way in (half, plain, search))
                for what, times, aim in (
                    ("half precision", ours, 0.5),
                    ("vectors.search in all", whole, None),
                ):
                    what = f"{size:,}, {name}: {what}"
                    record(what, times, "ms", beside=plain_ms, name="plain vector", ratio_most=aim)


if __name__ == "__main__":
    main()
