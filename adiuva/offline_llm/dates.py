"""Finds dates as people write them in notes and mails. Impossible dates (31 February) are ignored."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, timedelta
from email.utils import parsedate_to_datetime

_MONTH_NAMES = (
    # English first, then German, French and Italian where they differ
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
MONTHS = {name: number for number, names in enumerate(_MONTH_NAMES, 1) for name in names}
_WEEKDAYS = {
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
_RELATIVE_DAYS = {
    **dict.fromkeys(("today", "tonight", "eod", "end of day", "heute", "aujourd'hui", "oggi"), 0),
    **dict.fromkeys(("tomorrow", "morgen", "demain", "domani"), 1),
}
_EARLIEST, _LATEST = date(1970, 1, 1), date(2199, 12, 31)
# A date without a year is one of the next year if in this year it lies further back than this.
_MAX_PAST = timedelta(days=90)


def _any_of(names: dict[str, int]) -> str:
    return "|".join(sorted(map(re.escape, names), key=len, reverse=True))


_CALENDAR_DATE = rf"""
    (?:(?:{_any_of(_WEEKDAYS)}|mon|tue|wed|thu|fri|sat|sun)\.?,?\s{{1,3}})?(?:the\s)?
    (?: (?P<iso>\d{{4}}-\d{{2}}-\d{{2}})(?!\d)
      | (?P<dotted>\d{{1,2}}\.\d{{1,2}}\.\d{{4}})(?!\d)
      | (?P<day>\d{{1,2}})(?:st|nd|rd|th|\.)?\s{{1,3}}(?:of\s)?(?P<month>{_any_of(MONTHS)})\b\.?
        (?:,?\s{{1,3}}(?P<year>\d{{4}})\b)?
      | (?P<month2>{_any_of(MONTHS)})\b\.?\s{{1,3}}(?P<day2>\d{{1,2}})(?:st|nd|rd|th)?\b
        (?:,?\s{{1,3}}(?P<year2>\d{{4}})\b)?
    )
"""
_DATE = rf"""
    {_CALENDAR_DATE}
    | (?P<end>(?:the\s)?end\sof\s(?:the\s|this\s)?(?:week|month))\b
    | (?P<near>{_any_of(_RELATIVE_DAYS)})\b
    | (?:this\s|next\s|coming\s|kommenden\s|nächsten\s)?(?P<weekday>{_any_of(_WEEKDAYS)})\b
"""
_FLAGS = re.VERBOSE | re.IGNORECASE
_ANY_DATE = re.compile(rf"(?<!\w)(?:{_DATE})", _FLAGS)
_CALENDAR_DATE_PATTERN = re.compile(rf"(?<!\w)(?:{_CALENDAR_DATE})", _FLAGS)
_DUE_DATE = re.compile(
    rf"""(?<!\w)
    (?: no\slater\sthan | by | until | till | due\sdate | due\son | due\sby | due | before | deadline(?:\sis)?
      | bis\szum | bis | fällig | spätestens | avant\sle | avant | pour\sle | entro\sil | entro | scadenza )
    \s{{0,3}}:?\s{{0,3}} (?:on\s|the\s|am\s|le\s|il\s)?
    (?:{_DATE})""",
    _FLAGS,
)


@dataclass(frozen=True)
class DateMatch:
    """Date with its position in the text."""

    day: date
    start: int
    end: int


def due_date(text: str, base: date) -> DateMatch | None:
    """Return the first date after a word such as "by", "until" or "due". Relative dates count from `base`."""
    return _first_match(_DUE_DATE, text, base)


def first_date(text: str, base: date) -> DateMatch | None:
    """Return the first date in the text, with or without a word such as "by" before it."""
    return _first_match(_ANY_DATE, text, base)


def calendar_date(text: str, base: date) -> DateMatch | None:
    """Return the first date that names a day of the calendar, so neither "tomorrow" nor "Friday"."""
    return _first_match(_CALENDAR_DATE_PATTERN, text, base)


def full_date(text: str) -> date | None:
    """Return the first date in the text that is written out with its year."""
    for match in _CALENDAR_DATE_PATTERN.finditer(text):
        if any(match[name] for name in ("iso", "dotted", "year", "year2")):
            day = _parse_match(match, _EARLIEST)
            if day is not None:
                return day
    return None


def mail_header_date(value: str) -> date | None:
    """Return the day of a mail's Date header, or None if it cannot be parsed."""
    try:
        return parsedate_to_datetime(value).date()
    except (ValueError, TypeError, IndexError):  # malformed dates raise any of these
        return None


def _first_match(pattern: re.Pattern[str], text: str, base: date) -> DateMatch | None:
    for match in pattern.finditer(text):
        day = _parse_match(match, base)
        if day is not None:
            return DateMatch(day, match.start(), match.end())
    return None


def _parse_match(match: re.Match[str], base: date) -> date | None:
    try:
        day = _resolve({key: value.lower() for key, value in match.groupdict().items() if value}, base)
    except (ValueError, OverflowError):  # a day that does not exist, such as 31 February
        return None
    return day if _EARLIEST <= day <= _LATEST else None


def _resolve(said: dict[str, str], base: date) -> date:
    if "iso" in said:
        return date.fromisoformat(said["iso"])
    if "dotted" in said:
        return date(*reversed([int(part) for part in said["dotted"].split(".")]))
    if "near" in said:
        return base + timedelta(days=_RELATIVE_DAYS[said["near"]])
    if "weekday" in said:
        return base + timedelta(days=(_WEEKDAYS[said["weekday"]] - base.weekday() - 1) % 7 + 1)
    if "end" in said:
        if "week" in said["end"]:
            return base + timedelta(days=(4 - base.weekday()) % 7)
        return (base.replace(day=1) + timedelta(days=32)).replace(day=1) - timedelta(days=1)
    day, month = int(said.get("day") or said["day2"]), MONTHS[said.get("month") or said["month2"]]
    year = said.get("year") or said.get("year2")
    if year:
        return date(int(year), month, day)
    found = date(base.year, month, day)
    return found if found >= base - _MAX_PAST else date(base.year + 1, month, day)
