"""Ten years of slots are those that the oracle finds, in zones that do what most do and in those that did what few do.

`python -m bench.cron_oracle` asks for 400 zones.
"""

from __future__ import annotations

import pytest

from tests.agents.cron_comparison import COMING, differences
from tests.agents.cron_oracle import ODD, stretches
from tests.sampling import few

USUAL = [
    "UTC", "Europe/Rome", "Europe/London", "Europe/Lisbon", "Europe/Helsinki", "Europe/Chisinau", "Europe/Moscow",
    "Atlantic/Azores", "America/New_York", "America/Los_Angeles", "America/St_Johns", "America/Santiago",
    "America/Havana", "America/Nuuk", "America/Scoresbysund", "America/Miquelon", "Pacific/Easter", "Africa/Cairo",
    "Africa/Casablanca", "Asia/Beirut", "Asia/Gaza", "Asia/Jerusalem", "Asia/Kathmandu", "Asia/Kolkata",
    "Antarctica/Troll", "Australia/Lord_Howe", "Australia/Sydney", "Pacific/Auckland", "Pacific/Chatham",
    "Pacific/Norfolk",
]  # fmt: skip


class TestTheYearsToCome:
    @pytest.mark.parametrize("name", few(USUAL, 2))
    def test_slots_are_the_oracles(self, name: str) -> None:
        assert differences(name, COMING, stretches(name, COMING)) == []


class TestOddYears:
    @pytest.mark.parametrize("name", few(ODD, 2))
    def test_slots_are_the_oracles(self, name: str) -> None:
        assert differences(name, ODD[name], stretches(name, ODD[name])) == []
