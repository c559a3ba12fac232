"""The schedule's dialect and clock, against an oracle that shares no code with it: it looks at every minute."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.cron import BadCron, Cron
from tests.sampling import few

MINUTE, HOUR, DAY = dt.timedelta(minutes=1), dt.timedelta(hours=1), dt.timedelta(days=1)
Wall = dt.datetime

ZONES = [
    "UTC", "Europe/Rome", "Europe/London", "Europe/Dublin", "Europe/Lisbon", "Europe/Helsinki", "Europe/Chisinau",
    "America/New_York", "America/Los_Angeles", "America/St_Johns", "America/Havana", "America/Santiago",
    "America/Asuncion", "America/Nuuk", "America/Scoresbysund", "Atlantic/Azores", "Africa/Cairo",
    "Africa/Casablanca", "Asia/Beirut", "Asia/Gaza", "Asia/Jerusalem", "Asia/Kathmandu", "Asia/Kolkata", "Asia/Tokyo",
    "Australia/Lord_Howe", "Australia/Sydney", "Antarctica/Troll", "Pacific/Auckland", "Pacific/Chatham",
    "Pacific/Norfolk",
]  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """A schedule, and what it means: at which wall times, and whether its hour field is a wildcard."""

    text: str
    at: Callable[[Wall], bool]
    every_hour: bool = False


RULES = [
    Rule("* * * * *", lambda w: True, every_hour=True),
    Rule("30 2 * * *", lambda w: (w.hour, w.minute) == (2, 30)),
    Rule("*/15 * * * *", lambda w: w.minute % 15 == 0, every_hour=True),
    Rule("0 */2 * * *", lambda w: w.minute == 0 and w.hour % 2 == 0, every_hour=True),
    Rule("0 0-6 * * *", lambda w: w.minute == 0 and w.hour <= 6),
    Rule("5,35 1,2,3 * * sun,6", lambda w: w.minute in (5, 35) and w.hour in (1, 2, 3) and w.weekday() in (6, 5)),
    Rule("0 0 * * 7", lambda w: (w.hour, w.minute) == (0, 0) and w.weekday() == 6),
    Rule("59 23 * * *", lambda w: (w.hour, w.minute) == (23, 59)),
    Rule("10 2 28-31 mar,oct 0", lambda w: (w.hour, w.minute) == (2, 10) and w.month in (3, 10)
         and (w.day >= 28 or w.weekday() == 6)),  # the days of the month or of the week, as in POSIX
    Rule("20/20 0-23/3 * * Mon-Fri", lambda w: w.minute in (20, 40) and w.hour % 3 == 0 and w.weekday() < 5),
    Rule("@hourly", lambda w: w.minute == 0, every_hour=True),
    Rule("@daily", lambda w: (w.hour, w.minute) == (0, 0)),
]  # fmt: skip


def by_looking(rule: Rule, zone: ZoneInfo, start: dt.datetime, end: dt.datetime) -> Iterator[dt.datetime]:
    """The slots in (start, end]: each minute's wall clock is compared with the one before."""
    moment = start
    before = moment.astimezone(zone).replace(tzinfo=None)
    while moment < end:
        moment += MINUTE
        local = moment.astimezone(zone)
        wall = local.replace(tzinfo=None)
        due = rule.at(wall) and (rule.every_hour or not local.fold)
        skipped = before + MINUTE
        while skipped < wall:  # a clock put forward: what it jumped over runs now
            due = due or rule.at(skipped)
            skipped += MINUTE
        before = wall
        if due:
            yield moment


@cache
def changes(name: str) -> tuple[dt.datetime, ...]:
    """The days before clocks of a zone change, over some years."""
    zone = ZoneInfo(name)
    days = [dt.datetime(2023, 1, 1, tzinfo=dt.UTC) + DAY * number for number in range(4 * 365)]
    offsets = [day.astimezone(zone).utcoffset() for day in days]
    return tuple(day for day, now, then in zip(days, offsets, offsets[1:], strict=False) if now != then)


@pytest.mark.parametrize("place", few(range(len(ZONES)), 4), ids=ZONES.__getitem__)
def test_slots_are_those_that_looking_at_every_minute_finds(place: int) -> None:
    zone = ZoneInfo(ZONES[place])
    start_of = changes(ZONES[place])[:4] or (dt.datetime(2024, 2, 28, tzinfo=dt.UTC),)
    for number, start in enumerate(start_of):
        for step in range(3):
            rule = RULES[(place * 5 + number * 3 + step) % len(RULES)]
            begin, end = start - 3 * HOUR, start + 33 * HOUR
            found = list(islice(Cron.parse(rule.text).after(begin, zone), 5_000))
            assert [slot for slot in found if slot <= end] == list(by_looking(rule, zone, begin, end)), (
                rule.text
            )


@pytest.mark.parametrize("rule", RULES, ids=[rule.text for rule in RULES])
def test_every_rule_holds_over_both_changes_of_a_year(rule: Rule) -> None:
    zone = ZoneInfo("Europe/Rome")
    for start in (dt.datetime(2026, 3, 27, tzinfo=dt.UTC), dt.datetime(2026, 10, 23, tzinfo=dt.UTC)):
        end = start + 4 * DAY
        found = list(islice(Cron.parse(rule.text).after(start, zone), 10_000))
        assert [slot for slot in found if slot <= end] == list(by_looking(rule, zone, start, end))


def slots(text: str, zone: str, after: str, count: int) -> list[str]:
    """The next slots as local wall times with their offsets."""
    found = Cron.parse(text).after(dt.datetime.fromisoformat(after), ZoneInfo(zone))
    return [slot.astimezone(ZoneInfo(zone)).isoformat(timespec="minutes") for slot in islice(found, count)]


def test_a_time_that_does_not_exist_runs_at_the_first_minute_that_does() -> None:
    assert slots("30 2 * * *", "Europe/Rome", "2026-03-28T12:00+01:00", 2) == [
        "2026-03-29T03:00+02:00",
        "2026-03-30T02:30+02:00",
    ]


def test_a_time_that_comes_twice_runs_once_for_a_fixed_hour_and_each_time_for_a_wildcard() -> None:
    assert slots("30 2 * * *", "Europe/Rome", "2026-10-25T00:00+02:00", 2) == [
        "2026-10-25T02:30+02:00",
        "2026-10-26T02:30+01:00",
    ]
    assert slots("30 * * * *", "Europe/Rome", "2026-10-25T02:00+02:00", 3) == [
        "2026-10-25T02:30+02:00",
        "2026-10-25T02:30+01:00",
        "2026-10-25T03:30+01:00",
    ]


def test_the_29th_of_february_is_found_over_eight_years() -> None:
    assert slots("0 9 29 2 *", "UTC", "2096-03-01T00:00+00:00", 1) == ["2104-02-29T09:00+00:00"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@HOURLY", "0 * * * *"),
        ("@weekly", "0 0 * * sun"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 jan *"),
        ("@annually", "0 0 1 1 *"),
        ("0 0 * * 7", "0 0 * * 0"),
        ("0 0 * * 5-7", "0 0 * * fri,sat,sun"),
        ("0 0 1-5 JAN-mar *", "0 0 1,2,3,4,5 1,2,3 *"),
        ("10-50/20 8 * * *", "10,30,50 8 * * *"),
        ("50/5 8 * * *", "50,55 8 * * *"),
        ("  0\t8 * *  1-5 ", "0 8 * * 1-5"),
        ("0 0 * * MON-SUN", "0 0 * * 1-7"),
        ("0 0 * * sat-Sun", "0 0 * * 6,0"),
        ("0 0 * * 5-sun", "0 0 * * 5-7"),
        ("0 0 * * FRI-MON", "0 0 * * 5,6,0,1"),
        ("0 0 * * fri-tue/2", "0 0 * * 5,0,2"),
        ("0 0 * * sun-tue", "0 0 * * 0-2"),
        ("0 0 * * sun-sun", "0 0 * * 0"),
        ("0 0 1 nov-feb *", "0 0 1 11,12,1,2 *"),
        ("0 0 1 dec-jan *", "0 0 1 1,12 *"),
    ],
)
def test_two_ways_to_write_it_mean_the_same(one: str, other: str) -> None:
    assert Cron.parse(one) == Cron.parse(other)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "five fields"),
        ("* * * *", "five fields .*has 4"),
        ("* * * * * *", "five fields .*has 6"),
        ("@sometimes", "'@sometimes' is not one of @hourly"),
        ("@reboot", "is not one of"),
        ("60 * * * *", "minute: 60 is not between 0 and 59"),
        ("* 24 * * *", "hour: 24 is not between 0 and 23"),
        ("* * 0 * *", "day of month: 0 is not between 1 and 31"),
        ("* * * 13 *", "month: 13 is not between 1 and 12"),
        ("* * * * 8", "day of week: 8 is not between 0 and 7"),
        ("*/0 * * * *", "minute: a step is at least 1"),
        ("*/x * * * *", "minute: 'x' is not a step"),
        ("*/ * * * *", "minute: '' is not a step"),
        ("5-1 * * * *", "minute: 5-1 runs backwards"),
        ("* * * 11-2 *", "month: 11-2 runs backwards"),
        ("* * * 11-feb *", "month: 11-feb runs backwards"),
        ("1,,2 * * * *", "minute: '' is not a value"),
        ("-1 * * * *", "minute: '' is not a value"),
        ("1.5 * * * *", "minute: '1.5' is not a value"),
        ("* * * foo *", "month: 'foo' is not a value"),
        ("* mon * * *", "hour: 'mon' is not a value"),
        ("٣ * * * *", "minute: '٣' is not a value"),
        ("99999999999 * * * *", "is not a value"),
        ("0 0 31 2 *", "this day never comes"),
        ("0 0 31 apr,jun *", "this day never comes"),
    ],
)
def test_what_is_no_schedule_says_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(BadCron, match=says):
        Cron.parse(text)


@given(st.text("0123456789*/-,@ abcdefjlmnoprstuvy\t", max_size=30))
def test_any_text_is_a_schedule_or_is_refused(text: str) -> None:
    try:
        cron = Cron.parse(text)
    except BadCron as error:
        assert str(error)
    else:
        assert cron.next(dt.datetime(2026, 1, 1, tzinfo=dt.UTC), ZoneInfo("UTC"))


def field(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high).map(str)
    span = st.tuples(st.integers(low, high), st.integers(low, high)).map(lambda p: f"{min(p)}-{max(p)}")
    stepped = st.tuples(st.just("*") | span, st.integers(1, high)).map(lambda p: f"{p[0]}/{p[1]}")
    return st.just("*") | st.lists(number | span | stepped, min_size=1, max_size=3).map(",".join)


schedules = st.tuples(field(0, 59), field(0, 23), field(1, 28), field(1, 12), field(0, 7)).map(" ".join)


@given(schedules, st.sampled_from(ZONES), st.integers(946_684_800, 2_208_988_800))
def test_slots_only_ever_go_forward_and_start_after_the_moment(text: str, zone: str, moment: int) -> None:
    start = dt.datetime.fromtimestamp(moment, dt.UTC)
    found = list(islice(Cron.parse(text).after(start, ZoneInfo(zone)), 20))
    assert found
    assert all(earlier < later for earlier, later in zip([start, *found], found, strict=False))
    assert all(slot.second == slot.microsecond == 0 for slot in found)
