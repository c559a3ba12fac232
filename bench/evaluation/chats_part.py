"""Chat tasks: each with a new user and a seeded device; judged by what happened to the rows."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adiuva.devices.tables import TABLES
from bench.evaluation.cases import ZONE, Chat
from bench.evaluation.participant import Told, participant
from bench.evaluation.row_changes import changes_between, faults_in
from bench.evaluation.texts import holds, holds_any


@dataclass
class ChatResult:
    """`faults` say what is wrong; none means that exactly what was asked for happened."""

    chat: Chat
    faults: list[str] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)


async def hold_chats(
    web: str, chats: Sequence[Chat], rows: Mapping[str, Any], *, at_once: int = 4, answer_s: float = 600
) -> list[ChatResult]:
    """Hold all chats, some at the same time; the results in the order of the chats."""
    room = asyncio.Semaphore(at_once)

    async def one(chat: Chat) -> ChatResult:
        async with room:
            return await _hold(web, chat, rows, answer_s)

    return list(await asyncio.gather(*map(one, chats)))


async def _hold(web: str, chat: Chat, rows: Mapping[str, Any], answer_s: float) -> ChatResult:
    result = ChatResult(chat)
    async with participant(web, rows=rows, answer_s=answer_s) as user:
        user.confirms = chat.confirms
        before, conversation = user.rows(), None
        for message in chat.say:
            told = await user.ask(message, conversation_id=conversation, looking_at=chat.looking_at)
            conversation = told.conversation_id or conversation
            result.told.append(told)
        after = user.rows()
    result.faults = judge(chat, result.told, before, after)
    return result


def judge(chat: Chat, told: Sequence[Told], before: Any, after: Any) -> list[str]:
    """What is wrong with what a chat changed and said."""
    names = {
        key: str(row[table.title])
        for name, table in TABLES.items()
        for key, row in {**before[name], **after[name]}.items()
    }
    faults = faults_in(chat.changes, changes_between(before, after), zone=ZONE, names=names)
    faults += [f"ended with {each.code}" for each in told if each.code]
    if chat.must_ask and not any(each.asked for each in told):
        faults.append("changed without asking")
    last = told[-1].text
    if chat.says and not holds(last, chat.says):
        faults.append(f"does not say {', '.join(chat.says)}")
    faults += [f"says {term}" for term in holds_any(last, chat.says_not)]
    return faults
