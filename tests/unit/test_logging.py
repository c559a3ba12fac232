"""Failures in the log: where they happened, and nothing of what was said."""

from __future__ import annotations

from typing import Any

from structlog.testing import capture_logs

from adiuva.core.logging import log_failure


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
