"""Tools that remember, recall, correct and forget what is known about the user.

The turn prompt shows the recalled entries, each behind a label ("m1"), as do the answers of these tools. Only the
user's own words are remembered (memory.grounding), so that a note or a document that a tool has read cannot write
itself into the memory; and in a turn that has read texts of others, the tools keep only proposals. Known entries change
only where the user names them and says what holds instead (memory.intent). `forget` waits for the user's yes, as all
deletions do (chat.approvals), and so does `take_back`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Final

from django.db import transaction
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import ToolException
from pydantic import Field

from adiuva.core import db
from adiuva.core.errors import AdiuvaError
from chat import conversations
from chat.memory_context import MEMORY, MemoryContext, entry_text, memory_context_of
from chat.tools.base import OrNull, assistant_tool
from chat.untrusted_text import one_line
from memory import entries, entry_content, forgetting, grounding, intent, taking_back
from memory.entries import EntryDetails, Remembered, RememberOutcome
from memory.models import Entry, Tier
from memory.preferences import MemoryOff
from memory.recall import RecalledEntry

_Label = Annotated[str, Field(description="such as m3")]
_NOT_USERS_WORDS: Final = (
    "Failed: only what the user has said in this conversation is kept, in the user's own words, and {reason}."
)
_PROPOSED: Final = (
    "Not remembered yet, since texts were read that the user did not write: it waits as a proposal until the user says "
    "it again in another message, or confirms it among their memories. Proposed: {content}"
)
_NOT_NAMED: Final = (
    "Failed: this would take the place of what is remembered as {known}. Ask the user to say what it is about and what "
    "holds instead."
)

_CHANGED: Final = (
    "Failed: this memory has changed since the user was asked. Now it says: {line}. Ask once more."
)


@assistant_tool(MEMORY, "insert", "Keeping it in mind")
async def remember(
    config: RunnableConfig,
    content: Annotated[str, Field(description="one sentence, in the user's words")],
    key: Annotated[
        str | OrNull,
        Field(description="what has one value, such as hourly rate"),
    ] = None,
) -> str:
    """Remember what the user wants kept, or a lasting preference."""
    memory = memory_context_of(config)
    key = (key or "").strip() or None
    _require_users_words(memory, content)
    if key is not None and (foreign := grounding.foreign_facts(key, "\n".join(memory.said_now))):
        raise ToolException(_NOT_USERS_WORDS.format(reason=f"the user did not say “{foreign[0]}”"))
    proposed = memory.only_proposes(content)

    def keep() -> Remembered:
        if key is not None and not proposed:
            _require_wish(memory, entries.entry_of_key(memory.user_id, key), content)
        return entries.remember(
            user_id=memory.user_id,
            tier=Tier.CORE if key else Tier.ASSOCIATIVE,
            content=content,
            key=key,
            source=memory.origin,
            details=EntryDetails(proposed=proposed),
        )

    kept = await _run_service(partial(_if_memory_on, memory, keep))
    if kept.outcome is RememberOutcome.PROPOSED:
        return _PROPOSED.format(content=one_line(content))
    line = await _entry_line(memory, kept.entry.pk)
    match kept.outcome:
        case RememberOutcome.KNOWN:
            return f"This was remembered already: {line}"
        case RememberOutcome.CHANGED:
            return f"Remembered in place of what it was before: {line}"
    return f"Remembered: {line}"


@assistant_tool(MEMORY, "select", "Looking into the memory")
async def recall(config: RunnableConfig, question: str) -> str:
    """Look for more in what is remembered of the user."""
    memory = memory_context_of(config)
    return await memory.search(question) or "Nothing that fits is remembered."


@assistant_tool(MEMORY, "update", "Putting it right", key=MEMORY)
async def correct(config: RunnableConfig, memory: _Label, content: str) -> str:
    """Replace what a memory says by what the user says instead."""
    context = memory_context_of(config)
    found = _require_entry(context, memory)
    _require_users_words(context, content)
    proposed = context.only_proposes(content)

    def change() -> None:
        entry = entries.get_entry(context.user_id, found.id)
        if not proposed:
            _require_wish(context, entry, content)
            entries.correct(entry=entry, content=content, source=context.origin)
            return
        entries.remember(
            user_id=context.user_id,
            tier=found.tier,
            content=content,
            key=found.key,
            source=context.origin,
            details=EntryDetails(proposed=True, replaces=found.id),
        )

    await _run_service(partial(_if_memory_on, context, change))
    if proposed:
        return _PROPOSED.format(content=one_line(content))
    return f"Corrected: {await _entry_line(context, found.id)}"


@assistant_tool(MEMORY, "delete", "Forgetting it", key=MEMORY)
async def forget(config: RunnableConfig, memory: _Label) -> str:
    """Forget one memory for good, because the user wishes it."""
    context = memory_context_of(config)
    found = await _require_unchanged_entry(context, memory)
    if not await _run_service(forgetting.forget, user_id=context.user_id, ids=[found.id]):
        raise _no_such_label(memory)
    return f"Forgotten: {entry_text(found)}"


@assistant_tool(MEMORY, "delete", "Taking it back", key=MEMORY)
async def take_back(config: RunnableConfig, memory: _Label) -> str:
    """Undo all that the message which last changed a memory did to the memory."""
    context = memory_context_of(config)
    found = await _require_unchanged_entry(context, memory)
    source = await db.run(taking_back.latest_turn, context.user_id, found.id)
    if source is None:
        of_run = await db.run(taking_back.is_of_run, context.user_id, found.id)
        by = "after a run of an agent" if of_run else "by the user's own hand"
        raise ToolException(f"Failed: this was written {by}; forget it or correct it instead.")
    done = await _run_service(
        taking_back.take_back, user_id=context.user_id, kind=source.kind, source_id=source.id, seq=source.seq
    )
    return f"Taken back: {done.deleted} deleted, {done.restored} as they were before."


def _require_users_words(memory: MemoryContext, content: str) -> None:
    if reason := memory.why_not_the_users(content):
        raise ToolException(_NOT_USERS_WORDS.format(reason=reason))


def _require_wish(memory: MemoryContext, known: Entry | None, content: str) -> None:
    """Refuse to change an entry that the user does not name, unless they have just said a plain yes to it."""
    if known is None or memory.said_yes:
        return
    text = entry_content.unseal_entry(known, memory.claimed.cipher)
    if not intent.wants_change(text.searchable_text, content, memory.said_lately):
        raise ToolException(_NOT_NAMED.format(known=f"“{one_line(text.searchable_text)}”"))


@transaction.atomic
def _if_memory_on(memory: MemoryContext, service: Callable[..., Any], **given: Any) -> Any:
    """Call `service`. Raises MemoryOff if memory was switched off or the conversation deleted since the turn began."""
    place = memory.claimed.conversation_id
    there = place is None or conversations.lock_and_check_memory(
        user_id=memory.user_id, conversation_id=place
    )
    if not there or not entries.lock_memory(memory.user_id).enabled:
        raise MemoryOff
    return service(**given)


async def _run_service(service: Callable[..., Any], **given: Any) -> Any:
    try:
        return await db.run(service, **given)
    except AdiuvaError as error:
        raise ToolException(f"Failed: {error.message}.") from None


async def _entry_line(memory: MemoryContext, entry_id: Any) -> str:
    found = await memory.read(entry_id)
    return memory.entry_line(found) if found else "(gone meanwhile)"


def _require_entry(memory: MemoryContext, label: str) -> RecalledEntry:
    found = memory.entry_by_label(label)
    if found is None:
        raise _no_such_label(label)
    return found


async def _require_unchanged_entry(memory: MemoryContext, label: str) -> RecalledEntry:
    """Return the entry of a label, which the user was asked about and may have waited with the answer."""
    found = _require_entry(memory, label)
    now = await memory.read(found.id)
    if now is None:
        raise _no_such_label(label)
    if (now.key, now.content) != (found.key, found.content):
        raise ToolException(_CHANGED.format(line=memory.entry_line(now)))
    return found


def _no_such_label(label: str) -> ToolException:
    return ToolException(f"Failed: there is no memory with the label {one_line(label, 20) or '(none)'}.")


MEMORY_TOOLS = (remember, recall, correct, forget, take_back)
