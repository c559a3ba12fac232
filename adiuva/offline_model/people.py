"""Who is to do what: the names that a line begins with."""

from __future__ import annotations

import re

MENTION = re.compile(r"(?<![\w.@])@([A-Za-z][\w-]{0,38})")

_VERB_NEXT = re.compile(
    r"(?::\s+|,?\s+)(?:will|to|should|must|needs to|has to|wird|soll)\s+(?=[a-zà-ÿ])|:\s+"
)
_AND = re.compile(r"\s*(?:,|&|\+|/)\s*|\s+(?:and|und|et|e)\s+")
# Words that begin a line in capitals and are nobody's name.
_NO_NAMES = """
action agenda decision deadline due date fixme idea milestone next note notes owner project proposal question status
todo update warning when where why what who urgent need plan try talk speak write reply reach remember go send move
add start continue switch have get agree decide prepare discuss listen respond return we they you i it this that
"""
_NO_NAME = frozenset(_NO_NAMES.split())
# Words after "to" that make it a direction and no duty.
_NO_DUTIES = "a an the our my your their his her its all everyone this that us them you me it be"
_NO_DUTY = frozenset(_NO_DUTIES.split())
# "Ada will send …" is a task wherever it stands; "Ada will be there" is none.
_DUTIES = """
add arrange ask book call check contact create deliver draft email file find finish fix follow get invite look open
organise organize post prepare propose publish put report review schedule send set share summarise summarize take
talk tally update work write
"""
_DUTY = frozenset(_DUTIES.split())


def leading(text: str) -> tuple[list[str], str]:
    """The people a line begins with ("Ada: …", "Ada and Bo to …"), and what they are to do."""
    names, rest, _ = _split(text)
    return names, rest


def promises(text: str) -> bool:
    """Whether the line says that somebody will do something, in so many words."""
    names, rest, by_verb = _split(text)
    return bool(names) and by_verb and rest.split(" ", 1)[0] in _DUTY


def _split(text: str) -> tuple[list[str], str, bool]:
    match = _VERB_NEXT.search(text[:80]) if text[:1].isupper() else None
    if match is None:
        return [], text, False
    names, rest = _AND.split(text[: match.start()]), text[match.end() :]
    by_verb = match[0].strip() != ":"
    if (
        not rest
        or (by_verb and rest.split(" ", 1)[0].casefold() in _NO_DUTY)
        or not all(map(_is_name, names))
    ):
        return [], text, False
    return names, rest, by_verb


def _is_name(text: str) -> bool:
    words = text.split(" ")
    first = words[0].casefold()
    if len(words) > 3 or first in _NO_NAME or first.endswith("ing"):
        return False
    return all(word[:1].isupper() and re.sub(r"[-'’.]", "", word).isalpha() for word in words)
