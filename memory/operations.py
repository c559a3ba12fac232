"""What a model says is worth remembering, checked. The model is an untrusted user.

Only the operations of the schema, only on entries that it was shown (by labels that stand for them), only in tiers that
it may read, and only what the user's own words bear out: what a document that is quoted in an answer wants to be
remembered shares few words with what the user said.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

from adiuva.core.crypto import UserCipher
from adiuva.llm.structured import UnusableAnswer
from memory.entries import MAX_KEY_CHARS
from memory.models import Tier
from memory.terms import hash_terms, is_printable

MAX_OPERATIONS: Final = 30  # operations of one answer
MAX_CONTENT_CHARS: Final = 600  # of what an operation says
_WRITES: Final = (Tier.CORE, Tier.ASSOCIATIVE)
_NUMBER: Final = re.compile(r"\d+")
_OWN: Final = 1 / 3  # of the words of what is kept, at least, must be the user's
_PIECE: Final = 250  # characters
_OVERLAP: Final = 50  # in which a word that is cut is whole


@dataclass(frozen=True, slots=True)
class Operation:
    """`said_in` and `entry` are labels. `asked`: the user wants it gone altogether, its past with it."""

    op: Literal["add", "replace", "forget"]
    said_in: str
    content: str = ""
    tier: Tier = Tier.ASSOCIATIVE
    key: str | None = None
    entry: str = ""
    asked: bool = False


@dataclass(frozen=True, slots=True)
class ValidOperations:
    """What of an answer can be used; the rest was `dropped`."""

    operations: Sequence[Operation] = ()
    dropped: int = 0


@dataclass(frozen=True)
class OperationValidator:
    """`said`: the user's words by their exchange's label. `known`: the labels of the entries that were shown. `tiers`:
    those that the model's provider may read."""

    said: Mapping[str, str]
    known: Collection[str]
    tiers: Collection[Tier]
    cipher: UserCipher

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
        """What of an answer can be used, in the order in which it was said. Raise UnusableAnswer if that is nothing."""
        found = answer.get("operations") if isinstance(answer, dict) else answer
        if not isinstance(found, list):
            raise UnusableAnswer('the answer has no list named "operations".')
        usable: list[Operation] = []
        problems: dict[str, None] = {}
        for item in found[:MAX_OPERATIONS]:
            try:
                usable.append(self._operation(item))
            except UnusableAnswer as unusable:
                problems[str(unusable)] = None
        order = list(self.said)
        usable.sort(key=lambda operation: order.index(operation.said_in))
        if problems and not usable:
            raise UnusableAnswer(f"none of the operations can be used: {'; '.join(problems)}.")
        return ValidOperations(usable, len(found) - len(usable))

    def _operation(self, item: Any) -> Operation:
        if not isinstance(item, dict):
            raise UnusableAnswer("an operation is an object")
        said_in, entry = item.get("said_in"), item.get("entry")
        if not isinstance(said_in, str) or said_in not in self.said:
            raise UnusableAnswer("said_in must name one of the exchanges")
        match item.get("op"):
            case "add":
                tier = next(
                    (tier for tier in _WRITES if tier == item.get("tier") and tier in self.tiers), None
                )
                if tier is None:
                    raise UnusableAnswer("there is no such tier to add to")
                key = self._text(item, "key", MAX_KEY_CHARS) if tier == Tier.CORE else None
                return Operation("add", said_in, self._content(item, said_in), tier, key)
            case "replace" | "forget" as op:
                if not isinstance(entry, str) or entry not in self.known:
                    raise UnusableAnswer("entry must name one of the known entries")
                if op == "forget":
                    return Operation(op, said_in, entry=entry, asked=item.get("asked") is True)
                return Operation(op, said_in, self._content(item, said_in), entry=entry)
        raise UnusableAnswer("op must be add, replace or forget")

    def _content(self, item: dict[str, Any], said_in: str) -> str:
        content = self._text(item, "content", MAX_CONTENT_CHARS)
        wanted = _marks(content, self.cipher)
        if len(wanted & self._heard[said_in]) < _OWN * len(wanted) or not wanted:
            raise UnusableAnswer("the user did not say this; keep to the user's own words")
        return content

    @cached_property
    def _heard(self) -> dict[str, set[object]]:
        return {label: _marks(said, self.cipher) for label, said in self.said.items()}

    @staticmethod
    def _text(item: dict[str, Any], name: str, most: int) -> str:
        value = item.get(name)
        text = " ".join(value.split()) if isinstance(value, str) else ""
        if not text or len(text) > most or not is_printable(text):
            raise UnusableAnswer(f"{name} must be a text of 1 to {most} characters")
        return text


def _branch(op: str, **fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"op": {"const": op}, **fields},
        "required": ["op", *fields],
        "additionalProperties": False,
    }


def _marks(text: str, cipher: UserCipher) -> set[object]:
    """The words of a text that are not the commonest, by the forms in which they are found, and its numbers."""
    found: set[object] = set(_NUMBER.findall(unicodedata.normalize("NFKC", text)))
    for start in range(0, len(text), _PIECE - _OVERLAP):  # of one text, `terms` gives so many and no more
        found.update(hash_terms(text[start : start + _PIECE], cipher))
    return found


# ── Whether two texts say the same ──────────────────────────────────────────────────────────────────────

_WORD: Final = re.compile(r"\w+")
_DENIALS: Final = frozenset(
    """
not no never none without nothing isn doesn don didn won can cannot nicht kein keine keinen nie ohne nichts non mai
senza niente pas jamais sans rien nunca sin nada
""".split()  # noqa: SIM905
)


def may_be_the_same(one: str, other: str) -> bool:
    """Whether two texts that are close otherwise could say the same: they differ in no number and in no denial."""
    first, second = _words(one), _words(other)
    return not any(
        word in _DENIALS or any(letter.isdigit() for letter in word)
        for word in first.symmetric_difference(second)
    )


def _words(text: str) -> set[str]:
    return set(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))
