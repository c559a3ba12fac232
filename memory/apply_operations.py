"""Apply the operations that a model proposed: compare them with current entries, and write them.

Nothing is remembered twice, and nothing overwrites later words of the user. A known entry changes only where the user's
own words name it and want the change (memory.intent). Other proposals of a model, and all from a turn that had read
texts of others, wait for the user.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import mul
from typing import Final

from adiuva.core.crypto import SealBroken, UserCipher
from memory import entries, entry_content, forgetting, intent, text_embedding
from memory.entries import DuplicateEntry, EntryDetails, Remembered
from memory.exchanges import UnsealedExchange
from memory.models import Embedding, Entry, Tier
from memory.operation_validation import Operation, may_be_the_same
from memory.search import search
from memory.terms import hash_terms

# The most deletions that one answer may cause. Beyond that, entries only become history, which can be undone.
_MAX_DELETIONS: Final = 5
# The most similar entries that a new text is compared with.
_MAX_SIMILAR: Final = 5
# Texts may say the same if their vectors have at least this cosine.
_SAME_COSINE: Final = 0.95


@dataclass(frozen=True, slots=True)
class ShownEntry:
    """An entry as the model was shown it, with the fingerprint of its content then."""

    id: uuid.UUID
    fingerprint: bytes
    line: str


@dataclass
class OperationWriter:
    """Writes the operations of one answer.

    `known` holds the entries that the model was shown, by label; `vectors` those vectors of new texts that were
    computed; `written` the entries that it wrote.
    """

    user_id: uuid.UUID
    cipher: UserCipher
    known: dict[str, ShownEntry]
    vectors: dict[str, list[float]]
    deleted: int = 0
    written: set[uuid.UUID] = field(default_factory=set)

    def apply(self, operation: Operation, exchange: UnsealedExchange) -> str:
        """Apply an operation. Returns the outcome as a word for the log."""
        match operation.op:
            case "add":
                return self._add(operation, exchange)
            case "replace":
                return self._replace(operation, exchange)
            case "forget":
                return self._forget(operation, exchange)

    def _add(self, operation: Operation, exchange: UnsealedExchange) -> str:
        tier, key, content = operation.tier, operation.key, operation.content
        proposed = bool(exchange.foreign)
        if key is not None:
            known = entries.entry_of_key(self.user_id, key)
            if known is not None and known.valid_from > exchange.at:
                return "overtaken"
            # It would replace the entry that this key has now.
            if known is not None and not self._may_change(known, content, exchange):
                proposed = True
        else:
            content = self._same_content(content, exchange) or content
        return self._remember(tier, content, key, exchange, proposed=proposed).outcome

    def _remember(
        self,
        tier: Tier,
        content: str,
        key: str | None,
        exchange: UnsealedExchange,
        *,
        proposed: bool = False,
        replaces: uuid.UUID | None = None,
    ) -> Remembered:
        remembered = entries.remember(
            user_id=self.user_id,
            tier=tier,
            content=content,
            key=key,
            source=exchange.source,
            details=EntryDetails(proposed=proposed, replaces=replaces),
        )
        self.written.add(remembered.entry.pk)
        return remembered

    def _may_change(self, entry: Entry, content: str, exchange: UnsealedExchange) -> bool:
        """Return whether the model was shown the entry, and the user's own words name it and say what holds instead."""
        if entry.pk not in self.written and entry.pk not in {shown.id for shown in self.known.values()}:
            return False
        text = entry_content.unseal_entry(entry, self.cipher).searchable_text
        return intent.wants_change(text, content, [exchange.own_words])

    def _replace(self, operation: Operation, exchange: UnsealedExchange) -> str:
        entry = self._shown(operation.entry, exchange)
        if entry is None:
            return "overtaken"
        before = entry_content.unseal_entry(entry, self.cipher)
        tier, content = Tier(entry.tier), operation.content
        if exchange.foreign or not self._may_change(entry, content, exchange):
            return self._remember(
                tier, content, before.key, exchange, proposed=True, replaces=entry.pk
            ).outcome
        try:
            # `known` is updated below, since an answer may change an entry twice.
            changed = entries.correct(entry=entry, content=content, source=exchange.source)
        except DuplicateEntry:
            entries.end_validity(user_id=self.user_id, ids=[entry.pk], source=exchange.source)
            return self._remember(tier, content, before.key, exchange).outcome
        shown = self.known[operation.entry]
        if bytes(changed.fingerprint) == shown.fingerprint:
            return self._remember(tier, before.content, before.key, exchange).outcome
        self.known[operation.entry] = ShownEntry(shown.id, bytes(changed.fingerprint), shown.line)
        return "replaced"

    def _forget(self, operation: Operation, exchange: UnsealedExchange) -> str:
        """Delete what the user asks to forget, and end what they say no longer holds; nothing else."""
        entry = self._shown(operation.entry, exchange)
        if entry is None:
            return "overtaken"
        text, said = entry_content.unseal_entry(entry, self.cipher).searchable_text, [exchange.own_words]
        is_wish = intent.wants_forgotten(text, said)
        if not is_wish and not intent.denies(text, said):
            return "not_asked"
        if operation.asked and is_wish and not exchange.foreign and self.deleted < _MAX_DELETIONS:
            self.deleted += 1
            forgetting.forget(user_id=self.user_id, ids=[entry.pk])
            return "forgotten"
        entries.end_validity(user_id=self.user_id, ids=[entry.pk], source=exchange.source)
        return "ended"

    def _shown(self, label: str, exchange: UnsealedExchange) -> Entry | None:
        """Return the entry, if it is unchanged since the model was shown it and no newer than the exchange."""
        shown = self.known[label]
        entry = Entry.objects.of(self.user_id).current().filter(pk=shown.id).first()
        if entry is None or bytes(entry.fingerprint) != shown.fingerprint or entry.valid_from > exchange.at:
            return None
        return entry

    def _same_content(self, content: str, exchange: UnsealedExchange) -> str | None:
        """Return the content of an associative entry that already says this, if there is one.

        It has the same words in the same order, except the most common, or a vector very close by.
        """
        vector = self.vectors.get(content)
        hits = search(
            user_id=self.user_id,
            question=content,
            vector=vector,
            now=exchange.at,
            tiers=[Tier.ASSOCIATIVE],
            limit=_MAX_SIMILAR,
        )
        words = hash_terms(content, self.cipher)
        near = _nearest(vector, [hit.entry.pk for hit in hits]) if vector else set()
        for hit in hits:
            try:
                known = entry_content.unseal_entry(hit.entry, self.cipher).content
            except SealBroken:
                continue
            is_close = hit.entry.pk in near or (words and hash_terms(known, self.cipher) == words)
            if is_close and may_be_the_same(known, content):
                return known
        for proposal in Entry.objects.of(self.user_id).proposals().filter(tier=Tier.ASSOCIATIVE):
            try:
                known = entry_content.unseal_entry(proposal, self.cipher).content
            except SealBroken:
                continue
            if words and hash_terms(known, self.cipher) == words and may_be_the_same(known, content):
                return known
        return None


def _nearest(vector: Sequence[float], ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    """Return the entries whose vectors are so close to a vector of the current space that they may say the same."""
    rows = Embedding.objects.filter(pk__in=ids, embedding_model=text_embedding.current_space()).values_list(
        "pk", "vector"
    )
    return {pk for pk, other in rows if _cosine(vector, other) > _SAME_COSINE}


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    lengths = math.hypot(*one) * math.hypot(*other)
    return sum(map(mul, one, other)) / lengths if lengths and len(one) == len(other) else 0.0
