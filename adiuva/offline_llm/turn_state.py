"""Reads the state of a turn from the messages that an assistant sends: request, tool results, scope, memory."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, tzinfo
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from adiuva.offline_llm import tool_results
from adiuva.offline_llm.messages import DELIMITED_BLOCK, delimited_text, message_text
from adiuva.offline_llm.offered_tools import OfferedTools, ToolCall
from adiuva.offline_llm.tool_results import Row

_MAX_REQUEST_CHARS = 2_000
# The text that Adiuva puts before the user's words in a message.
_TURN = re.compile(r"\A\[turn (?P<mark>app-\w+)\]\n(?P<text>.*?)\n\[turn ends (?P=mark)\]\n\n", re.DOTALL)
_NOW = re.compile(r"\ANow: \w+ (?P<day>\d{4}-\d{2}-\d{2}) [\d:]+ \((?P<zone>[^)]+)\)")
_CALL_START = re.compile(r": (?P<tool>\w+) (?=\{)")
_SCOPE_KIND = re.compile(r"\b(task|project|note|timeline)\b")
_ENTITY_TAG = re.compile(r"<(task|project|note|timeline)>\[([^\],]+)\]</\1>")
_MAX_CONFIRMED_CALLS = 64


@dataclass(frozen=True)
class Answer:
    """Reply of the model: a text, or tools to call."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class TurnState:
    """State of a turn: the latest request, and the results of the tools that were called for it.

    `scope` is the row that the user has open, `mentioned` the row that the last answer showed. `confirmed` holds the
    calls that the user has just confirmed. `memory` has a line for each thing remembered about the user.
    """

    request: str
    completed: tuple[tuple[str, str], ...]  # (tool name, result)
    tools: OfferedTools
    today: date
    scope: Row | None = None
    mentioned: Row | None = None
    confirmed: tuple[ToolCall, ...] = ()
    memory: str = ""
    said_before: str = ""  # the last answer

    def call_tool(self, operation: str, given: Mapping[str, Any] | None = None) -> Answer | None:
        """Answer with the call for the operation. Returns None if no offered tool can carry it out."""
        call = self.tools.build_call(operation, given or {})
        return Answer(tool_calls=(call,)) if call is not None else None

    def call_named(self, tool: str, arguments: Mapping[str, Any]) -> Answer | None:
        """Answer with a call of the tool, or return None if it is not offered."""
        return Answer(tool_calls=(ToolCall(tool, dict(arguments)),)) if tool in self.tools else None

    def describe_results(self) -> Answer:
        """Answer with a description of all tool results."""
        return Answer(tool_results.describe_results(self.completed))

    @classmethod
    def from_messages(
        cls, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
    ) -> TurnState:
        start = max(
            (place for place, message in enumerate(messages) if message.get("role") == "user"), default=-1
        )
        before, after = messages[: max(start, 0)], messages[start + 1 :]
        users = [message_text(message) for message in messages if message.get("role") == "user"]
        turn = next((found for text in reversed(users) if (found := _TURN.match(text))), None)
        tail = turn["text"] if turn else ""
        offered = OfferedTools(tools)
        return cls(
            _TURN.sub("", users[-1])[:_MAX_REQUEST_CHARS].strip() if users else "",
            _completed_calls(after),
            offered,
            _today(tail),
            _scope_row(delimited_text(tail, "scope"), _zone(tail)),
            _mentioned_row(before),
            _confirmed_calls(delimited_text(tail, "confirmed"), offered),
            delimited_text(tail, "memory"),
            _last_answer(before),
        )


def _completed_calls(messages: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
    names = {
        call.get("id"): str((call.get("function") or {}).get("name"))
        for message in messages
        for call in message.get("tool_calls") or ()
    }
    return tuple(
        (names.get(message.get("tool_call_id"), ""), message_text(message))
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


def _scope_row(text: str, zone: tzinfo) -> Row | None:
    """Return the row that the user has open, from the device's JSON or from a line with its id."""
    kind = _SCOPE_KIND.search(text)
    inner = DELIMITED_BLOCK.search(text)
    found = tool_results.parse_rows(inner["text"] if inner else text, zone)
    return Row(found[0].id, found[0].title, found[0].details, kind[1] if kind else "task") if found else None


def _last_answer(messages: Sequence[Mapping[str, Any]]) -> str:
    said = (message_text(each) for each in reversed(messages) if each.get("role") == "assistant")
    return next(filter(None, said), "")


def _mentioned_row(messages: Sequence[Mapping[str, Any]]) -> Row | None:
    """Return the row that the last answer showed, if it showed exactly one."""
    last = _last_answer(messages)
    found = _ENTITY_TAG.findall(last)
    return Row(found[0][1], "", "", found[0][0]) if len(found) == 1 and last.count("<") == 2 else None


def _confirmed_calls(text: str, tools: OfferedTools) -> tuple[ToolCall, ...]:
    """Parse the confirmed calls, one a line: a description, the tool's name, and its arguments as JSON."""
    found = (_confirmed_call(line, tools) for line in text.splitlines()[:_MAX_CONFIRMED_CALLS])
    return tuple(call for call in found if call is not None)


def _confirmed_call(line: str, tools: OfferedTools) -> ToolCall | None:
    for match in _CALL_START.finditer(line):
        try:
            arguments = json.loads(line[match.end() :])
        except (ValueError, RecursionError):
            continue  # a title that looks like a call
        if match["tool"] in tools:
            return ToolCall(match["tool"], arguments)
    return None
