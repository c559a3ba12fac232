"""Write operations on memory entries: remember, correct, end. (Deletion is in memory.forgetting.)

Each operation locks its user's memory, so that the writers of one user work one after the other.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import structlog
from django.db import connection, transaction
from django.db.models import F, QuerySet
from django.db.models.functions import Greatest, Now
from django.utils import timezone

from adiuva import llm
from adiuva.accounts.keys import NoSuchUser, cipher_for
from adiuva.core import db
from adiuva.core.crypto import UserCipher
from adiuva.core.enqueue import enqueue_on_commit
from adiuva.core.errors import Conflict, NotFound, Text
from memory import text_embedding
from memory.entry_content import (
    EntryContent,
    fingerprint_of,
    hash_key,
    set_content,
    unseal_entry,
    validated,
)
from memory.models import Embedding, Entry, EntrySource, Memory, SourceKind, Tier

# The most current entries of one user, without history.
MAX_ENTRIES: Final = {
    Tier.CORE: 500,
    Tier.ASSOCIATIVE: 100_000,
    Tier.EPISODIC: 20_000,
    Tier.PROACTIVE: 500,
}
# The most proposals of one user; the oldest make room.
MAX_PROPOSALS: Final = 200
_CONSOLIDATE_AFTER: Final = dt.timedelta(hours=24)

log = structlog.get_logger(__name__)


class EntryNotFound(NotFound):
    code = "memory_not_found"

    def __init__(self) -> None:
        super().__init__("there is no such entry, or it is not yours")


class EntryIsHistory(Conflict):
    code = "memory_is_history"

    def __init__(self) -> None:
        super().__init__("this entry is history: it was replaced or is no longer true")


class DuplicateEntry(Conflict):
    """Another entry already has this content or key; `entry_id` in the error names it."""

    code = "memory_known_already"

    def __init__(self, entry_id: uuid.UUID, *, has_key: bool = False) -> None:
        super().__init__(
            "another entry has this key" if has_key else "another entry says this already",
            entry_id=str(entry_id),
        )


class MemoryFull(Conflict):
    code = "memory_full"

    def __init__(self, tier: str) -> None:
        super().__init__(
            Text(
                "the {tier} memory is full ({most} entries): forget some before adding more",
                tier=tier,
                most=MAX_ENTRIES[Tier(tier)],
            )
        )


@dataclass(frozen=True, slots=True)
class SourceRef:
    """The origin of an entry: a message (`seq`) of a conversation, a request, a run, or the user's own hand.

    `foreign`: the sealed list of texts that were read there and that the user did not write, if any.
    """

    kind: SourceKind
    id: uuid.UUID | None = None
    seq: int | None = None
    at: dt.datetime | None = None
    foreign: bytes | None = None

    @classmethod
    def of(cls, source: EntrySource) -> SourceRef:
        foreign = None if source.foreign is None else bytes(source.foreign)
        return cls(SourceKind(source.kind), source.source_id, source.seq, source.at, foreign)


BY_HAND: Final = SourceRef(SourceKind.USER)


@dataclass(frozen=True, slots=True)
class EntryDetails:
    """Fields that only some new entries have.

    `confidence` is a pattern's, from 0 to 1. `began_at` and `ended_at` are an episode's. A `derived` entry was made
    from other entries or exchanges and is deleted with any of them. A `proposed` one waits until the user
    confirms or repeats it, and then takes the place of the entry that `replaces` names.
    """

    confidence: float | None = None
    began_at: dt.datetime | None = None
    ended_at: dt.datetime | None = None
    derived: bool = False
    more_sources: Sequence[SourceRef] = ()
    proposed: bool = False
    replaces: uuid.UUID | None = None


_NO_DETAILS: Final = EntryDetails()


class RememberOutcome(StrEnum):
    NEW = "new"
    KNOWN = "known"
    CHANGED = "changed"
    PROPOSED = "proposed"


@dataclass(frozen=True, slots=True)
class Remembered:
    entry: Entry
    outcome: RememberOutcome


def get_entry(user_id: uuid.UUID, entry_id: uuid.UUID) -> Entry:
    """Return an entry. Raises EntryNotFound, also for another user's entry."""
    entry = Entry.objects.of(user_id).filter(pk=entry_id).first()
    if entry is None:
        raise EntryNotFound
    return entry


def entry_of_key(user_id: uuid.UUID, key: str) -> Entry | None:
    """Return the current core entry with a key."""
    hashed = hash_key(cipher_for(user_id), key)
    return Entry.objects.of(user_id).current().filter(tier=Tier.CORE, key_hash=hashed).first()


def history_of(entry: Entry) -> QuerySet[Entry]:
    """Return former versions of an entry, latest first."""
    return Entry.objects.of(entry.user_id).filter(successor=entry).order_by("-valid_to", "-valid_from")


def lock_memory(user_id: uuid.UUID) -> Memory:
    """Return the user's memory, created on first use and locked until the transaction ends. Raises NoSuchUser.

    The account is locked first, in the order of its deletion. Rows written here refer to the account and would
    otherwise wait for that lock at commit.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO memory_memory (user_id, enabled, policy, fence) SELECT id, true, '{}', 0 FROM accounts_user"
            " WHERE id = %s FOR KEY SHARE ON CONFLICT DO NOTHING",
            [user_id],
        )
    memory = Memory.objects.select_for_update(no_key=True).filter(pk=user_id).first()
    if memory is None:
        raise NoSuchUser("this account no longer exists")
    return memory


@transaction.atomic
def remember(
    *,
    user_id: uuid.UUID,
    tier: Tier,
    content: str,
    source: SourceRef,
    key: str | None = None,
    details: EntryDetails = _NO_DETAILS,
) -> Remembered:
    """Add an entry, unless one with the same content exists: that one gets the new sources.

    A core entry with the same key is changed, and its former content becomes history. A proposal that says the same
    becomes an entry. Raises Invalid, MemoryFull, NoSuchUser.
    """
    cipher = cipher_for(user_id)
    new = validated(tier, content, key)
    sources = [source, *details.more_sources]
    memory = lock_memory(user_id)
    current = Entry.objects.of(user_id).current().filter(tier=tier)
    if (known := current.filter(fingerprint=fingerprint_of(cipher, new)).first()) is not None:
        add_sources(known, sources)
        if known.derived and source.kind == SourceKind.USER:
            # The user's words are no guess, so the entry must not go with the entries that it was derived from.
            changes = {} if details.confidence is None else {"confidence": details.confidence}
            Entry.objects.filter(pk=known.pk).update(derived=False, updated_at=Now(), **changes)
        return Remembered(known, RememberOutcome.KNOWN)
    if details.proposed:
        return Remembered(_propose(user_id, tier, new, cipher, sources, details), RememberOutcome.PROPOSED)
    same = Entry.objects.of(user_id).proposals().filter(tier=tier, fingerprint=fingerprint_of(cipher, new))
    if (proposal := same.first()) is not None:
        add_sources(proposal, sources)
        return Remembered(_accept(proposal, cipher, memory), RememberOutcome.NEW)
    if new.key is not None:
        same_key = current.select_for_update().filter(key_hash=hash_key(cipher, new.key))
        if (old := same_key.first()) is not None:
            _replace(old, new, cipher, sources, confidence=None)
            _schedule_consolidation(memory)
            return Remembered(old, RememberOutcome.CHANGED)
    if current.count() >= MAX_ENTRIES[tier]:
        raise MemoryFull(tier)
    entry = Entry(
        user_id=user_id,
        tier=tier,
        confidence=details.confidence,
        began_at=details.began_at,
        ended_at=details.ended_at,
        derived=details.derived,
        valid_from=source.at or Now(),
    )
    set_content(entry, new, cipher)
    entry.save(force_insert=True)
    add_sources(entry, sources)
    _embed(entry, new)
    _schedule_consolidation(memory)
    return Remembered(entry, RememberOutcome.NEW)


@transaction.atomic
def correct(
    *,
    entry: Entry,
    source: SourceRef,
    content: str | None = None,
    key: str | None = None,
    confidence: float | None = None,
) -> Entry:
    """Change an entry; its former content becomes history.

    Raises Invalid, EntryIsHistory, DuplicateEntry, and EntryNotFound if it was deleted meanwhile.
    """
    cipher = cipher_for(entry.user_id)
    memory = lock_memory(entry.user_id)
    locked = Entry.objects.select_for_update().filter(pk=entry.pk, user_id=entry.user_id).first()
    if locked is None:
        raise EntryNotFound
    if locked.valid_to is not None:
        raise EntryIsHistory
    before = unseal_entry(locked, cipher)
    new = validated(
        Tier(locked.tier),
        before.content if content is None else content,
        before.key if key is None else key,
    )
    if locked.proposed:
        others = Entry.objects.of(entry.user_id).proposals().filter(tier=locked.tier).exclude(pk=locked.pk)
        if (same := others.filter(fingerprint=fingerprint_of(cipher, new)).first()) is not None:
            raise DuplicateEntry(same.pk)
        set_content(locked, EntryContent(new.content, new.key, before.replaces), cipher)
        locked.save()
        add_sources(locked, [source])
        return _accept(locked, cipher, memory)
    if new == before:
        if confidence is not None:
            Entry.objects.filter(pk=locked.pk).update(confidence=confidence, updated_at=Now())
            locked.confidence = confidence
        return locked
    others = Entry.objects.of(entry.user_id).current().filter(tier=locked.tier).exclude(pk=locked.pk)
    if (same := others.filter(fingerprint=fingerprint_of(cipher, new)).first()) is not None:
        raise DuplicateEntry(same.pk)
    if new.key is not None and (same := others.filter(key_hash=hash_key(cipher, new.key)).first()):
        raise DuplicateEntry(same.pk, has_key=True)
    _replace(locked, new, cipher, [source], confidence=confidence)
    _schedule_consolidation(memory)
    return locked


@transaction.atomic
def confirm(*, entry: Entry, source: SourceRef = BY_HAND) -> Entry:
    """Make a proposal an entry, by the user's wish. Returns the entry that has the content from now on.

    Raises EntryNotFound, EntryIsHistory.
    """
    memory = lock_memory(entry.user_id)
    locked = Entry.objects.select_for_update().filter(pk=entry.pk, user_id=entry.user_id).first()
    if locked is None:
        raise EntryNotFound
    if locked.valid_to is not None:
        raise EntryIsHistory
    if not locked.proposed:
        return locked
    add_sources(locked, [source])
    return _accept(locked, cipher_for(entry.user_id), memory)


@transaction.atomic
def end_validity(*, user_id: uuid.UUID, ids: Collection[uuid.UUID], source: SourceRef | None = None) -> int:
    """Turn entries that are no longer true into history. Returns how many. `source`: where the user said so."""
    lock_memory(user_id)
    current = Entry.objects.of(user_id).current().filter(pk__in=ids)
    if source is not None:
        for entry in current:
            add_sources(entry, [source], ended=True)
    Embedding.objects.filter(entry__in=current).delete()
    # Two changes in one moment, or a clock that was set back, must not end an entry before it began.
    return current.update(valid_to=Greatest(F("valid_from"), Now()), updated_at=Now())


def add_sources(entry: Entry, sources: Sequence[SourceRef], *, ended: bool = False) -> None:
    """Add the sources that the entry does not have yet."""
    EntrySource.objects.bulk_create(
        [
            EntrySource(
                entry=entry,
                kind=source.kind,
                source_id=source.id,
                seq=source.seq,
                at=source.at or Now(),
                ended=ended,
                foreign=source.foreign,
            )
            for source in sources
        ],
        ignore_conflicts=True,
    )


def _propose(
    user_id: uuid.UUID,
    tier: Tier,
    new: EntryContent,
    cipher: UserCipher,
    sources: Sequence[SourceRef],
    details: EntryDetails,
) -> Entry:
    proposals = Entry.objects.of(user_id).proposals()
    fingerprint = fingerprint_of(cipher, new)
    entry = proposals.filter(tier=tier, fingerprint=fingerprint).first()
    if entry is None:
        oldest = proposals.order_by("-created_at", "-pk").values_list("pk", flat=True)[MAX_PROPOSALS - 1 :]
        Entry.objects.filter(pk__in=list(oldest)).delete()
        entry = Entry(user_id=user_id, tier=tier, proposed=True, valid_from=sources[0].at or Now())
        set_content(entry, EntryContent(new.content, new.key, details.replaces), cipher)
        entry.save(force_insert=True)
    add_sources(entry, sources)
    return entry


def _accept(proposal: Entry, cipher: UserCipher, memory: Memory) -> Entry:
    """Make a locked proposal an entry, in place of the one that it replaces. Returns the entry."""
    content = unseal_entry(proposal, cipher)
    new = EntryContent(content.content, content.key)
    current = Entry.objects.of(proposal.user_id).current().filter(tier=proposal.tier)
    sources = [SourceRef.of(source) for source in proposal.sources.all()]
    _schedule_consolidation(memory)
    if (same := current.filter(fingerprint=proposal.fingerprint).first()) is not None:
        proposal.delete()
        add_sources(same, sources)
        return same
    replaced = (
        current.filter(pk__in=[content.replaces] if content.replaces else [])
        if new.key is None
        else current.filter(key_hash=hash_key(cipher, new.key))
    )
    if (old := replaced.select_for_update().first()) is not None:
        proposal.delete()
        _replace(old, new, cipher, sources, confidence=None)
        return old
    if current.count() >= MAX_ENTRIES[Tier(proposal.tier)]:
        raise MemoryFull(proposal.tier)
    proposal.proposed = False
    proposal.updated_at = Now()
    set_content(proposal, new, cipher)
    proposal.save()
    _embed(proposal, new)
    return proposal


def _replace(
    entry: Entry,
    new: EntryContent,
    cipher: UserCipher,
    sources: Sequence[SourceRef],
    *,
    confidence: float | None,
) -> None:
    """Give a locked, current entry new content. Its former content and sources move to a new row of history."""
    before = unseal_entry(entry, cipher)
    since = max(entry.valid_from, sources[0].at or db.clock())
    past = Entry(
        user_id=entry.user_id,
        tier=entry.tier,
        confidence=entry.confidence,
        derived=entry.derived,
        began_at=entry.began_at,
        ended_at=entry.ended_at,
        valid_from=entry.valid_from,
        valid_to=since,
        successor=entry,
        created_at=entry.created_at,
    )
    set_content(past, before, cipher)
    past.terms = []  # history is never searched
    past.save(force_insert=True)
    EntrySource.objects.filter(entry=entry).update(entry=past)
    set_content(entry, new, cipher)
    entry.valid_from = since
    entry.updated_at = Now()
    entry.derived = False
    if confidence is not None:
        entry.confidence = confidence
    entry.save()
    entry.refresh_from_db(fields=["updated_at"])
    add_sources(entry, sources)
    Embedding.objects.filter(entry=entry).delete()
    _embed(entry, new)


def _embed(entry: Entry, content: EntryContent) -> None:
    """Store the entry's vector now if it can be computed here, else in a worker."""
    vector = text_embedding.embed_now(content.searchable_text, entry.user_id)
    if vector is None:
        enqueue_on_commit("memory.embed", entry.user_id)
        return
    Embedding.objects.create(
        entry=entry,
        user_id=entry.user_id,
        tier=entry.tier,
        embedding_model=llm.embedding_model().name,
        vector=vector,
    )


def _schedule_consolidation(memory: Memory) -> None:
    """Make consolidation due a day after the first change since the last one."""
    if memory.consolidate_at is None:
        memory.consolidate_at = timezone.now() + _CONSOLIDATE_AFTER
        memory.save(update_fields=["consolidate_at"])
