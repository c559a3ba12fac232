"""Recognises the user's wishes about an entry in their own words: do they name it, want it changed, want it forgotten?

Like memory.grounding this compares words. Where it finds no wish, nothing is changed: the user can say it again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from memory import word_lists
from memory.grounding import content_words, is_denial, is_own

# The least share of an entry's words that name it, unless one of them is a name or a topic.
_MIN_NAMED: Final = 1 / 3
_MAX_QUOTE_CHARS: Final = 120
_SENTENCE = re.compile(r"[^.!?…\n]+[.!?…]*")
_WORD = re.compile(r"[^\W\d_]+")
_QUOTED_LINE = re.compile(r"^[ \t]*[>|].*$", re.M)
_FENCE = re.compile(r"^[ \t]*(```|~~~).*?(?:^[ \t]*\1|\Z)", re.M | re.S)
_QUOTATION = re.compile(r"“[^”]*”|„[^“”]*[“”]|«[^»]*»|\"[^\"]*\"", re.S)
# From here on it is another's mail. The second line tells a header from a sentence that begins with "From:".
_FORWARDED = re.compile(
    r"^[ \t]*-{2,}[^\n]*(?:message|nachricht|messaggio|mensaje|forwarded|weitergeleitet)[^\n]*$.*"
    r"|^[ \t]*(?:from|von|de|da|subject|betreff|objet|oggetto|asunto)[ \t]*:[^\n]*\n[ \t]*[^\W\d_ ]{2,12}[ \t]*:.*"
    r"|^[ \t]*begin forwarded message.*",
    re.M | re.S | re.I,
)
# "Don't forget" asks for the contrary.
_KEEP = re.compile(
    r"\b(?:do not|don['’]?t|never) forget\b|\bvergiss (?:es |das |bitte )*nicht\b|\bnicht (?:zu )?vergessen\b"
    r"|\bn['’]oublie[sz]? (?:pas|jamais)\b|\bnon (?:ti )?(?:dimenticare|scordare)\b|\bno (?:te )?olvides\b",
    re.I,
)


def own_words(text: str) -> str:
    """Return the user's own part of a message: without quoted lines, code, forwarded mails and long quotations."""
    text = _FORWARDED.sub("\n", _FENCE.sub("\n", text))
    text = _QUOTED_LINE.sub("", text)
    return _QUOTATION.sub(lambda quote: quote[0] if len(quote[0]) <= _MAX_QUOTE_CHARS else " ", text)


def names(entry: str, said: str) -> bool:
    """Return whether the user speaks of an entry's subject.

    `entry`: its content, preceded by its key and a colon, if it has a key.
    """
    of_entry, own = content_words(entry), frozenset(content_words(said))
    shared = [word for word in of_entry if is_own(word, own)]
    proper = {word.casefold() for word in _WORD.findall(entry) if word[0].isupper()}
    if any(word in proper for word in shared) or len(shared) > _MIN_NAMED * len(of_entry):
        return True
    key = entry.partition(": ")[0] if ": " in entry else ""
    return any(_begins(topic, key) and _begins(topic, said) for topic in word_lists.TOPICS)


def wants_change(entry: str, content: str, said: Iterable[str]) -> bool:
    """Return whether the user says, and does not merely ask, what an entry is to say from now on."""
    words = content_words(content)
    for message in said:
        if not names(entry, message):
            continue
        for sentence in _sentences(message):
            own = frozenset(content_words(sentence))
            if not any(is_own(word, own) for word in words):
                continue
            if not sentence.rstrip().endswith("?") or _begins(word_lists.REMEMBER, sentence):
                return True
    return False


def wants_forgotten(entry: str, said: Iterable[str]) -> bool:
    """Return whether the user asks to forget an entry."""
    for message in said:
        sentences = _sentences(message)
        for place, sentence in enumerate(sentences):
            if not _begins(word_lists.FORGET, _KEEP.sub(" ", sentence)):
                continue
            # "I have an account at Rossi's bank. Please forget that."
            around = " ".join(sentences[max(0, place - 1) : place + 2])
            if names(entry, sentence) or names(entry, around):
                return True
    return False


def denies(entry: str, said: Iterable[str]) -> bool:
    """Return whether the user says that an entry does not hold, or no longer."""
    for message in said:
        for sentence in _sentences(message):
            if sentence.rstrip().endswith("?") or _KEEP.search(sentence) or not names(entry, sentence):
                continue
            words = {word.casefold() for word in _WORD.findall(sentence)}
            if is_denial(sentence) or not words.isdisjoint(word_lists.ENDED):
                return True
    return False


def _sentences(text: str) -> list[str]:
    return [sentence for sentence in _SENTENCE.findall(text) if sentence.strip()]


def _begins(beginnings: tuple[str, ...], text: str) -> bool:
    return any(word.casefold().startswith(beginnings) for word in _WORD.findall(text))
