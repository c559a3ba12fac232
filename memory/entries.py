"""What may be done to what is remembered. Every verb locks its user's memory, so writers come one after the other."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import orjson
from django.db import connection, transaction
from django.db.models import F, Q, QuerySet
from django.db.models.functions import Greatest, Now
from django.utils import timezone

from adiuva import llm
from adiuva.accounts.keys import NoSuchUser, cipher_for
from adiuva.core import db
from adiuva.core.crypto import UserCipher
from adiuva.core.enqueue import enqueue_on_commit
from adiuva.core.errors import Conflict, Invalid, NotFound
from memory import vector_space
from memory.models import Embedding, Entry, EntrySource, Exchange, Memory, SourceKind, Tier
from memory.terms import hash_terms, is_printable, normalize

MAX_CONTENT_CHARS: Final = 4_000  # characters
MAX_KEY_CHARS: Final = 100
MAX_ENTRIES: Final = {
    Tier.CORE: 500,
    Tier.ASSOCIATIVE: 100_000,
    Tier.EPISODIC: 20_000,
    Tier.PROACTIVE: 500,
}  # that hold
_CONSOLIDATE_AFTER: Final = dt.timedelta(hours=24)


class EntryNotFound(NotFound):
    code = "memory_not_found"

    def __init__(self) -> None:
        super().__init__("there is no such entry, or it is not yours")


class EntryIsHistory(Conflict):
    code = "memory_is_history"

    def __init__(self) -> None:
        super().__init__("this entry is history: what it said has been replaced, or has ended")


class DuplicateEntry(Conflict):
    """Another entry says this; `entry_id` in the answer names it."""

    code = "memory_known_already"

    def __init__(self, entry_id: uuid.UUID, what: str) -> None:
        super().__init__(f"another entry {what}", entry_id=str(entry_id))


class MemoryFull(Conflict):
    code = "memory_full"

    def __init__(self, tier: str) -> None:
        super().__init__(
            f"the {tier} memory holds {MAX_ENTRIES[Tier(tier)]} entries and takes no more: forget some"
        )


@dataclass(frozen=True, slots=True)
class SourceRef:
    """Where something is known from: a message (`seq`) of a conversation, a request, a run, or the user's own hand."""

    kind: SourceKind
    id: uuid.UUID | None = None
    seq: int | None = None
    at: dt.datetime | None = None


BY_HAND: Final = SourceRef(SourceKind.USER)


class RememberOutcome(StrEnum):
    NEW = "new"
    KNOWN = "known"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class Remembered:
    entry: Entry
    outcome: RememberOutcome


@dataclass(frozen=True, slots=True)
class EntryContent:
    """What an entry says. Only core entries have a key."""

    content: str
    key: str | None = None


def unseal_entry(entry: Entry, cipher: UserCipher) -> EntryContent:
    """Raise SealBroken for a row that was altered or moved."""
    return unseal_content(entry.sealed, entry.pk, entry.tier, cipher)


def unseal_content(
    sealed: bytes | memoryview, entry_id: uuid.UUID, tier: str, cipher: UserCipher
) -> EntryContent:
    body = orjson.loads(cipher.unseal(sealed, "memory_entry", entry_id, tier))
    return EntryContent(body["content"], body.get("key"))


def get_entry(user_id: uuid.UUID, entry_id: uuid.UUID, tier: str | None = None) -> Entry:
    """Raise EntryNotFound, also for another user's."""
    found = Entry.objects.of(user_id).filter(pk=entry_id, **({"tier": tier} if tier else {})).first()
    if found is None:
        raise EntryNotFound
    return found


def hash_key(cipher: UserCipher, key: str) -> bytes:
    """What a core entry's key is found by: spelling differences in case and spacing do not matter."""
    return cipher.fingerprint(normalize(key), "memory key")


def lock_memory(user_id: uuid.UUID) -> Memory:
    """The user's memory, made on first use and locked until the transaction ends. Raise NoSuchUser.

    The account is locked before it, as its deletion does: what is written here refers to it, and would wait for it at
    the commit.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO memory_memory (user_id, enabled, policy) SELECT id, true, '{}' FROM accounts_user"
            " WHERE id = %s FOR KEY SHARE ON CONFLICT DO NOTHING",
            [user_id],
        )
    found = Memory.objects.select_for_update(no_key=True).filter(pk=user_id).first()
    if found is None:
        raise NoSuchUser("this account no longer exists")
    return found


@transaction.atomic
def remember(
    *,
    user_id: uuid.UUID,
    tier: Tier,
    content: str,
    origin: SourceRef,
    key: str | None = None,
    confidence: float | None = None,
    began_at: dt.datetime | None = None,
    ended_at: dt.datetime | None = None,
    also: Sequence[SourceRef] = (),
    derived: bool = False,
) -> Remembered:
    """Keep one thing. What is known gets one more source; a core key with another value is changed, its old value kept
    as history. `also`: more sources of the same. Raise Invalid, MemoryFull, NoSuchUser."""
    cipher = cipher_for(user_id)
    said = _checked(tier, content, key)
    memory = lock_memory(user_id)
    holding = Entry.objects.of(user_id).current().filter(tier=tier)
    mark = _fingerprint(cipher, said)
    if (known := holding.filter(fingerprint=mark).first()) is not None:
        _add_sources(known, [origin, *also])
        if known.derived and origin.kind == SourceKind.USER:  # no guess any more
            changed = {"derived": False} | ({} if confidence is None else {"confidence": confidence})
            Entry.objects.filter(pk=known.pk).update(**changed, updated_at=Now())
        return Remembered(known, RememberOutcome.KNOWN)
    if said.key is not None:
        hashed = hash_key(cipher, said.key)
        if (old := holding.select_for_update().filter(key_hash=hashed).first()) is not None:
            _replace(old, said, cipher, [origin, *also], confidence=None)
            _is_news(memory)
            return Remembered(old, RememberOutcome.CHANGED)
    if holding.count() >= MAX_ENTRIES[tier]:
        raise MemoryFull(tier)
    entry = Entry(
        user_id=user_id,
        tier=tier,
        confidence=confidence,
        began_at=began_at,
        ended_at=ended_at,
        derived=derived,
        valid_from=origin.at or Now(),
    )
    _set_content(entry, said, cipher)
    entry.save(force_insert=True)
    _add_sources(entry, [origin, *also])
    _embed(entry, said)
    _is_news(memory)
    return Remembered(entry, RememberOutcome.NEW)


@transaction.atomic
def correct(
    *,
    entry: Entry,
    origin: SourceRef,
    content: str | None = None,
    key: str | None = None,
    confidence: float | None = None,
) -> Entry:
    """Change what an entry says; what it said before becomes history. Raise Invalid, EntryIsOver, KnownAlready, and
    EntryNotFound if it is gone."""
    cipher = cipher_for(entry.user_id)
    memory = lock_memory(entry.user_id)
    current = Entry.objects.select_for_update().filter(pk=entry.pk, user_id=entry.user_id).first()
    if current is None:
        raise EntryNotFound
    if current.valid_to is not None:
        raise EntryIsHistory
    before = unseal_entry(current, cipher)
    said = _checked(
        Tier(current.tier),
        before.content if content is None else content,
        before.key if key is None else key,
    )
    if said == before:
        if confidence is not None:
            Entry.objects.filter(pk=current.pk).update(confidence=confidence, updated_at=Now())
            current.confidence = confidence
        return current
    others = Entry.objects.of(entry.user_id).current().filter(tier=current.tier).exclude(pk=current.pk)
    if (same := others.filter(fingerprint=_fingerprint(cipher, said)).first()) is not None:
        raise DuplicateEntry(same.pk, "says this already")
    if said.key is not None and (same := others.filter(key_hash=hash_key(cipher, said.key)).first()):
        raise DuplicateEntry(same.pk, "has this key")
    _replace(current, said, cipher, [origin], confidence=confidence)
    _is_news(memory)
    return current


@transaction.atomic
def end_validity(*, user_id: uuid.UUID, ids: Collection[uuid.UUID]) -> int:
    """These hold no more, and become history. Returns how many held until now."""
    lock_memory(user_id)
    return (
        Entry.objects.of(user_id).current().filter(pk__in=ids).update(valid_to=_NOT_BEFORE, updated_at=Now())
    )


@transaction.atomic
def forget(*, user_id: uuid.UUID, ids: Collection[uuid.UUID]) -> int:
    """Delete entries with all that they ever said, and episodes that they were condensed into, whose other parts hold
    again. Patterns that were found in what they are from go, too, and what waits to be read or told of there: it would
    bring them back. Returns how many there were of those named."""
    lock_memory(user_id)
    found = Entry.objects.of(user_id).filter(pk__in=ids)
    named = set(found.values_list("pk", flat=True))
    _let_go_of_what_was_said(user_id, named)
    made = set(
        Entry.objects.filter(history__in=named, derived=True)
        .exclude(pk__in=named)
        .values_list("pk", flat=True)
    )
    parts = _parts_of(made) - named
    Entry.objects.filter(pk__in=parts).update(successor=None)
    Entry.objects.of(user_id).filter(pk__in=named | made).delete()
    _hold_again(user_id, parts)
    return len(named)


@transaction.atomic
def forget_source(
    *, user_id: uuid.UUID, kind: SourceKind, source_id: uuid.UUID | None, seq: int | None = None
) -> int:
    """Delete what is known from one source alone, and what was derived from it. Returns how many entries.

    What another source says too stays, without this one, and episodes that were condensed together with what goes hold
    again. `seq`: one message alone.
    """
    lock_memory(user_id)
    said: dict[str, object] = {"kind": kind, "source_id": source_id}
    if seq is not None:
        said["seq"] = seq
    Exchange.objects.filter(user_id=user_id, **said).delete()
    sources = EntrySource.objects.filter(entry__user_id=user_id, **said)
    touched = list(sources.values_list("entry_id", flat=True))
    derived = set(Entry.objects.filter(pk__in=touched, derived=True).values_list("pk", flat=True))
    sources.delete()
    left = set(EntrySource.objects.filter(entry_id__in=touched).values_list("entry_id", flat=True))
    gone = {entry_id for entry_id in touched if entry_id in derived or entry_id not in left}
    parts = _parts_of(gone)
    # What these said before came from elsewhere: it stays as history.
    Entry.objects.filter(successor_id__in=gone).update(successor=None)
    Entry.objects.of(user_id).filter(pk__in=gone).delete()
    _hold_again(user_id, parts)
    return len(gone)


@transaction.atomic
def forget_everything(*, user_id: uuid.UUID) -> int:
    """Delete all entries, their history and vectors, and what was waiting to be read. Switch and policy stay.

    Returns how many entries there were.
    """
    lock_memory(user_id)
    Exchange.objects.filter(user_id=user_id).delete()
    Embedding.objects.filter(user_id=user_id).delete()
    count = Entry.objects.of(user_id).count()
    Entry.objects.of(user_id).delete()
    return count


def history_of(entry: Entry) -> QuerySet[Entry]:
    """What an entry said before, the latest first."""
    return Entry.objects.of(entry.user_id).filter(successor=entry).order_by("-valid_to", "-valid_from")


# ── How ─────────────────────────────────────────────────────────────────────────────────────────────────

# Two changes in one moment, or a clock that was put back, must not end a row before it began.
_NOT_BEFORE = Greatest(F("valid_from"), Now())


def _checked(tier: Tier, content: str, key: str | None) -> EntryContent:
    problems: dict[str, list[str]] = {}
    content = content.strip()
    if not content or len(content) > MAX_CONTENT_CHARS or "\0" in content:
        problems["content"] = [f"1 to {MAX_CONTENT_CHARS} characters, none of them NUL."]
    if tier == Tier.CORE:
        key = " ".join((key or "").split())
        if not key or len(key) > MAX_KEY_CHARS or not is_printable(key):
            problems["key"] = [f"1 to {MAX_KEY_CHARS} characters."]
    elif key is not None:
        problems["key"] = ["Only core entries have one."]
    if problems:
        name, (problem, *_) = next(iter(problems.items()))
        raise Invalid(f"{name}: {problem}", fields=problems)
    return EntryContent(content, key)


def _fingerprint(cipher: UserCipher, said: EntryContent) -> bytes:
    return cipher.fingerprint(f"{normalize(said.key or '')}\0{normalize(said.content)}", "memory content")


def searchable_text(said: EntryContent) -> str:
    """What it is found by."""
    return f"{said.key}: {said.content}" if said.key else said.content


def _set_content(entry: Entry, said: EntryContent, cipher: UserCipher) -> None:
    body = {"content": said.content} | ({"key": said.key} if said.key is not None else {})
    entry.sealed = cipher.seal(orjson.dumps(body).decode(), "memory_entry", entry.pk, entry.tier)
    entry.fingerprint = _fingerprint(cipher, said)
    entry.terms = hash_terms(searchable_text(said), cipher)
    entry.key_hash = hash_key(cipher, said.key) if said.key is not None else None


def _replace(
    entry: Entry,
    said: EntryContent,
    cipher: UserCipher,
    origins: Sequence[SourceRef],
    *,
    confidence: float | None,
) -> None:
    """`entry` is locked and holds. Its row keeps its id; what it said moves to a row of its own, sources and all."""
    before = unseal_entry(entry, cipher)
    since = max(entry.valid_from, origins[0].at or db.clock())
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
    _set_content(past, before, cipher)
    past.terms = []  # nobody looks for it by its words
    past.save(force_insert=True)
    EntrySource.objects.filter(entry=entry).update(entry=past)
    _set_content(entry, said, cipher)
    entry.valid_from = since
    entry.updated_at = Now()
    entry.derived = False
    if confidence is not None:
        entry.confidence = confidence
    entry.save()
    entry.refresh_from_db(fields=["updated_at"])
    _add_sources(entry, origins)
    Embedding.objects.filter(entry=entry).delete()
    _embed(entry, said)


def _let_go_of_what_was_said(user_id: uuid.UUID, ids: Collection[uuid.UUID]) -> None:
    """Where these entries are from, with what they said before."""
    said = EntrySource.objects.filter(Q(entry__in=ids) | Q(entry__successor__in=ids), source_id__isnull=False)
    said = said.exclude(entry__tier=Tier.PROACTIVE)  # those were found there, and nobody said them
    places = Q(pk__in=[])
    for kind, source_id, seq in said.order_by().values_list("kind", "source_id", "seq").distinct():
        places |= Q(kind=kind, source_id=source_id, seq=seq)
    Exchange.objects.filter(places, user_id=user_id).delete()
    derived = Entry.objects.of(user_id).filter(tier=Tier.PROACTIVE, derived=True)
    patterns = EntrySource.objects.filter(places, entry__in=derived).values_list("entry_id", flat=True)
    Entry.objects.filter(pk__in=list(patterns)).exclude(pk__in=ids).delete()


def _parts_of(ids: Collection[uuid.UUID]) -> set[uuid.UUID]:
    """The episodes that these were condensed of."""
    parts = Entry.objects.filter(successor__in=ids, successor__derived=True, tier=Tier.EPISODIC)
    return set(parts.values_list("pk", flat=True))


def _hold_again(user_id: uuid.UUID, ids: Collection[uuid.UUID]) -> None:
    """Of these, those that are still there hold. What has been said anew since gets their sources instead."""
    for part in Entry.objects.of(user_id).filter(pk__in=ids):
        holding = Entry.objects.of(user_id).current().filter(tier=part.tier)
        if (same := holding.filter(fingerprint=part.fingerprint).first()) is not None:
            _add_sources(
                same,
                [SourceRef(SourceKind(it.kind), it.source_id, it.seq, it.at) for it in part.sources.all()],
            )
            part.delete()
        else:
            Entry.objects.filter(pk=part.pk).update(valid_to=None, successor=None)
    if ids:
        enqueue_on_commit("memory.embed", user_id)


def _add_sources(entry: Entry, origins: Sequence[SourceRef]) -> None:
    EntrySource.objects.bulk_create(
        [
            EntrySource(
                entry=entry, kind=origin.kind, source_id=origin.id, seq=origin.seq, at=origin.at or Now()
            )
            for origin in origins
        ],
        ignore_conflicts=True,
    )


def _embed(entry: Entry, said: EntryContent) -> None:
    vector = vector_space.embed_now(searchable_text(said))
    if vector is None:
        enqueue_on_commit("memory.embed", entry.user_id)
        return
    Embedding.objects.create(
        entry=entry, user_id=entry.user_id, embedding_model=llm.embedding_model().name, vector=vector
    )


def _is_news(memory: Memory) -> None:
    """Something to consolidate, a day after the first of it."""
    if memory.consolidate_at is None:
        memory.consolidate_at = timezone.now() + _CONSOLIDATE_AFTER
        memory.save(update_fields=["consolidate_at"])
