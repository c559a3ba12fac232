"""Undo a run: delete the records it created on devices, except those that the user has changed or uses, and take back
what it updated and withdrew there because its sources had changed.

A record is deleted if its row is still as the device reported it at the insert, is not approved, and is not referred to
by anything that stays. Each step is written as soon as the device has answered, so an interrupted undo says how far it
came, and a later undo continues from there. The ledger is not changed: the next run does not create the records again
unless a source or the agent's configuration changes.

Devices have no conditional delete, so a change that the user makes in the milliseconds between our read and our delete
goes unnoticed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Final, TypeVar
from uuid import UUID, uuid5

from adiuva.core import db
from adiuva.core.errors import AdiuvaError, Text
from adiuva.devices import outbox, tool_results
from adiuva.devices.calls import new_call
from adiuva.devices.link import DeviceLink, DeviceOffline
from adiuva.devices.protocol import MAX_BATCH, TableName, ToolResultBody
from adiuva.devices.row_references import DELETION_ORDER, RowReferences, results_of
from adiuva.devices.row_undo import RowUndo
from agents import undo_records
from agents.models import Run
from agents.undo_records import ClaimedUndo, CreatedRow, KeptRecord, Reason, UndoResult, row_title

T = TypeVar("T")

_BATCH_SIZE: Final = 500


class UndoStopped(AdiuvaError):
    """The device disconnected, does not answer or can save nothing. The error body says how much was deleted until
    then."""

    def __init__(self, cause: AdiuvaError, undone: UndoResult) -> None:
        words = Text(
            "{cause}; the undo has stopped, and goes on when it is asked for again",
            cause=Text.of(cause.message),
        )
        super().__init__(words, **undone.body())
        self.code, self.status = cause.code, cause.status


async def undo(*, run: Run) -> UndoResult:
    """Undo a run that has ended.

    Raises RunNotEnded, UndoInProgress, DeviceOffline if nothing was done, UndoStopped if only a part was.
    """
    async with AsyncExitStack() as stack:
        links: dict[UUID, DeviceLink] = {}
        for device in await db.run(undo_records.devices_needed, run):
            links[device] = await stack.enter_async_context(DeviceLink(run.user_id, device))
            await links[device].target()
        claimed = await db.run(undo_records.claim, run.pk)
        work = _Undo(claimed)
        stopped: AdiuvaError | None = None
        try:
            for device, link in links.items():
                await work.resolve(device, link)
            await work.restore_rows(links)
            for table in DELETION_ORDER:
                for device, link in links.items():
                    await work.delete_records(device, link, table)
        except AdiuvaError as error:
            stopped = error
        undone = await db.run(undo_records.finish, claimed, work.kept, work.deleted + work.restored, stopped)
    if stopped is not None:
        raise UndoStopped(stopped, undone)
    return undone


class _Undo:
    """One undo in progress."""

    def __init__(self, claimed: ClaimedUndo) -> None:
        self.claimed = claimed
        self.deleted = self.restored = 0
        self.kept: list[KeptRecord] = []
        self._references: dict[DeviceLink, RowReferences] = {}

    async def resolve(self, device: UUID, link: DeviceLink) -> None:
        """Withhold records that are still waiting, and find out about those that the device may have.

        Inserting one again, with the same call id, returns the existing row.
        """
        target = await link.target()
        left = await db.run(undo_records.withhold_waiting, self.claimed, device, dedupes=target.can("dedupe"))
        for part in _parts(left, _BATCH_SIZE):
            outcomes = await outbox.deliver(link, part)
            await db.run(undo_records.settle, self.claimed, outcomes)
            results_of(list(outcomes.values()))

    async def restore_rows(self, links: Mapping[UUID, DeviceLink]) -> None:
        """Give updated rows their earlier values, and insert withdrawn ones again."""
        found = await db.run(undo_records.changes_of, self.claimed)
        if found is None or found[0] not in links:
            return
        device, changes = found
        work = RowUndo(
            links[device], self.claimed.cipher, self.claimed.run_id, [each.change for each in changes]
        )
        try:
            await work.run()
        finally:
            self.kept += [KeptRecord(row.table, row.id, row.title, row.reason) for row in work.kept]
            await db.run(undo_records.mark_restored, self.claimed, device, changes, work.restored)
            self.restored = len(work.restored)

    async def delete_records(self, device: UUID, link: DeviceLink, table: TableName) -> None:
        for rows in _parts(await db.run(undo_records.created_rows, self.claimed, device, table), MAX_BATCH):
            await self._delete_rows(link, table, rows)

    async def _delete_rows(self, link: DeviceLink, table: TableName, rows: Sequence[CreatedRow]) -> None:
        found = await link.send_calls([new_call("get", table, data={"id": row.id}) for row in rows])
        results = results_of(found)
        going: list[CreatedRow] = []
        there: list[str] = []
        titles: dict[str, str | None] = {}
        for row, answer in zip(rows, results, strict=True):
            titles[row.id] = row_title(table, answer.row)
            if reason := self._reason(row, answer):
                self._keep(row, reason, titles)
                continue
            going.append(row)
            if answer.row is not None:
                there.append(row.id)
        used = await self._references.setdefault(link, RowReferences(link)).used(table, there)
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
                case DeviceOffline() | ToolResultBody(code=tool_results.NOT_SAVED):
                    pass  # nothing happened to the row
                case ToolResultBody():
                    self._keep(row, "refused", titles)
                case _:
                    self._keep(row, "unknown", titles)
        self.deleted += len(deleted)
        await db.run(undo_records.mark_deleted, self.claimed, deleted)
        results_of(answers)

    def _reason(self, row: CreatedRow, answer: ToolResultBody) -> Reason | None:
        """Return why a row stays, or None. A missing row is deleted all the same, to learn whether we deleted it."""
        if answer.error is not None:
            return "refused"
        if answer.row is None:
            return None
        if answer.row.get("isApproved") in (1, True):
            return "approved"
        if row.hash is None:
            return "unknown"
        return None if outbox.row_hash(self.claimed.cipher, row.table, answer.row) == row.hash else "edited"

    def _keep(self, row: CreatedRow, reason: Reason, titles: Mapping[str, str | None]) -> None:
        self.kept.append(KeptRecord(row.table, row.id, titles.get(row.id), reason))


def _parts(items: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), most):
        yield items[start : start + most]
