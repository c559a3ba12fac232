"""Finds the span of days that a request asks about: a week, a month, the next so many days."""

from __future__ import annotations

import re
from datetime import date, timedelta

from adiuva.offline_llm import dates

_UNITS = {"day": 1, "week": 7, "month": 30}
_WORD_NUMBERS = {
    "a": 1,
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "ten": 10,
    "few": 3,
}
_NEXT_SO_MANY = re.compile(
    rf"\b(?:next|coming|within|in)\s(?:the\s)?(?:next\s)?(?P<number>\d{{1,3}}|{'|'.join(_WORD_NUMBERS)})\s"
    r"(?P<unit>day|week|month)s?\b"
)
_WEEK = re.compile(r"\b(?P<which>this|next|the|my)?\s?week(?P<end>end)?\b")
_MONTH = re.compile(r"\b(?P<which>this|next)\smonth\b")
_NAMED_MONTH = re.compile(
    rf"\b(?:in|during|this|next)\s(?P<name>{'|'.join(dates.MONTHS)})\b(?!\s\d{{1,2}}\b)"
)
_YEAR = re.compile(r"\b(?P<which>this|next)\syear\b")


def find_span(text: str, today: date) -> tuple[date, date] | None:
    """Return the first and the last day that the text asks about, or None if it names no span longer than a day."""
    said = text.casefold()
    if found := _NEXT_SO_MANY.search(said):
        number = _WORD_NUMBERS.get(found["number"]) or int(found["number"])
        return today, today + timedelta(days=number * _UNITS[found["unit"]])
    if found := _WEEK.search(said):
        monday = today - timedelta(days=today.weekday() - (7 if found["which"] == "next" else 0))
        return monday + timedelta(days=5 if found["end"] else 0), monday + timedelta(days=6)
    if found := _MONTH.search(said):
        first = today.replace(day=1)
        return _month(_after_month(first) if found["which"] == "next" else first)
    if found := _NAMED_MONTH.search(said):
        month = dates.MONTHS[found["name"]]
        return _month(date(today.year + (month < today.month), month, 1))
    if found := _YEAR.search(said):
        year = today.year + (found["which"] == "next")
        return date(year, 1, 1), date(year, 12, 31)
    return None


def _month(first: date) -> tuple[date, date]:
    return first, _after_month(first) - timedelta(days=1)


def _after_month(first: date) -> date:
    return (first + timedelta(days=32)).replace(day=1)
