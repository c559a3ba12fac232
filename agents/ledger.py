"""The ledger: which sources an agent has read, which are being read, and which are quarantined because workers crashed
over them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable

from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now

from agents import journal
from agents.claimed_runs import ClaimedRun, held_with_agent
from agents.extraction import SourceDocument
from agents.journal import EventKind, JournalEntry
from agents.models import Source, SourceInFlight


def needs_reading(claimed: ClaimedRun, sources: Collection[tuple[bytes, bytes]]) -> list[bool]:
    """For each (source key, content hash): whether it was not read yet with this content and configuration.

    A quarantine ends after RUNS["quarantine_s"]: something other than the source may have killed the workers.
    """
    quarantine = dt.timedelta(seconds=settings.RUNS["quarantine_s"])
    entries = Source.objects.filter(
        agent_id=claimed.agent_id, key__in=[key for key, _ in sources], config_version=claimed.config_version
    ).exclude(outcome=Source.Outcome.POISON, updated_at__lt=Now() - quarantine)
    known = {(bytes(key), bytes(content)) for key, content in entries.values_list("key", "content_hash")}
    return [(key, claimed.content_key(content)) not in known for key, content in sources]


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


def record_outcomes(claimed: ClaimedRun, read: Iterable[tuple[SourceDocument, Source.Outcome]]) -> None:
    """Write how sources were read. Call it in the transaction that commits what they gave."""
    rows = {
        document.key: Source(
            agent_id=claimed.agent_id,
            key=document.key,
            content_hash=claimed.content_key(document.content_hash),
            config_version=claimed.config_version,
            outcome=outcome,
            updated_at=Now(),
        )
        for document, outcome in read
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
    record_outcomes(claimed, [(document, Source.Outcome.POISON)])
    SourceInFlight.objects.filter(agent_id=claimed.agent_id, key=document.key).update(
        in_flight=False, crashes=settings.RUNS["max_worker_crashes"] - 1
    )
    run.set(files_done=run.files_done + 1, files_failed=run.files_failed + 1, problems=run.problems + 1)
    journal.write(run, [JournalEntry(EventKind.SOURCE_FAILED, journal.KILLED_WORKERS, source=document.path)])
