"""Tools that remember, recall, correct and forget what is known about the user.

The turn prompt shows what was recalled, each entry behind a label ("m1"), as do the answers of these tools. Only the
user's own words are remembered: `remember` and `correct` accept a text only if the user has said at least half of its
words in this conversation (MemoryContext.is_from_user), so that a note or a document that a tool has read cannot write
itself into the memory. `forget` waits for the user's yes, as all deletions do (chat.approvals).
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
from memory import entries, forgetting
from memory.entries import RememberOutcome
from memory.models import Tier
from memory.preferences import MemoryOff
from memory.recall import RecalledEntry, read_entry

_Label = Annotated[str, Field(description="its label, such as m3")]
_NOT_USERS_WORDS: Final = (
    "Failed: only what the user has said in this conversation is kept, in the user's own words, and this is not in "
    "their messages."
)


@assistant_tool(MEMORY, "insert", "Keeping it in mind")
async def remember(
    config: RunnableConfig,
    content: Annotated[str, Field(description="one sentence that stands by itself, in the user's words")],
    key: Annotated[
        str | OrNull,
        Field(description="for a preference or a fact that has one value: what it is, in short"),
    ] = None,
) -> str:
    """Remember what the user asks you to keep in mind, or a lasting preference that they state."""
    memory = memory_context_of(config)
    if not memory.is_from_user(content):
        raise ToolException(_NOT_USERS_WORDS)
    key = (key or "").strip() or None
    kept = await _run_service(
        partial(_if_memory_on, memory, entries.remember),
        user_id=memory.user_id,
        tier=Tier.CORE if key else Tier.ASSOCIATIVE,
        content=content,
        key=key,
        source=memory.origin,
    )
    line = await _entry_line(memory, kept.entry.pk)
    match kept.outcome:
        case RememberOutcome.KNOWN:
            return f"This was remembered already: {line}"
        case RememberOutcome.CHANGED:
            return f"Remembered in place of what it was before: {line}"
    return f"Remembered: {line}"


@assistant_tool(MEMORY, "select", "Looking into the memory")
async def recall(
    config: RunnableConfig, question: Annotated[str, Field(description="what to look for, in a few words")]
) -> str:
    """Look for more in what is remembered of the user than what you have been given."""
    memory = memory_context_of(config)
    return await memory.search(question) or "Nothing that fits is remembered."


@assistant_tool(MEMORY, "update", "Putting it right", key=MEMORY)
async def correct(config: RunnableConfig, memory: _Label, content: str) -> str:
    """Replace what a memory says by what the user says instead."""
    context = memory_context_of(config)
    found = _require_entry(context, memory)
    if not context.is_from_user(content):
        raise ToolException(_NOT_USERS_WORDS)

    def change() -> None:
        entry = entries.get_entry(context.user_id, found.id)
        entries.correct(entry=entry, content=content, source=context.origin)

    await _run_service(partial(_if_memory_on, context, change))
    return f"Corrected: {await _entry_line(context, found.id)}"


@assistant_tool(MEMORY, "delete", "Forgetting it", key=MEMORY)
async def forget(config: RunnableConfig, memory: _Label) -> str:
    """Forget one memory for good, with all that it ever said, because the user wishes it."""
    context = memory_context_of(config)
    found = _require_entry(context, memory)
    if not await _run_service(forgetting.forget, user_id=context.user_id, ids=[found.id]):
        raise _no_such_label(memory)
    return f"Forgotten: {entry_text(found)}"


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
    found: RecalledEntry | None = await db.run(read_entry, memory.user_id, entry_id)
    return memory.entry_line(found) if found else "(gone meanwhile)"


def _require_entry(memory: MemoryContext, label: str) -> RecalledEntry:
    found = memory.entry_by_label(label)
    if found is None:
        raise _no_such_label(label)
    return found


def _no_such_label(label: str) -> ToolException:
    return ToolException(f"Failed: there is no memory with the label {one_line(label, 20) or '(none)'}.")


MEMORY_TOOLS = (remember, recall, correct, forget)
