"""Fits a conversation's history into the model's budget: older messages are summarised, never cut off."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import orjson
import structlog
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from redis.exceptions import RedisError

from adiuva import llm
from adiuva.core.crypto import SealBroken, UserCipher
from adiuva.core.prompt_delimiting import delimit_untrusted
from adiuva.core.redis import async_redis
from adiuva.core.sealed import seal_for_redis, unseal_from_redis
from chat.agent_loop import without_thoughts
from chat.claimed_turn import ChatMessage, ClaimedTurn
from chat.prompts import system_prompt
from chat.turn_context import TurnContext

log = structlog.get_logger(__name__)

_CACHE_TTL_S: Final = 3600
# The newest messages stay verbatim, as long as they fit the budget at all.
_MIN_VERBATIM_MESSAGES: Final = 4
# One call of the model summarises at most this much; a longer part is summarised chunk by chunk.
_CHUNK_CHARS: Final = 60_000

# Chat templates want users and assistants to alternate.
_UNANSWERED: Final = "(This was not answered.)"
_BEGINNING: Final = "(What was said before is left out.)"


@dataclass
class FittedHistory:
    """A history within bounds. `summary` replaces messages before `recent`; `new`: how many more it covers now."""

    recent: Sequence[ChatMessage]
    summary: str
    new: int = 0

    def messages(self, shown: Callable[[str], str] = str) -> list[BaseMessage]:
        """Return alternating messages, the user's first, an answer last; `shown` turns stored text into the model's."""
        found: list[BaseMessage] = []
        for message in self.recent:
            if not message.text:
                continue
            text = shown(message.text)
            is_users = message.role != "assistant"
            if is_users and found and isinstance(found[-1], HumanMessage):
                found.append(AIMessage(_UNANSWERED))
            elif not is_users and not found:
                found.append(HumanMessage(_BEGINNING))
            elif not is_users and isinstance(found[-1], AIMessage):
                found[-1] = AIMessage(f"{found[-1].content}\n\n{text}")
                continue
            found.append(HumanMessage(text) if is_users else AIMessage(text))
        if found and isinstance(found[-1], HumanMessage):
            found.append(AIMessage(_UNANSWERED))
        return found


def needs_summary(claimed: ClaimedTurn, most_chars: int) -> bool:
    return _total_chars(claimed.history) > most_chars and len(claimed.history) > 1


async def fit_history(
    *, user_id: uuid.UUID, claimed: ClaimedTurn, context: TurnContext, most_chars: int
) -> FittedHistory:
    """Return the history within so many characters. Asks the model for a summary only when it exceeds that."""
    if not needs_summary(claimed, most_chars):
        return FittedHistory(claimed.history, claimed.summary)
    history, covered, summary = claimed.history, 0, claimed.summary
    if (
        claimed.conversation_id is None
    ):  # the client sends all of it each time, perhaps with a part that we summarised before
        covered, summary = await _read_cached_summary(user_id, claimed.cipher, history)
    rest = history[covered:]
    cut = _messages_to_summarise(rest, most_chars)
    if cut:
        try:
            summary = await _summarise(rest[:cut], summary, context)
        except llm.ModelEmpty:
            # An empty summary must not replace messages: they stay as they are, and the next turn tries again.
            log.warning("summary.empty", user_id=str(user_id))
            return FittedHistory(rest, summary)
        if claimed.conversation_id is None:
            await _cache_summary(user_id, claimed.cipher, history[: covered + cut], summary)
    return FittedHistory(rest[cut:], summary, cut)


def _messages_to_summarise(messages: Sequence[ChatMessage], budget: int) -> int:
    """Return how many of the oldest messages to summarise: down to half the budget, so that the next turns
    need none.
    """
    if _total_chars(messages) <= budget:
        return 0
    cut = 0
    while (left := len(messages) - cut) > 1:
        if _total_chars(messages[cut:]) <= (budget // 2 if left > _MIN_VERBATIM_MESSAGES else budget):
            break
        cut += 1
    return cut


async def _summarise(messages: Sequence[ChatMessage], summary: str, context: TurnContext) -> str:
    """Summarise chunk by chunk, each on top of the summary so far."""
    chunks: list[str] = [""]
    chunk_chars = context.budget.part(2, _CHUNK_CHARS)
    for line in (f"{message.role}: {message.text}" for message in messages):
        for start in range(0, max(1, len(line)), chunk_chars):
            part = line[start : start + chunk_chars]
            if chunks[-1] and len(chunks[-1]) + len(part) > chunk_chars:
                chunks.append("")
            chunks[-1] += part + "\n\n"
    for chunk in chunks:
        context.count_model_call()
        so_far = delimit_untrusted("summary so far", summary) + "\n\n" if summary else ""
        reply = await context.model.complete(
            [
                {"role": "system", "content": system_prompt("summary").text},
                {"role": "user", "content": so_far + delimit_untrusted("conversation", chunk)},
            ],
            max_tokens=context.budget.answer_tokens,
            temperature=0.0,
        )
        context.usage += reply.usage
        summary = without_thoughts(reply.text).strip()
        if not summary:
            raise llm.ModelEmpty
    return summary


def _total_chars(messages: Sequence[ChatMessage]) -> int:
    return sum(len(message.text) for message in messages)


# ── Cached summaries of histories that the client sends ─────────────────────────────────────────────────


async def _read_cached_summary(
    user_id: uuid.UUID, cipher: UserCipher, messages: Sequence[ChatMessage]
) -> tuple[int, str]:
    """Return how many messages are already summarised, and their summary; (0, "") if none are."""
    keys = _cache_keys(user_id, cipher, messages[:-1])
    try:
        found = await async_redis("chat").mget(keys)
        for index in range(len(keys) - 1, -1, -1):
            if found[index] is not None:
                return index + 1, unseal_from_redis(cipher, keys[index], found[index])
    except (RedisError, OSError, SealBroken) as error:
        log.warning("summary.read_failed", error=type(error).__name__)
    return 0, ""


async def _cache_summary(
    user_id: uuid.UUID, cipher: UserCipher, messages: Sequence[ChatMessage], summary: str
) -> None:
    key = _cache_keys(user_id, cipher, messages)[-1]
    try:
        await async_redis("chat").set(key, seal_for_redis(cipher, key, summary), ex=_CACHE_TTL_S)
    except (RedisError, OSError) as error:
        log.warning("summary.cache_failed", error=type(error).__name__)


def _cache_keys(user_id: uuid.UUID, cipher: UserCipher, messages: Sequence[ChatMessage]) -> list[str]:
    """Return a key for each prefix of the history, so that the longest summarised prefix can be found."""
    keys, prefix = [], b""
    for message in messages:
        prefix = cipher.fingerprint(prefix + orjson.dumps([message.role, message.text]), "history")
        keys.append(f"adiuva:summary:{user_id}:{prefix.hex()}")
    return keys
