"""Context for a model beside a document, bounded: the user's nearest projects and the nearest records found before."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar
from zoneinfo import ZoneInfo

from adiuva.devices.tables import TABLES
from agents.reconciliation import KnownRecord

MAX_PROJECTS: Final = 30
MAX_KNOWN: Final = 60
_MAX_CHARS: Final = 5_000
_TITLE_CHARS: Final = 200
_WORD: Final = re.compile(r"\w{2,}")

T = TypeVar("T")


def nearest_projects(projects: Mapping[str, str], text: str) -> dict[str, str]:
    """Return at most MAX_PROJECTS names, by the label p1, p2, … that stands for the id of the project at that place.

    These are all projects, if they are few, else those whose names have the most words in the text.
    """
    listed = [(f"p{place}", name[:_TITLE_CHARS]) for place, name in enumerate(projects.values(), 1)]
    if len(listed) > MAX_PROJECTS:
        words = _words(text)
        near = [(_share(each[1], words), each) for each in listed]
        near = sorted((pair for pair in near if pair[0]), key=lambda pair: -pair[0])
        listed = [each for _, each in near[:MAX_PROJECTS]]
    return dict(_within(listed, lambda each: len(each[0]) + len(each[1]) + 8))


def nearest_known(known: Sequence[KnownRecord], text: str) -> list[KnownRecord]:
    """Return at most MAX_KNOWN records, in their order: all, if few, else those with the most words in the text."""
    chosen = [each for each in known if not each.lost]
    if len(chosen) > MAX_KNOWN:
        words = _words(text)
        shares = sorted(((-_share(each.record.title, words), number) for number, each in enumerate(chosen)))
        numbers = sorted(number for _, number in shares[:MAX_KNOWN])
        chosen = [chosen[number] for number in numbers]
    return _within(chosen, lambda each: min(len(each.record.title), _TITLE_CHARS) + 80)


def describe_known(known: Sequence[KnownRecord], zone: ZoneInfo) -> str:
    """Return known records for the model, as a JSON array on one line; `id` is their number in it, from 1."""
    found = []
    for number, each in enumerate(known, 1):
        table = TABLES[each.record.table]
        shown: dict[str, Any] = {
            "id": number,
            "table": table.name,
            table.title: each.record.title[:_TITLE_CHARS],
        }
        for name, value in each.record.data.items():
            column = table.by_name.get(name)
            if column is None or name == table.title or column.kind == "flag" or value is None:
                continue
            if column.kind == "time":
                shown[name] = _moment(value, zone)
            elif column.kind == "names":
                shown[name] = json.loads(value)
            elif name == "status":
                shown[name] = value
        found.append(shown)
    return json.dumps(found, ensure_ascii=False)


def _moment(milliseconds: int, zone: ZoneInfo) -> str:
    when = dt.datetime.fromtimestamp(milliseconds / 1000, zone)
    return when.date().isoformat() if when.time() == dt.time() else when.isoformat(timespec="minutes")


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.casefold()))


def _share(name: str, words: set[str]) -> float:
    """Return the share of a name's words that are among these."""
    own = _words(name)
    return len(own & words) / len(own) if own else 0.0


def _within(items: Sequence[T], size: Any) -> list[T]:
    """Return the first items that fit _MAX_CHARS together."""
    kept: list[T] = []
    room = _MAX_CHARS
    for item in items:
        room -= size(item)
        if room < 0:
            break
        kept.append(item)
    return kept
