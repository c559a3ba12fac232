"""Undo a turn: take back on the device what it inserted, updated and deleted, and then its changes to the memory."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import structlog
from django.utils import timezone

from adiuva.accounts.keys import cipher_for
from adiuva.core import db, leases
from adiuva.core.crypto import UserCipher
from adiuva.core.errors import AdiuvaError, Conflict, NotFound, Text
from adiuva.core.leases import Lease, LeaseLost
from adiuva.devices.link import DeviceLink
from adiuva.devices.row_undo import KeptRow, RowChange, RowUndo
from chat.models import Turn, TurnChanges
from memory.models import SourceKind
from memory.taking_back import TakenBack, take_back

_LEASE: Final = dt.timedelta(minutes=5)
_NOTHING: Final = TakenBack(deleted=0, restored=0)
log = structlog.get_logger(__name__)


class TurnRunning(Conflict):
    """The turn is still in progress and must be cancelled first."""

    code = "turn_is_running"

    def __init__(self) -> None:
        super().__init__("this turn has not ended yet: cancel it first")


class UndoInProgress(Conflict):
    code = "undo_under_way"

    def __init__(self) -> None:
        super().__init__("this turn is being undone already")


@dataclass(frozen=True)
class TurnUndoResult:
    """The outcome of an undo. `undone`: how many rows are as before the turn, in all.

    `memory`: the changes that this call took back in the user's memory; none before the device's part is complete.
    """

    undone: int
    kept: list[KeptRow]
    undone_at: dt.datetime | None
    memory: TakenBack = _NOTHING

    def body(self) -> dict[str, Any]:
        return asdict(self)


class TurnUndoStopped(AdiuvaError):
    """The device disconnected or does not answer. The error body says how much was taken back until then."""

    def __init__(self, cause: AdiuvaError, result: TurnUndoResult) -> None:
        words = Text(
            "{cause}; the undo has stopped, and goes on when it is asked for again",
            cause=Text.of(cause.message),
        )
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
        work = RowUndo(link, claimed.cipher, claimed.turn_id, claimed.changes)
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
    """Undo what the memory learnt from the turn, and keep it from reading the rest."""
    turn = _turn(user_id, request_id)
    if turn.conversation_id is None:
        return take_back(user_id=user_id, kind=SourceKind.REQUEST, source_id=turn.pk)
    if (
        turn.seq is None
    ):  # no message began it, or it ended before its own was stored: nothing is learnt from either
        return _NOTHING
    return take_back(
        user_id=user_id, kind=SourceKind.CONVERSATION, source_id=turn.conversation_id, seq=turn.seq
    )


def _turn(user_id: uuid.UUID, request_id: str) -> Turn:
    turn = Turn.objects.of(user_id).filter(request_id=request_id).select_related("changes").first()
    if turn is None:
        raise NotFound("there is no such turn")
    if turn.ended_at is None:
        raise TurnRunning
    return turn


def _device_of(user_id: uuid.UUID, request_id: str) -> uuid.UUID | None:
    """Return the device that the turn has changed; None if it changed nothing."""
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
