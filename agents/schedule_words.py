"""Schedules in words, in the active language."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Final

from django.utils.dates import WEEKDAYS
from django.utils.formats import date_format
from django.utils.translation import gettext

from agents import schedules
from agents.models import Agent

_MACROS: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
}
_NAMES: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def describe(cron: str) -> str:
    """Return `every weekday at 08:00`; a schedule that none of our words fit is shown as it is."""
    fields = _MACROS.get(cron.strip().lower(), cron).split()
    as_it_is = gettext("at “{cron}”").format(cron=cron)
    if len(fields) != 5 or fields[2:4] != ["*", "*"] or not fields[0].isdecimal():
        return as_it_is
    minute, hour, days = fields[0], fields[1], _weekdays(fields[4])
    if hour == "*" and fields[4] == "*":
        return gettext("every hour, at minute {minute}").format(minute=int(minute))
    if not hour.isdecimal() or days is None:
        return as_it_is
    time = f"{int(hour):02}:{int(minute):02}"
    if len(days) == 7:
        return gettext("every day at {time}").format(time=time)
    if days == [0, 1, 2, 3, 4]:
        return gettext("every weekday at {time}").format(time=time)
    named = ", ".join(str(WEEKDAYS[day]) for day in days)
    return gettext("every {days} at {time}").format(days=named, time=time)


def _weekdays(field: str) -> list[int] | None:
    """Return the days of a cron field, Monday as 0; None if it is more than names, numbers and ranges."""
    if field == "*":
        return list(range(7))
    days: set[int] = set()
    for part in field.lower().split(","):
        ends = [_weekday(end) for end in part.split("-")]
        if None in ends or len(ends) > 2:
            return None
        first, last = ends[0] or 0, ends[-1] or 0
        days |= {(first + step) % 7 for step in range((last - first) % 7 + 1)}
    return sorted(days)


def _weekday(word: str) -> int | None:
    if word in _NAMES:
        return _NAMES.index(word)
    return (int(word) - 1) % 7 if word.isdecimal() and int(word) <= 7 else None


def schedule_text(agent: Agent, *, upcoming: int = 1) -> str:
    """Return `every weekday at 08:00 (Europe/Rome), next Mon 30 Nov 08:00`; "" without a schedule. Saved or not."""
    if not agent.schedule_cron:
        return ""
    said = f"{describe(agent.schedule_cron)} ({agent.zone})"
    if times := moments_text(schedules.upcoming_slots(agent, upcoming)):
        said += ", " + gettext("next {times}").format(times=times)
    return said


def moments_text(moments: Sequence[dt.datetime]) -> str:
    """Return `Mon 30 Nov 08:00, Tue 1 Dec 08:00`, each in its own zone."""
    return ", ".join(date_format(moment, "D j N H:i") for moment in moments)
