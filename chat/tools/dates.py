"""Converts dates: people and models write them in the user's time zone, the device stores milliseconds.

A date alone stands for its first moment in the user's zone, which is not always midnight.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from langchain_core.tools import ToolException

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_EARLIEST: Final = datetime(1970, 1, 2, tzinfo=UTC)
_LATEST: Final = datetime(2200, 1, 1, tzinfo=UTC)


@lru_cache(maxsize=512)
def day_start_ms(day: date, zone: ZoneInfo) -> int:
    """Return a day's first moment, in milliseconds. Where clocks skip midnight, that is the moment after the gap."""
    return int(datetime.combine(day, time(), zone).timestamp()) * 1000


def day_end_ms(day: date, zone: ZoneInfo) -> int:
    """Return a day's last millisecond."""
    return day_start_ms(day + timedelta(days=1), zone) - 1


def parse_start_ms(text: str, zone: ZoneInfo, argument: str) -> int:
    """Return an argument in milliseconds: a date, or a date and time, ISO 8601. Raises ToolException otherwise."""
    found = _parse(text, zone, argument)
    return found if isinstance(found, int) else day_start_ms(found, zone)


def parse_end_ms(text: str, zone: ZoneInfo, argument: str) -> int:
    """Return what `parse_start_ms` does, for the end of a span: a date includes the whole day."""
    found = _parse(text, zone, argument)
    return found if isinstance(found, int) else day_end_ms(found, zone)


def format_date(value: object, zone: ZoneInfo) -> str | None:
    """Return `Fri 2026-11-20`, with the time unless it is the day's first moment; None if `value` is no valid time."""
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    try:
        when = datetime.fromtimestamp(value // 1000, zone)
    except (ValueError, OverflowError, OSError):
        return None
    day = f"{_DAYS[when.weekday()]} {when.date().isoformat()}"
    if (when.hour == when.minute == 0) or value == day_start_ms(when.date(), zone):
        return day
    return f"{day} {when.hour:02}:{when.minute:02}"


def _parse(text: str, zone: ZoneInfo, argument: str) -> date | int:
    """Return a date, or a date and time in milliseconds. A time without offset is in the user's zone."""
    text = text.strip()
    try:
        when = datetime.fromisoformat(text)
        local = when if when.tzinfo else when.replace(tzinfo=zone)
        if not _EARLIEST <= local <= _LATEST:
            raise ValueError
    except (ValueError, OverflowError):
        raise ToolException(
            f"Failed: {argument} must be a date such as 2026-11-20 or a date and time such as 2026-11-20T14:30,"
            " in the user's time zone."
        ) from None
    if _is_date(text):
        return when.date()
    return int(local.timestamp() * 1000)


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True
