"""Dates as people write them in notes and mails. What is no date of the calendar is none."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, timedelta
from email.utils import parsedate_to_datetime

_NAMES = (
    # English, then German, French and Italian where they differ
    ("january", "jan", "januar", "jänner", "janvier", "gennaio"),
    ("february", "feb", "februar", "février", "febbraio"),
    ("march", "mar", "märz", "mars", "marzo"),
    ("april", "apr", "avril", "aprile"),
    ("may", "mai", "maggio"),
    ("june", "jun", "juni", "juin", "giugno"),
    ("july", "jul", "juli", "juillet", "luglio"),
    ("august", "aug", "août", "agosto"),
    ("september", "sep", "sept", "septembre", "settembre"),
    ("october", "oct", "oktober", "okt", "octobre", "ottobre"),
    ("november", "nov", "novembre"),
    ("december", "dec", "dezember", "dez", "décembre", "dicembre"),
)
_MONTHS = {name: number for number, names in enumerate(_NAMES, 1) for name in names}
_DAYS = {
    name: number
    for number, names in enumerate(
        (
            ("monday", "montag", "lundi", "lunedì"),
            ("tuesday", "dienstag", "mardi", "martedì"),
            ("wednesday", "mittwoch", "mercredi", "mercoledì"),
            ("thursday", "donnerstag", "jeudi", "giovedì"),
            ("friday", "freitag", "vendredi", "venerdì"),
            ("saturday", "samstag", "samedi", "sabato"),
            ("sunday", "sonntag", "dimanche", "domenica"),
        )
    )
    for name in names
}
_NEAR = {
    **dict.fromkeys(("today", "tonight", "eod", "end of day", "heute", "aujourd'hui", "oggi"), 0),
    **dict.fromkeys(("tomorrow", "morgen", "demain", "domani"), 1),
}
_EARLIEST, _LATEST = date(1970, 1, 1), date(2199, 12, 31)
_LONG_AGO = timedelta(days=90)  # a day without a year that is further back means next year's


def _any_of(names: dict[str, int]) -> str:
    return "|".join(sorted(map(re.escape, names), key=len, reverse=True))


_CALENDAR_DATE = rf"""
    (?:(?:{_any_of(_DAYS)}|mon|tue|wed|thu|fri|sat|sun)\.?,?\s{{1,3}})?(?:the\s)?
    (?: (?P<iso>\d{{4}}-\d{{2}}-\d{{2}})(?!\d)
      | (?P<dotted>\d{{1,2}}\.\d{{1,2}}\.\d{{4}})(?!\d)
      | (?P<day>\d{{1,2}})(?:st|nd|rd|th|\.)?\s{{1,3}}(?:of\s)?(?P<month>{_any_of(_MONTHS)})\b\.?
        (?:,?\s{{1,3}}(?P<year>\d{{4}})\b)?
      | (?P<month2>{_any_of(_MONTHS)})\b\.?\s{{1,3}}(?P<day2>\d{{1,2}})(?:st|nd|rd|th)?\b
        (?:,?\s{{1,3}}(?P<year2>\d{{4}})\b)?
    )
"""
_DATE = rf"""
    {_CALENDAR_DATE}
    | (?P<end>(?:the\s)?end\sof\s(?:the\s|this\s)?(?:week|month))\b
    | (?P<near>{_any_of(_NEAR)})\b
    | (?:this\s|next\s|coming\s|kommenden\s|nächsten\s)?(?P<weekday>{_any_of(_DAYS)})\b
"""
_FLAGS = re.VERBOSE | re.IGNORECASE
_ANY = re.compile(rf"(?<!\w)(?:{_DATE})", _FLAGS)
_CALENDAR = re.compile(rf"(?<!\w)(?:{_CALENDAR_DATE})", _FLAGS)
_DUE = re.compile(
    rf"""(?<!\w)
    (?: no\slater\sthan | by | until | till | due\sdate | due\son | due\sby | due | before | deadline(?:\sis)?
      | bis\szum | bis | fällig | spätestens | avant\sle | avant | pour\sle | entro\sil | entro | scadenza )
    \s{{0,3}}:?\s{{0,3}} (?:on\s|the\s|am\s|le\s|il\s)?
    (?:{_DATE})""",
    _FLAGS,
)


@dataclass(frozen=True)
class Found:
    """A date and where it stands in the text."""

    day: date
    start: int
    end: int


def due(text: str, base: date) -> Found | None:
    """The first date that a word such as "by", "until" or "due" leads to; relative ones count from `base`."""
    return _first(_DUE, text, base)


def mentioned(text: str, base: date) -> Found | None:
    """The first date in the text, with or without such a word."""
    return _first(_ANY, text, base)


def named(text: str, base: date) -> Found | None:
    """The first date in the text that names a day of the calendar: not "tomorrow", not "Friday"."""
    return _first(_CALENDAR, text, base)


def written(text: str) -> date | None:
    """The first date that is written out with its year."""
    for match in _CALENDAR.finditer(text):
        if any(match[name] for name in ("iso", "dotted", "year", "year2")):
            day = _day(match, _EARLIEST)
            if day is not None:
                return day
    return None


def of_mail(value: str) -> date | None:
    """The day of a mail's Date header."""
    try:
        return parsedate_to_datetime(value).date()
    except (ValueError, TypeError, IndexError):  # it raises each of these for some bad dates
        return None


def _first(pattern: re.Pattern[str], text: str, base: date) -> Found | None:
    for match in pattern.finditer(text):
        day = _day(match, base)
        if day is not None:
            return Found(day, match.start(), match.end())
    return None


def _day(match: re.Match[str], base: date) -> date | None:
    try:
        day = _resolve({key: value.lower() for key, value in match.groupdict().items() if value}, base)
    except (ValueError, OverflowError):  # the 31st of February
        return None
    return day if _EARLIEST <= day <= _LATEST else None


def _resolve(said: dict[str, str], base: date) -> date:
    if "iso" in said:
        return date.fromisoformat(said["iso"])
    if "dotted" in said:
        return date(*reversed([int(part) for part in said["dotted"].split(".")]))
    if "near" in said:
        return base + timedelta(days=_NEAR[said["near"]])
    if "weekday" in said:
        return base + timedelta(days=(_DAYS[said["weekday"]] - base.weekday() - 1) % 7 + 1)
    if "end" in said:
        if "week" in said["end"]:
            return base + timedelta(days=(4 - base.weekday()) % 7)
        return (base.replace(day=1) + timedelta(days=32)).replace(day=1) - timedelta(days=1)
    day, month = int(said.get("day") or said["day2"]), _MONTHS[said.get("month") or said["month2"]]
    year = said.get("year") or said.get("year2")
    if year:
        return date(int(year), month, day)
    found = date(base.year, month, day)
    return found if found >= base - _LONG_AGO else date(base.year + 1, month, day)
