"""Tool calls that wait for the user's yes in words, kept sealed in Redis between two messages of a chat."""

from __future__ import annotations

import hashlib
import re
import unicodedata
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from django.utils.translation import gettext, gettext_noop
from redis.exceptions import RedisError

from adiuva.core.crypto import SealBroken, UserCipher
from adiuva.core.logging import log_failure
from adiuva.core.redis import async_redis
from adiuva.core.sealed import seal_for_redis, unseal_from_redis

_KEPT_S: Final = 900
# A part of an answer is recognised if it has at least this length.
_MIN_COPY_CHARS: Final = 16
# Without "tak" and "hai", which mean yes in one language and thanks, hello or no in another.
_YES_WORDS: Final = (
    *(
        "yes",
        "yes it is",
        "yep",
        "yeah",
        "yup",
        "y",
        "ok",
        "okay",
        "okey",
        "k",
        "sure",
        "sure thing",
        "certainly",
    ),
    *(
        "of course",
        "absolutely",
        "definitely",
        "fine",
        "sounds good",
        "please do",
        "do it",
        "do that",
        "go ahead",
    ),
    *(
        "go for it",
        "confirm",
        "confirmed",
        "i confirm",
        "delete it",
        "delete them",
        "delete that",
        "all of them",
    ),
    *(
        "ja",
        "jawohl",
        "jo",
        "jep",
        "klar",
        "na klar",
        "alles klar",
        "genau",
        "gern",
        "gerne",
        "mach das",
        "mach es",
    ),
    *("passt", "passt so", "in ordnung", "einverstanden", "oui", "d'accord", "vas-y", "bien sûr", "sì", "si"),
    *(
        "certo",
        "va bene",
        "procedi",
        "confermo",
        "d'accordo",
        "sí",
        "claro",
        "vale",
        "de acuerdo",
        "sim",
        "ano",
    ),
    *("da", "はい", "是", "是的", "好", "好的", "да", "نعم", "evet", "joo", "kyllä", "igen", "ναι"),
    *("ja gerne", "tun sie das", "tu das", "nur zu", "ich bestätige", "bestätigt", "löschen", "lösche es"),
    *("allez-y", "bien sur", "fais-le", "faites-le", "je confirme", "supprime-le", "volontiers"),
    *("certamente", "fallo", "fai pure", "sì certo", "eliminalo", "volentieri", "confermato"),
    *("adelante", "hazlo", "por supuesto", "confirmo", "elimínalo", "bórralo", "cómo no"),
    *("👍", "👌", "✅", "✔", "🆗", "☑", "💯"),
)
# Words that may stand beside a yes but are none by themselves.
_POLITE_WORDS: Final = (
    *("please", "thanks", "thank you", "thanks a lot", "thank you very much", "thx", "ty", "cheers"),
    *(
        "bitte",
        "bitte schön",
        "danke",
        "danke schön",
        "vielen dank",
        "s'il te plaît",
        "s'il vous plaît",
        "merci",
    ),
    *("per favore", "grazie", "por favor", "gracias", "obrigado", "obrigada", "🙏", "🙂", "😊", "😀", "❤"),
)
_WORD_KINDS: Final = dict.fromkeys(_POLITE_WORDS, False) | dict.fromkeys(_YES_WORDS, True)
_WORD = re.compile(
    rf"({'|'.join(map(re.escape, sorted(_WORD_KINDS, key=len, reverse=True)))})(?!\w)[\s,.!;:。、]*"
)
OTHER_YES_WORDS: Final = gettext_noop(
    "(Also ok, sure, go ahead, ja, oui, sì, sí or 👍, with nothing else in the message.)"
)
# Variation selectors and skin tones of emoji.
_EMOJI_VARIANTS = re.compile("[\ufe0e\ufe0f\U0001f3fb-\U0001f3ff]")


@dataclass(frozen=True)
class DeferredCall:
    """A tool call that waits for the user's yes. `summary` says in words what it would do."""

    tool: str
    arguments: dict[str, Any]
    summary: str

    def shown_with(self, present: Callable[[str, dict[str, Any]], tuple[str, dict[str, Any]]]) -> str:
        """Return the call for the prompt of the turn that carries it out; `present` puts it as a model makes it."""
        tool, arguments = present(self.tool, self.arguments)
        return f"{self.summary}: {tool} {orjson.dumps(arguments).decode()}"


def is_yes(message: str) -> bool:
    """Return whether a message is a plain yes and nothing else but thanks and please."""
    text = unicodedata.normalize("NFKC", message).casefold().replace("’", "'")
    text = _EMOJI_VARIANTS.sub("", text).strip(" \t\n.,!。")
    place, has_yes = 0, False
    while place < len(text):
        if (word := _WORD.match(text, place)) is None:
            return False
        has_yes, place = has_yes or _WORD_KINDS[word[1]], word.end()
    return has_yes


def question_text(calls: Sequence[DeferredCall], left_out: int = 0) -> str:
    """Return the question that is put to the user at the end of an answer; `left_out` calls are not part of it."""
    if len(calls) == 1 and not left_out:
        question = gettext("**{what}?** Answer yes, and it will be done. {hint}")
        return question.format(what=calls[0].summary, hint=gettext(OTHER_YES_WORDS))
    listed = "\n".join(f"- {call.summary}" for call in calls)
    if left_out:
        too_many = gettext("{count} more were too many to ask for, and are not done.")
        listed += "\n\n" + too_many.format(count=f"{left_out:,}")
    return "\n".join(
        [gettext("**Answer yes, and this will be done:**"), f"{listed}\n", gettext(OTHER_YES_WORDS)]
    )


async def keep(
    *, user_id: uuid.UUID, where: str, cipher: UserCipher, calls: Sequence[DeferredCall], answer: str
) -> bool:
    """Keep calls until the user's next message. Returns False if Redis is away.

    `where` names the chat; `answer` is the text that the user was shown with the question.
    """
    key = _key(user_id, where)
    body = [answer, [[call.tool, call.arguments, call.summary] for call in calls]]
    try:
        await async_redis("chat").set(key, seal_for_redis(cipher, key, body), ex=_KEPT_S)
    except (RedisError, OSError) as error:
        # The next turn asks the user once more.
        log_failure("deferred_calls.keep_failed", error, level="warning")
        return False
    return True


async def take(
    *, user_id: uuid.UUID, where: str, cipher: UserCipher, answer: str | None
) -> list[DeferredCall]:
    """Take the calls that were kept, once: a message that is no yes drops them as well.

    `answer` is the last answer of the chat, of which a client may have sent a part only, or None if that is not known.
    A yes to another answer is not a yes to this question.
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
    """Return whether a client's copy of an answer is of this one. Some clients keep only a part of it."""
    copy, whole = " ".join(answer.split()), " ".join(shown.split())
    return copy == whole or (len(copy) >= _MIN_COPY_CHARS and copy in whole)


def _key(user_id: uuid.UUID, where: str) -> str:
    return f"adiuva:calls:{user_id}:{hashlib.sha256(where.encode()).hexdigest()[:32]}"
