"""Days as they are in the user's zone: their borders, the days on which clocks change, and what is due in them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.tools import ToolException

from adiuva.core import db
from chat.device_session import DeviceSession
from chat.tools import dates
from tests.chat.device_sessions import ConnectedDevice, call_tool, connected_device
from tests.factories import somebody

ZONES = st.sampled_from(
    [
        "Africa/Cairo",  # summer begins at midnight
        "America/Los_Angeles",
        "America/Santiago",  # and here
        "America/St_Johns",
        "Asia/Beirut",
        "Asia/Kathmandu",
        "Europe/Rome",
        "Pacific/Apia",
        "Pacific/Auckland",
        "UTC",
    ]
).map(ZoneInfo)
DAYS = st.dates(date(1990, 1, 1), date(2099, 12, 31)).filter(lambda day: day != date(2011, 12, 30))


@given(DAYS, ZONES)
def test_a_date_goes_in_and_comes_out_as_the_same_date(day: date, zone: ZoneInfo) -> None:
    said = dates.format_date(dates.parse_start_ms(day.isoformat(), zone, "due_date"), zone)
    assert said == f"{day:%a} {day.isoformat()}"


@given(DAYS, ZONES)
def test_days_follow_each_other_without_a_gap(day: date, zone: ZoneInfo) -> None:
    end = dates.day_end_ms(day, zone)
    assert end + 1 == dates.day_start_ms(day + timedelta(days=1), zone)
    assert datetime.fromtimestamp(end / 1000, zone).date() == day
    assert dates.parse_end_ms(day.isoformat(), zone, "due_to") == end


@given(st.text() | st.dates().map(str) | st.datetimes().map(str), ZONES)
def test_what_is_no_date_of_our_times_is_a_failure_in_words(text: str, zone: ZoneInfo) -> None:
    try:
        found = dates.parse_start_ms(text, zone, "due_date")
    except ToolException as failed:
        assert str(failed).startswith("Failed: due_date must be a date such as 2026-11-20")
    else:
        assert dates.format_date(found, zone) is not None


@given(st.integers(-(2**63), 2**63 - 1) | st.text() | st.booleans() | st.none() | st.floats())
def test_whatever_a_device_holds_for_a_time_is_spoken_or_not(value: object) -> None:
    said = dates.format_date(value, ZoneInfo("Europe/Rome"))
    assert said is None or re.fullmatch(r"[A-Z][a-z]{2} \d{4}-\d\d-\d\d( \d\d:\d\d)?", said)


def test_an_offset_that_is_given_counts() -> None:
    rome = ZoneInfo("Europe/Rome")
    assert (
        dates.format_date(dates.parse_start_ms("2026-11-20T14:30Z", rome, "due_date"), rome)
        == "Fri 2026-11-20 15:30"
    )
    assert (
        dates.format_date(dates.parse_start_ms("2026-11-20T14:30", rome, "due_date"), rome)
        == "Fri 2026-11-20 14:30"
    )


def test_a_time_that_clocks_skip_is_the_one_after_it() -> None:
    rome = ZoneInfo("Europe/Rome")
    assert (
        dates.format_date(dates.parse_start_ms("2026-03-29T02:30", rome, "due_date"), rome)
        == "Sun 2026-03-29 03:30"
    )


# ── Due today ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def home(web: str) -> AsyncIterator[ConnectedDevice]:
    async with connected_device(web, await db.run(somebody)) as home:
        yield home


async def due_today(session: DeviceSession) -> tuple[list[str], list[str]]:
    """The titles of what is due today, and of what is overdue."""
    said = await call_tool(session, "list_tasks", status="due")
    today, _, late = said.partition("overdue:")
    return re.findall(r"^- (\w+)", today, re.MULTILINE), re.findall(r"^- (\w+)", late, re.MULTILINE)


def border(zone: str, *day: int) -> int:
    return int(datetime(*day, tzinfo=ZoneInfo(zone)).timestamp() * 1000)  # type: ignore[misc, arg-type]


@pytest.mark.parametrize(
    ("zone", "now", "day", "next_day"),
    [
        # The same moment is Thursday in Auckland and Wednesday in Los Angeles.
        ("Pacific/Auckland", datetime(2026, 11, 19, 5, tzinfo=UTC), (2026, 11, 19), (2026, 11, 20)),
        ("America/Los_Angeles", datetime(2026, 11, 19, 5, tzinfo=UTC), (2026, 11, 18), (2026, 11, 19)),
        # Days of 25 and of 23 hours.
        ("America/Los_Angeles", datetime(2026, 11, 1, 20, tzinfo=UTC), (2026, 11, 1), (2026, 11, 2)),
        ("Pacific/Auckland", datetime(2026, 9, 27, 9, tzinfo=UTC), (2026, 9, 27), (2026, 9, 28)),
        # A day without a midnight.
        ("America/Santiago", datetime(2026, 9, 6, 15, tzinfo=UTC), (2026, 9, 6), (2026, 9, 7)),
    ],
)
async def test_what_is_due_today_ends_at_the_users_own_midnight(
    home: ConnectedDevice, zone: str, now: datetime, day: tuple[int, ...], next_day: tuple[int, ...]
) -> None:
    begin, end = border(zone, *day), border(zone, *next_day)
    home.put("tasks", title="before", dueDate=begin - 1)
    home.put("tasks", title="first", dueDate=begin)
    home.put("tasks", title="last", dueDate=end - 1, status="in_progress")
    home.put("tasks", title="after", dueDate=end)
    home.put("tasks", title="finished", dueDate=begin, status="done")
    home.put("tasks", title="undated")
    assert await due_today(home.at(zone, now)) == (["first", "last"], ["before"])


async def test_overdue_tasks_are_marked_as_such_and_nothing_due_is_said_plainly(
    home: ConnectedDevice,
) -> None:
    said = await home.use("list_tasks", status="due")
    assert said == "No tasks are due today.\nNo tasks are overdue."
    home.put("tasks", title="Call", dueDate=border("Europe/Rome", 2026, 11, 16))
    line = "- Call [t1], todo, due Mon 2026-11-16 (overdue)"
    assert await home.use("list_tasks", status="due") == f"No tasks are due today.\n1 task overdue:\n{line}"
    assert await home.use("list_tasks") == f"1 task:\n{line}"
