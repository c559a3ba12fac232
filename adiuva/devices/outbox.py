"""Records on their way to a device: sealed rows that leave when the device's answer is committed.

A record's id is its dedupe key and its call id for ever. So a second attempt, by whichever worker, is the same call,
and a thing that was found before in the same source is not sent again.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import orjson
from django.db.models import Count
from django.db.models.functions import Now

from adiuva.crypto import UserCipher
from adiuva.devices.link import DeviceLink, DeviceOffline, OutcomeUnknown
from adiuva.devices.models import OutboxRecord
from adiuva.devices.protocol import TableName, ToolCall, ToolResultBody
from adiuva.errors import AdiuvaError

State = OutboxRecord.State


@dataclass(frozen=True)
class Pending:
    """A record that has no outcome yet. `sent_before`: a device that does not dedupe may have it."""

    id: uuid.UUID
    table: str
    data: dict[str, Any]
    sent_before: bool = False


def add(
    *,
    cipher: UserCipher,
    user_id: uuid.UUID,
    device: uuid.UUID,
    run_id: uuid.UUID,
    source: bytes,
    position: int,
    records: Mapping[uuid.UUID, tuple[str, dict[str, Any]]],
) -> list[Pending]:
    """Put records in line, in order; returns those that were not there before. Call it in a transaction."""
    known = set(OutboxRecord.objects.filter(pk__in=records).values_list("pk", flat=True))
    new = [Pending(key, table, data) for key, (table, data) in records.items() if key not in known]
    OutboxRecord.objects.bulk_create(
        OutboxRecord(
            id=record.id,
            user_id=user_id,
            device_id=device,
            source_run=run_id,
            source=source,
            position=position + number,
            table=record.table,
            sealed=cipher.seal(orjson.dumps(record.data).decode(), "outbox", record.id, "record"),
        )
        for number, record in enumerate(new)
    )
    return new


def waiting(*, cipher: UserCipher, user_id: uuid.UUID, run_id: uuid.UUID, most: int = 500) -> list[Pending]:
    """What a run has found and its device has not answered for yet, oldest first."""
    rows = OutboxRecord.objects.waiting().filter(user_id=user_id, source_run=run_id)[:most]
    return [
        Pending(
            row.pk,
            row.table,
            orjson.loads(cipher.unseal(cast(bytes, row.sealed), "outbox", row.pk, "record")),
            row.state == State.SENT,
        )
        for row in rows
    ]


async def deliver(
    link: DeviceLink, records: Sequence[Pending], *, mark_sent: Any
) -> dict[uuid.UUID, ToolResultBody | AdiuvaError]:
    """Insert records on the device, in order. Raise DeviceOffline when nothing was sent; an outcome each otherwise.

    `mark_sent(ids)` is awaited before records leave for a device that does not dedupe: if the answer is lost, they
    must not be sent again.
    """
    outcomes: dict[uuid.UUID, ToolResultBody | AdiuvaError] = {}
    target = await link.target()
    sending = []
    for record in records:
        if record.sent_before and not target.can("dedupe"):
            outcomes[record.id] = OutcomeUnknown()
        else:
            sending.append(record)
    if sending and not target.can("dedupe"):
        await mark_sent([record.id for record in sending])
    calls = [
        ToolCall(id=str(record.id), action="insert", table=cast(TableName, record.table), data=record.data)
        for record in sending
    ]
    answers = await link.send_calls(calls) if calls else []
    for record, answer in zip(sending, answers, strict=True):
        outcomes[record.id] = answer
    if sending and all(isinstance(answer, DeviceOffline) for answer in answers):
        raise DeviceOffline
    return outcomes


def mark_sent(ids: Collection[uuid.UUID]) -> None:
    OutboxRecord.objects.filter(pk__in=ids, state=State.WAITING).update(state=State.SENT)


def settle(
    *, cipher: UserCipher, outcomes: Mapping[uuid.UUID, ToolResultBody | AdiuvaError]
) -> dict[str, int]:
    """Write what became of records; those that were not sent stay in line. Returns a count per state."""
    settled = []
    for key, outcome in outcomes.items():
        row = OutboxRecord(pk=key, settled_at=Now())
        if isinstance(outcome, DeviceOffline):
            continue
        if isinstance(outcome, AdiuvaError):
            row.state = State.UNCERTAIN
        elif outcome.error is not None or outcome.row is None:
            row.state = State.REFUSED
        else:
            row.state = State.DELIVERED
            row.row_id_sealed = cipher.seal(str(outcome.row.get("id", "")), "outbox", key, "row_id")
        settled.append(row)
    OutboxRecord.objects.bulk_update(settled, ["state", "row_id_sealed", "settled_at"])
    # What has arrived need not be kept here any longer.
    gone = [row.pk for row in settled if row.state != State.UNCERTAIN]
    OutboxRecord.objects.filter(pk__in=gone).update(sealed=None)
    counts = {str(state): 0 for state in State}
    for row in settled:
        counts[str(row.state)] += 1
    return counts


def count_waiting(run_id: uuid.UUID) -> int:
    found = OutboxRecord.objects.waiting().filter(source_run=run_id).aggregate(n=Count("pk"))
    return int(found["n"])
