"""Stores the records found in documents: read before the next reading, and updated with its changes.

The words are sealed and bounded. A record is remembered as long as its document may come back.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from django.db import connection, transaction
from django.db.models import Exists, OuterRef, Q
from django.db.models.functions import Now

from adiuva.core.crypto import UserCipher
from adiuva.core.db import prepared_cursor
from adiuva.devices.models import OutboxRecord
from agents.claimed_runs import ClaimedRun
from agents.ledger import Identity
from agents.models import FoundRecord, Run, Source
from agents.reconciliation import KEPT_FIELDS, Change, KnownRecord, Relation
from agents.record_rules import Record

# Of one document; the latest.
_MAX_OF_DOCUMENT: Final = 2_000
_KEPT_CHARS: Final = 1_000
# How long what was found is kept in case its document comes back, such as with a drive that was not connected.
_KEEP_WITHOUT_SOURCE: Final = dt.timedelta(days=180)
# States of a record that is not, and will not be, on a device: the same thing found again is new.
_NEVER_THERE: Final = (OutboxRecord.State.UNDONE, OutboxRecord.State.WITHDRAWN)

# The times keep the order within a document.
_INSERT: Final = """
INSERT INTO agents_foundrecord (id, user_id, agent_id, document, "table", found, updated_at)
SELECT id, %s::uuid, %s::uuid, document, name, found, statement_timestamp() + place * interval '1 microsecond'
FROM unnest(%s::uuid[], %s::uuid[], %s::text[], %s::bytea[]) WITH ORDINALITY AS new (id, document, name, found, place)
ON CONFLICT (id) DO UPDATE SET found = excluded.found, updated_at = excluded.updated_at
"""


def lock(user_id: UUID) -> None:
    """Let no other run of the user commit records until this transaction ends: two agents may read one document."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"records of {user_id}"])


def known_records(claimed: ClaimedRun, identities: Iterable[Identity]) -> dict[UUID, list[KnownRecord]]:
    """What stands in each document, by document, in the order in which it was found. One or two queries."""
    wanted = list(identities)
    documents = {each.document for each in wanted} | {each.copy_of for each in wanted if each.copy_of}
    rows: defaultdict[UUID, list[FoundRecord]] = defaultdict(list)
    found = FoundRecord.objects.filter(user_id=claimed.user_id, document__in=documents)
    for row in found.order_by("-updated_at", "pk")[: _MAX_OF_DOCUMENT * len(documents)]:
        rows[row.document].append(row)
    if not rows:
        return {}
    ids = [row.pk for each in rows.values() for row in each]
    states = dict(
        OutboxRecord.objects.filter(
            pk__in=ids, state__in=(*_NEVER_THERE, OutboxRecord.State.EXPIRED)
        ).values_list("pk", "state")
    )
    known: dict[UUID, list[KnownRecord]] = {}
    for identity in wanted:
        listed = [(row, _relation(claimed, row)) for row in rows[identity.document]]
        if identity.copy_of is not None:
            listed += [(row, "other_document") for row in rows[identity.copy_of]]
        known[identity.document] = [
            KnownRecord(
                row.pk,
                Record(row.table, FoundRecord.found.unseal_from(claimed.cipher, row)),
                relation,
                lost=states.get(row.pk) == OutboxRecord.State.EXPIRED,
            )
            for row, relation in reversed(listed[:_MAX_OF_DOCUMENT])
            if states.get(row.pk) not in _NEVER_THERE
        ]
    return known


def with_records(claimed: ClaimedRun, identities: Iterable[Identity]) -> set[UUID]:
    """Which of these documents, or of those they are copies of, records were found in."""
    wanted = list(identities)
    documents = {each.document for each in wanted} | {each.copy_of for each in wanted if each.copy_of}
    rows = FoundRecord.objects.filter(user_id=claimed.user_id, document__in=documents)
    there = set(rows.values_list("document", flat=True).distinct())
    return {each.document for each in wanted if each.document in there or each.copy_of in there}


def _relation(claimed: ClaimedRun, row: FoundRecord) -> Relation:
    return "own" if row.agent_id in (claimed.agent_id, None) else "other_agent"


def add(claimed: ClaimedRun, found: Sequence[tuple[UUID, UUID, Record]]) -> None:
    """Remember records: (id, document, record)."""
    if not found:
        return
    columns: list[list[Any]] = [
        [key for key, _, _ in found],
        [document for _, document, _ in found],
        [record.table for _, _, record in found],
        [_sealed(claimed.cipher, key, record.data) for key, _, record in found],
    ]
    with prepared_cursor() as cursor:
        cursor.execute(_INSERT, [claimed.user_id, claimed.agent_id, *columns])


def change(claimed: ClaimedRun, changes: Sequence[tuple[Change, str]]) -> None:
    """Note what became of records, with the path of their source: the device is told later (`agents.follow_up`)."""
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
            updates = (earlier["updates"] or {}) | updates
        kept = {name: before.get(name) for name in updates or {} if name in KEPT_FIELDS}
        pending = {
            "updates": updates,
            "before": kept | earlier.get("before", {}),
            "title": each.known.record.title[:_KEPT_CHARS],
            "source": path,
        }
        row.pending = FoundRecord.pending.seal(claimed.cipher, pending, row.pk)
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
    """Forget what was found in documents that no agent reads any more, some time after. Returns how many."""
    read = Source.objects.filter(agent__user_id=OuterRef("user_id")).filter(
        Q(document=OuterRef("document")) | Q(copy_of=OuterRef("document"))
    )
    old = FoundRecord.objects.filter(~Exists(read), updated_at__lt=Now() - _KEEP_WITHOUT_SOURCE)
    ids: Collection[UUID] = list(old.order_by("updated_at").values_list("pk", flat=True)[:most])
    forget(ids)
    return len(ids)


@transaction.atomic
def forget(ids: Collection[UUID]) -> None:
    """Forget records, and their deliveries if these were kept only for them (`agents.retention`)."""
    FoundRecord.objects.filter(pk__in=ids).delete()
    run = Run.objects.filter(pk=OuterRef("source_run"))
    OutboxRecord.objects.filter(~Exists(run), pk__in=ids).delete()
