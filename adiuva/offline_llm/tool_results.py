"""Reads tool results (Adiuva's prose or JSON) as rows, and describes them to the user without ids."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Any

_MAX_SHOWN_ROWS = 50
_MAX_ANSWER_CHARS = 6_000
_DECODER = json.JSONDecoder()
# `- Call Ada [t3], todo, due Fri 2026-11-20, project Harbour Café [p1]`: the first label is the row's own.
_PROSE_ROW = re.compile(
    r"\A(?:- )?(?:(?:Created|Updated|Deleted|Added|The) (?:the )?"
    r"(?:(?P<kind>task|project|note|timeline|client|comment)(?: entry)? )?)?"
    r"(?P<title>.*?) ?\[(?P<id>[a-z]\d{1,4})\](?P<more>.*)\Z"
)
_ID = re.compile(r" ?\[[a-z]\d{1,4}\]")
_UNNAMED_REFERENCE = re.compile(r", (?:project|client|part of) \[[a-z]\d{1,4}\]")
_ID_IN_LINE = re.compile(r"\[([\w-]{1,80})\]|\bid[=: ]+\"?([\w-]{1,80})", re.IGNORECASE)
_ROW_COUNT = re.compile(
    r"\A(?P<least>at least )?(?P<number>\d[\d,]*) (?P<noun>[a-z ]+?)(?:, best first)?:", re.IGNORECASE
)
_NO_MATCHES = re.compile(r"\ANo (?P<noun>[a-z ]+) match\.")
_OMITTED_ROWS = re.compile(r"^(?P<kept>(?:At least )?[\d,]+ more .* (?:is|are) not shown); .*$", re.MULTILINE)
_QUOTED_LINE = re.compile(r"^\s*\| ?")
_QUOTE_INTRODUCTION = re.compile(r" Its content(?P<from> from character [\d,]+ on)?, each line behind a bar:")
AWAITS_CONFIRMATION = "That waits for your yes."
_FAILURE_PREFIX = re.compile(r"\A\s*(?:failed|error)\b:?\s*", re.IGNORECASE)
_WORD = re.compile(r"\w+")
_STOP_WORDS = {
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
_TAGGED_KINDS = ("task", "project", "note", "timeline")


@dataclass(frozen=True)
class Row:
    id: str
    title: str
    details: str = ""
    kind: str = ""


# ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────


def parse_rows(result: str, zone: tzinfo = UTC) -> list[Row]:
    """Return the rows in a result, with times in JSON converted to the zone.

    Lines that begin with a bar are a row's content and never rows themselves.
    """
    value = _parse_json(result)
    if value is not None:
        return [_row_from_json(item, zone) for item in _row_objects(value)]
    lines = [line for line in result.splitlines() if not _QUOTED_LINE.match(line)]
    found = [match for line in lines if (match := _PROSE_ROW.match(line.strip()))]
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


def is_failure(result: str) -> bool:
    value = _parse_json(result)
    return (isinstance(value, dict) and bool(value.get("error"))) or _FAILURE_PREFIX.match(result) is not None


def failure_reason(result: str) -> str:
    """Return the reason that a failed tool gave."""
    value = _parse_json(result)
    said = (
        str(value["error"])
        if isinstance(value, dict) and value.get("error")
        else _FAILURE_PREFIX.sub("", result)
    )
    return to_user(_ID.sub("", said))[:500].strip()


def needs_confirmation(result: str) -> bool:
    """Return whether the tool needs the user's confirmation first. Adiuva itself asks for it, below the answer."""
    return is_failure(result) and "plain yes" in result


def was_declined(result: str) -> bool:
    return is_failure(result) and "user said no" in result


def search_words(wanted: str) -> str:
    """Return the words of a title that are worth searching for."""
    words = re.findall(r"[\w'’-]+", wanted)
    return " ".join(word for word in words if word.casefold() not in _STOP_WORDS)


def best_matches(result: str, wanted: str) -> list[Row]:
    """Return the rows whose titles share the most words with `wanted`: several if they are equally close."""
    words = set(_WORD.findall((search_words(wanted) or wanted).casefold()))
    scored: dict[tuple[float, bool], list[Row]] = defaultdict(list)
    for row in parse_rows(result):
        title = row.title.casefold()
        share = len(words & set(_WORD.findall(title))) / max(1, len(words))
        if row.id and share >= 0.5:
            scored[share, title == wanted.casefold()].append(row)
    return scored[max(scored)] if scored else []


def count_rows(result: str) -> tuple[int, str]:
    """Return the number of rows, and "at least " if the result says that there may be more."""
    if found := _ROW_COUNT.match(result):
        return int(found["number"].replace(",", "")), (found["least"] or "").lower()
    return len(parse_rows(result)), ""


def kind_of_tool(tool: str) -> str:
    """Return the kind of row that a tool of this name works on, or an empty string."""
    return next((kind for kind in _KINDS if kind in tool), "")


# ── Describing ─────────────────────────────────────────────────────────────────────────────────────────────


def describe_results(done: Sequence[tuple[str, str]]) -> str:
    """Describe what the tools found or did, from pairs of tool name and result."""
    return "\n\n".join(_describe_result(tool, result) for tool, result in done)


def entity_tag(kind: str, ids: Iterable[str]) -> str:
    """Return the entity tag that shows these rows, or an empty string if their kind has none."""
    listed = ",".join(dict.fromkeys(list(ids)[:_MAX_SHOWN_ROWS]))
    return f"<{kind}>[{listed}]</{kind}>" if listed and kind in _TAGGED_KINDS else ""


def _describe_result(tool: str, result: str) -> str:
    if needs_confirmation(result):
        return AWAITS_CONFIRMATION
    if was_declined(result):
        return "As you wish: nothing was changed."
    if is_failure(result):
        return f"That did not work: {failure_reason(result)}"
    if "agent" in tool or tool == "stop_run":
        return tell_user(result)
    value = _parse_json(result)
    found = parse_rows(result)
    if value is not None and (found or value in ([], {}) or _has_empty_list(value)):
        return _describe_rows(kind_of_tool(tool), found)
    return _describe_prose(tool, result, found)


def _describe_prose(tool: str, result: str, found: Sequence[Row]) -> str:
    """Repeat the tool's own words, without ids and without hints to the model."""
    if none := _NO_MATCHES.match(result):
        return f"I found no {none['noun']}.{_ID.sub('', result[none.end() :])}".strip()
    with_texts = "note" in tool or "comment" in tool or tool == "get_project"
    text = _QUOTE_INTRODUCTION.sub(
        lambda match: f" It says{match['from'] or ''}:", _OMITTED_ROWS.sub(r"\g<kept>.", result)
    )
    lines = []
    for line in text.splitlines():
        if _QUOTED_LINE.match(line):
            lines += [_QUOTED_LINE.sub("  ", line)] if with_texts else []
        else:
            lines.append(re.sub(r"\A- ?, ", "- ", _ID.sub("", _UNNAMED_REFERENCE.sub("", line))))
    said = "\n".join(lines).strip()[:_MAX_ANSWER_CHARS] or "The tool found nothing."
    if tool.startswith(("delete", "remove")):
        return said
    shown = entity_tag(kind_of_tool(tool), (row.id for row in found if _ID.search(result)))
    return f"{said}{chr(10) if len(lines) > 1 else ' '}{shown}" if shown else said


def _describe_rows(kind: str, found: Sequence[Row]) -> str:
    noun = kind or "entry"
    plural = noun.replace("entry", "entrie") + "s"
    if not found:
        return f"I found no {plural}."
    lines = [f"- {row.title}{row.details}" for row in found[:_MAX_SHOWN_ROWS]]
    if len(found) > _MAX_SHOWN_ROWS:
        lines.append(f"- and {len(found) - _MAX_SHOWN_ROWS} more")
    head = f"{len(found)} {noun if len(found) == 1 else plural}:"
    return "\n".join([head, *lines, *filter(None, [entity_tag(kind, (row.id for row in found if row.id))])])


# A sentence of an agent tool to the model → the sentence for the user.
_INSTRUCTIONS = re.compile(
    r": do not wait(?:[^.]*\.){1,2}(?: Say so and finish your answer\.)?"
    r"|: (?:tell the user|answer that|ask the user which is theirs)(?=\.)"
    r"|\s*(?:Offer to set one up|Ask which|Say so and finish your answer)\."
)
_TO_USER = (
    (re.compile(r"\bthe user's\b", re.I), "your"),
    (re.compile(r"\bThe user has\b"), "You have"),
    (re.compile(r"\bthe user has\b"), "you have"),
    (re.compile(r"\bthe user does\b", re.I), "you do"),
    (re.compile(r"\bThe user\b"), "You"),
    (re.compile(r"\bthe user\b"), "you"),
    (re.compile(r"\bTheir\b"), "Your"),
    (re.compile(r"\btheir device\b"), "your device"),
)
_RUN_LABEL = re.compile(r" ?\(run \[[a-z]\d{1,4}\](?:, (?P<more>[^)]*))?\)")
_MORE_ROWS = re.compile(r"^and (?P<number>[\d,]+) more\.?$")
_MAX_AGENT_ROWS = 20


def to_user(said: str) -> str:
    said = _INSTRUCTIONS.sub(
        lambda match: "." if match[0].startswith(":") and match[0].endswith(".") else "", said
    )
    for pattern, word in _TO_USER:
        said = pattern.sub(word, said)
    return said


def tell_user(result: str) -> str:
    """Return an agent tool's answer without labels and hints; of many rows the first ones, and how many more."""
    text = _RUN_LABEL.sub(lambda match: f" ({match['more']})" if match["more"] else "", to_user(result))
    kept: list[str] = []
    dropped = 0
    for line in (_ID.sub("", line).strip() for line in text.splitlines()):
        if line.startswith("- ") and sum(each.startswith("- ") for each in kept) == _MAX_AGENT_ROWS:
            dropped += 1
        elif more := _MORE_ROWS.match(line):
            dropped += int(more["number"].replace(",", ""))
        elif line:
            kept.append(line)
    return "\n".join([*kept, *([f"- and {dropped:,} more"] if dropped else [])])[:_MAX_ANSWER_CHARS]


# ── JSON ────────────────────────────────────────────────────────────────────────────────────────────────


def _row_objects(value: Any) -> list[dict[str, Any]]:
    """Return the row objects in a list, in an object that holds a list, or the object that is itself a row."""
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


def _has_empty_list(value: Any) -> bool:
    return isinstance(value, dict) and any(inner == [] for inner in value.values())


def _row_from_json(item: dict[str, Any], zone: tzinfo) -> Row:
    title = next((str(item[key]) for key in ("title", "name", "content") if item.get(key)), "untitled")
    more = [str(item[key]).replace("_", " ") for key in ("status", "priority") if item.get(key)]
    for key in ("dueDate", "due_date", "due", "date"):
        if item.get(key):
            more.append(f"{'due ' if key != 'date' else ''}{_format_date(item[key], zone)}")
            break
    return Row(
        str(item.get("id") or ""), " ".join(title.split())[:200], f" ({', '.join(more)})" if more else ""
    )


def _format_date(value: Any, zone: tzinfo) -> str:
    if isinstance(value, int | float) and abs(value) < 10**14:
        return datetime.fromtimestamp(value / 1000, zone).date().isoformat()
    return str(value)[:40]


def _parse_json(result: str) -> Any:
    """Parse a result that is JSON, or JSON after a short introduction. Returns None if there is none."""
    try:
        return json.loads(result)
    except (ValueError, RecursionError):
        pass
    if _ID.search(result) or _FAILURE_PREFIX.match(result):
        return None  # prose, where a title may look like JSON
    start = min((place for mark in "[{" if (place := result.find(mark)) >= 0), default=-1)
    if start < 0 or start > 400:
        return None
    try:
        return _DECODER.raw_decode(result, start)[0]
    except (ValueError, RecursionError):
        return None
