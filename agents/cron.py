"""Cron schedules: parser and evaluator of one dialect.

Five fields (minute hour day-of-month month day-of-week) with names, lists, ranges and steps, and `@hourly`, `@daily`
and friends. Ranges of names may run past the end of the week or year, as FRI-MON and NOV-FEB do. As in POSIX crontab, a
day matches by either day field when both are restricted; only a plain `*` is not.
Times are local to an IANA zone: one that does not exist (a clock put forward) runs at the first minute that does; one
that comes twice runs once, the first time, when the hour field is fixed, and each time when it is a wildcard (it begins
with `*`, as `*/2` does).
"""

from __future__ import annotations

import datetime as dt
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final, Literal
from zoneinfo import ZoneInfo

from adiuva.core.errors import Text

_NICKNAMES: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_MONTHS: Final = {
    "jan": 1, "feb": 2, "mar": 3, "apr": 4, "may": 5, "jun": 6,
    "jul": 7, "aug": 8, "sep": 9, "oct": 10, "nov": 11, "dec": 12,
}  # fmt: skip
_DAYS: Final = {"sun": 0, "mon": 1, "tue": 2, "wed": 3, "thu": 4, "fri": 5, "sat": 6}
_MOST_DAYS_IN: Final = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_MINUTE: Final = dt.timedelta(minutes=1)
_DAY: Final = dt.timedelta(days=1)
_MIDNIGHT: Final = dt.time()
_MIDNIGHT_AGAIN: Final = dt.time(fold=1)
_HORIZON: Final = 366 * 9 * _DAY  # 29 February may be eight years away
_LAST_DAY: Final = dt.date(9990, 1, 1)


class BadCron(ValueError):
    """The schedule is not valid. `problem` says which field is wrong, and why."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


@dataclass(frozen=True)
class _Field:
    name: str
    least: int
    most: int
    names: Mapping[str, int]

    @property
    def count(self) -> int:
        """The number of values: Sunday is both 0 and 7."""
        return 7 if self.names is _DAYS else self.most - self.least + 1


_FIELDS: Final = (
    _Field("minute", 0, 59, {}),
    _Field("hour", 0, 23, {}),
    _Field("day of month", 1, 31, {}),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of week", 0, 7, _DAYS),
)


@dataclass(frozen=True)
class Cron:
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]  # 0 is Sunday
    any_hour: bool
    any_day: bool
    any_weekday: bool

    @classmethod
    def parse(cls, text: str) -> Cron:
        """Parse a schedule. Raises BadCron."""
        text = text.strip()
        if text.startswith("@"):
            if text.lower() not in _NICKNAMES:
                raise BadCron(
                    Text("{given} is not one of {names}", given=repr(text[:50]), names=", ".join(_NICKNAMES))
                )
            text = _NICKNAMES[text.lower()]
        words = text.split()
        if len(words) != len(_FIELDS):
            raise BadCron(
                Text(
                    "a schedule has five fields (minute hour day month weekday), this one has {count}",
                    count=len(words),
                )
            )
        sets = [_values(word, field) for word, field in zip(words, _FIELDS, strict=True)]
        cron = cls(
            minutes=tuple(sorted(sets[0])),
            hours=tuple(sorted(sets[1])),
            days=frozenset(sets[2]),
            months=frozenset(sets[3]),
            weekdays=frozenset(day % 7 for day in sets[4]),
            any_hour=words[1].startswith("*"),
            any_day=words[2] == "*",
            any_weekday=words[4] == "*",
        )
        if cron.any_weekday and all(min(cron.days) > _MOST_DAYS_IN[month - 1] for month in cron.months):
            raise BadCron("this day never comes in these months")
        return cron

    def after(self, moment: dt.datetime, zone: ZoneInfo) -> Iterator[dt.datetime]:
        """Yield the slots after a moment, in order, in UTC. Ends if there is none for nine years."""
        # Start a day earlier, because a clock change may have moved a slot of the day before.
        day = moment.astimezone(zone).date() - _DAY
        until = day + _HORIZON
        moved: set[dt.datetime] = set()  # slots of yesterday that come today
        while day < until and day < _LAST_DAY:
            matches = self._matches(day)
            if not matches and not moved:
                month_over = day.month not in self.months
                day = (day.replace(day=1) + 31 * _DAY).replace(day=1) if month_over else day + _DAY
                continue
            start = None if moved else _start(day, zone)
            if start is not None:
                slots = [start + time for time in self._times[bisect_right(self._times, moment - start) :]]
            else:
                found = moved | self._walk(day, zone) if matches else moved
                tomorrow = _instants(dt.datetime.combine(day + _DAY, _MIDNIGHT), zone)[0]
                moved = {slot for slot in found if slot >= tomorrow}
                slots = sorted(slot for slot in found - moved if slot > moment)
            if slots:
                until = day + _HORIZON
                yield from slots
            day += _DAY

    def next(self, moment: dt.datetime, zone: ZoneInfo) -> dt.datetime | None:
        """Return the first slot after a moment, in UTC."""
        return next(self.after(moment, zone), None)

    def _matches(self, day: dt.date) -> bool:
        if day.month not in self.months:
            return False
        by_day, by_weekday = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        if self.any_day or self.any_weekday:
            return by_day and by_weekday
        return by_day or by_weekday

    @cached_property
    def _times(self) -> tuple[dt.timedelta, ...]:
        """The times of a day, in order."""
        return tuple(
            dt.timedelta(hours=hour, minutes=minute) for hour in self.hours for minute in self.minutes
        )

    def _walk(self, day: dt.date, zone: ZoneInfo) -> set[dt.datetime]:
        """Return the slots of a day, time by time: slow, and only needed when the clock changes."""
        found: set[dt.datetime] = set()
        for time in self._times:
            first, second = _instants(dt.datetime.combine(day, _MIDNIGHT) + time, zone)
            found.add(first)
            if self.any_hour:
                found.add(second)
        return found


# Enough for years of days; agents of one zone share them.
@lru_cache(8_192)
def _start(day: dt.date, zone: ZoneInfo) -> dt.datetime | None:
    """Return when a day begins, in UTC; None if the clock changes in it."""
    combine, tomorrow = dt.datetime.combine, day + _DAY
    offset = combine(day, _MIDNIGHT, zone).utcoffset()
    night, once_more = combine(tomorrow, _MIDNIGHT, zone), combine(tomorrow, _MIDNIGHT_AGAIN, zone)
    if offset is not None and offset == night.utcoffset() == once_more.utcoffset():
        return combine(day, _MIDNIGHT, dt.UTC) - offset
    return None


def _instants(local: dt.datetime, zone: ZoneInfo) -> tuple[dt.datetime, dt.datetime]:
    """Return the one or two moments (UTC) at which clocks of the zone show a time; the end of the gap if none do."""
    first = local.replace(tzinfo=zone, fold=0)
    before, after = first.utcoffset(), local.replace(tzinfo=zone, fold=1).utcoffset()
    assert before is not None and after is not None
    early, late = (local - before).replace(tzinfo=dt.UTC), (local - after).replace(tzinfo=dt.UTC)
    if before >= after:
        return early, late  # once, or twice
    # In a gap, which is as long as the time from `late` to `early`: its end is between them.
    while early - late > _MINUTE:
        middle = late + (early - late) // _MINUTE // 2 * _MINUTE
        if middle.astimezone(zone).replace(tzinfo=None) > local:
            early = middle
        else:
            late = middle
    return early, early


def _values(word: str, field: _Field) -> set[int]:
    found: set[int] = set()
    for item in word.split(","):
        span, slash, step_text = item.partition("/")
        step = _number(step_text, field, "step") if slash else 1
        if step < 1:
            raise BadCron(Text("{field}: a step is at least 1", field=field.name))
        if span == "*":
            low, high = field.least, field.most if field.name != "day of week" else 6
        else:
            start, dash, end = span.partition("-")
            low = _value(start, field)
            high = _value(end, field) if dash else (field.most if slash else low)
            if high < low:
                high = _past_the_end(span, high, field)
        found.update(
            (value - field.least) % field.count + field.least for value in range(low, high + 1, step)
        )
    return found


def _past_the_end(span: str, high: int, field: _Field) -> int:
    """Return the end of a range of names that runs past the end of the week or year: 8 for the Monday of FRI-MON.

    Sunday at the end of a range is 7. Raises BadCron for a range of numbers, where it is more likely a mistake.
    """
    start, _, end = span.lower().partition("-")
    if end != "sun" and not {start, end} <= field.names.keys():
        raise BadCron(Text("{field}: {span} runs backwards", field=field.name, span=span))
    return high + field.count


def _value(text: str, field: _Field) -> int:
    named = field.names.get(text.lower())
    value = named if named is not None else _number(text, field, "value")
    if not field.least <= value <= field.most:
        raise BadCron(
            Text(
                "{field}: {given} is not between {least} and {most}",
                field=field.name,
                given=value,
                least=field.least,
                most=field.most,
            )
        )
    return value


def _number(text: str, field: _Field, what: Literal["step", "value"]) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 4):
        given = repr(text[:20])
        raise BadCron(
            Text("{field}: {given} is not a step", field=field.name, given=given)
            if what == "step"
            else Text("{field}: {given} is not a value", field=field.name, given=given)
        )
    return int(text)
