"""Stores which rows on devices a run updated or withdrew, so that an undo of the run can restore them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from django.db.models.functions import Now

from adiuva.core.crypto import UserCipher
from adiuva.devices import outbox
from adiuva.devices.models import OutboxRecord
from adiuva.devices.protocol import Data
from adiuva.devices.row_undo import RowChange
from agents.claimed_runs import ClaimedRun
from agents.models import RunChanges


@dataclass(frozen=True)
class RunChange:
    """A change of the row of a record."""

    record: UUID
    change: RowChange


def add(claimed: ClaimedRun, device: UUID, changes: Sequence[RunChange]) -> None:
    """Remember a run's changes. Call it in a transaction that holds the run."""
    if not changes:
        return
    kept = of(claimed.run_id, claimed.cipher)
    if kept is not None and kept[0] != device:  # an undo goes only to the device of the last attempt
        kept = None
    save(claimed.run_id, claimed.cipher, device, [*(kept[1] if kept else ()), *changes])


def of(run_id: UUID, cipher: UserCipher) -> tuple[UUID, list[RunChange]] | None:
    """Return the device's row id, and the changes; None if there are none."""
    row = RunChanges.objects.filter(pk=run_id).first()
    if row is None:
        return None
    listed = RunChanges.sealed.unseal_from(cipher, row)
    return row.device, [RunChange(UUID(each.pop("record")), RowChange(**each)) for each in listed]


def save(run_id: UUID, cipher: UserCipher, device: UUID, changes: Sequence[RunChange]) -> None:
    body = [{"record": str(each.record), **each.change.body()} for each in changes]
    RunChanges.objects.update_or_create(
        run_id=run_id, defaults={"device": device, "sealed": RunChanges.sealed.seal(cipher, body, run_id)}
    )


def restore_records(cipher: UserCipher, restored: Sequence[tuple[RunChange, Data]]) -> None:
    """Note that rows are back: their records count as delivered, as these rows."""
    for each, row in restored:
        OutboxRecord.objects.filter(pk=each.record).update(
            state=OutboxRecord.State.DELIVERED,
            row_id_sealed=OutboxRecord.row_id_sealed.seal(cipher, str(row.get("id", "")), each.record),
            row_hash=outbox.row_hash(cipher, each.change.table, row),
            settled_at=Now(),
        )
