"""Schedules in words, in the active language."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from django.utils.dates import WEEKDAYS
from django.utils.formats import date_format
from django.utils.translation import gettext

from agents import schedules
from agents.cron import BadCron, Cron
from agents.models import Agent


def describe(cron: str) -> str:
    """Return `every weekday at 08:00`; a schedule that none of our words fit is shown as it is."""
    as_it_is = gettext("at “{cron}”").format(cron=cron)
    try:
        schedule = Cron.parse(cron)
    except BadCron:
        return as_it_is
    if not schedule.any_day or len(schedule.months) < 12 or len(schedule.minutes) > 1:
        return as_it_is
    [minute] = schedule.minutes
    days = sorted((day - 1) % 7 for day in schedule.weekdays)  # Monday as 0
    if len(schedule.hours) == 24 and len(days) == 7:
        return gettext("every hour, at minute {minute}").format(minute=minute)
    if len(schedule.hours) > 1:
        return as_it_is
    time = f"{schedule.hours[0]:02}:{minute:02}"
    if len(days) == 7:
        return gettext("every day at {time}").format(time=time)
    if days == [0, 1, 2, 3, 4]:
        return gettext("every weekday at {time}").format(time=time)
    named = ", ".join(str(WEEKDAYS[day]) for day in days)
    return gettext("every {days} at {time}").format(days=named, time=time)


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
