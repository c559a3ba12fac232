"""Derives a conversation's first title from its first message and answer."""

from __future__ import annotations

import re
from collections.abc import Iterable

_TITLE_CHARS = 60
# Texts may be very long; the regular expressions below read no more than this.
_MAX_READ_CHARS = 2_000
_GREETING = re.compile(
    r"^(?:(?:hi|hello|hey|please|can you|could you|would you|i(?:'d| would) like (?:you )?to|bitte|per favore)"
    r"\b(?!['’-])[\s,!.]*)+",
    re.IGNORECASE,
)
_TAGS = re.compile(r"<(task|project|note|timeline|chart)>.*?</\1>|</?[a-z][^<>]*>", re.IGNORECASE | re.DOTALL)
_MARKUP = re.compile(r"[*_#`<>|]")


def derive_title(message: str, answer: str) -> str:
    """Return the message's first sentence, shortened; the answer's if the message is only a greeting."""
    message = message.strip()
    for text in (_GREETING.sub("", message[:_MAX_READ_CHARS]), answer, message):
        if line := _first_sentence(text.strip()[:_MAX_READ_CHARS]):
            return line[:1].upper() + line[1:]
    return _without_markup(message[:_TITLE_CHARS]).capitalize()


def _first_sentence(text: str) -> str:
    """Return the first sentence with at least three letters or digits, without tags and markup; "" if there is none."""
    for line in _TAGS.sub(" ", text).splitlines():
        words = _without_markup(line).lstrip(" .,:;!?…-–—•)")
        if sum(map(str.isalnum, words)) < 3:
            continue
        end = next(
            (end for end in _sentence_ends(words) if sum(map(str.isalnum, words[:end])) >= 3), len(words)
        )
        short = words[:end].rstrip(" .,:;")
        if len(short) <= _TITLE_CHARS:
            return short
        return short[:_TITLE_CHARS].rsplit(" ", 1)[0].rstrip(" .,:;") + "…"
    return ""


def _without_markup(text: str) -> str:
    return " ".join(_MARKUP.sub(" ", _TAGS.sub(" ", text)).split())


def _sentence_ends(line: str) -> Iterable[int]:
    return (found.start() for found in re.finditer(r"(?<=[.!?:;]) ", line))
