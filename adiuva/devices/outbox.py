"""Outbox: records on their way to a device, sealed until the device's answer is committed.

A record's id is its dedupe key and the id of every call that delivers it. So a second attempt, by any worker, is the
same call. Callers that put records here know what was found before, and give an expired record its old id.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import orjson
from django.db import transaction
from django.db.models import Count, Q, QuerySet
from django.db.models.functions import Now

from adiuva.core import db
from adiuva.core.crypto import UserCipher
from adiuva.core.db import prepared_cursor
from adiuva.core.errors import AdiuvaError
from adiuva.core.leases import LeaseLost
from adiuva.core.logging import log_failure
from adiuva.devices.calls import new_call
from adiuva.devices.link import DeviceLink, DeviceOffline, OutcomeUnknown
from adiuva.devices.link_errors import DeviceCannotSave
from adiuva.devices.models import OutboxRecord
from adiuva.devices.protocol import Origin, TableName, ToolResultBody
from adiuva.devices.tables import TABLES
from adiuva.devices.tool_results import NOT_SAVED

State = OutboxRecord.State
# Undelivered records expire after this time. As a device keeps the ids that it has applied no longer, those that it may
# have become uncertain instead, and are never sent again. It is not known of those whose worker was killed, or lost the
# database, between sending them and writing what came of it: if their device then stays away for as long, they expire.
KEEP_UNDELIVERED: Final = dt.timedelta(days=30)
# With these outcomes the device does not have the record, and it waits.
NOTHING_HAPPENED: Final = (DeviceOffline, DeviceCannotSave)
# A change of these columns does not count as an edit by the user.
_NOT_EDITED_BY_USER: Final = ("isApproved", "updatedAt")

# SQL by hand, because the ORM's bulk_create and bulk_update take several times the CPU, for each document of a run. An
# expired record is queued again under its old id: a device that has it after all answers with the row that it has.
_ADD: Final = """
INSERT INTO devices_outboxrecord AS known (id, user_id, device_id, source_run, source, position, "table", state, sealed)
SELECT id, %s::uuid, %s::uuid, %s::uuid, source, position, name, 'waiting', sealed
FROM unnest(%s::uuid[], %s::bytea[], %s::bigint[], %s::text[], %s::bytea[])
    AS new (id, source, position, name, sealed)
ON CONFLICT (id) DO UPDATE SET device_id = excluded.device_id, source_run = excluded.source_run,
    position = excluded.position, state = excluded.state, sealed = excluded.sealed, created_at = excluded.created_at,
    settled_at = NULL
WHERE known.state = 'expired'
RETURNING id
"""

_TABLES: Final = 'SELECT id, "table" FROM devices_outboxrecord WHERE id = ANY(%s::uuid[])'
# Writes outcomes, with `settle_values`; also as a part of other statements. It removes a record's content unless the
# outcome is uncertain.
SETTLE_SQL: Final = """
UPDATE devices_outboxrecord AS record
SET state = said.state, row_id_sealed = said.row_id, row_hash = said.row_hash, settled_at = statement_timestamp(),
    sealed = CASE WHEN said.state = 'uncertain' THEN record.sealed END
FROM unnest(%(ids)s::uuid[], %(states)s::text[], %(row_ids)s::bytea[], %(row_hashes)s::bytea[])
    AS said (id, state, row_id, row_hash)
WHERE record.id = said.id
"""


# An index serves each of the two parts.
_OUTSTANDING: Final = """
SELECT source_run, 'waiting', count(*) FROM devices_outboxrecord
WHERE source_run = ANY(%(runs)s::uuid[]) AND state IN ('waiting', 'sent') GROUP BY source_run
UNION ALL
SELECT source_run, 'expired', count(*) FROM devices_outboxrecord
WHERE source_run = ANY(%(runs)s::uuid[]) AND state = 'expired' GROUP BY source_run
"""


@dataclass(frozen=True)
class NewRecord:
    """Record to queue, with its dedupe key. `position` is its order within its run, `found_in` its source's name."""

    key: uuid.UUID
    source: bytes
    found_in: str
    position: int
    table: str
    data: dict[str, Any]


@dataclass(frozen=True)
class PendingRecord:
    """Record that has no outcome yet.

    `sent_before`: it was sent, so a device that does not dedupe may have it.
    """

    id: uuid.UUID
    table: str
    data: dict[str, Any]
    origin: Origin
    sent_before: bool = False


def add(
    *,
    cipher: UserCipher,
    user_id: uuid.UUID,
    device: uuid.UUID | None,
    run_id: uuid.UUID,
    records: Sequence[NewRecord],
) -> list[PendingRecord]:
    """Queue records, in order; return those that were not in the outbox before, or had expired. Call it in a
    transaction.

    Without a device, the records go to the first of the user's devices that they are assigned to (`assign`).
    """
    new: dict[uuid.UUID, PendingRecord] = {}
    rows = []
    for record in records:
        if record.key in new:
            continue
        origin = Origin(run_id=str(run_id), source=record.found_in)
        new[record.key] = PendingRecord(record.key, record.table, record.data, origin)
        sealed = OutboxRecord.sealed.seal(cipher, [record.data, record.found_in], record.key)
        rows.append((record.key, record.source, record.position, record.table, sealed))
    if not rows:
        return []
    columns = [list(column) for column in zip(*rows, strict=True)]
    with prepared_cursor() as cursor:
        cursor.execute(_ADD, [user_id, device, run_id, *columns])
        added = {key for (key,) in cursor.fetchall()}
    return [record for key, record in new.items() if key in added]


@transaction.atomic
def assign(ids: Collection[uuid.UUID], device: uuid.UUID) -> tuple[set[uuid.UUID], set[uuid.UUID]]:
    """Assign records that have no device to this one, permanently once they are sent. Returns the records that are now
    assigned to it, and those of them that were assigned by this call."""
    rows = OutboxRecord.objects.waiting().filter(pk__in=ids).order_by("pk").select_for_update()
    found = dict(rows.values_list("pk", "device_id"))
    new = {key for key, of in found.items() if of is None}
    if new:
        OutboxRecord.objects.filter(pk__in=new).update(device=device)
    return {key for key, of in found.items() if of in (None, device)}, new


def release(ids: Collection[uuid.UUID], device: uuid.UUID) -> None:
    """Take records back from a device that does not have them, so that another may have them."""
    OutboxRecord.objects.filter(pk__in=ids, device=device, state=State.WAITING).update(device=None)


def waiting(
    *,
    cipher: UserCipher,
    user_id: uuid.UUID,
    run_id: uuid.UUID,
    device: uuid.UUID | None = None,
    most: int = 500,
) -> list[PendingRecord]:
    """Return a run's records that no device has answered yet, in order. With `device`, only those assigned to it or to
    none."""
    found = OutboxRecord.objects.waiting().filter(user_id=user_id, source_run=run_id)
    if device is not None:
        found = found.filter(Q(device=device) | Q(device=None))
    return [pending(cipher, row, sent_before=row.state == State.SENT) for row in found[:most]]


def pending(cipher: UserCipher, row: OutboxRecord, *, sent_before: bool) -> PendingRecord:
    """Return a row as a record to deliver. Raises SealBroken."""
    data, found_in = OutboxRecord.sealed.unseal_from(cipher, row)
    return PendingRecord(
        row.pk, row.table, data, Origin(run_id=str(row.source_run), source=found_in), sent_before
    )


async def deliver(
    link: DeviceLink, records: Sequence[PendingRecord]
) -> dict[uuid.UUID, ToolResultBody | AdiuvaError]:
    """Insert records on the device, in order; return an outcome for each. Raises DeviceOffline if nothing was sent.

    Records are marked as sent before they leave for a device that does not dedupe: if the answer is lost, they must not
    be sent again. To one that dedupes they are, but not after a month, so they are marked once the answer is lost, or
    the delivery is cancelled.
    """
    outcomes: dict[uuid.UUID, ToolResultBody | AdiuvaError] = {}
    target = await link.target()
    sending = []
    for record in records:
        if record.sent_before and not target.can("dedupe"):
            outcomes[record.id] = OutcomeUnknown()
        else:
            sending.append(record)
    marked = [] if target.can("dedupe") else [record.id for record in sending]
    if marked:
        await db.run(mark_sent, marked)
    told = target.can("origin")
    calls = [
        new_call(
            "insert",
            cast(TableName, record.table),
            data=record.data,
            call_id=str(record.id),
            origin=record.origin if told else None,
        )
        for record in sending
    ]
    answers: Sequence[ToolResultBody | AdiuvaError] = []
    try:
        async with sent_if_interrupted([record.id for record in sending]):
            answers = await link.send_calls(calls) if calls else []
    except DeviceOffline as offline:
        answers = [offline for _ in calls]
    for record, answer in zip(sending, answers, strict=True):
        is_saved = not isinstance(answer, ToolResultBody) or answer.error is None or answer.code != NOT_SAVED
        outcomes[record.id] = answer if is_saved else DeviceCannotSave()
    unsent = {key: answer for key, answer in outcomes.items() if isinstance(answer, DeviceOffline)}
    not_there = [key for key, answer in outcomes.items() if isinstance(answer, NOTHING_HAPPENED)]
    if marked and not_there:
        await db.run(_mark_unsent, not_there)
    unknown = [key for key, answer in outcomes.items() if isinstance(answer, OutcomeUnknown)]
    if unknown:
        await db.run(mark_sent, unknown)
    if sending and len(unsent) == len(sending):
        raise unsent[sending[0].id]
    return outcomes


@asynccontextmanager
async def sent_if_interrupted(ids: Collection[uuid.UUID]) -> AsyncIterator[None]:
    """Mark records as sent if the code within is cancelled or loses its lease: a device may have them, and nobody
    writes its answer."""
    try:
        yield
    except (asyncio.CancelledError, LeaseLost):
        marking = asyncio.ensure_future(db.run(mark_sent, ids))
        await asyncio.wait([marking])  # a second cancel does not stop it
        if error := marking.exception():
            log_failure("outbox.mark_failed", error, level="warning")
        raise


def mark_sent(ids: Collection[uuid.UUID]) -> None:
    OutboxRecord.objects.filter(pk__in=ids, state=State.WAITING).update(state=State.SENT)


def _mark_unsent(ids: Collection[uuid.UUID]) -> None:
    OutboxRecord.objects.filter(pk__in=ids, state=State.SENT).update(state=State.WAITING)


def settle(
    *,
    cipher: UserCipher,
    outcomes: Mapping[uuid.UUID, ToolResultBody | AdiuvaError],
    tables: Mapping[uuid.UUID, str] | None = None,
) -> dict[uuid.UUID, State]:
    """Write the outcomes of records; those that were not sent, or not saved, stay queued. Returns the others' new
    states.

    `tables` are those of the records, which are looked up if they are not at hand.
    """
    if not outcomes:
        return {}
    with prepared_cursor() as cursor:
        if tables is None:
            cursor.execute(_TABLES, [list(outcomes)])
            tables = dict(cursor.fetchall())
        values = settle_values(cipher, outcomes, tables)
        if not values["ids"]:
            return {}
        cursor.execute(f"{SETTLE_SQL} RETURNING record.id, record.state", values)
        return {key: State(state) for key, state in cursor.fetchall()}


def settle_values(
    cipher: UserCipher,
    outcomes: Mapping[uuid.UUID, ToolResultBody | AdiuvaError],
    tables: Mapping[uuid.UUID, str],
) -> dict[str, list[Any]]:
    """Return the parameters of SETTLE_SQL for records with tables named by `tables`; without those that stay
    queued."""
    settled: dict[str, list[Any]] = {"ids": [], "states": [], "row_ids": [], "row_hashes": []}
    for key, outcome in outcomes.items():
        if isinstance(outcome, NOTHING_HAPPENED) or key not in tables:
            continue
        row_id = hashed = None
        if isinstance(outcome, AdiuvaError):
            state = State.UNCERTAIN
        elif outcome.error is not None or outcome.row is None:
            state = State.REFUSED
        else:
            state = State.DELIVERED
            row_id = OutboxRecord.row_id_sealed.seal(cipher, str(outcome.row.get("id", "")), key)
            hashed = row_hash(cipher, tables[key], outcome.row)
        for column, value in zip(settled.values(), (key, str(state), row_id, hashed), strict=True):
            column.append(value)
    return settled


def row_hash(cipher: UserCipher, table: str, row: Mapping[str, Any]) -> bytes:
    """Return a keyed hash of a row's content, to find out later whether somebody has edited it.

    Ignores columns that our tables do not know: an app update that adds one has edited nothing.
    """
    said = [_plain(row.get(name)) for name in TABLES[table].by_name if name not in _NOT_EDITED_BY_USER]
    return cipher.fingerprint(orjson.dumps(said), f"row of {table}")


def _plain(value: Any) -> Any:
    """Return one form for the values that devices write as 1, 1.0 or true."""
    return (
        int(value) if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()) else value
    )


def count_waiting(run_id: uuid.UUID) -> int:
    found = OutboxRecord.objects.waiting().filter(source_run=run_id).aggregate(n=Count("pk"))
    return int(found["n"])


def count_undelivered() -> dict[str, int]:
    """Return how many records of all users wait for a device or for its answer, by state."""
    rows = OutboxRecord.objects.waiting().order_by().values_list("state").annotate(n=Count("pk"))
    return {State.WAITING.value: 0, State.SENT.value: 0, **{str(state): count for state, count in rows}}


def count_outstanding(run_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, Counter[str]]:
    """Return for each run how many records wait for their device ("waiting") and how many have "expired"; empty if none
    are left."""
    found: defaultdict[uuid.UUID, Counter[str]] = defaultdict(Counter)
    with prepared_cursor() as cursor:
        cursor.execute(_OUTSTANDING, {"runs": list(run_ids)})
        for run_id, what, count in cursor.fetchall():
            found[run_id][what] = count
    return found


def count_by_state(run_id: uuid.UUID) -> dict[str, int]:
    """Return how many records of a run are in each state."""
    rows = OutboxRecord.objects.filter(source_run=run_id).order_by("state").values_list("state")
    return dict(rows.annotate(n=Count("pk")))


def overdue() -> QuerySet[OutboxRecord]:
    """Return records that have waited for their device for too long."""
    return OutboxRecord.objects.waiting().filter(created_at__lt=Now() - KEEP_UNDELIVERED)


def overdue_runs(most: int) -> set[uuid.UUID]:
    """Return at most `most` runs with overdue records, the oldest first."""
    return set(overdue().order_by("created_at").values_list("source_run", flat=True)[:most])


def expire(run_id: uuid.UUID, most: int) -> tuple[int, int]:
    """Expire a run's records that have waited too long, and delete their content. Returns how many expired, and for how
    many nobody will ever know whether the device has them."""
    old = overdue().filter(source_run=run_id)
    chosen = OutboxRecord.objects.filter(pk__in=list(old.values_list("pk", flat=True)[:most]))
    # A record that was sent must not be sent again, even if it is found again.
    unknown = chosen.filter(state=State.SENT).update(state=State.UNCERTAIN, sealed=None, settled_at=Now())
    expired = chosen.filter(state=State.WAITING).update(state=State.EXPIRED, sealed=None, settled_at=Now())
    return expired, unknown
