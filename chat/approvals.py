"""Nothing is deleted, and not much is changed at once, without the user's yes.

A device with the `approval` capability is asked (approval_request); an approval counts once, for exactly the arguments
it was asked for, until its request ends. For others the assistant asks in words: what it wanted to do is kept for a
while, and a plain yes in the next message allows exactly that.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from langchain_core.tools import ToolException
from redis.exceptions import RedisError

from adiuva.crypto import SealBroken, UserCipher
from adiuva.devices.protocol import ApprovalRequest
from adiuva.observability import log
from chat.desk import NOUNS, Desk
from chat.log import recorder
from chat.loop import Call

BULK: Final = 3  # updates in a turn, from which on they are asked for
_KEPT_S: Final = 900
_NAMED: Final = 5  # rows that a question calls by name
_ASK: Final = (
    "not done: it needs the user's plain yes. Tell the user exactly what would be done ({what}) and ask. If the next "
    "message is a yes, call this again with the same arguments"
)
_NO: Final = "the user said no. Do not try it again, nor in another way"
# "tak" and "hai" are left out: a yes in one language, a no, thanks or hello in another.
_YES = re.compile(
    r"(?:(?:yes|yep|yeah|yup|y|ok|okay|sure|certainly|of course|please do|do it|do that|go ahead|confirm(?:ed)?"
    r"|i confirm|delete (?:it|them|that)|all of them"
    r"|ja|jawohl|klar|genau|gern|mach das|oui|d'accord|vas-y|sì|si|certo|va bene|procedi|confermo"
    r"|sí|claro|vale|de acuerdo|sim|ano|da|はい|是|是的|好|好的|да|نعم|evet|joo|kyllä|igen|ναι)"
    r"(?:,? (?:please|bitte|s'il te plaît|per favore|por favor))?[\s,.!]*)+",
    re.IGNORECASE,
)


def is_yes(message: str) -> bool:
    """Whether a message is a plain yes and nothing else."""
    return _YES.fullmatch(message.strip(" \t\n.,!")) is not None


@dataclass(frozen=True)
class Wish:
    """A call that waits for a yes in words."""

    tool: str
    arguments: dict[str, Any]
    summary: str

    def __str__(self) -> str:
        """For the prompt of the turn that carries it out."""
        return f"{self.summary}: {self.tool} {orjson.dumps(self.arguments).decode()}"


@dataclass
class Approvals:
    """What one turn may do. `ask` puts a question to the user's devices; without it the assistant asks in words.

    `granted` are the wishes that the user has just said yes to; `wishes` those that this turn leaves open.
    """

    request_id: str
    desk: Desk
    expires_at: int  # milliseconds since the epoch
    ask: Callable[[ApprovalRequest], Awaitable[None]] | None
    granted: list[Wish] = field(default_factory=list)
    wishes: list[Wish] = field(default_factory=list)
    _updates: int = 0
    _open: dict[str, asyncio.Future[bool]] = field(default_factory=dict)

    async def allow(self, calls: Sequence[Call]) -> dict[str, str]:
        """Why a call may not be carried out, by its id. Waits for the user where a device can ask."""
        refused: dict[str, str] = {}
        for (action, table), group in self._asked_for(calls).items():
            names: dict[str, str] = {}
            for call in group:
                try:
                    name = await self.desk.title(table, str(call.arguments.get(call.key)))
                except ToolException as failure:
                    refused[call.id] = str(failure)
                    continue
                if name is not None:  # else there is no such row, as the tool will say
                    names[call.id] = name
            group = [call for call in group if call.id in names]
            if self.ask is not None and group:
                if not await self._approved(action, table, _summary(action, table, list(names.values()))):
                    refused |= dict.fromkeys(names, _NO)
            else:
                for call in group:
                    if not self._take_grant(call):
                        summary = _summary(action, table, [names[call.id]])
                        self.wishes.append(Wish(call.tool.name, call.arguments, summary))
                        refused[call.id] = _ASK.format(what=summary)
        return refused

    def decide(self, key: str, approved: bool) -> bool:
        """False: there is no such question, or it was answered."""
        future = self._open.pop(key, None)
        if future is None or future.done():
            return False
        future.set_result(approved)
        return True

    def _asked_for(self, calls: Sequence[Call]) -> dict[tuple[str, str], list[Call]]:
        """The calls that need a yes, in groups that are asked for together."""
        groups: dict[tuple[str, str], list[Call]] = defaultdict(list)
        updates = [call for call in calls if call.action == "update"]
        self._updates += len(updates)
        for call in calls:
            if call.action == "delete" or (call.action == "update" and self._updates >= BULK):
                groups[call.action, call.table].append(call)
        return groups

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

    def _take_grant(self, call: Call) -> bool:
        for place, wish in enumerate(self.granted):
            if wish.tool == call.tool.name and _given(wish.arguments) == _given(call.arguments):
                del self.granted[place]
                return True
        return False


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


def _summary(action: str, table: str, names: Sequence[str]) -> str:
    one, many = NOUNS[table]
    named = ", ".join(f"“{name}”" for name in names[:_NAMED])
    left = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    noun = one if len(names) == 1 else f"{len(names)} {many}"
    return f"{action.capitalize()} {'the ' if len(names) == 1 else ''}{noun} {named}{left}"


# ── Wishes in words, between two messages ───────────────────────────────────────────────────────────────


async def keep(*, user_id: uuid.UUID, where: str, cipher: UserCipher, wishes: Sequence[Wish]) -> None:
    """Keep what waits for a yes. `where`: the conversation, or else the device, that the next message comes from."""
    key = _key(user_id, where)
    body = orjson.dumps([[wish.tool, wish.arguments, wish.summary] for wish in wishes]).decode()
    try:
        await recorder().redis.set(key, cipher.seal(body, "wishes", key, ""), ex=_KEPT_S)
    except (RedisError, OSError) as error:
        log.warning("chat.wishes_not_kept", error=type(error).__name__)  # the user is asked once more


async def take(*, user_id: uuid.UUID, where: str, cipher: UserCipher) -> list[Wish]:
    """What was kept, once: also a message that is no yes lets it go."""
    key = _key(user_id, where)
    try:
        sealed: bytes | None = await recorder().redis.getdel(key)
        kept = orjson.loads(cipher.unseal(sealed, "wishes", key, "")) if sealed else []
    except (RedisError, OSError, SealBroken) as error:
        log.warning("chat.wishes_not_read", error=type(error).__name__)
        return []
    return [Wish(*wish) for wish in kept]


def _key(user_id: uuid.UUID, where: str) -> str:
    return f"adiuva:wishes:{user_id}:{where}"
