"""The pool of connections: cheap while all is well, and right after the server has ended some."""

from __future__ import annotations

import asyncio
import threading
import uuid

import psycopg
import pytest
from django.db import DataError, connection
from django.test.utils import CaptureQueriesContext
from psycopg_pool import ConnectionPool

from adiuva import health
from adiuva.core import db
from adiuva.core.db import prepared_cursor


def backend() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def ask_of_connections(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The server processes whose connections are asked whether they live, from now on."""
    asked: list[int] = []
    ask = ConnectionPool.check_connection

    def noting(given: psycopg.Connection[object]) -> None:
        asked.append(given.info.backend_pid)
        ask(given)

    monkeypatch.setattr(ConnectionPool, "check_connection", noting)
    return asked


async def end_all_connections(database: str) -> set[int]:
    """More of them than the pool's own check would go through before its timeout."""
    together = threading.Barrier(6)

    def one_of_six() -> int:
        pid = backend()
        together.wait(10)
        return pid

    used = set(await asyncio.gather(*(db.run(one_of_six) for _ in range(together.parties))))
    assert len(used) == together.parties
    with psycopg.connect(database, autocommit=True) as other:
        for pid in used:
            other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    return used


async def test_a_connection_is_asked_whether_it_lives_only_if_the_server_said_something(
    committed_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ask_of_connections(monkeypatch)
    used = {await db.run(backend) for _ in range(10)}
    assert not used & set(asked)


async def test_when_the_server_has_ended_all_connections_the_first_to_come_gets_a_new_one(
    committed_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = await end_all_connections(committed_db)
    asked = ask_of_connections(monkeypatch)
    assert not ended & {await db.run(backend) for _ in range(16)}
    assert ended <= set(asked)


async def test_readiness_does_not_fail_for_connections_that_the_server_has_ended(
    committed_db: str,
) -> None:
    await end_all_connections(committed_db)
    assert {await db.run(health._database) for _ in range(16)} == {""}


def test_a_prepared_statement_is_captured_with_its_text(db: None) -> None:
    with CaptureQueriesContext(connection) as queries, prepared_cursor() as cursor:
        cursor.execute("SELECT %s::int + 1", [1])
    assert [query["sql"] for query in queries] == ["SELECT %s::int + 1"]


def test_a_prepared_statement_takes_named_parameters_in_any_order(db: None) -> None:
    with prepared_cursor() as cursor:
        cursor.execute("SELECT %(a)s::int + %(b)s::int * %(a)s::int, '100 %%'", {"b": 2, "c": 0, "a": 3})
        assert cursor.fetchone() == (9, "100 %")


def test_lists_come_to_the_database_as_they_are(db: None) -> None:
    texts = ["", "NULL", "a,b", '"', "\\", '\\"{}', " ", "zwei\nZeilen\tß", "\u2028", "😀", None]
    uuids = [uuid.UUID(int=0), None, uuid.uuid4()]
    raw = [b"", bytes(range(256)), None, b"{,}"]
    with prepared_cursor() as cursor:
        statement = "SELECT %s::text[], %s::uuid[], %s::bytea[], %s::int[]"
        for given in (
            [texts, uuids, raw, [1, None, 70_000]],
            [[], [], [], []],
            [[None], [None], [None], [None]],
        ):
            cursor.execute(statement, given)
            assert list(cursor.fetchone()) == given
        cursor.execute("SELECT %s::text[]", [[str(uuids[0])]])
        cursor.execute("SELECT %s::uuid[]", [[str(uuids[0])]])
        assert cursor.fetchone()[0] == [uuids[0]]


def test_a_text_in_a_list_that_the_database_cannot_hold_is_refused(db: None) -> None:
    with pytest.raises(DataError), prepared_cursor() as cursor:
        cursor.execute("SELECT %s::text[]", [["a", "b\x00c"]])


def test_a_statement_is_prepared_once_whether_its_lists_are_empty_or_not(db: None) -> None:
    with prepared_cursor() as cursor:
        for given in ([], [uuid.uuid4()], [None]):
            cursor.execute("SELECT 'prepared once', %s::uuid[]", [given])
        cursor.execute(
            "SELECT count(*) FROM pg_prepared_statements WHERE statement ~ '^SELECT .prepared once'"
        )
        assert cursor.fetchone() == (1,)


# Tables of Django and its applications, whose indexes are theirs.
_OF_OTHERS = ("auth_", "django_", "accounts_user_groups", "accounts_user_user_permissions")
_REDUNDANT = """
SELECT short.indrelid::regclass::text, short.indexrelid::regclass::text, long.indexrelid::regclass::text
FROM pg_index short
JOIN pg_index long ON long.indrelid = short.indrelid AND long.indexrelid <> short.indexrelid
JOIN pg_class ON pg_class.oid = short.indrelid
WHERE relnamespace = 'public'::regnamespace
  AND NOT short.indisunique AND short.indpred IS NULL AND short.indexprs IS NULL
  AND long.indpred IS NULL AND long.indexprs IS NULL
  AND starts_with(long.indclass::text || ' ', short.indclass::text || ' ')
  AND starts_with(long.indkey::text || ' ', short.indkey::text || ' ')
"""


def test_no_index_is_the_beginning_of_another(db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(_REDUNDANT)
        found = sorted(row for row in cursor.fetchall() if not row[0].startswith(_OF_OTHERS))
    assert found == []
