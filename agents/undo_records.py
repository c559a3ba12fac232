"""The rows of an undo: claim the run, withhold its waiting records, and write what became of each."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, cast
from uuid import UUID

import structlog
from django.db import transaction
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone

from adiuva.accounts.keys import cipher_for
from adiuva.core import leases
from adiuva.core.crypto import UserCipher
from adiuva.core.errors import AdiuvaError, Conflict, NotFound
from adiuva.core.leases import Lease, LeaseLost
from adiuva.devices import outbox
from adiuva.devices.link import DeviceOffline
from adiuva.devices.models import Device, OutboxQuerySet, OutboxRecord
from adiuva.devices.outbox import PendingRecord
from adiuva.devices.protocol import Data, TableName, ToolResultBody
from adiuva.devices.row_undo import RowChange
from adiuva.devices.tables import TABLES
from agents import journal, run_changes
from agents.journal import EventKind, JournalEntry
from agents.models import Run
from agents.run_changes import RunChange
from memory.forgetting import forget_source
from memory.models import SourceKind

Reason = Literal["edited", "approved", "in_use", "gone", "refused", "unknown"]
State = OutboxRecord.State
# Each step renews it.
_LEASE: Final = dt.timedelta(minutes=5)
_TITLE_CHARS: Final = 200
log = structlog.get_logger(__name__)


class RunNotEnded(Conflict):
    """The run is still in progress and must be cancelled first."""

    code = "run_is_live"

    def __init__(self, run_id: UUID) -> None:
        super().__init__("this run has not ended yet: cancel it first", run_id=str(run_id))


class UndoInProgress(Conflict):
    """Another undo or a delivery holds the run."""

    code = "undo_under_way"

    def __init__(self) -> None:
        super().__init__("this run is being undone already")


@dataclass(frozen=True)
class KeptRecord:
    """A record that was not deleted. `id` is None if the device never reported it."""

    table: str
    id: str | None
    title: str | None
    reason: Reason


@dataclass(frozen=True)
class UndoResult:
    """The outcome for a run's records, in this undo and earlier ones.

    `restored`: rows that it had updated or withdrawn, and that are as before.
    """

    deleted: int
    restored: int
    never_sent: int
    kept: list[KeptRecord]
    undone_at: dt.datetime | None

    def body(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ClaimedUndo:
    lease: Lease[Run]
    run_id: UUID
    user_id: UUID
    device: UUID | None  # the run's device; None if it was deleted
    cipher: UserCipher = field(repr=False)


@dataclass(frozen=True)
class CreatedRow:
    """A record that the device has inserted."""

    key: UUID
    table: TableName
    id: str
    hash: bytes | None


def row_title(table: str, row: Mapping[str, Any] | None) -> str | None:
    title = (row or {}).get(TABLES[table].title)
    return str(title)[:_TITLE_CHARS] if title else None


def _records(claimed: ClaimedUndo) -> OutboxQuerySet:
    return OutboxRecord.objects.filter(user_id=claimed.user_id, source_run=claimed.run_id)


def _on(claimed: ClaimedUndo, device: UUID) -> OutboxQuerySet:
    """Return a device's records; for the run's device, also those whose device was deleted."""
    return _records(claimed).filter(
        Q(device=device) | (Q(device=None) if device == claimed.device else Q(pk__in=[]))
    )


def _own_device(run: Run) -> UUID | None:
    return Device.objects.of(run.user_id).filter(device_id=run.device_id).values_list("pk", flat=True).first()


def devices_needed(run: Run) -> list[UUID]:
    """Return the devices that an undo needs. Raises RunNotEnded, and DeviceOffline if one of them was deleted."""
    if run.is_live:
        raise RunNotEnded(run.pk)
    concerned = OutboxRecord.objects.filter(user_id=run.user_id, source_run=run.pk).exclude(
        state__in=(State.REFUSED, State.EXPIRED, State.UNDONE, State.WITHDRAWN)
    )
    if run.is_cloud:
        concerned = concerned.exclude(device=None, state=State.WAITING)  # no device has them
    found = concerned.order_by().values_list("device_id", flat=True).distinct()
    devices = {device or _own_device(run) for device in found}
    changes = run_changes.of(run.pk, cipher_for(run.user_id))
    if changes is not None and not all(each.change.undone for each in changes[1]):
        devices.add(changes[0] if Device.objects.filter(pk=changes[0]).exists() else None)
    known = [device for device in devices if device is not None]
    if len(known) < len(devices):
        raise DeviceOffline
    return sorted(known)


@transaction.atomic
def claim(run_id: UUID) -> ClaimedUndo:
    """Claim a run for its undo. Raises RunNotEnded, UndoInProgress, and NotFound if it was deleted with its user."""
    found = leases.claim(Run.objects.exclude(state__in=Run.LIVE).filter(pk=run_id), _LEASE, skip_locked=False)
    if not found:
        run = Run.objects.filter(pk=run_id).first()
        if run is None:
            raise NotFound("there is no such run")
        raise RunNotEnded(run_id) if run.is_live else UndoInProgress
    run = found[0]
    if run.is_cloud:
        queued = OutboxRecord.objects.filter(source_run=run.pk, device=None, state=State.WAITING)
        queued.update(state=State.UNDONE, sealed=None, settled_at=Now())
    return ClaimedUndo(run.lease(_LEASE), run_id, run.user_id, _own_device(run), cipher_for(run.user_id))


def _held(claimed: ClaimedUndo) -> Run:
    """Lock the run's row and renew its lease. Raises UndoInProgress if another undo has taken over."""
    try:
        run = claimed.lease.held()
        claimed.lease.renew()
    except LeaseLost:
        raise UndoInProgress from None
    return run


@transaction.atomic
def withhold_waiting(claimed: ClaimedUndo, device: UUID, *, dedupes: bool) -> list[PendingRecord]:
    """Withhold a run's waiting records, so that no later run delivers them.

    For a device that can dedupe, returns those that it may have. For another, records that were never sent are undone,
    and the rest stays uncertain.
    """
    _held(claimed)
    left = _on(claimed, device)
    if not dedupes:
        left.filter(state=State.WAITING).update(state=State.UNDONE, sealed=None, settled_at=Now())
    left.waiting().update(state=State.UNCERTAIN, settled_at=Now())
    if not dedupes:
        return []
    unsure = left.filter(
        state=State.UNCERTAIN, sealed__isnull=False, created_at__gt=Now() - outbox.KEEP_UNDELIVERED
    )
    return [outbox.pending(claimed.cipher, row, sent_before=True) for row in unsure]


def _data(claimed: ClaimedUndo, row: OutboxRecord) -> dict[str, Any]:
    return outbox.pending(claimed.cipher, row, sent_before=True).data


@transaction.atomic
def settle(claimed: ClaimedUndo, outcomes: Mapping[UUID, ToolResultBody | AdiuvaError]) -> None:
    _held(claimed)
    outbox.settle(cipher=claimed.cipher, outcomes=outcomes)


def created_rows(claimed: ClaimedUndo, device: UUID, table: str) -> list[CreatedRow]:
    """Return the run's rows in a table of the device, the latest first."""
    rows = _on(claimed, device).filter(state=State.DELIVERED, table=table, row_id_sealed__isnull=False)
    return [
        CreatedRow(
            row.pk,
            cast(TableName, row.table),
            OutboxRecord.row_id_sealed.unseal_from(claimed.cipher, row),
            bytes(row.row_hash) if row.row_hash is not None else None,
        )
        for row in rows.order_by("-position")
    ]


def changes_of(claimed: ClaimedUndo) -> tuple[UUID, list[RunChange]] | None:
    """Return the run's updates and withdrawals, and their device."""
    return run_changes.of(claimed.run_id, claimed.cipher)


@transaction.atomic
def mark_restored(
    claimed: ClaimedUndo,
    device: UUID,
    changes: Sequence[RunChange],
    restored: Sequence[tuple[RowChange, Data]],
) -> None:
    _held(claimed)
    run_changes.save(claimed.run_id, claimed.cipher, device, changes)
    of_change = {id(each.change): each for each in changes}
    run_changes.restore_records(claimed.cipher, [(of_change[id(change)], row) for change, row in restored])


@transaction.atomic
def mark_deleted(claimed: ClaimedUndo, keys: Sequence[UUID]) -> None:
    _held(claimed)
    _records(claimed).filter(pk__in=keys, state=State.DELIVERED).update(
        state=State.UNDONE, row_hash=None, settled_at=Now()
    )


@transaction.atomic
def finish(
    claimed: ClaimedUndo, kept: Sequence[KeptRecord], taken_back: int, stopped: AdiuvaError | None
) -> UndoResult:
    """Write how the undo ended, and sum up what became of the run's records."""
    run = _held(claimed)
    unsure = [
        KeptRecord(row.table, None, _sealed_title(claimed, row), "unknown")
        for row in _records(claimed).filter(state=State.UNCERTAIN)
    ]
    undone = _records(claimed).filter(state=State.UNDONE)
    changes = changes_of(claimed)
    result = UndoResult(
        deleted=undone.filter(row_id_sealed__isnull=False).count(),
        restored=sum(each.change.undone for each in changes[1]) if changes else 0,
        never_sent=undone.filter(row_id_sealed=None).count(),
        kept=[*kept, *unsure],
        undone_at=run.undone_at if stopped else run.undone_at or timezone.now(),
    )
    entries = []
    if taken_back or (not stopped and run.undone_at is None):
        entries.append(
            JournalEntry(EventKind.NOTE, "undo_stopped" if stopped else "undone", count=taken_back)
        )
        if result.kept and not stopped:
            entries.append(JournalEntry(EventKind.NOTE, "records_kept", count=len(result.kept)))
    claimed.lease.release(undone_at=result.undone_at)
    journal.write(run, entries)
    if not stopped:
        forget_source(user_id=run.user_id, kind=SourceKind.RUN, source_id=run.pk)
    log.info(
        "run.undone",
        run_id=str(run.pk),
        user_id=str(run.user_id),
        taken_back=taken_back,
        kept=len(result.kept),
        stopped=stopped.code if stopped else "",
    )
    return result


def _sealed_title(claimed: ClaimedUndo, row: OutboxRecord) -> str | None:
    return row_title(row.table, _data(claimed, row)) if row.sealed is not None else None
