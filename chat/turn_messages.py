"""Assembles the messages of a turn's first model call: system prompt, history, the turn prompt, and the request."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import orjson
from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from langchain_core.tools import ToolException

from adiuva.devices.protocol import Mutation, Scope, TableName
from chat.claimed_turn import ClaimedTurn
from chat.context_budget import REQUEST, ContextBudget
from chat.device_session import DeviceSession
from chat.history import FittedHistory
from chat.prompts import turn_prompt, with_turn_prompt
from chat.request import ChatRequest
from chat.tool_calls import Assistant
from chat.tools import formatting
from chat.untrusted_text import is_row_id

MAX_SCOPE_CHARS: Final = 20_000
# Not reached by what the client sends (bounded by its frame) or recalled memories (bounded by the memory).
_MAX_CONTEXT_CHARS: Final = 1_000_000
_MAX_MEMORY_CHARS: Final = 1_000_000
_MAX_EARLIER_CHANGES: Final = 20

SCOPE_TABLES: Final[dict[str, TableName]] = {
    "task": "tasks",
    "project": "projects",
    "note": "notes",
    "timeline": "timelines",
}


def first_messages(
    assistant: Assistant,
    request: ChatRequest,
    claimed: ClaimedTurn,
    *,
    session: DeviceSession,
    history: FittedHistory,
    scope: str | None,
    memory: str | None,
    confirmed: list[str],
    budget: ContextBudget,
) -> list[BaseMessage]:
    """Return the messages. `scope` is from `describe_scope`, `memory` what was recalled, `confirmed` the calls that the
    user said yes to.
    """
    turn = turn_prompt(
        now=session.now,
        locale=claimed.locale,
        scope=scope,
        context=_within(
            _context(session.aliases.in_text(history.summary), request.context),
            budget.part(6, _MAX_CONTEXT_CHARS),
        ),
        memory=_within(memory, budget.part(8, _MAX_MEMORY_CHARS)),
        confirmed=confirmed,
        changed=_earlier_changes(claimed, session),
    )
    return [
        _system_message(assistant.prompt.text),
        *history.messages(session.aliases.in_text),
        HumanMessage(with_turn_prompt(turn, request.message), additional_kwargs={REQUEST: True}),
    ]


@cache
def _system_message(text: str) -> SystemMessage:
    """Return the message of a prompt. There are few, and nobody changes a message."""
    return SystemMessage(text)


def _within(text: str | None, most: int) -> str | None:
    """Return as much of the text as fits, in whole lines if they are short."""
    if text is None or len(text) <= most:
        return text
    return f"{text[:most].rpartition(chr(10))[0] or text[:most]}\n(More did not fit.)"


async def describe_scope(
    scope: Scope | None, session: DeviceSession, *, most_chars: int = MAX_SCOPE_CHARS
) -> str | None:
    """Describe what a floating request is about, in words for the model; reads the row from the device."""
    if scope is None:
        return None
    table = SCOPE_TABLES.get(scope.type)
    if table is None or scope.id is None:
        return f"The user looks at the {scope.type}{'s' if scope.type != 'workspace' else ' as a whole'}."
    try:
        row = (await session.call("get", table, data={"id": scope.id})).row
    except ToolException as failure:
        return f"The user looks at the {scope.type} {_alias_of(scope, session, table)}. {failure}"
    if row is None:
        return f"The user looks at a {scope.type} that is not there any more ({_alias_of(scope, session, table)})."
    texts = [row.get(column) for column in ("description", "aiSummary", "content")]
    quoted = [formatting.quote(text, most_chars) for text in texts if isinstance(text, str) and text.strip()]
    return "\n".join(
        [f"The user looks at this {scope.type}:\n- {formatting.row_text(session, table, row)}", *quoted]
    )


def _alias_of(scope: Scope, session: DeviceSession, table: TableName) -> str:
    return f"[{session.aliases.alias(table, scope.id)}]" if is_row_id(scope.id) and scope.id else "[?]"


def _context(summary: str, client_context: str) -> str | None:
    parts = [f"Summary of what was said before:\n{summary}"] if summary else []
    if client_context:
        parts.append(client_context)
    return "\n\n".join(parts) or None


def _earlier_changes(claimed: ClaimedTurn, session: DeviceSession) -> list[str]:
    """Return the changes of the conversation's earlier turns, so that the model understands "undo that"."""
    changes = [
        f"{mutation.action} in {mutation.table}: {_identifying_fields(mutation, session)}"
        for message in claimed.history
        for mutation in message.mutations
    ]
    return changes[-_MAX_EARLIER_CHANGES:]


def _identifying_fields(mutation: Mutation, session: DeviceSession) -> str:
    row: dict[str, Any] = mutation.data
    found: dict[str, Any] = {key: row[key] for key in ("title", "name") if key in row}
    if is_row_id(row.get("id")):
        found["id"] = session.aliases.alias(mutation.table, row["id"])
    return orjson.dumps(found).decode()
