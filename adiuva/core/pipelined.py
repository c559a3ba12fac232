"""Statements that PostgreSQL gets together: one way there and back, where each would take its own, and so would BEGIN
and COMMIT.

    with pipelined() as pipeline:
        pipeline.add(_LOCK, {"id": conversation})
        stored = pipeline.add(_STORE, values)
        pipeline.commit()
        told = pipeline.add(_READ, [user])
    stored.fetchone()

What is added up to a `commit`, or up to the end, is one transaction: all of it is stored, or nothing. Each statement
sees what was committed before it began, so one behind a lock sees what whoever held the lock has committed. Results are
there at the end. Within `transaction.atomic`, all belongs to that transaction.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import psycopg
from django.db import connection, transaction
from psycopg.pq import PipelineStatus

from adiuva.core.db import Parameters, PreparedCursor


class Pipeline:
    """Statements that are to be sent together."""

    def __init__(self, database: psycopg.Connection[Any]) -> None:
        self._database = database
        # None stands for a commit.
        self._added: list[tuple[PreparedCursor, str, Parameters] | None] = []

    def add(self, statement: str, parameters: Parameters) -> psycopg.RawCursor[Any]:
        """Add a statement, written as for `prepared_cursor`. The returned cursor has its rows once all were sent."""
        cursor = PreparedCursor(self._database)
        self._added.append((cursor, statement, parameters))
        return cursor

    def commit(self) -> None:
        """Have what was added so far committed before what follows begins."""
        self._added.append(None)

    def send(self) -> None:
        """Send all, and wait for the results."""
        # Before the pipeline, which would send and commit what precedes a value that cannot be written.
        queries = [each and each[0].converted(*each[1:]) for each in self._added]
        with self._database.pipeline() as pipeline:
            for each, query in zip(self._added, queries, strict=True):
                if each is None or query is None:
                    pipeline._enqueue_sync()  # `sync` would wait for the results
                else:
                    cursor, statement, parameters = each
                    with _logged(cursor, statement, parameters):
                        cursor.enqueue(query)


def _logged(cursor: PreparedCursor, statement: str, parameters: Parameters) -> AbstractContextManager[None]:
    """Return what puts a statement into `connection.queries` if Django logs queries, without the time it takes."""
    if not connection.queries_logged:
        return nullcontext()
    return connection.make_debug_cursor(cursor).debug_sql(statement, parameters)  # type: ignore[arg-type]


@contextmanager
def pipelined() -> Iterator[Pipeline]:
    """Send what is added within the context at its end. Raises what a cursor of Django's would raise."""
    connection.ensure_connection()
    database: psycopg.Connection[Any] = connection.connection
    pipeline = Pipeline(database)
    yield pipeline
    with (
        transaction.atomic() if connection.in_atomic_block else nullcontext(),
        connection.wrap_database_errors,
    ):
        try:
            pipeline.send()
        except psycopg.Error:
            # A commit that fails may leave results that nobody has read: then the connection is of no more use.
            if database.pgconn.pipeline_status != PipelineStatus.OFF:
                database.close()
            raise
        except IndexError as error:
            # For such a commit there is one result more than psycopg waits for, if it arrives with those before it.
            database.close()
            raise psycopg.OperationalError("a commit in a pipeline has failed") from error
