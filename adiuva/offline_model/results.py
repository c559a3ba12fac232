"""What tools answered, in Adiuva's prose or in JSON, read as rows and told again without ids."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Any

_MOST_ROWS = 50
_MOST_CHARS = 6_000
_DECODER = json.JSONDecoder()
# `- Call Ada [id 3f2a…], todo, due Fri 2026-11-20, project Harbour Café [id 77b0…]`: the first id is the row's own.
_PROSE = re.compile(
    r"\A(?:- )?(?:(?:Created|Updated|Deleted|Added|The) (?:the )?"
    r"(?:(?P<kind>task|project|note|timeline|client|comment)(?: entry)? )?)?"
    r"(?P<title>.*?) ?\[id (?P<id>[^\]\s]+)\](?P<more>.*)\Z"
)
_ID = re.compile(r" ?\[id [^\]\s]+\]")
_UNNAMED = re.compile(r", (?:project|client|part of) \[id [^\]\s]+\]")
_ID_IN_LINE = re.compile(r"\[([\w-]{1,80})\]|\bid[=: ]+\"?([\w-]{1,80})", re.IGNORECASE)
_COUNT = re.compile(
    r"\A(?P<least>at least )?(?P<number>\d[\d,]*) (?P<noun>[a-z ]+?)(?:, best first)?:", re.IGNORECASE
)
_NONE = re.compile(r"\ANo (?P<noun>[a-z ]+) match\.")
_LEFT_OUT = re.compile(r"^(?P<kept>(?:At least )?[\d,]+ more .* (?:is|are) not shown); .*$", re.MULTILINE)
_BAR = re.compile(r"^\s*\| ?")
_BAR_WORDS = re.compile(r" Its content(?P<from> from character [\d,]+ on)?, each line behind a bar:")
WAITS = "That waits for your yes."
_FAILED = re.compile(r"\A\s*(?:failed|error)\b:?\s*", re.IGNORECASE)
_WORD = re.compile(r"\w+")
_FILLERS = {
    "a",
    "an",
    "the",
    "my",
    "our",
    "to",
    "for",
    "of",
    "on",
    "in",
    "at",
    "with",
    "about",
    "and",
    "or",
    "it",
}
_KINDS = ("comment", "task", "project", "note", "timeline", "client")
_TAGS = ("task", "project", "note", "timeline")


@dataclass(frozen=True)
class Row:
    id: str
    title: str
    more: str = ""
    kind: str = ""


# ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────


def rows(result: str, zone: tzinfo = UTC) -> list[Row]:
    """The rows in a result; times in JSON are told in the zone.

    What stands behind a bar is a row's text, whatever it looks like.
    """
    value = _json(result)
    if value is not None:
        return [_row(item, zone) for item in _items(value)]
    lines = [line for line in result.splitlines() if not _BAR.match(line)]
    found = [match for line in lines if (match := _PROSE.match(line.strip()))]
    if found:
        return [
            Row(match["id"], match["title"], match["more"].strip(" ,."), match["kind"] or "")
            for match in found
        ]
    other = ((line, match) for line in lines if (match := _ID_IN_LINE.search(line)))
    return [
        Row(match[1] or match[2], (line[: match.start()] + line[match.end() :]).strip(" -*:\t"))
        for line, match in other
    ]


def failed(result: str) -> bool:
    value = _json(result)
    return (isinstance(value, dict) and bool(value.get("error"))) or _FAILED.match(result) is not None


def why(result: str) -> str:
    """A failure's reason."""
    value = _json(result)
    said = str(value["error"]) if isinstance(value, dict) and value.get("error") else _FAILED.sub("", result)
    return _ID.sub("", said)[:500].strip()


def needs_yes(result: str) -> bool:
    """Whether a tool wants the user's plain yes first. The question itself is put below the answer for us."""
    return failed(result) and "plain yes" in result


def was_declined(result: str) -> bool:
    return failed(result) and "user said no" in result


def key_words(wanted: str) -> str:
    """The words that carry a title, for a search."""
    words = re.findall(r"[\w'’-]+", wanted)
    return " ".join(word for word in words if word.casefold() not in _FILLERS)


def matching(result: str, wanted: str) -> list[Row]:
    """The rows whose titles share the most words with what was asked for: several, if they share as many."""
    words = set(_WORD.findall((key_words(wanted) or wanted).casefold()))
    scored: dict[tuple[float, bool], list[Row]] = defaultdict(list)
    for row in rows(result):
        title = row.title.casefold()
        share = len(words & set(_WORD.findall(title))) / max(1, len(words))
        if row.id and share >= 0.5:
            scored[share, title == wanted.casefold()].append(row)
    return scored[max(scored)] if scored else []


def count(result: str) -> tuple[int, str]:
    """How many rows a list has, with "at least " where it says so."""
    if found := _COUNT.match(result):
        return int(found["number"].replace(",", "")), (found["least"] or "").lower()
    return len(rows(result)), ""


def kind_of(tool: str) -> str:
    """What a tool of this name is about."""
    return next((kind for kind in _KINDS if kind in tool), "")


# ── Telling ─────────────────────────────────────────────────────────────────────────────────────────────


def told(done: Sequence[tuple[str, str]]) -> str:
    """A short text that repeats what the tools found or did."""
    return "\n\n".join(_told(tool, result) for tool, result in done)


def tag(kind: str, ids: Iterable[str]) -> str:
    """The entity tag for these rows, if there is one for their kind."""
    listed = ",".join(dict.fromkeys(list(ids)[:_MOST_ROWS]))
    return f"<{kind}>[{listed}]</{kind}>" if listed and kind in _TAGS else ""


def _told(tool: str, result: str) -> str:
    if needs_yes(result):
        return WAITS
    if was_declined(result):
        return "As you wish: nothing was changed."
    if failed(result):
        return f"That did not work: {why(result)}"
    value = _json(result)
    found = rows(result)
    if value is not None and (found or value in ([], {}) or _is_empty(value)):
        return _told_rows(kind_of(tool), found)
    return _told_prose(tool, result, found)


def _told_prose(tool: str, result: str, found: Sequence[Row]) -> str:
    """The tool's own words, without ids and without what was meant for a model."""
    if none := _NONE.match(result):
        return f"I found no {none['noun']}.{_ID.sub('', result[none.end() :])}".strip()
    with_texts = "note" in tool or "comment" in tool or tool == "get_project"
    text = _BAR_WORDS.sub(
        lambda match: f" It says{match['from'] or ''}:", _LEFT_OUT.sub(r"\g<kept>.", result)
    )
    lines = []
    for line in text.splitlines():
        if _BAR.match(line):
            lines += [_BAR.sub("  ", line)] if with_texts else []
        else:
            lines.append(re.sub(r"\A- ?, ", "- ", _ID.sub("", _UNNAMED.sub("", line))))
    said = "\n".join(lines).strip()[:_MOST_CHARS] or "The tool found nothing."
    if tool.startswith(("delete", "remove")):
        return said
    shown = tag(kind_of(tool), (row.id for row in found if _ID.search(result)))
    return f"{said}{chr(10) if len(lines) > 1 else ' '}{shown}" if shown else said


def _told_rows(kind: str, found: Sequence[Row]) -> str:
    noun = kind or "entry"
    plural = noun.replace("entry", "entrie") + "s"
    if not found:
        return f"I found no {plural}."
    lines = [f"- {row.title}{row.more}" for row in found[:_MOST_ROWS]]
    if len(found) > _MOST_ROWS:
        lines.append(f"- and {len(found) - _MOST_ROWS} more")
    head = f"{len(found)} {noun if len(found) == 1 else plural}:"
    return "\n".join([head, *lines, *filter(None, [tag(kind, (row.id for row in found if row.id))])])


# ── JSON ────────────────────────────────────────────────────────────────────────────────────────────────


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


def _row(item: dict[str, Any], zone: tzinfo) -> Row:
    title = next((str(item[key]) for key in ("title", "name", "content") if item.get(key)), "untitled")
    more = [str(item[key]).replace("_", " ") for key in ("status", "priority") if item.get(key)]
    for key in ("dueDate", "due_date", "due", "date"):
        if item.get(key):
            more.append(f"{'due ' if key != 'date' else ''}{_day(item[key], zone)}")
            break
    return Row(
        str(item.get("id") or ""), " ".join(title.split())[:200], f" ({', '.join(more)})" if more else ""
    )


def _day(value: Any, zone: tzinfo) -> str:
    if isinstance(value, int | float) and abs(value) < 10**14:
        return datetime.fromtimestamp(value / 1000, zone).date().isoformat()
    return str(value)[:40]


def _json(result: str) -> Any:
    """The JSON that a result is, or that follows a few words of introduction; None if there is none."""
    try:
        return json.loads(result)
    except (ValueError, RecursionError):
        pass
    if _ID.search(result) or _FAILED.match(result):
        return None  # prose, in which a title may look like JSON
    start = min((place for mark in "[{" if (place := result.find(mark)) >= 0), default=-1)
    if start < 0 or start > 400:
        return None
    try:
        return _DECODER.raw_decode(result, start)[0]
    except (ValueError, RecursionError):
        return None
