"""Undo a turn: take back on the device what it inserted, updated and deleted, and then what it did to the memory.

A row that was edited since is left, and named; so is a new row that something else refers to. A deleted row is inserted
again, under an id of the device's making. Calls have the same ids each time, so an undo that broke off can be asked for
again. Devices have no conditional writes: an edit in the milliseconds between our read and our write goes unnoticed.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

import structlog
from django.utils import timezone

from adiuva.accounts.keys import cipher_for
from adiuva.core import db, leases
from adiuva.core.crypto import UserCipher
from adiuva.core.errors import AdiuvaError, Conflict, NotFound
from adiuva.core.leases import Lease, LeaseLost
from adiuva.devices.calls import new_call
from adiuva.devices.link import DeviceLink
from adiuva.devices.outbox import row_hash
from adiuva.devices.protocol import Data, ToolCall
from adiuva.devices.row_references import DELETION_ORDER, RowReferences, results_of
from adiuva.devices.tables import TABLES
from chat.models import Turn, TurnChanges
from chat.turn_changes import RowChange
from memory.models import SourceKind
from memory.taking_back import TakenBack, take_back

Reason = Literal["edited", "in_use", "gone", "refused", "unknown"]
_LEASE: Final = dt.timedelta(minutes=5)
_NOTHING: Final = TakenBack(deleted=0, restored=0)
_REFERENCES: Final = ("projectId", "taskId", "clientId", "parentId")
log = structlog.get_logger(__name__)


class TurnRunning(Conflict):
    """The turn is still in progress and has to be cancelled first."""

    code = "turn_is_running"

    def __init__(self) -> None:
        super().__init__("this turn has not ended yet: cancel it first")


class UndoInProgress(Conflict):
    code = "undo_under_way"

    def __init__(self) -> None:
        super().__init__("this turn is being undone already")


@dataclass(frozen=True)
class KeptRow:
    """A row that stays as the turn left it."""

    table: str
    id: str
    title: str
    reason: Reason


@dataclass(frozen=True)
class TurnUndoResult:
    """`undone`: how many rows are as they were before the turn, in all.

    `memory`: what this call took back in the user's memory. Nothing before the device's part is complete.
    """

    undone: int
    kept: list[KeptRow]
    undone_at: dt.datetime | None
    memory: TakenBack = _NOTHING

    def body(self) -> dict[str, Any]:
        return asdict(self)


class TurnUndoStopped(AdiuvaError):
    """The device disconnected or does not answer. The error body says what was taken back until then."""

    def __init__(self, cause: AdiuvaError, result: TurnUndoResult) -> None:
        words = f"{cause.message}; the undo has stopped, and goes on when it is asked for again"
        super().__init__(words, **result.body())
        self.code, self.status = cause.code, cause.status


@dataclass(frozen=True)
class _Claimed:
    lease: Lease[TurnChanges]
    turn_id: uuid.UUID
    device: uuid.UUID | None
    undone_at: dt.datetime | None
    cipher: UserCipher
    changes: list[RowChange]


async def undo(*, user_id: uuid.UUID, request_id: str) -> TurnUndoResult:
    """Undo a turn that has ended.

    Raises NotFound, TurnRunning, UndoInProgress, DeviceOffline if nothing was done, TurnUndoStopped if only a part was.
    """
    device = await db.run(_device_of, user_id, request_id)
    if device is None:
        return TurnUndoResult(0, [], None, await db.run(_take_back_memory, user_id, request_id))
    async with DeviceLink(user_id, device) as link:
        await link.target()
        claimed = await db.run(_claim, user_id, request_id)
        work = _Undo(claimed, link)
        stopped: AdiuvaError | None = None
        try:
            await work.run()
        except AdiuvaError as error:
            stopped = error
        result = await db.run(_finish, claimed, work.kept, stopped)
    if stopped is not None:
        raise TurnUndoStopped(stopped, result)
    return replace(result, memory=await db.run(_take_back_memory, user_id, request_id))


def _take_back_memory(user_id: uuid.UUID, request_id: str) -> TakenBack:
    """Undo what the memory learnt from the turn. What it has not read of it yet, it will not read."""
    turn = _turn(user_id, request_id)
    if turn.conversation_id is None:
        return take_back(user_id=user_id, kind=SourceKind.REQUEST, source_id=turn.pk)
    assert turn.seq is not None  # set with its request
    return take_back(
        user_id=user_id, kind=SourceKind.CONVERSATION, source_id=turn.conversation_id, seq=turn.seq
    )


def _turn(user_id: uuid.UUID, request_id: str) -> Turn:
    turn = Turn.objects.of(user_id).filter(request_id=request_id).select_related("changes").first()
    if turn is None:
        raise NotFound("there is no such turn")
    if turn.state == Turn.State.RUNNING:
        raise TurnRunning
    return turn


def _device_of(user_id: uuid.UUID, request_id: str) -> uuid.UUID | None:
    """The device that the turn has changed; None if it changed nothing."""
    turn = _turn(user_id, request_id)
    return turn.changes.device if hasattr(turn, "changes") else None


def _claim(user_id: uuid.UUID, request_id: str) -> _Claimed:
    turn = _turn(user_id, request_id)
    found = leases.claim(TurnChanges.objects.filter(pk=turn.pk), _LEASE)
    if not found:
        raise UndoInProgress
    row, cipher = found[0], cipher_for(user_id)
    changes = [RowChange(**change) for change in TurnChanges.sealed.unseal_from(cipher, row)]
    return _Claimed(row.lease(_LEASE), turn.pk, row.device, row.undone_at, cipher, changes)


def _finish(claimed: _Claimed, kept: list[KeptRow], stopped: AdiuvaError | None) -> TurnUndoResult:
    undone_at = claimed.undone_at if stopped else claimed.undone_at or timezone.now()
    body = [change.body() for change in claimed.changes]
    try:
        claimed.lease.release(
            sealed=TurnChanges.sealed.seal(claimed.cipher, body, claimed.turn_id), undone_at=undone_at
        )
    except LeaseLost:
        raise UndoInProgress from None
    undone = sum(change.undone for change in claimed.changes)
    log.info("turn.undone", turn=str(claimed.turn_id), undone=undone, kept=len(kept), stopped=bool(stopped))
    return TurnUndoResult(undone, kept, undone_at)


class _Undo:
    """One undo in progress."""

    def __init__(self, claimed: _Claimed, link: DeviceLink) -> None:
        self.kept: list[KeptRow] = []
        self._claimed, self._link = claimed, link
        self._references = RowReferences(link)
        self._new_ids: dict[str, str] = {}  # of rows that were inserted again

    async def run(self) -> None:
        left = [change for change in self._claimed.changes if not change.undone]
        unchanged = await self._unchanged([change for change in left if change.action != "delete"])
        for table in reversed(DELETION_ORDER):  # what others refer to comes back first
            for change in left:
                if change.action == "delete" and change.table == table:
                    await self._insert_again(change)
        for change in unchanged:
            if change.action == "update":
                await self._update_back(change)
        for table in DELETION_ORDER:
            for change in unchanged:
                if change.action == "insert" and change.table == table:
                    await self._delete(change)

    async def _unchanged(self, changes: Sequence[RowChange]) -> list[RowChange]:
        """Those whose rows are as the turn left them."""
        calls = [new_call("get", change.table, data={"id": change.id}) for change in changes]
        found = results_of(await self._link.send_calls(calls)) if calls else []
        same = []
        for change, answer in zip(changes, found, strict=True):
            if answer.error is not None:
                self._keep(change, "refused")
            elif answer.row is None:
                # A delete of ours whose answer was lost is sent again, to learn whether it was ours.
                if change.action == "insert":
                    same.append(change)
                else:
                    self._keep(change, "gone")
            elif row_hash(self._claimed.cipher, change.table, answer.row).hex() != change.hash:
                self._keep(change, "edited")
            else:
                same.append(change)
        return same

    async def _insert_again(self, change: RowChange) -> None:
        if change.before is None:
            self._keep(change, "unknown")
            return
        columns = {column.name for column in TABLES[change.table].columns if not column.made_by_device}
        data = {
            name: self._current_id(name, value)
            for name, value in change.before.items()
            if name in columns and value is not None
        }
        row = await self._send(change, new_call("insert", change.table, data=data, call_id=self._id(change)))
        if row is not None:
            self._new_ids[change.id] = str(row.get("id"))

    async def _update_back(self, change: RowChange) -> None:
        if not change.before:
            self._keep(change, "unknown")
            return
        updates = {name: self._current_id(name, value) for name, value in change.before.items()}
        data = {"id": change.id, "updates": updates}
        await self._send(change, new_call("update", change.table, data=data, call_id=self._id(change)))

    async def _delete(self, change: RowChange) -> None:
        if await self._references.used(change.table, [change.id]):
            self._keep(change, "in_use")
            return
        call = new_call("delete", change.table, data={"id": change.id}, call_id=self._id(change))
        [answer] = results_of(await self._link.send_calls([call]))
        if answer.error is not None:
            self._keep(change, "refused")
        elif answer.deleted:
            change.undone = True
        else:
            self._keep(change, "gone")

    async def _send(self, change: RowChange, call: ToolCall) -> Data | None:
        [answer] = results_of(await self._link.send_calls([call]))
        if answer.error is not None or answer.row is None:
            self._keep(change, "refused")
            return None
        change.undone = True
        return answer.row

    def _current_id(self, column: str, value: Any) -> Any:
        return self._new_ids.get(value, value) if column in _REFERENCES and isinstance(value, str) else value

    def _id(self, change: RowChange) -> str:
        return str(uuid.uuid5(self._claimed.turn_id, f"undo {change.table} {change.id}"))

    def _keep(self, change: RowChange, reason: Reason) -> None:
        self.kept.append(KeptRow(change.table, change.id, change.title, reason))
