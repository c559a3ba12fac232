"""What a request is about, read from the messages that an assistant sends."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, tzinfo
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from adiuva.offline_model import results
from adiuva.offline_model.extraction import text as text_of
from adiuva.offline_model.results import Row
from adiuva.offline_model.toolbox import Toolbox, Wish

_MOST_CHARS = 2_000
_NOW = re.compile(r"\ANow: \w+ (?P<day>\d{4}-\d{2}-\d{2}) [\d:]+ \((?P<zone>[^)]+)\)")
_FENCE = re.compile(r"\[begin (?P<name>[\w ]+) (?P<mark>data-\w+)\]\n(?P<text>.*?)\n\[end \1 \2\]", re.DOTALL)
_CALL = re.compile(r": (?P<tool>\w+) (?=\{)")
_LOOKED_AT = re.compile(r"\b(task|project|note|timeline)\b")
_TAG = re.compile(r"<(task|project|note|timeline)>\[([^\],]+)\]</\1>")
_MOST_CONFIRMED = 64


@dataclass(frozen=True)
class Answer:
    """A text, or tools to call."""

    text: str = ""
    wishes: tuple[Wish, ...] = ()


@dataclass(frozen=True)
class Turn:
    """The latest request, and what the tools that were called for it have said.

    `scope` is the row that the user has before them, `mentioned` the one that the last answer was about. `memory`
    has a line for each thing that is remembered of the user.
    """

    request: str
    done: tuple[tuple[str, str], ...]  # (tool, result)
    tools: Toolbox
    today: date
    scope: Row | None = None
    mentioned: Row | None = None
    confirmed: tuple[Wish, ...] = ()
    memory: str = ""

    def call(self, wish: str, given: Mapping[str, Any] | None = None) -> Answer | None:
        """The call of a tool, or None if none is on offer for it."""
        call = self.tools.call(wish, given or {})
        return Answer(wishes=(call,)) if call is not None else None

    def told(self) -> Answer:
        """All that the tools said."""
        return Answer(results.told(self.done))

    @classmethod
    def read(cls, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> Turn:
        start = max(
            (place for place, message in enumerate(messages) if message.get("role") == "user"), default=-1
        )
        before, after = messages[: max(start, 0)], messages[start + 1 :]
        tail = next(
            (text for message in reversed(before) if _NOW.match(text := _system(message))),
            "",
        )
        toolbox = Toolbox(tools)
        return cls(
            text_of(messages[start])[:_MOST_CHARS].strip() if start >= 0 else "",
            _done(after),
            toolbox,
            _today(tail),
            _scope(fenced(tail, "scope"), _zone(tail)),
            _mentioned(before),
            _confirmed(fenced(tail, "confirmed"), toolbox),
            fenced(tail, "memory"),
        )


def fences(text: str) -> list[tuple[str, str]]:
    """The names of what stands between marks, and what it is."""
    return [(match["name"], match["text"]) for match in _FENCE.finditer(text)]


def fenced(text: str, name: str) -> str:
    """What stands between the marks of this name."""
    return next((said for found, said in fences(text) if found == name), "")


def _system(message: Mapping[str, Any]) -> str:
    return text_of(message) if message.get("role") in {"system", "developer"} else ""


def _done(messages: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
    names = {
        call.get("id"): str((call.get("function") or {}).get("name"))
        for message in messages
        for call in message.get("tool_calls") or ()
    }
    return tuple(
        (names.get(message.get("tool_call_id"), ""), text_of(message))
        for message in messages
        if message.get("role") == "tool"
    )


def _today(tail: str) -> date:
    if found := _NOW.match(tail):
        try:
            return date.fromisoformat(found["day"])
        except ValueError:
            pass
    return datetime.now(UTC).date()


def _zone(tail: str) -> tzinfo:
    if found := _NOW.match(tail):
        try:
            return ZoneInfo(found["zone"])
        except (ValueError, OSError, ZoneInfoNotFoundError):
            pass
    return UTC


def _scope(text: str, zone: tzinfo) -> Row | None:
    """The row that is open: JSON as the device has it, or a line with its id."""
    kind = _LOOKED_AT.search(text)
    inner = _FENCE.search(text)
    found = results.rows(inner["text"] if inner else text, zone)
    return Row(found[0].id, found[0].title, found[0].more, kind[1] if kind else "task") if found else None


def _mentioned(messages: Sequence[Mapping[str, Any]]) -> Row | None:
    """The row of the last answer, if it showed just one."""
    last = next(
        (text_of(message) for message in reversed(messages) if message.get("role") == "assistant"), ""
    )
    found = _TAG.findall(last)
    return Row(found[0][1], "", "", found[0][0]) if len(found) == 1 and last.count("<") == 2 else None


def _confirmed(text: str, tools: Toolbox) -> tuple[Wish, ...]:
    """Calls that the user said yes to, a line each: words, then a tool's name and its arguments as JSON."""
    found = (_wish(line, tools) for line in text.splitlines()[:_MOST_CONFIRMED])
    return tuple(wish for wish in found if wish is not None)


def _wish(line: str, tools: Toolbox) -> Wish | None:
    for match in _CALL.finditer(line):
        try:
            arguments = json.loads(line[match.end() :])
        except (ValueError, RecursionError):
            continue  # it was a title that looked like one
        if match["tool"] in tools:
            return Wish(match["tool"], arguments)
    return None
