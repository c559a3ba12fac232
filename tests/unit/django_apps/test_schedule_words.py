"""A schedule in words names exactly the days and the time at which it is due."""

from __future__ import annotations

from itertools import product

import pytest
from django.utils.dates import WEEKDAYS

from agents.cron import Cron
from agents.schedule_words import describe

NAMES = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
ENDS = [*map(str, range(8)), *NAMES]


def days_in_words(cron: str) -> set[int]:
    """The days that the words name, Sunday as 0."""
    said = describe(cron).removeprefix("every ").removesuffix(" at 08:00")
    if said in ("day", "weekday"):
        return set(range(7)) if said == "day" else set(range(1, 6))
    return {(day + 1) % 7 for day, name in WEEKDAYS.items() if str(name) in said.split(", ")}


@pytest.mark.parametrize("separator", ["-", ","])
def test_the_words_name_the_days_of_the_schedule(separator: str) -> None:
    for first, last in product(ENDS, ENDS):
        cron = f"0 8 * * {first}{separator}{last}"
        try:
            due = Cron.parse(cron).weekdays
        except ValueError:  # a range that ends before it begins
            assert describe(cron) == f"at “{cron}”"
            continue
        assert days_in_words(cron) == due, cron


@pytest.mark.parametrize(
    ("cron", "words"),
    [
        ("0 8 * * 1-5", "every weekday at 08:00"),
        ("5 18 * * *", "every day at 18:05"),
        ("5 18 * * mon,5", "every Monday, Friday at 18:05"),
        ("0 8 * * */2", "every Tuesday, Thursday, Saturday, Sunday at 08:00"),
        ("15 * * * *", "every hour, at minute 15"),
        ("@hourly", "every hour, at minute 0"),
        ("@Weekly", "every Sunday at 00:00"),
        ("0 8 1 * *", "at “0 8 1 * *”"),
        ("0 8 * 1 *", "at “0 8 * 1 *”"),
        ("0 8,9 * * *", "at “0 8,9 * * *”"),
        ("*/5 8 * * *", "at “*/5 8 * * *”"),
        ("0 * * * 1", "at “0 * * * 1”"),
        ("@monthly", "at “@monthly”"),
        ("nonsense", "at “nonsense”"),
    ],
)
def test_a_schedule_in_words(cron: str, words: str) -> None:
    assert describe(cron) == words
