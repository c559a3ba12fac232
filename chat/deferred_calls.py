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
from adiuva.core.logging import log
from chat.stream_log import log_writer

_KEPT_S: Final = 900
_COPY_CHARS: Final = 16
# "tak" and "hai" are left out: a yes in one language, a no, thanks or hello in another.
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
    """A call that waits for a yes in words."""

    tool: str
    arguments: dict[str, Any]
    summary: str

    def __str__(self) -> str:
        """For the prompt of the turn that carries it out."""
        return f"{self.summary}: {self.tool} {orjson.dumps(self.arguments).decode()}"


def is_yes(message: str) -> bool:
    """Whether a message is a plain yes and nothing else."""
    return _YES.fullmatch(message.strip(" \t\n.,!")) is not None


def question_text(wishes: Sequence[DeferredCall]) -> str:
    """What the user is asked at the end of an answer."""
    if len(wishes) == 1:
        return f"**{wishes[0].summary}?** Answer yes, and it will be done."
    listed = "\n".join(f"- {wish.summary}" for wish in wishes)
    return f"**Answer yes, and this will be done:**\n{listed}"


async def keep(
    *, user_id: uuid.UUID, where: str, cipher: UserCipher, wishes: Sequence[DeferredCall], answer: str
) -> bool:
    """Keep what waits for a yes. `where` names the chat; `answer` is what the user was shown with the question."""
    key = _key(user_id, where)
    body = [answer, [[wish.tool, wish.arguments, wish.summary] for wish in wishes]]
    try:
        sealed = cipher.seal(orjson.dumps(body).decode(), "wishes", key, "")
        await log_writer().redis.set(key, sealed, ex=_KEPT_S)
    except (RedisError, OSError) as error:
        log.warning("chat.wishes_not_kept", error=type(error).__name__)  # the user is asked once more
        return False
    return True


async def take(
    *, user_id: uuid.UUID, where: str, cipher: UserCipher, answer: str | None
) -> list[DeferredCall]:
    """What was kept, once: a message that is no yes lets it go as well. `answer` is the last that the client says it
    was given, None where it does not say: a yes to another answer is no yes to this question."""
    key = _key(user_id, where)
    try:
        sealed: bytes | None = await log_writer().redis.getdel(key)
        if sealed is None:
            return []
        shown, kept = orjson.loads(cipher.unseal(sealed, "wishes", key, ""))
    except (RedisError, OSError, SealBroken) as error:
        log.warning("chat.wishes_not_read", error=type(error).__name__)
        return []
    if answer is not None and not _is_of(answer, shown):
        return []
    return [DeferredCall(*wish) for wish in kept]


def _is_of(answer: str, shown: str) -> bool:
    """Whether a client's copy of an answer is of this one; some keep only a part of it."""
    copy, whole = " ".join(answer.split()), " ".join(shown.split())
    return copy == whole or (len(copy) >= _COPY_CHARS and copy in whole)


def _key(user_id: uuid.UUID, where: str) -> str:
    return f"adiuva:wishes:{user_id}:{hashlib.sha256(where.encode()).hexdigest()[:32]}"
