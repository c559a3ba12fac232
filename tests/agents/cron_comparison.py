"""Slots of agents.cron beside those of the oracle."""

from __future__ import annotations

import datetime as dt
from itertools import takewhile
from zoneinfo import ZoneInfo

import numpy as np

from agents.cron import Cron
from tests.agents.cron_oracle import RULES, Rule, Stretches, bounds, slots

COMING = 2026  # the first of the ten years to come


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
