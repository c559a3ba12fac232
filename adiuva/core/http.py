"""Helpers of our HTTP clients: Retry-After, bounded bodies, backoff, and which statuses are worth a retry."""

from __future__ import annotations

import datetime as dt
import random
import re
from collections.abc import AsyncIterable
from email.utils import parsedate_to_datetime
from typing import Final

# A longer Retry-After is read as a day.
LONGEST_RETRY_AFTER_S: Final = 86_400.0

_SECONDS: Final = re.compile(r"\d+(\.\d+)?", re.ASCII)


class BodyTooLarge(Exception):
    """Error for a body larger than its limit. `head` holds its first bytes."""

    def __init__(self, head: bytes) -> None:
        super().__init__()
        self.head = head


def retry_after_s(value: str | None, *, now: dt.datetime | None = None) -> float | None:
    """Return the seconds of a Retry-After header, which is a number or an HTTP date (RFC 9110, 10.2.3).

    From 0 to LONGEST_RETRY_AFTER_S; None if there is no header or it is neither.
    """
    value = (value or "").strip()
    if _SECONDS.fullmatch(value):
        # A number with some hundred digits becomes infinity, and then a day.
        return min(float(value), LONGEST_RETRY_AFTER_S)
    try:
        date = parsedate_to_datetime(value)
        seconds = (
            date.replace(tzinfo=date.tzinfo or dt.UTC) - (now or dt.datetime.now(dt.UTC))
        ).total_seconds()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return max(0.0, min(seconds, LONGEST_RETRY_AFTER_S))


def is_transient(status: int) -> bool:
    """Return whether the same request may succeed later."""
    return status in {408, 425, 429} or status >= 500


def backoff_s(attempt: int, *, first_s: float, longest_s: float) -> float:
    """Return the pause before a retry: doubled with each failed attempt (the first is 1), with jitter to a half."""
    return min(longest_s, first_s * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0)


async def read_bounded(pieces: AsyncIterable[bytes], max_bytes: int) -> bytes:
    """Read a whole body. Raises BodyTooLarge as soon as it passes the limit."""
    body = bytearray()
    async for piece in pieces:
        body += piece
        if len(body) > max_bytes:
            raise BodyTooLarge(bytes(body[:max_bytes]))
    return bytes(body)
