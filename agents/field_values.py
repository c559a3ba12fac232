"""Converts fields' values from the form of models to the form of devices. Ambiguous values are refused."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Mapping
from typing import Any, Final
from zoneinfo import ZoneInfo

from dateutil import parser as date_parser  # type: ignore[import-untyped]

from adiuva.devices.tables import MAX_TEXT, Column, is_value

MAX_TITLE_CHARS: Final = 1_000
_MAX_NAMES: Final = 50
_MAX_NAME_CHARS: Final = 200
_EARLIEST: Final = dt.datetime(1970, 1, 2, tzinfo=dt.UTC)
_LATEST: Final = dt.datetime(2200, 1, 1, tzinfo=dt.UTC)
# A smaller number counts seconds: as milliseconds it would be before March 1973.
_FIRST_MILLISECONDS: Final = 100_000_000_000
_NUMBER: Final = re.compile(r"\d{9,14}")
_NUMERIC_DATE: Final = re.compile(
    r"(\d{1,4})([./-])(\d{1,2})\2(\d{1,4})(?:[T ,]+(\d{1,2}:\d{2}(?::\d{2})?(?:Z|[+-]\d{2}:?\d{2})?))?\.?"
)
_YEAR: Final = re.compile(r"(?<!\d)\d{4}(?!\d)")
_MONTH: Final = re.compile(r"(?i)(?<![a-z])(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*")
# A lone surrogate, which broken escapes in JSON leave behind.
_HALF: Final = re.compile("[\ud800-\udfff]")
# Between names in one string.
_NAME_SEPARATOR: Final = re.compile(r"\s*[,;&]\s*|\s+(?:and|und|et|e)\s+")
_NAME_KEYS: Final = ("name", "full_name", "fullName", "title", "email")

# Other names that models use for the values of a choice: folded, with underscores.
_WORDS: Final[Mapping[tuple[str, ...], Mapping[str, str]]] = {
    ("high", "medium", "low"): {
        "high": "urgent asap critical highest very_high top important p0 p1 hoch dringend alta haute urgente",
        "medium": "normal moderate mid default standard p2 mittel media moyenne",
        "low": "minor lowest very_low trivial optional p3 p4 niedrig gering bassa basse",
    },
    ("todo", "in_progress", "done"): {
        "todo": "to_do open pending new not_started backlog planned offen ausstehend da_fare à_faire",
        "in_progress": "doing started ongoing wip inprogress under_way in_arbeit in_corso en_cours",
        "done": "completed complete finished closed resolved x erledigt fertig fatto completato fait terminé",
    },
    ("active", "archived"): {
        "active": "open ongoing in_progress current aktiv attivo actif",
        "archived": "closed done completed inactive archiviert archiviato archivé",
    },
}


class BadValue(Exception):
    """The value cannot be understood. The message says what was expected, and does not quote it."""

    def __init__(self, code: str, wanted: str) -> None:
        super().__init__(wanted)
        self.code, self.wanted = code, wanted


def read_value(column: Column, value: Any, *, zone: ZoneInfo, is_title: bool = False) -> Any:
    """Return a value for a column, in the form of the wire. Raises BadValue."""
    if column.kind == "time":
        return _milliseconds(value, zone)
    if column.kind == "names":
        return _names(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and not column.choices:
        value = str(value)
    if isinstance(value, list) and not is_title and all(isinstance(line, str) for line in value):
        value = "\n".join(value)
    if isinstance(value, str):
        value = value.strip()
        _check_text(value, MAX_TITLE_CHARS if is_title else MAX_TEXT)
        if column.choices:
            value = _choice(column, value)
    if not is_value(column, value):
        raise BadValue("bad_value", f"one of {', '.join(column.choices)}" if column.choices else "text")
    return value


def _choice(column: Column, value: str) -> str:
    word = re.sub(r"[\s-]+", "_", value.casefold()).strip("_!.")
    meant = _WORDS.get(column.choices, {})
    return next((choice for choice, words in meant.items() if word == choice or word in words.split()), value)


# ── Times ───────────────────────────────────────────────────────────────────────────────────────────────


def _milliseconds(value: Any, zone: ZoneInfo) -> int:
    """Return milliseconds since 1970. A date is its start in the zone; a time without a zone is one of the zone."""
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            when = _of_number(value)
        elif isinstance(value, str):
            when = _of_text(value.strip())
        else:
            raise ValueError
        when = when if when.tzinfo else when.replace(tzinfo=zone)
        if not _EARLIEST <= when <= _LATEST:
            raise ValueError
    except (ValueError, OverflowError, OSError):
        raise BadValue("bad_time", "an ISO 8601 date or date and time") from None
    return int(when.timestamp() * 1000)


def _of_number(value: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(value if abs(value) < _FIRST_MILLISECONDS else value / 1000, dt.UTC)


def _of_text(text: str) -> dt.datetime:
    if _NUMBER.fullmatch(text):
        return _of_number(int(text))
    try:
        return dt.datetime.fromisoformat(text)
    except ValueError:
        pass
    if numeric := _NUMERIC_DATE.fullmatch(text):
        return _of_numeric(numeric)
    if len(text) > 60 or not _YEAR.search(text) or not _MONTH.search(text):
        raise ValueError
    # Parse with two defaults: if the results differ, the text does not name a day.
    first, second = (
        date_parser.parse(text, default=dt.datetime.fromisoformat(default), tzinfos=lambda _, offset: offset)
        for default in ("2001-01-01", "2002-02-02")
    )
    if first != second:
        raise ValueError
    found: dt.datetime = first
    return found


def _of_numeric(match: re.Match[str]) -> dt.datetime:
    """Return a date of three numbers. With dots the day comes first; otherwise it must be clear which is the month."""
    first, sign, second, third, time = match.groups()
    if len(first) == 4:
        year, month, day = int(first), int(second), int(third)
    elif len(third) == 4:
        year, day, month = int(third), int(first), int(second)
        if sign != "." and day <= 12:
            if month > 12:
                day, month = month, day
            elif day != month:
                raise ValueError
    else:
        raise ValueError
    date = dt.date(year, month, day).isoformat()
    if time and len(time.partition(":")[0]) == 1:
        time = f"0{time}"
    return dt.datetime.fromisoformat(f"{date}T{time}" if time else date)


# ── Names ───────────────────────────────────────────────────────────────────────────────────────────────


def _names(value: Any) -> str:
    """Return a JSON array of names in a string, from a list of names, of objects with names, or one string."""
    names = [name for each in _listed(value) for name in _names_in(each)]
    if len(names) > _MAX_NAMES:
        raise BadValue("bad_value", "a list of names")
    for name in names:
        _check_text(name, _MAX_NAME_CHARS)
    return json.dumps(list(dict.fromkeys(names)), ensure_ascii=False)


def _listed(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            return [value]
        return found if isinstance(found, list) else [found]
    if isinstance(value, str):
        return _NAME_SEPARATOR.split(value) if len(value) <= MAX_TITLE_CHARS else [value]
    return [value]


def _names_in(each: Any) -> list[str]:
    if isinstance(each, Mapping):
        each = next((each[key] for key in _NAME_KEYS if isinstance(each.get(key), str)), None)
    if not isinstance(each, str):
        raise BadValue("bad_value", "a list of names")
    return [each.strip()] if each.strip() else []


def _check_text(text: str, most: int) -> None:
    if len(text) > most:
        raise BadValue("too_long", f"at most {most} characters")
    if "\x00" in text or (not text.isascii() and _HALF.search(text)):
        raise BadValue("bad_text", "text without control characters or halves of characters")
