"""Parts of an account's archive about devices and the outbox."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any
from uuid import UUID

from adiuva.accounts.keys import cipher_for
from adiuva.core.crypto import UserCipher
from adiuva.core.export_archive import ROWS_PER_BATCH, ArchivePart, exported_columns, readable, register
from adiuva.devices.models import Device, OutboxRecord


def _devices(user_id: UUID) -> Iterator[dict[str, Any]]:
    rows = Device.objects.of(user_id).with_online().order_by("created_at", "id")
    names = exported_columns(Device, but=["user", "epoch", "channel", "process"])
    for device in rows.iterator(ROWS_PER_BATCH):
        row = {name: getattr(device, name) for name in names}
        seen_at: dt.datetime = device.seen_at  # type: ignore[attr-defined]  # annotated
        yield {**row, "last_seen": seen_at, **readable(partial(_name, device))}


def _name(device: Device) -> Mapping[str, Any]:
    return {"name": device.name, "grants": device.grants}


def _outbox(user_id: UUID) -> Iterator[dict[str, Any]]:
    cipher = cipher_for(user_id)
    rows = OutboxRecord.objects.filter(user_id=user_id, sealed__isnull=False)
    for row in rows.order_by("source_run", "position").iterator(ROWS_PER_BATCH):
        yield {
            "id": row.pk,
            "run_id": row.source_run,
            "device_id": row.device_id,
            "table": row.table,
            "state": row.state,
            "created_at": row.created_at,
            **readable(partial(_record, row, cipher)),
        }


def _record(row: OutboxRecord, cipher: UserCipher) -> Mapping[str, Any]:
    data, found_in = OutboxRecord.sealed.unseal_from(cipher, row)
    return {"record": data, "found_in": found_in}


register(
    ArchivePart("devices.jsonl", "The devices that have connected.", _devices),
    ArchivePart("outbox.jsonl", "Records that agents found and that no device has taken yet.", _outbox),
)
