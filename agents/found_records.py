"""Stores the records found in documents: the next reading reads and updates them.

The words are sealed and bounded. A record is remembered as long as its document may come back.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple
from uuid import UUID

from django.db import transaction
from django.db.models import Exists, OuterRef, Q
from django.db.models.functions import Now

from adiuva.core.crypto import UserCipher
from adiuva.core.db import prepared_cursor
from adiuva.devices.models import OutboxRecord
from agents.claimed_runs import ClaimedRun
from agents.ledger import Identity
from agents.models import FoundRecord, Run, Source
from agents.reconciliation import KEPT_FIELDS, Change, KnownRecord, Relation
from agents.record_validation import Record

# The most records kept of one document: the latest.
_MAX_OF_DOCUMENT: Final = 2_000
_KEPT_CHARS: Final = 1_000
# How long records are kept in case their document comes back, such as with a drive that was not connected.
_KEEP_WITHOUT_SOURCE: Final = dt.timedelta(days=180)
# States of a record that is not, and will not be, on a device: if the same thing is found again, it is new.
_NEVER_THERE: Final = (OutboxRecord.State.UNDONE, OutboxRecord.State.WITHDRAWN)

# Used with `insert_values` in the statement that commits results. The times keep the order within a document.
INSERT_SQL: Final = """
INSERT INTO agents_foundrecord (id, user_id, agent_id, document, "table", found, updated_at)
SELECT id, %(user)s::uuid, %(agent)s::uuid, document, name, found,
    statement_timestamp() + place * interval '1 microsecond'
FROM unnest(%(found_ids)s::uuid[], %(found_documents)s::uuid[], %(found_tables)s::text[], %(found)s::bytea[])
    WITH ORDINALITY AS new (id, document, name, found, place)
ON CONFLICT (id) DO UPDATE SET found = excluded.found, updated_at = excluded.updated_at
"""
_KNOWN: Final = """
SELECT known.id, document, agent_id, known."table", found, pending, record.state
FROM agents_foundrecord AS known LEFT JOIN devices_outboxrecord AS record
    ON record.id = known.id AND record.state IN ('undone', 'withdrawn', 'expired')
WHERE known.user_id = %s AND document = ANY(%s::uuid[]) ORDER BY known.updated_at DESC, known.id LIMIT %s
"""
_WITH_RECORDS: Final = """
SELECT DISTINCT document FROM agents_foundrecord WHERE user_id = %s AND document = ANY(%s::uuid[])
"""


class _Row(NamedTuple):
    """A record as `_KNOWN` finds it. `state` is that of its delivery, where that matters."""

    id: UUID
    document: UUID
    agent_id: UUID | None
    table: str
    found: bytes
    pending: bytes | None
    state: str | None


def lock_name(user_id: UUID) -> str:
    """Return the name of an advisory lock. While a run holds it, no other run of the user commits records: two agents
    may read one document.
    """
    return f"records of {user_id}"


def known_records(claimed: ClaimedRun, identities: Iterable[Identity]) -> dict[UUID, list[KnownRecord]]:
    """Return the records that stand in each document, by document, in the order in which they were found. One query."""
    wanted = list(identities)
    documents = {each.document for each in wanted} | {each.copy_of for each in wanted if each.copy_of}
    with prepared_cursor() as cursor:
        cursor.execute(_KNOWN, [claimed.user_id, list(documents), _MAX_OF_DOCUMENT * len(documents)])
        rows: defaultdict[UUID, list[_Row]] = defaultdict(list)
        for row in map(_Row._make, cursor.fetchall()):
            rows[row.document].append(row)
    if not rows:
        return {}
    known: dict[UUID, list[KnownRecord]] = {}
    for identity in wanted:
        listed = [(row, _relation(claimed, row)) for row in rows[identity.document]]
        if identity.copy_of is not None:
            listed += [(row, "other_document") for row in rows[identity.copy_of]]
        known[identity.document] = [
            KnownRecord(
                row.id,
                Record(row.table, FoundRecord.found.unseal(claimed.cipher, row.found, row.id)),
                relation,
                lost=row.state == OutboxRecord.State.EXPIRED,
                leaving=row.pending is not None
                and FoundRecord.pending.unseal(claimed.cipher, row.pending, row.id)["updates"] is None,
            )
            for row, relation in reversed(listed[:_MAX_OF_DOCUMENT])
            if row.state not in _NEVER_THERE
        ]
    return known


def with_records(claimed: ClaimedRun, identities: Iterable[Identity]) -> set[UUID]:
    """Return those of these documents that have records themselves, or whose originals have."""
    wanted = list(identities)
    documents = {each.document for each in wanted} | {each.copy_of for each in wanted if each.copy_of}
    with prepared_cursor() as cursor:
        cursor.execute(_WITH_RECORDS, [claimed.user_id, list(documents)])
        there = {document for (document,) in cursor.fetchall()}
    return {each.document for each in wanted if each.document in there or each.copy_of in there}


def _relation(claimed: ClaimedRun, row: _Row) -> Relation:
    return "own" if row.agent_id in (claimed.agent_id, None) else "other_agent"


def insert_values(claimed: ClaimedRun, found: Sequence[tuple[UUID, UUID, Record]]) -> dict[str, Any]:
    """Return the parameters of INSERT_SQL for records: (id, document, record)."""
    return {
        "user": claimed.user_id,
        "agent": claimed.agent_id,
        "found_ids": [key for key, _, _ in found],
        "found_documents": [document for _, document, _ in found],
        "found_tables": [record.table for _, _, record in found],
        "found": [_sealed(claimed.cipher, key, record.data) for key, _, record in found],
    }


def change(claimed: ClaimedRun, changes: Sequence[tuple[Change, str]]) -> None:
    """Store the changes of records, each with its source's path. `agents.source_changes` tells the device later."""
    if not changes:
        return
    rows = FoundRecord.objects.in_bulk([each.known.id for each, _ in changes])
    for each, path in changes:
        row = rows.get(each.known.id)
        if row is None:
            continue
        before = each.known.record.data
        earlier = (
            FoundRecord.pending.unseal_from(claimed.cipher, row)
            if row.pending is not None
            else {"updates": {}}
        )
        updates = each.updates
        if updates is not None:
            row.found = _sealed(claimed.cipher, row.pk, before | updates)
            if earlier["updates"] is None:
                may_be_gone = any(each["updates"] is None for each in earlier.get("sends", ()))
                if not updates and may_be_gone:
                    continue  # the withdrawal may have happened, and its outcome has to be known first
                # What it was to follow before it was to leave.
                updates = {name: before.get(name) for name in earlier["before"]} | updates
            else:
                updates = earlier["updates"] | updates
        kept = {name: before.get(name) for name in updates or {} if name in KEPT_FIELDS}
        pending = {
            "updates": updates,
            "before": kept | earlier.get("before", {}),
            "title": each.known.record.title[:_KEPT_CHARS],
            "source": path,
            "sends": earlier.get("sends", []),
        }
        is_settled = updates == {}  # it was to leave and nothing else, and it is there after all
        row.pending = None if is_settled else FoundRecord.pending.seal(claimed.cipher, pending, row.pk)
        row.agent_id = claimed.agent_id
        row.save(update_fields=["found", "pending", "agent"])
    FoundRecord.objects.filter(pk__in=rows).update(updated_at=Now())


def _sealed(cipher: UserCipher, key: UUID, data: Mapping[str, Any]) -> bytes:
    kept = {
        name: value[:_KEPT_CHARS] if isinstance(value, str) and name in {"title", "name"} else value
        for name, value in data.items()
        if name in KEPT_FIELDS
    }
    return FoundRecord.found.seal(cipher, kept, key)


def forget_orphans(most: int) -> int:
    """Forget, after some time, records of documents that no agent reads any more. Returns how many."""
    read = Source.objects.filter(agent__user_id=OuterRef("user_id")).filter(
        Q(document=OuterRef("document")) | Q(copy_of=OuterRef("document"))
    )
    old = FoundRecord.objects.filter(~Exists(read), updated_at__lt=Now() - _KEEP_WITHOUT_SOURCE)
    ids: Collection[UUID] = list(old.order_by("updated_at").values_list("pk", flat=True)[:most])
    forget(ids)
    return len(ids)


@transaction.atomic
def forget(ids: Collection[UUID]) -> None:
    """Forget records, and their deliveries if they were kept only for them (`agents.retention`)."""
    FoundRecord.objects.filter(pk__in=ids).delete()
    run = Run.objects.filter(pk=OuterRef("source_run"))
    OutboxRecord.objects.filter(~Exists(run), pk__in=ids).delete()
