"""Take back one turn's changes to the memory: entries that it added go, those that it replaced or ended hold again.

Entries that the user asked to forget were deleted for good and do not come back.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from django.db import transaction
from django.db.models.functions import Now

from adiuva.accounts.keys import cipher_for
from adiuva.core.crypto import UserCipher
from adiuva.core.enqueue import enqueue_on_commit
from memory import entries, entry_content
from memory.entries import SourceRef, add_sources, lock_memory
from memory.forgetting import forget_source
from memory.models import Embedding, Entry, EntrySource, SourceKind


@dataclass(frozen=True, slots=True)
class TakenBack:
    """The number of entries that were deleted, and of those that are as before the turn."""

    deleted: int
    restored: int


def latest_turn(user_id: uuid.UUID, entry_id: uuid.UUID) -> SourceRef | None:
    """Return the turn that changed an entry last; None if no turn did."""
    turns = EntrySource.objects.filter(
        entry__user_id=user_id,
        entry_id=entry_id,
        kind__in=[SourceKind.CONVERSATION, SourceKind.REQUEST],
    )
    latest = turns.order_by("-at", "-id").first()
    return None if latest is None else SourceRef.of(latest)


@transaction.atomic
def take_back(
    *, user_id: uuid.UUID, kind: SourceKind, source_id: uuid.UUID | None, seq: int | None = None
) -> TakenBack:
    """Take back a turn's changes; without `seq`, those of all turns of a conversation.

    Also forgets what the turn said (memory.forgetting).
    """
    lock_memory(user_id)
    cipher = cipher_for(user_id)
    place: dict[str, object] = {"kind": kind, "source_id": source_id}
    if seq is not None:
        place["seq"] = seq
    restored = _restore_ended(user_id, place) + _restore_replaced(user_id, place, cipher)
    deleted = forget_source(user_id=user_id, kind=kind, source_id=source_id, seq=seq)
    if restored:
        enqueue_on_commit("memory.embed", user_id)
    return TakenBack(deleted, restored)


def _restore_ended(user_id: uuid.UUID, place: dict[str, object]) -> int:
    ended = EntrySource.objects.filter(entry__user_id=user_id, ended=True, **place)
    count = 0
    for entry in Entry.objects.filter(
        pk__in=ended.values("entry_id"), successor=None, valid_to__isnull=False
    ):
        current = Entry.objects.of(user_id).current().filter(tier=entry.tier)
        same = current.filter(fingerprint=entry.fingerprint)
        if entry.key_hash is not None:
            same |= current.filter(key_hash=entry.key_hash)
        # The user's later words hold.
        if not same.exists():
            count += Entry.objects.filter(pk=entry.pk).update(valid_to=None, updated_at=Now())
    ended.delete()
    return count


def _restore_replaced(user_id: uuid.UUID, place: dict[str, object], cipher: UserCipher) -> int:
    """Restore the former content of entries whose present content comes from there alone. Returns how many."""
    count = 0
    theirs = EntrySource.objects.filter(entry__user_id=user_id, **place)
    for entry in Entry.objects.of(user_id).current().filter(pk__in=theirs.values("entry_id"), derived=False):
        if entry.sources.exclude(**place).exists():
            continue
        # If a whole conversation is taken back, an entry may have changed in it more than once.
        for past in entries.history_of(entry):
            others = list(past.sources.exclude(**place))
            if not others:
                past.delete()
                continue
            before = entry_content.unseal_entry(past, cipher)
            sources = [SourceRef.of(source) for source in others]
            entry.valid_from, entry.derived = past.valid_from, past.derived
            past.delete()
            entry.sources.all().delete()
            entry_content.set_content(entry, before, cipher)
            entry.updated_at = Now()
            entry.save()
            add_sources(entry, sources)
            Embedding.objects.filter(entry=entry).delete()
            count += 1
            break
    return count
