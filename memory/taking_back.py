"""Take back one turn's changes to the memory: entries that it added go, those that it replaced or ended hold again.

Entries that the user asked to forget were deleted for good and do not come back.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import structlog
from django.db import transaction
from django.db.models import F, Q
from django.db.models.functions import Greatest, Now

from adiuva.accounts.keys import cipher_for
from adiuva.core.crypto import SealBroken, UserCipher
from adiuva.core.enqueue import enqueue_on_commit
from memory import entries, entry_content
from memory.entries import SourceRef, add_sources, lock_memory
from memory.forgetting import forget_source
from memory.models import Embedding, Entry, EntrySource, SourceKind

log = structlog.get_logger(__name__)


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


def is_of_run(user_id: uuid.UUID, entry_id: uuid.UUID) -> bool:
    """Return whether an entry tells of a run of an agent."""
    sources = EntrySource.objects.filter(entry__user_id=user_id, entry_id=entry_id)
    return sources.filter(kind=SourceKind.RUN).exists()


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
    restored = _restore_replaced(user_id, place, cipher) + _restore_ended(user_id, place)
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
        if _current_instead(entry) is None:
            count += Entry.objects.filter(pk=entry.pk).update(valid_to=None, updated_at=Now())
    ended.delete()
    return count


def _restore_replaced(user_id: uuid.UUID, place: dict[str, object], cipher: UserCipher) -> int:
    """Restore the former content of entries whose present content comes from there alone. Returns how many.

    The others of them are history from here on, and forget_source deletes them.
    """
    theirs = EntrySource.objects.filter(entry__user_id=user_id, **place)
    touched = Entry.objects.of(user_id).current().filter(pk__in=theirs.values("entry_id"), derived=False)
    going = [entry for entry in touched if not entry.sources.exclude(**place).exists()]
    # None of them is in the way of what another one said before, or of what the turn ended.
    Entry.objects.filter(pk__in=[entry.pk for entry in going]).update(
        valid_to=Greatest(F("valid_from"), Now())
    )
    return sum(_restore_former(entry, place, cipher) for entry in going)


def _restore_former(entry: Entry, place: dict[str, object], cipher: UserCipher) -> bool:
    """Give an entry its latest content from elsewhere, unless another entry says it. Returns whether it was done."""
    # If a whole conversation is taken back, an entry may have changed in it more than once.
    for past in entries.history_of(entry):
        sources = [SourceRef.of(source) for source in past.sources.exclude(**place)]
        if not sources:
            past.delete()
            continue
        if (other := _current_instead(past)) is not None:
            if bytes(other.fingerprint) == bytes(past.fingerprint):
                add_sources(other, sources)
                past.delete()
            return False
        try:
            before = entry_content.unseal_entry(past, cipher)
        except SealBroken:
            log.error("memory.seal_broken", user_id=str(entry.user_id), entry_id=str(past.pk))
            return False
        entry.valid_from, entry.derived = past.valid_from, past.derived
        past.delete()
        entry.sources.all().delete()
        entry_content.set_content(entry, before, cipher)
        entry.updated_at = Now()
        entry.save()
        add_sources(entry, sources)
        Embedding.objects.filter(entry=entry).delete()
        return True
    return False


def _current_instead(past: Entry) -> Entry | None:
    """Return the current entry that says what history says, or has its key: the user's later words hold."""
    current = Entry.objects.of(past.user_id).current().filter(tier=past.tier)
    same = Q(fingerprint=past.fingerprint)
    if past.key_hash is not None:
        same |= Q(key_hash=past.key_hash)
    return current.filter(same).first()
