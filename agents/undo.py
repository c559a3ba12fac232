"""Undo a run: delete the records it created on devices, except those that the user has changed or uses.

A record is deleted if its row is still as the device reported it at the insert, is not approved, and is not referred to
by anything that stays. Each step is written as soon as the device has answered, so an interrupted undo says how far it
came, and a later undo continues from there. The ledger is not changed: the next run does not create the records again
unless a source or the agent's configuration changes.

Devices have no conditional delete, so a change that the user makes in the milliseconds between our read and our delete
goes unnoticed.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, TypeVar, cast
from uuid import UUID, uuid5

import structlog
from django.db import transaction
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone

from adiuva.accounts.keys import cipher_for
from adiuva.core import db, leases
from adiuva.core.crypto import UserCipher
from adiuva.core.errors import AdiuvaError, Conflict, NotFound
from adiuva.core.leases import Lease, LeaseLost
from adiuva.devices import outbox
from adiuva.devices.calls import new_call
from adiuva.devices.link import DeviceLink, DeviceOffline
from adiuva.devices.models import Device, OutboxQuerySet, OutboxRecord
from adiuva.devices.outbox import PendingRecord
from adiuva.devices.protocol import MAX_BATCH, Data, TableName, ToolResultBody
from adiuva.devices.tables import TABLES
from agents import journal
from agents.journal import EventKind, JournalEntry
from agents.models import Run
from memory.forgetting import forget_source
from memory.models import SourceKind

Reason = Literal["edited", "approved", "in_use", "gone", "refused", "unknown"]
State = OutboxRecord.State
T = TypeVar("T")

# Renewed with each step.
_LEASE: Final = dt.timedelta(minutes=5)
_BATCH_SIZE: Final = 500
_TITLE_CHARS: Final = 200
# Rows that refer to others are deleted before these.
_TABLE_ORDER: Final[Sequence[TableName]] = (
    "taskComments",
    "tasks",
    "notes",
    "timelines",
    "projects",
    "clients",
)
_REFERRERS: Final[Mapping[str, Sequence[tuple[TableName, str]]]] = {
    "tasks": [("taskComments", "taskId")],
    "projects": [("tasks", "projectId"), ("notes", "projectId"), ("timelines", "projectId")],
    "clients": [("projects", "clientId")],
}

log = structlog.get_logger(__name__)


class RunNotEnded(Conflict):
    """The run is still in progress and has to be cancelled first."""

    code = "run_is_live"

    def __init__(self, run_id: UUID) -> None:
        super().__init__("this run has not ended yet: cancel it first", run_id=str(run_id))


class UndoInProgress(Conflict):
    """Another undo or a delivery holds the run."""

    code = "undo_under_way"

    def __init__(self) -> None:
        super().__init__("this run is being undone already")


class UndoStopped(AdiuvaError):
    """The device disconnected or does not answer. The error body says what was deleted until then."""

    def __init__(self, cause: AdiuvaError, undone: UndoResult) -> None:
        words = f"{cause.message}; the undo has stopped, and goes on when it is asked for again"
        super().__init__(words, **undone.body())
        self.code, self.status = cause.code, cause.status


@dataclass(frozen=True)
class KeptRecord:
    """A record that was not deleted. `id` is None if the device never reported it."""

    table: str
    id: str | None
    title: str | None
    reason: Reason


@dataclass(frozen=True)
class UndoResult:
    """What became of a run's records, in this undo and earlier ones."""

    deleted: int
    never_sent: int
    kept: list[KeptRecord]
    undone_at: dt.datetime | None

    def body(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _ClaimedUndo:
    lease: Lease[Run]
    run_id: UUID
    user_id: UUID
    device: UUID | None  # the run's device; None if it was deleted
    cipher: UserCipher = field(repr=False)


@dataclass(frozen=True)
class _Row:
    """A record that the device has inserted."""

    key: UUID
    table: TableName
    id: str
    hash: bytes | None


async def undo(*, run: Run) -> UndoResult:
    """Undo a run that has ended.

    Raises RunNotEnded, UndoInProgress, DeviceOffline if nothing was done, UndoStopped if only a part was.
    """
    async with AsyncExitStack() as stack:
        links: dict[UUID, DeviceLink] = {}
        for device in await db.run(_devices, run):
            links[device] = await stack.enter_async_context(DeviceLink(run.user_id, device))
            await links[device].target()
        claimed = await db.run(_begin, run.pk)
        work = _Undo(claimed)
        stopped: AdiuvaError | None = None
        try:
            for device, link in links.items():
                await work.resolve(device, link)
            for table in _TABLE_ORDER:
                for device, link in links.items():
                    await work.delete_records(device, link, table)
        except AdiuvaError as error:
            stopped = error
        undone = await db.run(_finish, claimed, work.kept, work.deleted, stopped)
    if stopped is not None:
        raise UndoStopped(stopped, undone)
    return undone


class _Undo:
    """One undo in progress."""

    def __init__(self, claimed: _ClaimedUndo) -> None:
        self.claimed = claimed
        self.deleted = 0
        self.kept: list[KeptRecord] = []
        self._parents: set[str] | None = None

    async def resolve(self, device: UUID, link: DeviceLink) -> None:
        """Withhold records that are still waiting, and find out about those that the device may have: inserting one
        again, with the same call id, returns the row that is there."""
        target = await link.target()
        left = await db.run(_hold_back, self.claimed, device, dedupes=target.can("dedupe"))
        for part in _parts(left, _BATCH_SIZE):
            outcomes = await outbox.deliver(link, part, mark_sent=_mark_sent)
            await db.run(_settle, self.claimed, outcomes)
            _stop_at_failure(list(outcomes.values()))

    async def delete_records(self, device: UUID, link: DeviceLink, table: TableName) -> None:
        for rows in _parts(await db.run(_created, self.claimed, device, table), MAX_BATCH):
            await self._delete_rows(link, table, rows)

    async def _delete_rows(self, link: DeviceLink, table: TableName, rows: Sequence[_Row]) -> None:
        found = await link.send_calls([new_call("get", table, data={"id": row.id}) for row in rows])
        _stop_at_failure(found)
        going: list[_Row] = []
        there: list[str] = []
        titles: dict[str, str | None] = {}
        for row, answer in zip(rows, cast(list[ToolResultBody], found), strict=True):
            titles[row.id] = _title(table, answer.row)
            if reason := self._reason(row, answer):
                self._keep(row, reason, titles)
                continue
            going.append(row)
            if answer.row is not None:
                there.append(row.id)
        used = await self._in_use(link, table, there)
        for row in going:
            if row.id in used:
                self._keep(row, "in_use", titles)
        going = [row for row in going if row.id not in used]
        # The call id is the same each time, so that a delete whose answer was lost can be told apart from a row that
        # somebody else deleted.
        calls = [
            new_call("delete", table, data={"id": row.id}, call_id=str(uuid5(row.key, "undo")))
            for row in going
        ]
        answers = await link.send_calls(calls) if calls else []
        deleted = []
        for row, outcome in zip(going, answers, strict=True):
            match outcome:
                case ToolResultBody(error=None, deleted=True):
                    deleted.append(row.key)
                case ToolResultBody(error=None):
                    self._keep(row, "gone", titles)
                case ToolResultBody():
                    self._keep(row, "refused", titles)
                case DeviceOffline():
                    pass  # nothing happened to the row
                case _:
                    self._keep(row, "unknown", titles)
        self.deleted += len(deleted)
        await db.run(_enter_deleted, self.claimed, deleted)
        _stop_at_failure(answers)

    def _reason(self, row: _Row, answer: ToolResultBody) -> Reason | None:
        """Why a row stays, or None. A row that is gone is deleted all the same, to learn whether we deleted it."""
        if answer.error is not None:
            return "refused"
        if answer.row is None:
            return None
        if answer.row.get("isApproved") in (1, True):
            return "approved"
        if row.hash is None:
            return "unknown"
        return None if outbox.row_hash(self.claimed.cipher, row.table, answer.row) == row.hash else "edited"

    async def _in_use(self, link: DeviceLink, table: TableName, ids: Sequence[str]) -> set[str]:
        """Those of these rows that others refer to, or for which that cannot be found out."""
        asked = []
        for row_id in ids:
            for other, column in _REFERRERS.get(table, ()):
                filters: Data = {column: row_id}
                if other == "projects":
                    filters["includeArchived"] = True
                asked.append((row_id, new_call("select", other, filters=filters, limit=1)))
        answers = await link.send_calls([call for _, call in asked]) if asked else []
        _stop_at_failure(answers)
        used = {
            row_id
            for (row_id, _), answer in zip(asked, cast(list[ToolResultBody], answers), strict=True)
            if answer.rows is None or answer.rows
        }
        if table == "clients" and ids:
            used |= await self._with_children(link, ids)
        return used

    async def _with_children(self, link: DeviceLink, ids: Sequence[str]) -> set[str]:
        """Clients that are parents of others. No filter finds them, so all clients are read, once."""
        if self._parents is None:
            answer = await link.call(new_call("select", "clients", filters={}))
            if answer.rows is None:
                return set(ids)
            self._parents = {str(row.get("parentId")) for row in answer.rows}
        return self._parents.intersection(ids)

    def _keep(self, row: _Row, reason: Reason, titles: Mapping[str, str | None]) -> None:
        self.kept.append(KeptRecord(row.table, row.id, titles.get(row.id), reason))


async def _mark_sent(keys: list[UUID]) -> None:
    await db.run(outbox.mark_sent, keys)


def _stop_at_failure(outcomes: Sequence[ToolResultBody | AdiuvaError]) -> None:
    """Raises the first failure: a device that disconnected or is silent is asked for nothing more."""
    for outcome in outcomes:
        if isinstance(outcome, AdiuvaError):
            raise outcome


def _title(table: str, row: Mapping[str, Any] | None) -> str | None:
    title = (row or {}).get(TABLES[table].title)
    return str(title)[:_TITLE_CHARS] if title else None


def _parts(items: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), most):
        yield items[start : start + most]


# ── Rows ────────────────────────────────────────────────────────────────────────────────────────────────


def _records(claimed: _ClaimedUndo) -> OutboxQuerySet:
    return OutboxRecord.objects.filter(user_id=claimed.user_id, source_run=claimed.run_id)


def _on(claimed: _ClaimedUndo, device: UUID) -> OutboxQuerySet:
    """A device's records; for the run's device, also those whose device was deleted."""
    return _records(claimed).filter(
        Q(device=device) | (Q(device=None) if device == claimed.device else Q(pk__in=[]))
    )


def _own_device(run: Run) -> UUID | None:
    return Device.objects.of(run.user_id).filter(device_id=run.device_id).values_list("pk", flat=True).first()


def _devices(run: Run) -> list[UUID]:
    """The devices that an undo needs. Raises RunNotEnded, and DeviceOffline if one of them was deleted."""
    if run.is_live:
        raise RunNotEnded(run.pk)
    concerned = OutboxRecord.objects.filter(user_id=run.user_id, source_run=run.pk).exclude(
        state__in=(State.REFUSED, State.EXPIRED, State.UNDONE)
    )
    if run.is_cloud:
        concerned = concerned.exclude(device=None, state=State.WAITING)  # no device has them
    found = concerned.order_by().values_list("device_id", flat=True).distinct()
    devices = {device or _own_device(run) for device in found}
    known = [device for device in devices if device is not None]
    if len(known) < len(devices):
        raise DeviceOffline
    return sorted(known)


@transaction.atomic
def _begin(run_id: UUID) -> _ClaimedUndo:
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
    return _ClaimedUndo(run.lease(_LEASE), run_id, run.user_id, _own_device(run), cipher_for(run.user_id))


def _held(claimed: _ClaimedUndo) -> Run:
    """Lock the run's row and renew its lease. Raises UndoInProgress if another undo has taken over."""
    try:
        run = claimed.lease.held()
        claimed.lease.renew()
    except LeaseLost:
        raise UndoInProgress from None
    return run


@transaction.atomic
def _hold_back(claimed: _ClaimedUndo, device: UUID, *, dedupes: bool) -> list[PendingRecord]:
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
    return [PendingRecord(row.pk, row.table, _data(claimed, row), sent_before=True) for row in unsure]


def _data(claimed: _ClaimedUndo, row: OutboxRecord) -> dict[str, Any]:
    data: dict[str, Any] = OutboxRecord.sealed.unseal_from(claimed.cipher, row)
    return data


@transaction.atomic
def _settle(claimed: _ClaimedUndo, outcomes: Mapping[UUID, ToolResultBody | AdiuvaError]) -> None:
    _held(claimed)
    outbox.settle(cipher=claimed.cipher, outcomes=outcomes)


def _created(claimed: _ClaimedUndo, device: UUID, table: str) -> list[_Row]:
    """The run's rows in a table of the device, the latest first."""
    rows = _on(claimed, device).filter(state=State.DELIVERED, table=table, row_id_sealed__isnull=False)
    return [
        _Row(
            row.pk,
            cast(TableName, row.table),
            OutboxRecord.row_id_sealed.unseal_from(claimed.cipher, row),
            bytes(row.row_hash) if row.row_hash is not None else None,
        )
        for row in rows.order_by("-position")
    ]


@transaction.atomic
def _enter_deleted(claimed: _ClaimedUndo, keys: Sequence[UUID]) -> None:
    _held(claimed)
    _records(claimed).filter(pk__in=keys, state=State.DELIVERED).update(
        state=State.UNDONE, row_hash=None, settled_at=Now()
    )


@transaction.atomic
def _finish(
    claimed: _ClaimedUndo, kept: Sequence[KeptRecord], deleted: int, stopped: AdiuvaError | None
) -> UndoResult:
    """Write how the undo ended, and sum up what became of the run's records."""
    run = _held(claimed)
    unsure = [
        KeptRecord(row.table, None, _sealed_title(claimed, row), "unknown")
        for row in _records(claimed).filter(state=State.UNCERTAIN)
    ]
    undone = _records(claimed).filter(state=State.UNDONE)
    result = UndoResult(
        deleted=undone.filter(row_id_sealed__isnull=False).count(),
        never_sent=undone.filter(row_id_sealed=None).count(),
        kept=[*kept, *unsure],
        undone_at=run.undone_at if stopped else run.undone_at or timezone.now(),
    )
    entries = []
    if deleted or (not stopped and run.undone_at is None):
        entries.append(JournalEntry(EventKind.NOTE, "undo_stopped" if stopped else "undone", count=deleted))
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
        deleted=deleted,
        kept=len(result.kept),
        stopped=stopped.code if stopped else "",
    )
    return result


def _sealed_title(claimed: _ClaimedUndo, row: OutboxRecord) -> str | None:
    return _title(row.table, _data(claimed, row)) if row.sealed is not None else None
