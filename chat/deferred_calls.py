"""Tool calls that wait for the user's yes in words, kept sealed in Redis between two messages of a chat."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from redis.exceptions import RedisError

from adiuva.core.crypto import SealBroken, UserCipher
from adiuva.core.logging import log_failure
from adiuva.core.redis import async_redis
from adiuva.core.sealed import seal_for_redis, unseal_from_redis

_KEPT_S: Final = 900
# A part of an answer is recognised if it has at least this length.
_MIN_COPY_CHARS: Final = 16
# Without "tak" and "hai", which mean yes in one language and thanks, hello or no in another.
_YES = re.compile(
    r"(?:(?:yes|yep|yeah|yup|y|ok|okay|sure|certainly|of course|please do|do it|do that|go ahead|confirm(?:ed)?"
    r"|i confirm|delete (?:it|them|that)|all of them"
    r"|ja|jawohl|klar|genau|gern|mach das|oui|d'accord|vas-y|sì|si|certo|va bene|procedi|confermo"
    r"|sí|claro|vale|de acuerdo|sim|ano|da|はい|是|是的|好|好的|да|نعم|evet|joo|kyllä|igen|ναι)"
    r"(?:,? (?:please|bitte|s'il te plaît|per favore|por favor))?[\s,.!]*)+",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class DeferredCall:
    """A tool call that waits for the user's yes. `summary` says in words what it would do."""

    tool: str
    arguments: dict[str, Any]
    summary: str

    def __str__(self) -> str:
        """The call as it is shown in the prompt of the turn that carries it out."""
        return f"{self.summary}: {self.tool} {orjson.dumps(self.arguments).decode()}"


def is_yes(message: str) -> bool:
    """Whether a message is a plain yes and nothing else."""
    return _YES.fullmatch(message.strip(" \t\n.,!")) is not None


def question_text(calls: Sequence[DeferredCall]) -> str:
    """The question that is put to the user at the end of an answer."""
    if len(calls) == 1:
        return f"**{calls[0].summary}?** Answer yes, and it will be done."
    listed = "\n".join(f"- {call.summary}" for call in calls)
    return f"**Answer yes, and this will be done:**\n{listed}"


async def keep(
    *, user_id: uuid.UUID, where: str, cipher: UserCipher, calls: Sequence[DeferredCall], answer: str
) -> bool:
    """Keep calls until the user's next message. `where` names the chat; `answer` is the text that the user was shown
    with the question. Returns False if Redis is away."""
    key = _key(user_id, where)
    body = [answer, [[call.tool, call.arguments, call.summary] for call in calls]]
    try:
        await async_redis("chat").set(key, seal_for_redis(cipher, key, body), ex=_KEPT_S)
    except (RedisError, OSError) as error:
        # The user will be asked once more.
        log_failure("deferred_calls.keep_failed", error, level="warning")
        return False
    return True


async def take(
    *, user_id: uuid.UUID, where: str, cipher: UserCipher, answer: str | None
) -> list[DeferredCall]:
    """Take the calls that were kept, once: a message that is no yes drops them as well.

    `answer` is the last answer that the client says it was given, or None. A yes to another answer is not a yes to this
    question.
    """
    key = _key(user_id, where)
    try:
        sealed: bytes | None = await async_redis("chat").getdel(key)
        if sealed is None:
            return []
        shown, kept = unseal_from_redis(cipher, key, sealed)
    except (RedisError, OSError, SealBroken) as error:
        log_failure("deferred_calls.read_failed", error, level="warning")
        return []
    if answer is not None and not _is_of(answer, shown):
        return []
    return [DeferredCall(*call) for call in kept]


def _is_of(answer: str, shown: str) -> bool:
    """Whether a client's copy of an answer is of this one. Some clients keep only a part of it."""
    copy, whole = " ".join(answer.split()), " ".join(shown.split())
    return copy == whole or (len(copy) >= _MIN_COPY_CHARS and copy in whole)


def _key(user_id: uuid.UUID, where: str) -> str:
    return f"adiuva:calls:{user_id}:{hashlib.sha256(where.encode()).hexdigest()[:32]}"
