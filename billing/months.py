"""The month of an allowance, which begins at midnight in the user's own zone."""

from __future__ import annotations

import calendar
import datetime as dt
from dataclasses import dataclass
from zoneinfo import ZoneInfo


@dataclass(frozen=True, slots=True)
class Window:
    """A month from `starts_at` up to `ends_at`, when it is renewed; both with a zone. `days` are its dates."""

    starts_at: dt.datetime
    ends_at: dt.datetime

    @property
    def first_day(self) -> dt.date:
        return self.starts_at.date()

    @property
    def last_day(self) -> dt.date:
        return self.ends_at.date() - dt.timedelta(days=1)


def month_of(now: dt.datetime, zone: ZoneInfo, day: int = 1) -> Window:
    """Return the month around `now` that begins on a day of the calendar; in a shorter month, on its last day."""
    local = now.astimezone(zone)
    start = _midnight(local.year, local.month, day, zone)
    if start > local:
        year, month = (local.year, local.month - 1) if local.month > 1 else (local.year - 1, 12)
        return Window(_midnight(year, month, day, zone), start)
    year, month = (local.year, local.month + 1) if local.month < 12 else (local.year + 1, 1)
    return Window(start, _midnight(year, month, day, zone))


def whole_month(first_day: dt.date, zone: ZoneInfo) -> Window:
    """Return the month of the calendar that begins on this day."""
    return month_of(dt.datetime.combine(first_day, dt.time(12), zone), zone)


def _midnight(year: int, month: int, day: int, zone: ZoneInfo) -> dt.datetime:
    last = calendar.monthrange(year, month)[1]
    return dt.datetime(year, month, min(day, last), tzinfo=zone)
