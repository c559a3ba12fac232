"""The ledger: which sources an agent has read, which are being read, and which are quarantined because workers crashed
over them. Also what a source is: a document that stays one when its file is renamed, and a mail that is its Message-ID.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import BooleanField, Case, Q, QuerySet, When
from django.db.models.functions import Now

from agents import journal
from agents.claimed_runs import ClaimedRun, held_with_agent
from agents.extraction import SourceDocument
from agents.journal import EventKind, JournalEntry
from agents.models import Source, SourceInFlight

_MESSAGE_ID: Final = "Message-ID"


@dataclass(frozen=True)
class Identity:
    """What a source is. `copy_of`: the document whose content it had when it was first seen."""

    document: UUID
    copy_of: UUID | None = None


def needs_reading(claimed: ClaimedRun, sources: Collection[tuple[bytes, bytes]]) -> list[bool]:
    """For each (source key, content hash): whether it was not read yet with this content and configuration.

    A quarantine ends after RUNS["quarantine_s"]: something other than the source may have killed the workers.
    """
    entries = read_sources(claimed).filter(agent_id=claimed.agent_id, key__in=[key for key, _ in sources])
    known = {(bytes(key), bytes(content)) for key, content in entries.values_list("key", "content_hash")}
    return [(key, claimed.content_key(content)) not in known for key, content in sources]


def read_sources(claimed: ClaimedRun) -> QuerySet[Source]:
    """Sources of any agent that were read with this configuration, without those whose quarantine is over."""
    return Source.objects.filter(_is_read(claimed))


class KnownSource(NamedTuple):
    """What the ledger has of a source. `is_read`: with this configuration (`read_sources`); `missed`: in how many
    listings in a row it was not."""

    content: bytes
    missed: int
    is_read: bool


def known_sources(claimed: ClaimedRun, keys: Collection[bytes]) -> dict[bytes, KnownSource]:
    """Those of these sources that the agent's ledger has, by key."""
    rows = Source.objects.filter(agent_id=claimed.agent_id, key__in=keys)
    is_read = Case(When(_is_read(claimed), then=True), default=False, output_field=BooleanField())
    fields = rows.annotate(is_read=is_read).values_list("key", "content_hash", "missed", "is_read")
    return {bytes(key): KnownSource(bytes(content), missed, read) for key, content, missed, read in fields}


def _is_read(claimed: ClaimedRun) -> Q:
    quarantine = dt.timedelta(seconds=settings.RUNS["quarantine_s"])
    is_over = Q(outcome=Source.Outcome.POISON, updated_at__lt=Now() - quarantine)
    return Q(config_version=claimed.config_version) & ~is_over


def identify(claimed: ClaimedRun, documents: Sequence[SourceDocument]) -> dict[bytes, Identity]:
    """What these sources are, by key. One query if all of them are known to the agent, two otherwise."""
    of_user = Source.objects.filter(agent__user_id=claimed.user_id)
    keys = [document.key for document in documents]
    fields = ("agent_id", "key", "document", "copy_of", "content_hash")
    found: dict[bytes, Identity] = {}
    elsewhere: dict[bytes, Identity] = {}  # what other agents know
    for agent, key, document, copy_of, _ in of_user.filter(key__in=keys).values_list(*fields):
        (found if agent == claimed.agent_id else elsewhere)[bytes(key)] = Identity(document, copy_of)
    new = [document for document in documents if document.key not in found]
    if not new:
        return found
    wanted = {each.key: _wanted(claimed, each, elsewhere.get(each.key)) for each in new}
    contents = (
        [] if claimed.account else [claimed.content_key(each.content_hash) for each in new if each.content]
    )
    near = of_user.filter(
        Q(document__in=[each.document for each in wanted.values()]) | Q(content_hash__in=contents)
    ).values_list(*fields)
    taken: set[UUID] = set()
    same_content: dict[bytes, UUID] = {}
    for agent, key, document, _, content in near:
        if agent == claimed.agent_id and bytes(key) not in wanted:
            taken.add(document)
        same_content.setdefault(bytes(content), document)
    for each in new:
        identity = wanted[each.key]
        if is_mail(each):
            found[each.key] = identity
            continue
        if identity.document in taken:  # its path was another document's, which lies elsewhere now
            identity = Identity(derived_document(each.key, each.content_hash))
        original = same_content.get(claimed.content_key(each.content_hash)) if contents else None
        if identity.copy_of is None and original not in (None, identity.document):
            identity = Identity(identity.document, original)
        found[each.key] = identity
    return found


def is_mail(document: SourceDocument) -> bool:
    return bool(document.head.message_id)


def _wanted(claimed: ClaimedRun, document: SourceDocument, elsewhere: Identity | None) -> Identity:
    if is_mail(document):
        said = claimed.cipher.fingerprint(document.head.message_id, _MESSAGE_ID)
        return Identity(UUID(bytes=said[:16]))
    return elsewhere or Identity(default_document(document.key))


def default_document(key: bytes) -> UUID:
    """The document that a source is, if nothing else is known of it: the same again after its agent was made anew."""
    return UUID(bytes=key[:16])


def derived_document(key: bytes, content_hash: bytes) -> UUID:
    """Another document for a source whose default one is, or may be, something else."""
    return UUID(bytes=hashlib.sha256(key + content_hash).digest()[:16])


@transaction.atomic
def mark_in_flight(claimed: ClaimedRun, keys: Collection[bytes]) -> None:
    """Note that the worker reads these sources now: if it crashes, one of them may be why.

    Raises AgentGone, LeaseLost.
    """
    if not keys:
        return
    held_with_agent(claimed)
    SourceInFlight.objects.bulk_create(
        [SourceInFlight(agent_id=claimed.agent_id, key=key) for key in keys],
        update_conflicts=True,
        unique_fields=["agent", "key"],
        update_fields=["in_flight"],
    )


def clear_in_flight(claimed: ClaimedRun, keys: Collection[bytes]) -> None:
    """Forget the marks of sources that the worker has read without a crash."""
    if keys:
        SourceInFlight.objects.filter(agent_id=claimed.agent_id, key__in=keys).delete()


def record_outcomes(
    claimed: ClaimedRun, read: Iterable[tuple[SourceDocument, Identity, Source.Outcome]]
) -> None:
    """Write how sources were read. Call it in the transaction that commits what they gave."""
    record_sources(
        claimed,
        [(document.key, document.content_hash, identity, outcome) for document, identity, outcome in read],
    )


def record_sources(
    claimed: ClaimedRun, sources: Iterable[tuple[bytes, bytes, Identity, Source.Outcome]]
) -> None:
    """Write sources into the ledger: (key, content hash, identity, outcome). One that is there keeps its identity."""
    rows = {
        key: Source(
            agent_id=claimed.agent_id,
            key=key,
            document=identity.document,
            copy_of=identity.copy_of,
            content_hash=claimed.content_key(content),
            config_version=claimed.config_version,
            outcome=outcome,
            updated_at=Now(),
        )
        for key, content, identity, outcome in sources
    }
    Source.objects.bulk_create(
        rows.values(),
        update_conflicts=True,
        unique_fields=["agent", "key"],
        update_fields=["content_hash", "config_version", "outcome", "updated_at"],
    )


@transaction.atomic
def quarantine(claimed: ClaimedRun, document: SourceDocument) -> None:
    """Skip a source for a while, with this content and configuration: too many workers crashed over it.

    After the quarantine it is read alone, and one more crash quarantines it again. Raises AgentGone, LeaseLost.
    """
    run = held_with_agent(claimed)
    identity = identify(claimed, [document])[document.key]
    record_outcomes(claimed, [(document, identity, Source.Outcome.POISON)])
    SourceInFlight.objects.filter(agent_id=claimed.agent_id, key=document.key).update(
        in_flight=False, crashes=settings.RUNS["max_worker_crashes"] - 1
    )
    run.set(files_done=run.files_done + 1, files_failed=run.files_failed + 1, problems=run.problems + 1)
    journal.write(run, [JournalEntry(EventKind.SOURCE_FAILED, journal.KILLED_WORKERS, source=document.path)])
