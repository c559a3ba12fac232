"""Finds the people that a line assigns work to, from the names at its beginning."""

from __future__ import annotations

import re

MENTION = re.compile(r"(?<![\w.@])@([A-Za-z][\w-]{0,38})")

_NAMES_END = re.compile(
    r"(?::\s+|,?\s+)(?:will|to|should|must|needs to|has to|wird|soll)\s+(?=[a-zà-ÿ])|:\s+"
)
_NAME_SEPARATOR = re.compile(r"\s*(?:,|&|\+|/)\s*|\s+(?:and|und|et|e)\s+")
# Capitalized words that often begin a line and are not names.
_NOT_NAMES_TEXT = """
action agenda decision deadline due date fixme idea milestone next note notes owner project proposal question status
todo update warning when where why what who urgent need plan try talk speak write reply reach remember go send move
add start continue switch have get agree decide prepare discuss listen respond return we they you i it this that
"""
_NOT_NAMES = frozenset(_NOT_NAMES_TEXT.split())
# After these words "to" states a direction ("Ada to the office"), not a task.
_DIRECTION_WORDS_TEXT = "a an the our my your their his her its all everyone this that us them you me it be"
_DIRECTION_WORDS = frozenset(_DIRECTION_WORDS_TEXT.split())
# "Ada will send …" is a task anywhere in a document, "Ada will be there" is not.
_TASK_VERBS_TEXT = """
add arrange ask book call check contact create deliver draft email file find finish fix follow get invite look open
organise organize post prepare propose publish put report review schedule send set share summarise summarize take
talk tally update work write
"""
_TASK_VERBS = frozenset(_TASK_VERBS_TEXT.split())


def split_assignees(text: str) -> tuple[list[str], str]:
    """Split a line such as "Ada: …" or "Ada and Bo to …" into the people and their task."""
    names, rest, _ = _split_names(text)
    return names, rest


def is_commitment(text: str) -> bool:
    """Return whether the line explicitly says that somebody will do something."""
    names, rest, by_verb = _split_names(text)
    return bool(names) and by_verb and rest.split(" ", 1)[0] in _TASK_VERBS


def _split_names(text: str) -> tuple[list[str], str, bool]:
    match = _NAMES_END.search(text[:80]) if text[:1].isupper() else None
    if match is None:
        return [], text, False
    names, rest = _NAME_SEPARATOR.split(text[: match.start()]), text[match.end() :]
    by_verb = match[0].strip() != ":"
    if (
        not rest
        or (by_verb and rest.split(" ", 1)[0].casefold() in _DIRECTION_WORDS)
        or not all(map(_is_name, names))
    ):
        return [], text, False
    return names, rest, by_verb


def _is_name(text: str) -> bool:
    words = text.split(" ")
    first = words[0].casefold()
    if len(words) > 3 or first in _NOT_NAMES or first.endswith("ing"):
        return False
    return all(word[:1].isupper() and re.sub(r"[-'’.]", "", word).isalpha() for word in words)
