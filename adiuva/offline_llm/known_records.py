"""Comparison of a document's records with those that were found in it before, as a model is asked to do it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

Record = tuple[str, dict[str, Any]]

_KNOWN = re.compile(r"^Known: (\[.*\])[ \t]*$", re.MULTILINE)
_COMPARED = ("dueDate", "date", "assignee")


def parse_known(preamble: str) -> list[dict[str, Any]]:
    """Return the rows of the list that stands before a document; empty if there is none."""
    if not (match := _KNOWN.search(preamble)):
        return []
    try:
        rows = json.loads(match[1])
    except (ValueError, RecursionError):
        return []
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("id"), int)]


def compare(
    records: Sequence[Record], known: Sequence[Mapping[str, Any]], text: str
) -> tuple[list[Record], list[dict[str, Any]]]:
    """Return the new records, and for each known one what became of it.

    A record is a known one if it has the same title and table; of several, one with the same date comes first. A known
    one without a record is done if the text ticks it.
    """
    left = list(records)
    verdicts: list[dict[str, Any]] = []
    missing = []
    for row in known:
        same = [record for record in left if _is_same(record, row)]
        record = next((each for each in same if not _changes(each, row)), None)
        if record is None:
            missing.append(row)
            continue
        left.remove(record)
        verdicts.append({"id": row["id"], "now": "there"})
    for row in missing:
        record = next((each for each in left if _is_same(each, row)), None)
        is_ticked = _is_ticked(_title(row), text)
        if record is not None and not (is_ticked and row.get("table") == "tasks"):
            left.remove(record)
            verdicts.append({"id": row["id"], "now": "changed", "data": _changes(record, row)})
        else:
            verdicts.append({"id": row["id"], "now": "done" if is_ticked else "gone"})
    return left, verdicts


def _is_same(record: Record, row: Mapping[str, Any]) -> bool:
    return record[0] == row.get("table") and _fold(_title(record[1])) == _fold(_title(row))


def _changes(record: Record, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a record for which the list has another value."""
    return {
        name: record[1][name] for name in _COMPARED if name in record[1] and record[1][name] != row.get(name)
    }


def _title(row: Mapping[str, Any]) -> str:
    return str(row.get("title") or row.get("name") or "")


def _fold(title: str) -> str:
    return " ".join(title.casefold().split())


def _is_ticked(title: str, text: str) -> bool:
    words = _fold(title)
    return any(
        re.match(r"\s*[-*+]?\s*\[[xX]\]", line) is not None and words in _fold(line)
        for line in text.splitlines()
    )
