"""The ledger: which sources an agent has read, which are being read, and which are quarantined because workers crashed
over them.

It also identifies sources: a document stays the same when its file is renamed, and a mail is its Message-ID.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import BooleanField, Case, Count, Q, QuerySet, Subquery, When
from django.db.models.functions import Now

from adiuva.core.db import prepared_cursor
from adiuva.core.leases import LeaseLost
from agents import journal
from agents.claimed_runs import AgentGone, ClaimedRun, held_with_agent
from agents.extraction import SourceDocument
from agents.journal import EventKind, JournalEntry
from agents.models import Source, SourceInFlight

_MESSAGE_ID: Final = "Message-ID"
# SQL by hand, because for each document of a run, models and the ORM's bulk_create take several times the CPU. `held`
# locks the run's row before anything is written, as claimed_runs.held does.
_MARK_IN_FLIGHT: Final = """
WITH held AS (
    SELECT agent_id FROM agents_run WHERE id = %s AND fence = %s FOR NO KEY UPDATE
),
marked AS (
    INSERT INTO agents_sourceinflight (agent_id, key, in_flight, crashes)
    SELECT agent_id, key, true, 0 FROM held, unnest(%s::bytea[]) AS new (key) WHERE agent_id IS NOT NULL
    ON CONFLICT (agent_id, key) DO UPDATE SET in_flight = true
)
SELECT agent_id FROM held
"""
# Forget the marks of sources that the worker has read without a crash.
CLEAR_IN_FLIGHT_SQL: Final = """
DELETE FROM agents_sourceinflight WHERE agent_id = %(agent)s::uuid AND key = ANY(%(keys_read)s::bytea[])
"""
# Store how sources were read, with `record_values`. An existing source keeps its identity.
RECORD_SQL: Final = """
INSERT INTO agents_source (agent_id, config_version, key, document, copy_of, content_hash, outcome, missed, updated_at)
SELECT %(agent)s::uuid, %(config_version)s::bytea, key, document, copy_of, content, outcome, 0, statement_timestamp()
FROM unnest(%(source_keys)s::bytea[], %(documents)s::uuid[], %(copies_of)s::uuid[], %(contents)s::bytea[],
    %(outcomes)s::text[]) AS new (key, document, copy_of, content, outcome)
ON CONFLICT (agent_id, key) DO UPDATE SET content_hash = excluded.content_hash,
    config_version = excluded.config_version, outcome = excluded.outcome, updated_at = excluded.updated_at
"""
# Sources of all agents of a user: agent, key, document, the document that it copies, content.
_OF_USER = """
SELECT agent_id, key, document, copy_of, content_hash
FROM agents_source AS source JOIN agents_agent AS agent ON agent.id = source.agent_id WHERE agent.user_id = %s
"""
_BY_KEY = f"{_OF_USER} AND key = ANY(%s::bytea[])"
_NEAR = f"{_OF_USER} AND (document = ANY(%s::uuid[]) OR content_hash = ANY(%s::bytea[]))"


@dataclass(frozen=True)
class Identity:
    """The identity of a source. `copy_of`: the document whose content it had when it was first seen."""

    document: UUID
    copy_of: UUID | None = None


def needs_reading(claimed: ClaimedRun, sources: Collection[tuple[bytes, bytes]]) -> list[bool]:
    """Return, for each (source key, content hash), whether it was not read yet with this content and configuration.

    A quarantine ends after RUNS["quarantine_s"]: something other than the source may have killed the workers.
    """
    entries = read_sources(claimed).filter(agent_id=claimed.agent_id, key__in=[key for key, _ in sources])
    known = {(bytes(key), bytes(content)) for key, content in entries.values_list("key", "content_hash")}
    return [(key, claimed.content_key(content)) not in known for key, content in sources]


def read_sources(claimed: ClaimedRun) -> QuerySet[Source]:
    """Return sources of any agent that were read with this configuration, except those whose quarantine is over."""
    return Source.objects.filter(_is_read(claimed))


class KnownSource(NamedTuple):
    """The ledger's row of a source. `is_read`: whether it was read with this configuration (`read_sources`); `missed`:
    the number of listings in a row that lacked it.
    """

    content: bytes
    missed: int
    is_read: bool


class Known(dict[bytes, KnownSource]):
    """Sources by key. `of_agent`: the number of the agent's sources, if counted and one of these is known."""

    of_agent: int | None = None


def known_sources(claimed: ClaimedRun, keys: Collection[bytes], *, counted: bool = False) -> Known:
    """Return those of these sources that the agent's ledger has. `counted`: also count all of it. One statement."""
    mine = Source.objects.filter(agent_id=claimed.agent_id)
    is_read = Case(When(_is_read(claimed), then=True), default=False, output_field=BooleanField())
    count = mine.order_by().values("agent_id").annotate(n=Count("pk")).values("n")
    fields = ["key", "content_hash", "missed", "is_read", *(["of_agent"] if counted else [])]
    rows = mine.filter(key__in=keys).annotate(is_read=is_read)
    found = Known()
    for key, content, missed, read, *of_agent in (
        rows.annotate(of_agent=Subquery(count)) if counted else rows
    ).values_list(*fields):
        found[bytes(key)] = KnownSource(bytes(content), missed, read)
        found.of_agent = of_agent[0] if of_agent else None
    return found


def _is_read(claimed: ClaimedRun) -> Q:
    quarantine = dt.timedelta(seconds=settings.RUNS["quarantine_s"])
    is_over = Q(outcome=Source.Outcome.POISON, updated_at__lt=Now() - quarantine)
    return Q(config_version=claimed.config_version) & ~is_over


def identify(claimed: ClaimedRun, documents: Sequence[SourceDocument]) -> dict[bytes, Identity]:
    """Return these sources' identities, by key. One query if all of them are known to the agent, else two."""
    found: dict[bytes, Identity] = {}
    elsewhere: dict[bytes, Identity] = {}  # known to other agents
    keys = [document.key for document in documents]
    for agent, key, document, copy_of, _ in _sources(_BY_KEY, claimed.user_id, keys):
        (found if agent == claimed.agent_id else elsewhere)[key] = Identity(document, copy_of)
    new = [document for document in documents if document.key not in found]
    if not new:
        return found
    wanted = {each.key: _wanted(claimed, each, elsewhere.get(each.key)) for each in new}
    contents = (
        [] if claimed.account else [claimed.content_key(each.content_hash) for each in new if each.content]
    )
    near = _sources(_NEAR, claimed.user_id, [each.document for each in wanted.values()], contents)
    taken: set[UUID] = set()
    same_content: dict[bytes, UUID] = {}
    for agent, key, document, _, content in near:
        if agent == claimed.agent_id and key not in wanted:
            taken.add(document)
        same_content.setdefault(content, document)
    for each in new:
        identity = wanted[each.key]
        if is_mail(each):
            found[each.key] = identity
            continue
        if identity.document in taken:  # its path was another document's, which has moved
            identity = Identity(derived_document(each.key, each.content_hash))
        original = same_content.get(claimed.content_key(each.content_hash)) if contents else None
        if identity.copy_of is None and original not in (None, identity.document):
            identity = Identity(identity.document, original)
        found[each.key] = identity
    return found


def _sources(query: str, *values: Any) -> list[tuple[UUID, bytes, UUID, UUID | None, bytes]]:
    with prepared_cursor() as cursor:
        cursor.execute(query, values)
        return list(cursor.fetchall())


def is_mail(document: SourceDocument) -> bool:
    return bool(document.head.message_id)


def _wanted(claimed: ClaimedRun, document: SourceDocument, elsewhere: Identity | None) -> Identity:
    if is_mail(document):
        said = claimed.cipher.fingerprint(document.head.message_id, _MESSAGE_ID)
        return Identity(UUID(bytes=said[:16]))
    return elsewhere or Identity(default_document(document.key))


def default_document(key: bytes) -> UUID:
    """Return the default document of a source that nothing else identifies: the same if its agent is made anew."""
    return UUID(bytes=key[:16])


def derived_document(key: bytes, content_hash: bytes) -> UUID:
    """Return another document for a source that is not, or may not be, its default one."""
    return UUID(bytes=hashlib.sha256(key + content_hash).digest()[:16])


def mark_in_flight(claimed: ClaimedRun, keys: Collection[bytes]) -> None:
    """Note that the worker reads these sources now: if it crashes, one of them may be why. One statement.

    Raises AgentGone, LeaseLost.
    """
    if not keys:
        return
    with prepared_cursor() as cursor:
        cursor.execute(_MARK_IN_FLIGHT, [claimed.run_id, claimed.lease.fence, list(keys)])
        found = cursor.fetchone()
    if found is None:
        raise LeaseLost
    if found[0] is None:
        raise AgentGone


def record_sources(
    claimed: ClaimedRun, sources: Iterable[tuple[bytes, bytes, Identity, Source.Outcome]]
) -> None:
    """Write sources into the ledger: (key, content hash, identity, outcome). An existing source keeps its identity."""
    if sources := list(sources):
        with prepared_cursor() as cursor:
            cursor.execute(RECORD_SQL, record_values(claimed, sources))


def record_values(
    claimed: ClaimedRun, sources: Iterable[tuple[bytes, bytes, Identity, Source.Outcome]]
) -> dict[str, Any]:
    """Return the parameters of RECORD_SQL for sources in the form of `record_sources`."""
    rows = {key: (content, identity, outcome) for key, content, identity, outcome in sources}
    return {
        "agent": claimed.agent_id,
        "config_version": claimed.config_version,
        "source_keys": list(rows),
        "documents": [identity.document for _, identity, _ in rows.values()],
        "copies_of": [identity.copy_of for _, identity, _ in rows.values()],
        "contents": [claimed.content_key(content) for content, _, _ in rows.values()],
        "outcomes": [str(outcome) for _, _, outcome in rows.values()],
    }


@transaction.atomic
def quarantine(claimed: ClaimedRun, document: SourceDocument) -> None:
    """Skip a source for a while, with this content and configuration, because too many workers crashed over it.

    After the quarantine it is read alone, and one more crash quarantines it again. Raises AgentGone, LeaseLost.
    """
    run = held_with_agent(claimed)
    identity = identify(claimed, [document])[document.key]
    record_sources(claimed, [(document.key, document.content_hash, identity, Source.Outcome.POISON)])
    SourceInFlight.objects.filter(agent_id=claimed.agent_id, key=document.key).update(
        in_flight=False, crashes=settings.RUNS["max_worker_crashes"] - 1
    )
    run.set(files_done=run.files_done + 1, files_failed=run.files_failed + 1, problems=run.problems + 1)
    journal.write(run, [JournalEntry(EventKind.SOURCE_FAILED, journal.KILLED_WORKERS, source=document.path)])
