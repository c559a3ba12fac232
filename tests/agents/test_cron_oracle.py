"""Ten years of slots are those that the oracle finds, in zones that do what most do and in those that did what few do.

`python -m bench.cron_oracle` asks for 400 zones.
"""

from __future__ import annotations

import datetime as dt
from itertools import takewhile
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from agents.cron import Cron
from tests.agents.cron_oracle import ODD, RULES, Rule, Stretches, bounds, slots, stretches

COMING = 2026
USUAL = [
    "UTC", "Europe/Rome", "Europe/London", "Europe/Lisbon", "Europe/Helsinki", "Europe/Chisinau", "Europe/Moscow",
    "Atlantic/Azores", "America/New_York", "America/Los_Angeles", "America/St_Johns", "America/Santiago",
    "America/Havana", "America/Nuuk", "America/Scoresbysund", "America/Miquelon", "Pacific/Easter", "Africa/Cairo",
    "Africa/Casablanca", "Asia/Beirut", "Asia/Gaza", "Asia/Jerusalem", "Asia/Kathmandu", "Asia/Kolkata",
    "Antarctica/Troll", "Australia/Lord_Howe", "Australia/Sydney", "Pacific/Auckland", "Pacific/Chatham",
    "Pacific/Norfolk",
]  # fmt: skip


def evaluated(rule: Rule, name: str, year: int) -> np.ndarray:
    """What the evaluator says, in minutes since 1970."""
    start, last = (dt.datetime.fromtimestamp(minute * 60, dt.UTC) for minute in bounds(year))
    found = takewhile(last.__ge__, Cron.parse(rule.text).after(start, ZoneInfo(name)))
    seconds = np.fromiter(map(dt.datetime.timestamp, found), np.float64)
    return seconds / 60


def differences(name: str, year: int, stays: Stretches) -> list[tuple[str, list[str]]]:
    """Rules on which the two disagree, with the first moments that only one of them has."""
    found = []
    for rule in RULES:
        ours, theirs = evaluated(rule, name, year), slots(rule, stays, year)
        if not np.array_equal(ours, theirs):
            odd = np.setxor1d(ours, theirs)[:5]
            found.append((rule.text, [f"{dt.datetime.fromtimestamp(each * 60, dt.UTC)}" for each in odd]))
    return found


class TestTheYearsToCome:
    @pytest.mark.parametrize("name", USUAL)
    def test_slots_are_the_oracles(self, name: str) -> None:
        assert differences(name, COMING, stretches(name, COMING)) == []


class TestOddYears:
    @pytest.mark.parametrize("name", ODD)
    def test_slots_are_the_oracles(self, name: str) -> None:
        assert differences(name, ODD[name], stretches(name, ODD[name])) == []
