"""What a model found is compared with what is there, and written: nothing twice, nothing over what was said later."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul
from typing import Final

from adiuva.core.crypto import SealBroken, UserCipher
from memory import entries, recall, vector_space
from memory.entries import DuplicateEntry, Remembered
from memory.exchanges import UnsealedExchange
from memory.models import Embedding, Entry, Tier
from memory.operations import Operation, may_be_the_same
from memory.terms import hash_terms

_MOST_DELETED: Final = (
    5  # entries of one answer that go with their past; more than that is history, and can be undone
)
_LIKE: Final = 5  # entries that something new is compared with
_CLOSE: Final = 0.95  # cosine from which on two texts may say the same


@dataclass(frozen=True, slots=True)
class ShownEntry:
    """An entry as the model gets it. `mark` is that of what it said then."""

    id: uuid.UUID
    mark: bytes
    line: str


@dataclass
class OperationWriter:
    """Writes what one answer found. `known`: the entries that the model was shown, by label. `vectors`: where what it
    adds lies, by its text, as far as that is known."""

    user_id: uuid.UUID
    cipher: UserCipher
    known: dict[str, ShownEntry]
    vectors: dict[str, list[float]]
    deleted: int = 0

    def apply(self, operation: Operation, one: UnsealedExchange) -> str:
        """Returns what came of it, as a word for the log."""
        match operation.op:
            case "add":
                return self._add(operation, one)
            case "replace":
                return self._replace(operation, one)
            case "forget":
                return self._forget(operation, one)

    def _add(self, operation: Operation, one: UnsealedExchange) -> str:
        tier, key, content = operation.tier, operation.key, operation.content
        if key is not None:
            hashed = entries.hash_key(self.cipher, key)
            there = Entry.objects.of(self.user_id).current().filter(tier=tier, key_hash=hashed).first()
            if there is not None and there.valid_from > one.at:
                return "overtaken"
        else:
            content = self._twin(content, one) or content
        kept = self._remember(tier, content, key, one)
        return kept.outcome

    def _remember(self, tier: Tier, content: str, key: str | None, one: UnsealedExchange) -> Remembered:
        return entries.remember(user_id=self.user_id, tier=tier, content=content, key=key, origin=one.origin)

    def _replace(self, operation: Operation, one: UnsealedExchange) -> str:
        entry = self._shown(operation.entry, one)
        if entry is None:
            return "overtaken"
        before = entries.unseal_entry(entry, self.cipher)
        try:
            # What changed once in this answer has another mark now, and may change again.
            changed = entries.correct(entry=entry, content=operation.content, origin=one.origin)
        except DuplicateEntry:
            entries.end_validity(user_id=self.user_id, ids=[entry.pk])
            return self._remember(Tier(entry.tier), operation.content, before.key, one).outcome
        shown = self.known[operation.entry]
        if bytes(changed.fingerprint) == shown.mark:
            return self._remember(Tier(entry.tier), before.content, before.key, one).outcome
        self.known[operation.entry] = ShownEntry(shown.id, bytes(changed.fingerprint), shown.line)
        return "replaced"

    def _forget(self, operation: Operation, one: UnsealedExchange) -> str:
        entry = self._shown(operation.entry, one)
        if entry is None:
            return "overtaken"
        if operation.asked and self.deleted < _MOST_DELETED and self._is_named(entry, one):
            self.deleted += 1
            entries.forget(user_id=self.user_id, ids=[entry.pk])
            return "forgotten"
        entries.end_validity(user_id=self.user_id, ids=[entry.pk])
        return "ended"

    def _is_named(self, entry: Entry, one: UnsealedExchange) -> bool:
        """Whether a word of it is the user's. What a document wants deleted, or a mere "that", becomes history."""
        said = entries.searchable_text(entries.unseal_entry(entry, self.cipher))
        return not set(hash_terms(said, self.cipher)).isdisjoint(hash_terms(one.said, self.cipher))

    def _shown(self, label: str, one: UnsealedExchange) -> Entry | None:
        """The entry, if it still says what the model was shown, and nobody has said so later than this."""
        shown = self.known[label]
        entry = Entry.objects.of(self.user_id).current().filter(pk=shown.id).first()
        if entry is None or bytes(entry.fingerprint) != shown.mark or entry.valid_from > one.at:
            return None
        return entry

    def _twin(self, content: str, one: UnsealedExchange) -> str | None:
        """What an associative entry says that says this already: with the same words in the same order, but for the
        commonest, or next to it in the space of the vectors."""
        vector = self.vectors.get(content)
        found = recall.search(
            user_id=self.user_id,
            question=content,
            vector=vector,
            now=one.at,
            tiers=[Tier.ASSOCIATIVE],
            limit=_LIKE,
        )
        words = hash_terms(content, self.cipher)
        near = _next_to(vector, [like.entry.pk for like in found]) if vector else set()
        for like in found:
            try:
                said = entries.unseal_entry(like.entry, self.cipher).content
            except SealBroken:
                continue  # it keeps nothing else from being remembered
            is_close = like.entry.pk in near or (words and hash_terms(said, self.cipher) == words)
            if is_close and may_be_the_same(said, content):
                return said
        return None


def _next_to(vector: Sequence[float], ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    """Those of these entries that lie so close to a vector of the present space that they may say the same."""
    rows = Embedding.objects.filter(pk__in=ids, embedding_model=vector_space.current_space()).values_list(
        "pk", "vector"
    )
    return {pk for pk, other in rows if _cosine(vector, other) > _CLOSE}


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    lengths = math.hypot(*one) * math.hypot(*other)
    return sum(map(mul, one, other)) / lengths if lengths and len(one) == len(other) else 0.0
