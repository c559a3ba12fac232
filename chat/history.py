"""What was said before, small enough for a model: the older part of a long conversation is summarised, never cut."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import orjson
from django.conf import settings
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from redis.exceptions import RedisError

from adiuva.core.crypto import SealBroken, UserCipher
from adiuva.core.logging import log
from adiuva.core.prompt_delimiting import delimit_untrusted
from adiuva.core.redis import async_redis
from chat.agent_loop import TurnContext
from chat.prompts import system_prompt
from chat.turn_rows import ChatMessage, ClaimedTurn

_CACHE_TTL_S: Final = 3600
_MIN_VERBATIM_MESSAGES: Final = 4  # messages that stay as they were said, if they fit at all
_CHUNK_CHARS: Final = 60_000  # that a summary is made of at once


@dataclass
class FittedHistory:
    """`summary` stands for what came before `said`. `new` is how many messages it covers that it did not before."""

    said: Sequence[ChatMessage]
    summary: str
    new: int = 0

    def messages(self) -> list[BaseMessage]:
        return [
            AIMessage(said.text) if said.role == "assistant" else HumanMessage(said.text)
            for said in self.said
            if said.text
        ]


def needs_summary(claimed: ClaimedTurn) -> bool:
    return _total_chars(claimed.history) > settings.CHAT["history_max_chars"] and len(claimed.history) > 1


async def fit_history(*, user_id: uuid.UUID, claimed: ClaimedTurn, context: TurnContext) -> FittedHistory:
    """The history within the budget. Asks the model only when it has grown over it."""
    if not needs_summary(claimed):
        return FittedHistory(claimed.history, claimed.summary)
    said, known = claimed.history, 0
    summary = claimed.summary
    if (
        claimed.conversation_id is None
    ):  # the client brings it all each time: it was perhaps summarised before
        known, summary = await _read_cached_summary(user_id, claimed.cipher, said)
    rest = said[known:]
    cut = 0
    if _total_chars(rest) > settings.CHAT["history_max_chars"]:
        most = settings.CHAT["history_max_chars"]
        while len(rest) - cut > 1 and _total_chars(rest[cut:]) > (
            most // 2 if len(rest) - cut > _MIN_VERBATIM_MESSAGES else most
        ):
            cut += 1
    if cut:
        summary = await _summarise(rest[:cut], summary, context)
        if claimed.conversation_id is None:
            await _cache_summary(user_id, claimed.cipher, said[: known + cut], summary)
    return FittedHistory(rest[cut:], summary, cut)


async def _summarise(said: Sequence[ChatMessage], summary: str, context: TurnContext) -> str:
    """Piece by piece, each on top of what is known of those before it."""
    lines = [f"{one.role}: {one.text}" for one in said]
    pieces: list[str] = [""]
    for line in lines:
        for start in range(0, max(1, len(line)), _CHUNK_CHARS):
            part = line[start : start + _CHUNK_CHARS]
            if pieces[-1] and len(pieces[-1]) + len(part) > _CHUNK_CHARS:
                pieces.append("")
            pieces[-1] += part + "\n\n"
    for piece in pieces:
        context.count_model_call()
        known = delimit_untrusted("summary so far", summary) + "\n\n" if summary else ""
        reply = await context.model.complete(
            [
                {"role": "system", "content": system_prompt("summary").text},
                {"role": "user", "content": known + delimit_untrusted("conversation", piece)},
            ]
        )
        context.usage += reply.usage
        summary = reply.text.strip() or summary
    return summary


def _total_chars(said: Sequence[ChatMessage]) -> int:
    return sum(len(one.text) for one in said)


# ── Summaries of conversations that the client keeps ────────────────────────────────────────────────────


def _cache_keys(user_id: uuid.UUID, cipher: UserCipher, said: Sequence[ChatMessage]) -> list[str]:
    """A key for each beginning of the conversation, so that the one that was summarised is found again."""
    found, before = [], b""
    for one in said:
        before = cipher.fingerprint(before + orjson.dumps([one.role, one.text]), "history")
        found.append(f"adiuva:summary:{user_id}:{before.hex()}")
    return found


async def _read_cached_summary(
    user_id: uuid.UUID, cipher: UserCipher, said: Sequence[ChatMessage]
) -> tuple[int, str]:
    """How many messages are summarised already, and how."""
    keys = _cache_keys(user_id, cipher, said[:-1])
    try:
        found = await async_redis("chat").mget(keys)
        for place in range(len(keys) - 1, -1, -1):
            if found[place] is not None:
                return place + 1, cipher.unseal(found[place], "summary", keys[place], "")
    except (RedisError, OSError, SealBroken) as error:
        log.warning("chat.summary_not_read", error=type(error).__name__)
    return 0, ""


async def _cache_summary(
    user_id: uuid.UUID, cipher: UserCipher, said: Sequence[ChatMessage], summary: str
) -> None:
    key = _cache_keys(user_id, cipher, said)[-1]
    try:
        await async_redis("chat").set(key, cipher.seal(summary, "summary", key, ""), ex=_CACHE_TTL_S)
    except (RedisError, OSError) as error:
        log.warning("chat.summary_not_kept", error=type(error).__name__)
