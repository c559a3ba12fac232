"""What tools answered, read as rows where it is JSON and repeated as it is where it is not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

_MOST_ROWS = 30
_MOST_CHARS = 4_000
_DECODER = json.JSONDecoder()
_ID_IN_LINE = re.compile(r"\[([\w-]{1,80})\]|\bid[=: ]+\"?([\w-]{1,80})", re.IGNORECASE)
_WORD = re.compile(r"\w+")
_KINDS = ("task", "project", "note", "timeline", "client")
_TAGS = {"task", "project", "note", "timeline"}


@dataclass(frozen=True)
class Row:
    id: str
    title: str
    more: str = ""


def told(done: Sequence[tuple[str, str]]) -> str:
    """A short text that repeats what the tools found."""
    return "\n\n".join(_told(tool, result) for tool, result in done)


def failed(result: str) -> bool:
    value = _json(result)
    return (isinstance(value, dict) and bool(value.get("error"))) or result.lower().startswith(
        ("error", "failed")
    )


def best(result: str, wanted: str) -> Row | None:
    """The row whose title shares the most words with what was asked for; None if none shares half of them."""
    words = set(_WORD.findall(wanted.casefold()))
    scored = [
        (len(words & set(_WORD.findall(row.title.casefold()))) / max(1, len(words)), -place, row)
        for place, row in enumerate(_rows(result))
        if row.id
    ]
    top = max(scored, key=lambda item: item[:2], default=None)
    return top[2] if top is not None and top[0] >= 0.5 else None


def tags(results: Iterable[str], kind: str = "task") -> str:
    """The entity tag for the rows of these results."""
    ids = [row.id for result in results for row in _rows(result) if row.id][:_MOST_ROWS]
    return f"<{kind}>[{','.join(ids)}]</{kind}>" if ids and kind in _TAGS else ""


def _told(tool: str, result: str) -> str:
    kind = next((kind for kind in _KINDS if kind in tool), "")
    if failed(result):
        value = _json(result)
        why = value["error"] if isinstance(value, dict) and value.get("error") else result
        return f"That did not work: {str(why)[:500]}"
    value = _json(result)
    rows = list(_rows(result)) if value is not None else []
    if value is None or (not rows and value not in ([], {}) and not _is_empty(value)):
        return result[:_MOST_CHARS].strip() or "The tool found nothing."
    noun = kind or "entry"
    plural = noun.replace("entry", "entrie") + "s"
    if not rows:
        return f"I found no {plural}."
    lines = [f"- {row.title}{row.more}" for row in rows[:_MOST_ROWS]]
    if len(rows) > _MOST_ROWS:
        lines.append(f"- and {len(rows) - _MOST_ROWS} more")
    head = f"{len(rows)} {noun if len(rows) == 1 else plural}:"
    return "\n".join([head, *lines, *filter(None, [tags([result], kind)])])


def _rows(result: str) -> Iterator[Row]:
    value = _json(result)
    if value is not None:
        yield from (_row(item) for item in _items(value))
        return
    for line in result.splitlines():
        if match := _ID_IN_LINE.search(line):
            yield Row(match[1] or match[2], (line[: match.start()] + line[match.end() :]).strip(" -*:\t"))


def _items(value: Any) -> list[dict[str, Any]]:
    """The rows in a result: a list, an object that holds one, or an object that is one."""
    if isinstance(value, list):
        return [item for item in value if isinstance(item, dict)]
    if isinstance(value, dict):
        for inner in value.values():
            if isinstance(inner, list) and inner and isinstance(inner[0], dict):
                return [item for item in inner if isinstance(item, dict)]
        row = value.get("row", value)
        if isinstance(row, dict) and ("id" in row or "title" in row or "name" in row):
            return [row]
    return []


def _is_empty(value: Any) -> bool:
    return isinstance(value, dict) and any(inner == [] for inner in value.values())


def _row(item: dict[str, Any]) -> Row:
    title = next((str(item[key]) for key in ("title", "name", "content") if item.get(key)), "untitled")
    more = [str(item[key]).replace("_", " ") for key in ("status", "priority") if item.get(key)]
    for key in ("dueDate", "due_date", "due", "date"):
        if item.get(key):
            more.append(f"{'due ' if key != 'date' else ''}{_day(item[key])}")
            break
    return Row(
        str(item.get("id") or ""), " ".join(title.split())[:200], f" ({', '.join(more)})" if more else ""
    )


def _day(value: Any) -> str:
    if isinstance(value, int | float) and abs(value) < 10**14:
        return datetime.fromtimestamp(value / 1000, UTC).date().isoformat()
    return str(value)[:40]


def _json(result: str) -> Any:
    """The JSON that a result is, or that follows a few words of introduction; None if there is none."""
    start = min((place for mark in "[{" if (place := result.find(mark)) >= 0), default=-1)
    if start < 0 or start > 400:
        return None
    try:
        return _DECODER.raw_decode(result, start)[0]
    except (ValueError, RecursionError):
        return None
