"""Helpers of our HTTP clients."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from adiuva.core.http import BodyTooLarge, backoff_s, is_transient, read_bounded, retry_after_s

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        (" 1.5 ", 1.5),
        ("0", 0.0),
        ("99999999", 86_400.0),
        ("9" * 400, 86_400.0),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOW - timedelta(hours=1), usegmt=True), 0.0),
        ("Fri, 31 Dec 9999 23:59:59 -2359", 86_400.0),
        *[
            (nothing, None)
            for nothing in (None, "", "soon", "-5", "1e9", "inf", "nan", "٣", "Tue, 99 Foo 2026")
        ],
    ],
)
def test_retry_after_is_seconds_or_a_date_and_a_day_at_most(
    header: str | None, seconds: float | None
) -> None:
    assert retry_after_s(header, now=NOW) == seconds


def test_a_timeout_a_rate_limit_and_a_server_error_are_transient() -> None:
    assert [
        status for status in (200, 301, 400, 401, 404, 408, 425, 429, 500, 503) if is_transient(status)
    ] == [*(408, 425, 429, 500, 503)]


def test_the_backoff_doubles_up_to_its_longest() -> None:
    for attempt, longest in enumerate((0.5, 1.0, 2.0, 3.0, 3.0), 1):
        for _ in range(20):
            assert longest / 2 <= backoff_s(attempt, first_s=0.5, longest_s=3.0) <= longest


async def test_a_body_is_read_up_to_its_limit() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"abc"

    assert await read_bounded(pieces(), 9) == b"abcabcabc"
    with pytest.raises(BodyTooLarge) as too_large:
        await read_bounded(pieces(), 8)
    assert too_large.value.head == b"abcabcab"
