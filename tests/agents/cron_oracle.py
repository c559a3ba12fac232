"""An oracle for schedules: works out their meaning in another way than agents.cron, and imports nothing of it.

Here a rule is no text that is parsed but a predicate over wall clock readings, applied to every minute of ten years at
once; a zone is the list of its offsets, found by asking for its time every six hours and searching for each change; and
the slots are what of the wall's minutes each stretch of constant offset shows. The evaluator instead goes from day to
day and asks the zone about single local times.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

YEARS = 10
DAY = 24 * 60
_PROBE = (
    6 * 60
)  # minutes between two looks at a zone's clock; it does not change and change back in that time
Flags = NDArray[np.bool_]
Minutes = NDArray[np.int64]  # since 1970; by the wall's clock or by UTC's
Stretches = tuple[tuple[int, int, int], ...]  # from, to (UTC, minutes) and the offset between them


@dataclass(frozen=True)
class Wall:
    """What the wall's clock and calendar show at each of many minutes."""

    minute: NDArray[np.int8]
    hour: NDArray[np.int8]
    day: NDArray[np.int8]
    month: NDArray[np.int8]
    weekday: NDArray[np.int8]  # 0 is Monday

    def at(self, hour: int, minute: int) -> Flags:
        return (self.hour == hour) & (self.minute == minute)


@dataclass(frozen=True)
class Rule:
    """A schedule, and at which readings of the clock it is due. Whether a reading that comes twice counts twice."""

    text: str
    due: Callable[[Wall], Flags]
    each_time: bool = False


def _among(values: NDArray[np.int8], *wanted: int) -> Flags:
    return np.isin(values, wanted)


RULES = (
    Rule("30 2 * * *", lambda w: w.at(2, 30)),
    Rule("0 * * * *", lambda w: w.minute == 0, each_time=True),
    Rule("@daily", lambda w: w.at(0, 0)),
    Rule("1 0 * * *", lambda w: w.at(0, 1)),
    Rule("59 23 * * *", lambda w: w.at(23, 59)),
    Rule("*/30 */6 * * *", lambda w: (w.minute % 30 == 0) & (w.hour % 6 == 0), each_time=True),
    Rule("0,45 * * 3,4,10,11 6,7", lambda w: _among(w.minute, 0, 45) & _among(w.month, 3, 4, 10, 11)
         & (w.weekday >= 5), each_time=True),
    Rule("5,35 1,2,3 * * sun,6", lambda w: _among(w.minute, 5, 35) & _among(w.hour, 1, 2, 3) & (w.weekday >= 5)),
    Rule("0 0 * * 7", lambda w: w.at(0, 0) & (w.weekday == 6)),
    Rule("10 2 28-31 mar,oct 0", lambda w: w.at(2, 10) & _among(w.month, 3, 10) & ((w.day >= 28) | (w.weekday == 6))),
    Rule("20/20 0-23/6 * * Thu-Sat", lambda w: _among(w.minute, 20, 40) & (w.hour % 6 == 0)
         & _among(w.weekday, 3, 4, 5)),
    Rule("0 9 * * 1-5", lambda w: w.at(9, 0) & (w.weekday < 5)),
    Rule("@monthly", lambda w: w.at(0, 0) & (w.day == 1)),
    Rule("@yearly", lambda w: w.at(0, 0) & (w.day == 1) & (w.month == 1)),
    Rule("0 0 29 2 *", lambda w: w.at(0, 0) & (w.day == 29) & (w.month == 2)),
    Rule("0 12 13 * 5", lambda w: w.at(12, 0) & ((w.day == 13) | (w.weekday == 4))),
    Rule("0 4 */10 * mon", lambda w: w.at(4, 0) & (_among(w.day, 1, 11, 21, 31) | (w.weekday == 0))),
    Rule("0 0-3 */2 * *", lambda w: (w.minute == 0) & (w.hour <= 3) & (w.day % 2 == 1)),
    Rule("*/10 2 * 3,4,9-11 *", lambda w: (w.minute % 10 == 0) & (w.hour == 2) & _among(w.month, 3, 4, 9, 10, 11)),
    Rule("*/15 23,0 * * fri,sat", lambda w: (w.minute % 15 == 0) & _among(w.hour, 23, 0) & _among(w.weekday, 4, 5)),
)  # fmt: skip

# Zones whose clocks did something rare, with the year from which ten are looked at.
ODD = {
    "Pacific/Apia": 2005,  # 30 December 2011 did not come
    "Pacific/Fakaofo": 2005,  # the same
    "Pacific/Kwajalein": 1988,  # 21 August 1993 did not come
    "Pacific/Kiritimati": 1988,  # 31 December 1994 did not come
    "America/St_Johns": 2002,  # changed at one minute past midnight
    "Asia/Gaza": 2008,  # the same, and at midnight
    "Antarctica/Casey": 2012,  # by two and three hours, also at one minute past midnight
    "Antarctica/Troll": 2018,  # by two hours
    "Australia/Lord_Howe": 2018,  # by half an hour
    "Antarctica/Macquarie": 2004,
    "Africa/Casablanca": 2012,  # four times a year, around Ramadan
    "Africa/El_Aaiun": 2026,
    "Africa/Cairo": 2006,  # four times a year
    "America/Sao_Paulo": 2012,  # midnight did not come
    "America/Asuncion": 2015,
    "America/Havana": 2010,
    "America/Nuuk": 2018,
    "America/Scoresbysund": 2018,
    "America/Caracas": 2006,  # half an hour back, and forth again
    "America/Argentina/San_Luis": 2003,
    "Asia/Amman": 2012,
    "Asia/Dhaka": 2004,  # the last hour of 2009 came twice
    "Asia/Kathmandu": 1982,  # a quarter of an hour
    "Asia/Pyongyang": 2012,
    "Asia/Tehran": 2014,
    "Asia/Beirut": 2018,
    "Europe/Dublin": 2020,  # its winter is its daylight saving time
    "Europe/Istanbul": 2010,
    "Europe/Volgograd": 2012,
    "Africa/Juba": 2015,
}


@cache
def _calendar(year: int) -> tuple[int, Wall]:
    """The wall's clock over ten years and a few days around them: its first minute, and what it shows."""
    first = np.datetime64(f"{year}-01-01", "m") - np.timedelta64(3 * DAY, "m")
    last = np.datetime64(f"{year + YEARS}-01-01", "m") + np.timedelta64(3 * DAY, "m")
    days = np.arange(first, last, DAY).astype("datetime64[D]")
    months = days.astype("datetime64[M]")

    def all_day(values: NDArray[np.int64]) -> NDArray[np.int8]:
        return np.repeat(values.astype(np.int8), DAY)

    of_day = np.arange(DAY)
    return int(first.astype(np.int64)), Wall(
        minute=np.tile((of_day % 60).astype(np.int8), len(days)),
        hour=np.tile((of_day // 60).astype(np.int8), len(days)),
        day=all_day((days - months).astype(np.int64) + 1),
        month=all_day(months.astype(np.int64) % 12 + 1),
        weekday=all_day((days.astype(np.int64) + 3) % 7),  # 1 January 1970 was a Thursday
    )


@cache
def _readings(rule: Rule, year: int) -> Minutes:
    """The wall's minutes at which a rule is due."""
    first, wall = _calendar(year)
    return first + np.flatnonzero(rule.due(wall))


def _offset(zone: ZoneInfo, minute: int) -> int:
    offset = dt.datetime.fromtimestamp(minute * 60, zone).utcoffset()
    assert offset is not None and offset % dt.timedelta(minutes=1) == dt.timedelta(0)
    return offset // dt.timedelta(minutes=1)


def bounds(year: int) -> tuple[int, int]:
    """The first and the last minute of ten years, by UTC."""
    first, last = (dt.datetime(each, 1, 1, tzinfo=dt.UTC) for each in (year, year + YEARS))
    return int(first.timestamp()) // 60, int(last.timestamp()) // 60


def stretches(name: str, year: int) -> Stretches:
    """Where a zone's offset stays as it is, from a day before the ten years on."""
    zone = ZoneInfo(name)
    start, end = bounds(year)
    start -= DAY
    found: list[tuple[int, int]] = [(start, _offset(zone, start))]
    for probe in range(start + _PROBE, end + _PROBE, _PROBE):
        now = _offset(zone, probe)
        if now == found[-1][1]:
            continue
        before, after = probe - _PROBE, probe
        while after - before > 1:
            middle = (before + after) // 2
            if _offset(zone, middle) == now:
                after = middle
            else:
                before = middle
        found.append((after, now))
    ends = [minute for minute, _ in found[1:]] + [end + 1]
    return tuple((begin, stop, offset) for (begin, offset), stop in zip(found, ends, strict=True))


def slots(rule: Rule, stays: Stretches, year: int) -> Minutes:
    """When a rule is due where the clock does this, after the first and up to the last minute of ten years, by UTC."""
    readings = _readings(rule, year)

    def between(low: int, high: int) -> Minutes:
        return readings[np.searchsorted(readings, low) : np.searchsorted(readings, high)]

    def each() -> Iterator[Minutes]:
        shown = None  # up to which reading the wall's clock has come so far
        for begin, end, offset in stays:
            low, high = begin + offset, end + offset
            if shown is not None and low > shown and len(between(shown, low)):
                yield np.array([begin])  # what was jumped over
            seen = low if shown is None or rule.each_time else shown
            yield between(max(low, seen), high) - offset
            shown = high if shown is None else max(high, shown)

    start, last = bounds(year)
    found = np.unique(np.concatenate(list(each())))
    return found[(found > start) & (found <= last)]
