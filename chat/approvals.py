"""Approvals: deletions, large changes, and changes that the user's own words do not ask for need the user's yes.

Once a turn has read text that the user did not write, the model may act for that text: then an insert or an update is
carried out only if the user's words ask for it (chat.user_intent). A turn and a conversation have bounds; above them
each insert and update needs a yes, whatever the turn has read.

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
from django.conf import settings
from django.utils.translation import gettext, gettext_noop, ngettext
from langchain_core.tools import ToolException

from adiuva.devices.calls import new_call
from adiuva.devices.protocol import ApprovalRequest, TableName, ToolResultBody
from adiuva.devices.tables import NOUNS, TABLES
from chat.deferred_calls import DeferredCall
from chat.device_session import DeviceSession
from chat.memory_context import MEMORY, MemoryContext, entry_text
from chat.turn_context import ToolInvocation
from chat.untrusted_text import MAX_TITLE_CHARS, is_row_id, quotable
from chat.user_intent import UserWords

# From this many updates in a turn on, each needs approval.
BULK_UPDATES: Final = 3
# The most rows in one question, which names each of them.
_MAX_ROWS: Final = 25
# The most calls that one yes in words can allow.
_MAX_DEFERRED: Final = 50
# The most characters of a new value that a question shows.
_MAX_VALUE_CHARS: Final = 60
# An update that keeps a smaller share of a text's lines needs approval.
_MIN_KEPT_SHARE: Final = 0.5
_NOUNS: Final = NOUNS | {MEMORY: ("memory", "memories")}
_VERBS: Final = {
    "insert": gettext_noop("Create"),
    "update": gettext_noop("Update"),
    "delete": gettext_noop("Delete"),
}
# It takes back more than the memory that it names says, so it is asked about by itself and in other words.
_TAKE_BACK: Final = "take_back"
_TEXT_COLUMNS: Final = {"content": "content", "description": "description", "summary": "aiSummary"}
_ASK_USER: Final = (
    "not done: it needs the user's plain yes ({what}). The user is asked at the end of your answer: do not ask as "
    "well, and do not call it again in this turn"
)
_TOO_MANY: Final = (
    "not done: these are more changes than the user can be asked about at once. Do not call it again"
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
    deferred calls that the user has just said yes to; `deferred` are those that this turn defers; `refused` describes
    those that the user has said no to, and `left_out` counts those that were too many to ask for. `user_words` returns
    what the user has said; `count_recent_writes` returns how many rows this conversation has changed within the last
    hour; `looked_at` is the id of the row that the request is about.
    """

    request_id: str
    session: DeviceSession
    memory: MemoryContext
    user_words: Callable[[], UserWords]
    count_recent_writes: Callable[[], Awaitable[int]]
    expires_at: int  # milliseconds since the epoch
    ask: Callable[[ApprovalRequest], Awaitable[None]] | None
    granted: list[DeferredCall] = field(default_factory=list)
    deferred: list[DeferredCall] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    left_out: int = 0
    looked_at: str | None = None
    _updates: int = 0
    _unasked_writes: int = 0
    _recent_writes: int | None = None
    # (action, table) of inserts and updates that the user has said no to: this turn does not ask for them again.
    _said_no: set[tuple[str, str]] = field(default_factory=set)
    _open: dict[str, asyncio.Future[bool]] = field(default_factory=dict)

    async def allow(self, calls: Sequence[ToolInvocation]) -> dict[str, str]:
        """Return the reasons why calls may not be carried out, by call id. Waits for the user if a device can ask."""
        # A correction of a memory destroys nothing: the older text stays as its history.
        writes = [call for call in calls if call.action in ("insert", "update") and call.table != MEMORY]
        self._updates += sum(call.action == "update" for call in writes)
        unbidden = await self._over_bounds(writes)
        is_misled = bool(self.session.foreign) or self.session.foreign.earlier
        checked = [
            call
            for call in calls
            if call.action == "delete"
            or call.id in unbidden
            or (call in writes and (is_misled or (call.action == "update" and self._may_ask(call))))
        ]
        if not checked:
            return {}
        refused: dict[str, str] = {}
        groups: dict[tuple[str, str, bool], list[CallToApprove]] = defaultdict(list)
        for call, row in zip(checked, await self._rows(checked), strict=True):
            if isinstance(row, ToolException):
                refused[call.id] = str(row).removeprefix("Failed: ").rstrip(".")
                continue
            if row is None:
                continue  # its tool will say that there is no such row
            is_unbidden = call.id in unbidden or (
                is_misled and call in writes and not self._is_wanted(call, row)
            )
            if not is_unbidden and (call.action == "insert" or not self._must_ask(call, row)):
                continue
            if is_unbidden and (call.action, call.table) in self._said_no:
                refused[call.id] = _REFUSED
                continue
            kind = call.action, call.table, call.tool.name == _TAKE_BACK
            groups[kind].append(CallToApprove(call, _title(call, row)))
        for (action, table, _), group in groups.items():
            for start in range(0, len(group), _MAX_ROWS):
                some = group[start : start + _MAX_ROWS]
                if self.ask is None:
                    refused |= self._ask_in_words(action, table, some)
                elif (action, table) in self._said_no and action != "delete":
                    refused |= {question.call.id: _REFUSED for question in some}
                elif not await self._approved(action, table, summary := _summary(action, table, some)):
                    refused |= {question.call.id: _REFUSED for question in some}
                    self.refused.append(summary)
                    self._said_no.add((action, table))
        return refused

    async def confirm(
        self, tool: str, arguments: dict[str, Any], action: str, table: str, summary: str
    ) -> None:
        """Ask for the user's yes to a call that knows by itself that it needs one. Returns if they say yes.

        Raises ToolException, in words for the model.
        """
        if self.ask is None:
            if self._take_grant(tool, arguments):
                return
            if len(self.deferred) >= _MAX_DEFERRED:
                self.left_out += 1
                raise ToolException(f"Failed: {_TOO_MANY}.")
            if summary not in [call.summary for call in self.deferred]:
                self.deferred.append(DeferredCall(tool, arguments, summary))
            raise ToolException(f"Failed: {_ASK_USER.format(what=summary)}.")
        if summary in self.refused:
            raise ToolException(f"Failed: {_REFUSED}.")
        if not await self._approved(action, table, summary):
            self.refused.append(summary)
            raise ToolException(f"Failed: {_REFUSED}.")

    def has_grant(self, tool: str, arguments: dict[str, Any]) -> bool:
        """Return whether the user has just said yes, in words, to exactly this call."""
        return any(call.tool == tool and _given(call.arguments) == _given(arguments) for call in self.granted)

    async def _over_bounds(self, writes: Sequence[ToolInvocation]) -> set[str]:
        """Return the ids of the writes beyond what a turn, or an hour of its conversation, may do without asking."""
        if not writes:
            return set()
        if self._recent_writes is None:
            self._recent_writes = await self.count_recent_writes()
        a_turn = settings.CHAT["unasked_writes_a_turn"] - self._unasked_writes
        an_hour = settings.CHAT["unasked_writes_an_hour"] - self._recent_writes - self._unasked_writes
        room = max(0, min(a_turn, an_hour))
        self._unasked_writes += len(writes[:room])
        return {call.id for call in writes[room:]}

    def _is_wanted(self, call: ToolInvocation, row: dict[str, Any]) -> bool:
        """Return whether the user's own words ask for an insert or update."""
        values = {name: value for name, value in _given(call.arguments).items() if name != call.row_argument}
        refers_to = [str(value) for name, value in values.items() if name.endswith("_id")]
        named = [self.session.titles[key] for key in refers_to if key in self.session.titles]
        if call.action == "insert":
            # A new row's defaults tell nothing of the user's wish.
            usual = {column.name: column.default for column in TABLES[cast(TableName, call.table)].columns}
            values = {name: value for name, value in values.items() if value != usual.get(name)}
        # The user need not name what they are looking at.
        values = {name: value for name, value in values.items() if value != self.looked_at}
        is_named = call.action == "insert" or row.get("id") == self.looked_at
        return self.user_words().ask_for(None if is_named else _title(call, row), values, named)

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
        """Return the row that each call changes, all read in one round trip; an empty one for an insert."""
        keys = [call.arguments.get(call.row_argument) for call in calls]
        wanted = [
            new_call("get", cast(TableName, call.table), data={"id": key})
            for call, key in zip(calls, keys, strict=True)
            if is_row_id(key) and call.table != MEMORY and call.action != "insert"
        ]
        found = iter(await self.session.call_many(wanted, shown=False) if wanted else [])
        rows: list[dict[str, Any] | ToolException | None] = []
        for call, key in zip(calls, keys, strict=True):
            if call.action == "insert":
                rows.append({})
                continue
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
            if not self._take_grant(question.call.tool.name, question.call.arguments):
                if len(self.deferred) >= _MAX_DEFERRED:
                    self.left_out += 1
                    refused[question.call.id] = _TOO_MANY
                    continue
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

    def _take_grant(self, tool: str, arguments: dict[str, Any]) -> bool:
        for place, granted in enumerate(self.granted):
            if granted.tool == tool and _given(granted.arguments) == _given(arguments):
                del self.granted[place]
                return True
        return False


def refusal_text(summaries: Sequence[str]) -> str:
    """Return a text that says, whatever the model says, that what the user refused was not done."""
    said = gettext("**Not done, because you said no:**")
    if len(summaries) == 1:
        return f"{said} {summaries[0]}"
    return "\n".join([said, *(f"- {summary}" for summary in summaries)])


def _title(call: ToolInvocation, row: dict[str, Any]) -> str:
    """Return the title of the row that a call changes or makes, as a question shows it."""
    column = TABLES[call.table].title if call.table in TABLES else "title"
    return quotable(call.arguments.get(column) if call.action == "insert" else row.get(column)) or gettext(
        "(untitled)"
    )


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


def _summary(action: str, table: str, questions: Sequence[CallToApprove]) -> str:
    """Return what the calls would do: every row's title, and the new values of updates."""
    count = len(questions)
    if questions[0].call.tool.name == _TAKE_BACK:
        return ngettext(
            "Take back all that the message which last changed the memory {titles} did to your memory",
            "Take back all that the messages which last changed the memories {titles} did to your memory",
            count,
        ).format(titles=", ".join(f"“{question.title}”" for question in questions))
    noun = ngettext(*_NOUNS[table], count)
    verb = gettext("Forget") if table == MEMORY else gettext(_VERBS[action])
    changes = [_changes(question.call) if action != "delete" else "" for question in questions]
    alike = len(set(changes)) == 1
    named = ", ".join(
        f"“{question.title}”" + ("" if alike or not change else f" ({change})")
        for question, change in zip(questions, changes, strict=True)
    )
    said = (
        gettext("{verb} the {noun} {titles}") if count == 1 else gettext("{verb} {count} {nouns}: {titles}")
    )
    return said.format(verb=verb, noun=noun, nouns=noun, count=count, titles=named) + (
        f": {changes[0]}" if alike and changes[0] else ""
    )


def _changes(call: ToolInvocation) -> str:
    title = TABLES[call.table].title if call.action == "insert" else call.row_argument
    given = {name: value for name, value in _given(call.arguments).items() if name != title and value != ""}
    return ", ".join(f"{name.replace('_', ' ')} → {_short(value)}" for name, value in given.items())


def _short(value: Any) -> str:
    text = quotable(value if isinstance(value, str) else orjson.dumps(value).decode(), _MAX_VALUE_CHARS)
    return f"“{text}”" if isinstance(value, str) else text


def _destroys(old: object, new: object) -> bool:
    """Return whether an update would remove most of a text."""
    if not isinstance(old, str) or not isinstance(new, str):
        return False
    lines = [line for line in map(_words, old.splitlines()) if line]
    left = _words(new)
    kept = sum(len(line) for line in lines if line in left)
    return kept < _MIN_KEPT_SHARE * sum(map(len, lines))


def _words(text: str) -> str:
    return " ".join(text.casefold().split())
