"""Validate a model's proposals of what to remember. The model is treated as an untrusted user.

It may use only the operations of the schema, only on entries that it was shown (by label), only in tiers that it may
read, and only where the user's own words support them (memory.grounding).
"""

from __future__ import annotations

import datetime as dt
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from adiuva.llm.structured import UnusableAnswer
from memory import grounding
from memory.entry_content import MAX_KEY_CHARS
from memory.models import Tier
from memory.terms import is_printable

# The most operations of one answer.
MAX_OPERATIONS: Final = 30
MAX_CONTENT_CHARS: Final = 600
_WRITABLE_TIERS: Final = (Tier.CORE, Tier.ASSOCIATIVE)


class NotTheUsersWords(UnusableAnswer):
    """The text to remember was not said by the user. `count`: the number of such operations in an answer."""

    count = 1


@dataclass(frozen=True, slots=True)
class Operation:
    """A proposed operation. `said_in` and `entry` are labels. `asked`: whether the user wants the entry deleted."""

    op: Literal["add", "replace", "forget"]
    said_in: str
    content: str = ""
    tier: Tier = Tier.ASSOCIATIVE
    key: str | None = None
    entry: str = ""
    asked: bool = False


@dataclass(frozen=True, slots=True)
class ValidOperations:
    """The operations of an answer that can be used, and the number of those that were dropped."""

    operations: Sequence[Operation] = ()
    dropped: int = 0


@dataclass(frozen=True)
class OperationValidator:
    """Checks answers against the data that the model was shown.

    `said` holds the user's own words by exchange label, `days` the days on which they said them, `known` the labels of
    shown entries, `tiers` those that the model's provider may read.
    """

    said: Mapping[str, str]
    known: Collection[str]
    tiers: Collection[Tier]
    days: Mapping[str, dt.date] = field(default_factory=dict)

    def schema(self) -> dict[str, Any]:
        said_in = {"enum": list(self.said)}
        content = {"type": "string", "minLength": 1, "maxLength": MAX_CONTENT_CHARS}
        key = {"type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARS}
        branches = []
        if Tier.CORE in self.tiers:
            branches.append(_branch("add", tier={"const": "core"}, key=key, content=content, said_in=said_in))
        if Tier.ASSOCIATIVE in self.tiers:
            branches.append(_branch("add", tier={"const": "associative"}, content=content, said_in=said_in))
        if self.known:
            entry = {"enum": list(self.known)}
            branches.append(_branch("replace", entry=entry, content=content, said_in=said_in))
            branches.append(_branch("forget", entry=entry, asked={"type": "boolean"}, said_in=said_in))
        return {
            "type": "object",
            "properties": {
                "operations": {"type": "array", "maxItems": MAX_OPERATIONS, "items": {"anyOf": branches}}
            },
            "required": ["operations"],
            "additionalProperties": False,
        }

    def check(self, answer: Any) -> ValidOperations:
        """Return the usable operations of an answer, ordered by exchange.

        Raises UnusableAnswer if none of them is usable; NotTheUsersWords if that is their only fault.
        """
        found = answer.get("operations") if isinstance(answer, dict) else answer
        if not isinstance(found, list):
            raise UnusableAnswer('the answer has no list named "operations".')
        usable: list[Operation] = []
        problems: dict[str, None] = {}
        others_words = 0
        for number, item in enumerate(found[:MAX_OPERATIONS], 1):
            try:
                usable.append(self._operation(item))
            except UnusableAnswer as unusable:
                problems[f"operation {number}: {unusable}"] = None
                others_words += isinstance(unusable, NotTheUsersWords)
        order = list(self.said)
        usable.sort(key=lambda operation: order.index(operation.said_in))
        if problems and not usable:
            complaint = f"none of the operations can be used: {'; '.join(problems)}."
            if others_words < min(len(found), MAX_OPERATIONS):
                raise UnusableAnswer(complaint)
            refused = NotTheUsersWords(complaint)
            refused.count = others_words
            raise refused
        return ValidOperations(usable, len(found) - len(usable))

    def _operation(self, item: Any) -> Operation:
        if not isinstance(item, dict):
            raise UnusableAnswer("an operation is an object")
        said_in, entry = item.get("said_in"), item.get("entry")
        if not isinstance(said_in, str) or said_in not in self.said:
            raise UnusableAnswer(f"said_in must name one of the exchanges: {', '.join(self.said)}")
        match item.get("op"):
            case "add":
                tier = next(
                    (tier for tier in _WRITABLE_TIERS if tier == item.get("tier") and tier in self.tiers),
                    None,
                )
                if tier is None:
                    raise UnusableAnswer(
                        f"tier must be one of {', '.join(tier for tier in _WRITABLE_TIERS if tier in self.tiers)}"
                    )
                key = self._key(item, said_in) if tier == Tier.CORE else None
                return Operation("add", said_in, self._content(item, said_in), tier, key)
            case "replace" | "forget" as op:
                if not isinstance(entry, str) or entry not in self.known:
                    raise UnusableAnswer(
                        f"entry must name one of the known entries: {', '.join(self.known) or 'there is none'}"
                    )
                if op == "forget":
                    return Operation(op, said_in, entry=entry, asked=item.get("asked") is True)
                return Operation(op, said_in, self._content(item, said_in), entry=entry)
        raise UnusableAnswer("op must be add, replace or forget")

    def _content(self, item: dict[str, Any], said_in: str) -> str:
        content = self._text(item, "content", MAX_CONTENT_CHARS)
        words = [self.said[said_in]]
        if reason := grounding.problem(content, words, day=self.days.get(said_in)):
            raise NotTheUsersWords(f"{reason}; keep to the user's own words")
        return content

    def _key(self, item: dict[str, Any], said_in: str) -> str:
        key = self._text(item, "key", MAX_KEY_CHARS)
        if foreign := grounding.foreign_facts(key, self.said[said_in]):
            raise NotTheUsersWords(f"the user did not say “{foreign[0]}”")
        return key

    @staticmethod
    def _text(item: dict[str, Any], name: str, max_chars: int) -> str:
        value = item.get(name)
        text = " ".join(value.split()) if isinstance(value, str) else ""
        if not text or len(text) > max_chars or not is_printable(text):
            raise UnusableAnswer(f"{name} must be a text of 1 to {max_chars} characters")
        return text


def _branch(op: str, **fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"op": {"const": op}, **fields},
        "required": ["op", *fields],
        "additionalProperties": False,
    }


_WORD: Final = re.compile(r"\w+")
_NEGATIONS: Final = frozenset(
    """
not no never none without nothing isn doesn don didn won can cannot nicht kein keine keinen nie ohne nichts non mai
senza niente pas jamais sans rien nunca sin nada
""".split()  # noqa: SIM905
)


def may_be_the_same(one: str, other: str) -> bool:
    """Return whether two otherwise similar texts could say the same: they differ in no number and no negation."""
    first, second = _words(one), _words(other)
    return not any(
        word in _NEGATIONS or any(letter.isdigit() for letter in word)
        for word in first.symmetric_difference(second)
    )


def _words(text: str) -> set[str]:
    return set(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))
