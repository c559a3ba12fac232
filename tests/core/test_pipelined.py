"""Statements that are sent together: one transaction up to each commit, and a connection that works on after errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext

from adiuva.core.pipelined import pipelined

_LOCK = "SELECT body FROM pipelined_test WHERE id = %s FOR UPDATE"
_STORE = "INSERT INTO pipelined_test VALUES (%s, %s, %s) RETURNING id"
_BODIES = "SELECT body FROM pipelined_test ORDER BY id"


@pytest.fixture(autouse=True)
def table(committed_db: str) -> Iterator[None]:
    """A table of which a row's neighbour must exist once the row is committed."""
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS pipelined_test")
        cursor.execute(
            "CREATE TABLE pipelined_test (id bigint PRIMARY KEY, body text, "
            "neighbour bigint REFERENCES pipelined_test DEFERRABLE INITIALLY DEFERRED)"
        )
    yield
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE pipelined_test")


def bodies() -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute(_BODIES)
        return [body for (body,) in cursor.fetchall()]


def test_results_are_there_at_the_end() -> None:
    for number in range(2):  # the second time all statements are prepared
        with pipelined() as pipeline:
            stored = pipeline.add(_STORE, [number, "a", None])
            pipeline.commit()
            found = pipeline.add("SELECT count(*) FROM pipelined_test WHERE body = %(body)s", {"body": "a"})
        assert stored.fetchone() == (number,)
        assert found.fetchone() == (number + 1,)


def test_statements_are_among_those_that_django_logs() -> None:
    with CaptureQueriesContext(connection) as logged, pipelined() as pipeline:
        pipeline.add(_STORE, [1, "a", None])
        pipeline.commit()
        pipeline.add(_BODIES, [])
    assert [each["sql"] for each in logged] == [_STORE, _BODIES]


def test_all_up_to_a_commit_is_stored_or_nothing() -> None:
    with pytest.raises(IntegrityError), pipelined() as pipeline:
        pipeline.add(_STORE, [1, "a", None])
        pipeline.commit()
        pipeline.add(_STORE, [2, "b", None])
        pipeline.add(_STORE, [1, "again", None])
        pipeline.add(_STORE, [3, "c", None])
    assert bodies() == ["a"]


def test_a_value_that_cannot_be_written_stores_nothing_at_all() -> None:
    with pytest.raises(DatabaseError), pipelined() as pipeline:
        pipeline.add(_STORE, [1, "a", None])
        pipeline.commit()
        pipeline.add(_STORE, [2, "b", None])
        pipeline.add(_STORE, [3, "a\0b", None])
    assert bodies() == []


def test_a_commit_that_fails_is_told_and_stores_nothing() -> None:
    for _ in range(20):  # results arrive one by one or together
        with pytest.raises(DatabaseError), pipelined() as pipeline:
            pipeline.add(_STORE, [1, "a", 7])
            pipeline.commit()
            pipeline.add(_BODIES, [])
        connection.close()  # as after each piece of work
        assert bodies() == []


def test_nothing_is_sent_after_an_error_of_the_callers() -> None:
    with pytest.raises(ZeroDivisionError), pipelined() as pipeline:
        pipeline.add(_STORE, [1, "a", None])
        raise ZeroDivisionError
    assert bodies() == []


def test_within_a_transaction_all_belongs_to_it() -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        with pipelined() as pipeline:
            pipeline.add(_STORE, [1, "a", None])
            pipeline.commit()
        with pytest.raises(IntegrityError), pipelined() as pipeline:
            pipeline.add(_STORE, [1, "a", None])
        assert bodies() == ["a"]
        raise ZeroDivisionError
    assert bodies() == []


def test_what_comes_behind_a_lock_sees_what_its_holder_has_committed() -> None:
    with pipelined() as pipeline:
        pipeline.add(_STORE, [1, "locked", None])
    locked = threading.Event()

    def hold() -> None:
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute(_LOCK, [1])
                cursor.execute(_STORE, [2, "meanwhile", None])
                locked.set()
                time.sleep(0.2)  # until the other waits
        finally:
            connection.close()

    holder = threading.Thread(target=hold)
    holder.start()
    assert locked.wait(10)
    with pipelined() as pipeline:
        pipeline.add(_LOCK, [1])
        found = pipeline.add(_BODIES, [])
    holder.join()
    assert found.fetchall() == [("locked",), ("meanwhile",)]
