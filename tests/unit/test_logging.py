"""Failures in the log: where they happened, and nothing of what was said."""

from __future__ import annotations

import logging
import logging.config
from typing import Any

import orjson
import psycopg
import pytest
from structlog.testing import capture_logs

from adiuva.core.logging import HideContent, configure, count_failures, log_failure


def deep(secret: str) -> None:
    raise KeyError(secret)


def logged(error: BaseException) -> dict[str, Any]:
    with capture_logs() as entries:
        log_failure("thing.failed", error, thing_id="7")
    (entry,) = entries
    return dict(entry)


def failing(secret: str) -> Exception:
    try:
        try:
            deep(secret)
        except KeyError as cause:
            raise RuntimeError(secret) from cause
    except RuntimeError as error:
        return error
    raise AssertionError


def test_a_failure_names_the_types_and_the_lines_of_an_error_and_its_causes() -> None:
    entry = logged(failing("grüße"))
    assert entry["event"] == "thing.failed" and entry["thing_id"] == "7" and entry["log_level"] == "error"
    assert entry["error"] == "RuntimeError"
    (frame,) = entry["frames"]
    assert frame.startswith("tests/unit/test_logging.py:") and frame.endswith(" failing")
    (cause,) = entry["causes"]
    assert cause["error"] == "KeyError"
    assert [frame.rpartition(" ")[2] for frame in cause["frames"]] == ["failing", "deep"]


def test_a_failure_says_nothing_that_the_error_says() -> None:
    assert "grüße" not in repr(logged(failing("grüße")))


def test_members_of_a_group_are_named_and_circles_end() -> None:
    one, other = ValueError(), TypeError()
    one.__context__, other.__context__ = other, one
    entry = logged(ExceptionGroup("both", [one, other]))
    assert [cause["error"] for cause in entry["causes"]] == ["ValueError", "TypeError"]


def test_an_error_that_recurs_is_cut_to_its_innermost_frames() -> None:
    def recur(depth: int) -> None:
        if depth == 0:
            deep("")
        recur(depth - 1)

    try:
        recur(100)
    except KeyError as error:
        entry = logged(error)
    assert len(entry["frames"]) == 20 and entry["frames"][-1].endswith(" deep")


# ── Records of libraries ────────────────────────────────────────────────────────────────────────────────


def written(name: str, *message: Any, error: BaseException | None = None, **extra: Any) -> str:
    """A library's record as our handler writes it."""
    made = configure("INFO", as_json=True)
    formatter = logging.config.DictConfigurator(made).configure_formatter(made["formatters"]["event"])
    given = (type(error), error, error.__traceback__) if error else None
    record = logging.getLogger(name).makeRecord(
        name, logging.ERROR, __file__, 1, message[0], message[1:], given, extra=extra
    )
    assert HideContent().filter(record)
    return str(formatter.format(record))


@pytest.mark.parametrize(
    "record",
    [
        ("django.request", "%s: %s", "Internal Server Error", "/api/v1/canary"),
        ("django.security.DisallowedHost", "Invalid HTTP_HOST header: 'canary'"),
        ("celery.app.trace", "Task %(name)s[%(id)s] %(description)s: %(exc)s\n%(traceback)s",
         {"name": "agents.execute", "id": "7", "description": "failed", "exc": "canary", "traceback": "canary"}),
        ("asyncio", "Task exception was never retrieved\nfuture: <Task exception=ValueError('canary')>"),
        ("daphne.server", "Traceback (most recent call last):\n  File\nValueError: canary"),
        ("some.library", "it failed: %s", ValueError("canary")),
        ("some.library", "GET /somewhere?q=canary"),
    ],
)  # fmt: skip
def test_libraries_say_nothing_that_a_user_said(record: tuple[str, Any]) -> None:
    name, *message = record
    assert "canary" not in written(name, *message, error=failing("canary"))


def test_what_a_library_logs_names_the_error_and_its_place() -> None:
    entry = orjson.loads(
        written("celery.app.trace", "Task %(name)s failed", {"name": "x"}, error=failing("y"))
    )
    assert (entry["event"], entry["error"]) == ("Task x failed", "RuntimeError")
    assert entry["frames"][-1].endswith(" failing")


def test_the_databases_code_of_an_error_is_logged() -> None:
    assert logged(psycopg.errors.UniqueViolation("Key (email)=(canary)"))["sqlstate"] == "23505"


def test_unexpected_errors_are_counted_and_warnings_are_not() -> None:
    before = count_failures()
    log_failure("thing.failed", KeyError())
    log_failure("thing.failed", KeyError(), level="warning")
    assert count_failures() == before + 1
