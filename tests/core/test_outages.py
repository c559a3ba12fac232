"""Recognition of errors that mean a store is unavailable, and the answer to the client."""

from __future__ import annotations

import errno
from typing import Any

import psycopg
import pytest
import redis.exceptions
from django.contrib.sessions.backends.base import UpdateError
from django.db import DatabaseError, IntegrityError, InternalError, OperationalError
from django.test import RequestFactory

from adiuva.core.outages import OutageResponses, store_of


def wrapped(error: Exception, cause: psycopg.Error) -> Exception:
    """As Django raises the errors of psycopg."""
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "store"),
    [
        (OperationalError("the server closed the connection"), "database"),
        (wrapped(OperationalError(), psycopg.errors.DiskFull()), "database"),
        (wrapped(InternalError(), psycopg.errors.ReadOnlySqlTransaction()), "database"),
        (wrapped(InternalError(), psycopg.errors.InFailedSqlTransaction()), None),  # a mistake of ours
        (wrapped(IntegrityError(), psycopg.errors.UniqueViolation()), None),
        (DatabaseError("Save with update_fields did not affect any rows."), None),
        (redis.exceptions.ConnectionError(), "redis"),
        (redis.exceptions.TimeoutError(), "redis"),
        (redis.exceptions.ReadOnlyError("You can't write against a read only replica."), "redis"),
        (redis.exceptions.OutOfMemoryError("command not allowed"), "redis"),
        (redis.exceptions.ResponseError("MISCONF Errors writing to the AOF file"), "redis"),
        (
            redis.exceptions.ResponseError("Command # 1 (SET a b) of pipeline caused error: MISCONF no"),
            "redis",
        ),
        (redis.exceptions.ResponseError("WRONGTYPE Operation against a key MISCONF "), None),
        (OSError(errno.ENOSPC, "No space left on device"), "disk"),
        (FileNotFoundError(errno.ENOENT, "No such file"), None),
        (ValueError("no"), None),
    ],
)
def test_an_error_names_its_store(error: Exception, store: str | None) -> None:
    assert store_of(error) == store
    try:
        raise UpdateError("the session could not be saved") from error
    except UpdateError as outer:
        assert store_of(outer) == store  # also where others have wrapped it


def test_a_view_of_djangos_own_answers_as_the_endpoints_do() -> None:
    middleware: Any = OutageResponses(lambda request: None)  # type: ignore[arg-type,return-value]
    request = RequestFactory().get("/admin/")
    answer = middleware.process_exception(request, OperationalError("password of the server"))
    assert (answer.status_code, answer["Retry-After"]) == (503, "5")
    assert b'"unavailable"' in answer.content and b"password" not in answer.content
    assert middleware.process_exception(request, ValueError("a fault of ours")) is None
