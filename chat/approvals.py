"""Approvals: deletions and large changes need the user's yes.

A device with the `approval` capability gets an approval_request; an approval counts once, for exactly the arguments in
question, until its request ends. For other devices the question is added to the end of the answer. It is in our words,
not the model's, since a note may have talked the model into asking something else. The call is kept for a while, and a
plain yes in the next message of the same chat allows exactly that call (chat.deferred_calls).
"""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, cast

import orjson
from langchain_core.tools import ToolException

from adiuva.devices.calls import new_call
from adiuva.devices.protocol import ApprovalRequest, TableName, ToolResultBody
from chat.agent_loop import ToolInvocation
from chat.deferred_calls import DeferredCall
from chat.device_session import NOUNS, DeviceSession
from chat.memory_context import MEMORY, MemoryContext, entry_text
from chat.untrusted_text import MAX_TITLE_CHARS, is_row_id, one_line

# From this many updates in a turn on, updates need approval.
BULK_UPDATES: Final = 3
# Rows in one question; all of them are named.
_MAX_ROWS: Final = 25
# Length of a new value in a question.
_MAX_VALUE_CHARS: Final = 60
# An update that keeps a smaller share of a text's lines needs approval.
_MIN_KEPT_SHARE: Final = 0.5
_NOUNS: Final = NOUNS | {MEMORY: ("memory", "memories")}
_TEXT_COLUMNS: Final = {"content": "content", "description": "description", "summary": "aiSummary"}
_ASK_USER: Final = (
    "not done: it needs the user's plain yes ({what}). The user is asked at the end of your answer: do not ask as "
    "well, and do not call it again in this turn"
)
_REFUSED: Final = "the user said no. Do not try it again, nor in another way"


class CallToApprove(NamedTuple):
    """A call that needs approval, and the title of the row that it changes."""

    call: ToolInvocation
    title: str


@dataclass
class Approvals:
    """Decides what one turn may do.

    `ask` sends an approval_request to the user's devices; None if the assistant has to ask in words. `granted` are the
    deferred calls that the user has just said yes to; `deferred` are those that this turn defers; `refused` says in
    words what the user has said no to.
    """

    request_id: str
    session: DeviceSession
    memory: MemoryContext
    expires_at: int  # milliseconds since the epoch
    ask: Callable[[ApprovalRequest], Awaitable[None]] | None
    granted: list[DeferredCall] = field(default_factory=list)
    deferred: list[DeferredCall] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    _updates: int = 0
    _open: dict[str, asyncio.Future[bool]] = field(default_factory=dict)

    async def allow(self, calls: Sequence[ToolInvocation]) -> dict[str, str]:
        """The reasons why calls may not be carried out, by call id. Waits for the user if a device can ask."""
        # A correction of a memory destroys nothing: the older text stays as its history.
        updates = [call for call in calls if call.action == "update" and call.table != MEMORY]
        self._updates += len(updates)
        asked = [
            call for call in calls if call.action == "delete" or (call in updates and self._may_ask(call))
        ]
        if not asked:
            return {}
        refused: dict[str, str] = {}
        groups: dict[tuple[str, str], list[CallToApprove]] = defaultdict(list)
        for call, row in zip(asked, await self._rows(asked), strict=True):
            if isinstance(row, ToolException):
                refused[call.id] = str(row).removeprefix("Failed: ").rstrip(".")
            elif row is not None and self._must_ask(call, row):  # if there is no row, the tool says so
                title = row["title"] if call.table == MEMORY else self.session.titles[row["id"]]
                groups[call.action, call.table].append(CallToApprove(call, title))
        for (action, table), group in groups.items():
            for start in range(0, len(group), _MAX_ROWS):
                some = group[start : start + _MAX_ROWS]
                if self.ask is None:
                    refused |= self._ask_in_words(action, table, some)
                elif not await self._approved(action, table, summary := _summary(action, table, some)):
                    refused |= {question.call.id: _REFUSED for question in some}
                    self.refused.append(summary)
        return refused

    def _may_ask(self, call: ToolInvocation) -> bool:
        return self._updates >= BULK_UPDATES or any(call.arguments.get(name) for name in _TEXT_COLUMNS)

    def _must_ask(self, call: ToolInvocation, row: dict[str, Any]) -> bool:
        if call.action == "delete" or self._updates >= BULK_UPDATES:
            return True
        return any(
            _destroys(row.get(column), call.arguments[name])
            for name, column in _TEXT_COLUMNS.items()
            if call.arguments.get(name)
        )

    async def _rows(self, calls: Sequence[ToolInvocation]) -> list[dict[str, Any] | ToolException | None]:
        """The row that each call changes, all read in one round trip."""
        keys = [call.arguments.get(call.row_argument) for call in calls]
        wanted = [
            new_call("get", cast(TableName, call.table), data={"id": key})
            for call, key in zip(calls, keys, strict=True)
            if is_row_id(key) and call.table != MEMORY
        ]
        found = iter(await self.session.call_many(wanted) if wanted else [])
        rows: list[dict[str, Any] | ToolException | None] = []
        for call, key in zip(calls, keys, strict=True):
            if call.table == MEMORY:
                known = self.memory.entry_by_label(key)
                rows.append({"title": entry_text(known, MAX_TITLE_CHARS)} if known else None)
                continue
            outcome = next(found) if is_row_id(key) else None
            rows.append(outcome.row if isinstance(outcome, ToolResultBody) else outcome)
        return rows

    def _ask_in_words(self, action: str, table: str, questions: Sequence[CallToApprove]) -> dict[str, str]:
        refused = {}
        for question in questions:
            if not self._take_grant(question.call):
                summary = _summary(action, table, [question])
                arguments = question.call.arguments
                if table == MEMORY:
                    arguments = self.memory.with_entry_id(arguments)
                self.deferred.append(DeferredCall(question.call.tool.name, arguments, summary))
                refused[question.call.id] = _ASK_USER.format(what=summary)
        return refused

    def decide(self, key: str, approved: bool) -> bool:
        """Answer an approval_request. Returns False if it does not exist or was answered before."""
        future = self._open.pop(key, None)
        if future is None or future.done():
            return False
        future.set_result(approved)
        return True

    async def _approved(self, action: str, table: str, summary: str) -> bool:
        assert self.ask is not None
        key = uuid.uuid4().hex
        future = self._open[key] = asyncio.get_running_loop().create_future()
        try:
            await self.ask(
                ApprovalRequest(
                    id=key,
                    request_id=self.request_id,
                    action=action,
                    table=table,
                    summary=summary,
                    expires_at=self.expires_at,
                )
            )
            decided: bool = await future
            return decided
        finally:
            self._open.pop(key, None)

    def _take_grant(self, call: ToolInvocation) -> bool:
        for place, granted in enumerate(self.granted):
            if granted.tool == call.tool.name and _given(granted.arguments) == _given(call.arguments):
                del self.granted[place]
                return True
        return False


def refusal_text(summaries: Sequence[str]) -> str:
    """Says, whatever the model says, that what the user refused was not done."""
    if len(summaries) == 1:
        return f"**Not done, because you said no:** {summaries[0]}"
    return "\n".join(["**Not done, because you said no:**", *(f"- {summary}" for summary in summaries)])


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


def _summary(action: str, table: str, questions: Sequence[CallToApprove]) -> str:
    """What the calls would do: every row's title, and the new values of updates."""
    one, many = _NOUNS[table]
    verb = "Forget" if table == MEMORY else action.capitalize()
    noun = f"the {one}" if len(questions) == 1 else f"{len(questions)} {many}:"
    changes = [_changes(question.call) if action == "update" else "" for question in questions]
    alike = len(set(changes)) == 1
    named = ", ".join(
        f"“{question.title}”" + ("" if alike or not change else f" ({change})")
        for question, change in zip(questions, changes, strict=True)
    )
    return f"{verb} {noun} {named}" + (f": {changes[0]}" if alike and changes[0] else "")


def _changes(call: ToolInvocation) -> str:
    given = {name: value for name, value in _given(call.arguments).items() if name != call.row_argument}
    return ", ".join(f"{name.replace('_', ' ')} → {_short(value)}" for name, value in given.items())


def _short(value: Any) -> str:
    text = one_line(value if isinstance(value, str) else orjson.dumps(value).decode(), _MAX_VALUE_CHARS)
    return f"“{text}”" if isinstance(value, str) else text


def _destroys(old: object, new: object) -> bool:
    """Whether an update would remove most of a text."""
    if not isinstance(old, str) or not isinstance(new, str):
        return False
    lines = [line for line in map(_words, old.splitlines()) if line]
    left = _words(new)
    kept = sum(len(line) for line in lines if line in left)
    return kept < _MIN_KEPT_SHARE * sum(map(len, lines))


def _words(text: str) -> str:
    return " ".join(text.casefold().split())
