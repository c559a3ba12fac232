"""Delete memories on the user's wish: single entries, whatever comes from one source, or everything.

Deletion is thorough: history goes with its entry, and whatever was derived from a deleted source goes too, so that
nothing brings it back. Parts of a condensed episode that are not deleted become current again.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection

from django.db import transaction
from django.db.models import Q

from adiuva.core.enqueue import enqueue_on_commit
from memory.entries import SourceRef, add_sources, lock_memory
from memory.models import Embedding, Entry, EntrySource, Exchange, SourceKind, Tier


@transaction.atomic
def forget(*, user_id: uuid.UUID, ids: Collection[uuid.UUID]) -> int:
    """Delete entries with their history. Returns how many of the named entries there were.

    Episodes condensed from them are deleted, and the other parts of those episodes become current again. Patterns
    found in the same sources, and exchanges from there that still wait to be read, would bring the entries back: they
    are deleted too.
    """
    lock_memory(user_id)
    named = set(Entry.objects.of(user_id).filter(pk__in=ids).values_list("pk", flat=True))
    _delete_exchanges_and_patterns(user_id, named)
    condensed = Entry.objects.filter(history__in=named, derived=True).exclude(pk__in=named)
    condensed_ids = set(condensed.values_list("pk", flat=True))
    parts = _parts_of(condensed_ids) - named
    Entry.objects.filter(pk__in=parts).update(successor=None)
    Entry.objects.of(user_id).filter(pk__in=named | condensed_ids).delete()
    _make_current_again(user_id, parts)
    return len(named)


@transaction.atomic
def forget_source(
    *, user_id: uuid.UUID, kind: SourceKind, source_id: uuid.UUID | None, seq: int | None = None
) -> int:
    """Delete entries that come from one source only, and whatever was derived from it. Returns how many entries.

    Entries that were said elsewhere too stay and lose this source. Episodes that were condensed together with deleted
    ones become current again. `seq` limits this to one message of a conversation.
    """
    lock_memory(user_id)
    place: dict[str, object] = {"kind": kind, "source_id": source_id}
    if seq is not None:
        place["seq"] = seq
    Exchange.objects.filter(user_id=user_id, **place).delete()
    sources = EntrySource.objects.filter(entry__user_id=user_id, **place)
    touched = list(sources.values_list("entry_id", flat=True))
    derived = set(Entry.objects.filter(pk__in=touched, derived=True).values_list("pk", flat=True))
    sources.delete()
    # Where the user said that an entry holds no longer, they did not say it: that keeps no text.
    said = EntrySource.objects.filter(entry_id__in=touched, ended=False)
    sourced = set(said.values_list("entry_id", flat=True))
    deleted = {entry_id for entry_id in touched if entry_id in derived or entry_id not in sourced}
    parts = _parts_of(deleted)
    # Former versions come from other sources: they stay as history.
    Entry.objects.filter(successor_id__in=deleted).update(successor=None)
    Entry.objects.of(user_id).filter(pk__in=deleted).delete()
    _make_current_again(user_id, parts)
    return len(deleted)


@transaction.atomic
def forget_everything(*, user_id: uuid.UUID) -> int:
    """Delete all entries with history and vectors, and all exchanges. Switch and policy stay. Returns how many."""
    lock_memory(user_id)
    Exchange.objects.filter(user_id=user_id).delete()
    Embedding.objects.filter(user_id=user_id).delete()
    count = Entry.objects.of(user_id).count()
    Entry.objects.of(user_id).delete()
    return count


def _delete_exchanges_and_patterns(user_id: uuid.UUID, ids: Collection[uuid.UUID]) -> None:
    """Delete the exchanges and the derived patterns that share a source with these entries or their history."""
    sources = EntrySource.objects.filter(
        Q(entry__in=ids) | Q(entry__successor__in=ids), source_id__isnull=False
    )
    # Patterns among the entries were found in their sources, not said there.
    sources = sources.exclude(entry__tier=Tier.PROACTIVE)
    places = Q(pk__in=[])
    for kind, source_id, seq in sources.order_by().values_list("kind", "source_id", "seq").distinct():
        places |= Q(kind=kind, source_id=source_id, seq=seq)
    Exchange.objects.filter(places, user_id=user_id).delete()
    derived = Entry.objects.of(user_id).filter(tier=Tier.PROACTIVE, derived=True)
    patterns = EntrySource.objects.filter(places, entry__in=derived).values_list("entry_id", flat=True)
    Entry.objects.filter(pk__in=list(patterns)).exclude(pk__in=ids).delete()


def _parts_of(ids: Collection[uuid.UUID]) -> set[uuid.UUID]:
    """Return the episodes from which these were condensed."""
    parts = Entry.objects.filter(successor__in=ids, successor__derived=True, tier=Tier.EPISODIC)
    return set(parts.values_list("pk", flat=True))


def _make_current_again(user_id: uuid.UUID, ids: Collection[uuid.UUID]) -> None:
    """Make history current. Where a current entry says the same by now, it gets the sources instead."""
    for part in Entry.objects.of(user_id).filter(pk__in=ids):
        current = Entry.objects.of(user_id).current().filter(tier=part.tier)
        if (same := current.filter(fingerprint=part.fingerprint).first()) is not None:
            add_sources(same, [SourceRef.of(source) for source in part.sources.all()])
            part.delete()
        else:
            Entry.objects.filter(pk=part.pk).update(valid_to=None, successor=None)
    if ids:
        enqueue_on_commit("memory.embed", user_id)
