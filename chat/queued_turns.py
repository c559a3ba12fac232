"""The waiting turns of one process: each begins when its time comes, or ends, or another process takes it.

The rows decide (chat.turn_queue). This module looks at them, all at once, every two seconds while some wait here, and
as soon as another process says that something has changed. Every process that has clients also looks for turns that
were handed over to a process that is gone.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

from adiuva.core import db
from adiuva.core.logging import log_failure
from adiuva.devices.protocol import TurnOrigin, TurnStarted
from chat import device_notices, turn_claims, turn_queue
from chat.claimed_turn import Steered
from chat.models import Turn
from chat.request import ChatRequest, RunEnds
from chat.stream_replay import find_turn
from chat.turn import Finish, LiveTurn
from chat.turn_queue import HandedOver

if TYPE_CHECKING:
    from chat.turn_registry import TurnRegistry

_LOOK_S: Final = 2.0
_LOOK_FOR_ABANDONED_S: Final = 5.0
_ADOPT_AGAIN_S: Final = 0.25
# The most abandoned turns that a process begins at once: it leaves the others to other processes.
_MOST_ABANDONED: Final = 8

log = structlog.get_logger(__name__)


# More than 15 methods: one for each way in which a turn comes to wait or stops waiting.
class WaitingTurns:
    """The waiting turns of one TurnRegistry, which also lists them among its turns."""

    def __init__(self, registry: TurnRegistry) -> None:
        self._registry = registry
        self._turns: dict[uuid.UUID, LiveTurn] = {}
        self._changed = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._searching: asyncio.Task[None] | None = None

    def add(self, turn: LiveTurn) -> None:
        self._turns[turn.claimed.turn_id] = turn
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._keep_looking(), name="waiting turns")

    def search(self) -> None:
        """Start looking for turns whose process is gone as well."""
        if self._searching is None or self._searching.done():
            self._searching = asyncio.get_running_loop().create_task(
                self._keep_searching(), name="lost waiters"
            )

    def stop(self) -> None:
        """Stop, because the process ends: other processes begin the turns that wait here."""
        for task in (self._looking, self._searching):
            if task is not None:
                task.cancel()
        for turn in self._turns.values():
            if turn.waits:
                turn.give_away()
        self._turns.clear()

    # ── What happens to them ────────────────────────────────────────────────────────────────────────────

    def look(self) -> None:
        """Look at the rows now, because something has happened to one of the turns."""
        self._changed.set()

    async def hand_over(self, following: HandedOver) -> None:
        """Ensure that a turn whose time has come begins: in this process if it waits here or its own is gone."""
        registry = self._registry
        turn = await registry.find((following.user_id, following.request_id))
        if turn is None and following.owner not in ("", registry.channel):
            try:
                if await registry.tell(
                    following.owner, "look", following.user_id, request=following.request_id
                ):
                    return
            except ConnectionError:
                return  # a process that looks for abandoned turns will find it
        await self.begin(following)

    async def begin(self, following: HandedOver) -> None:
        """Begin a turn in this process, unless another has done so."""
        registry, key = self._registry, (following.user_id, following.request_id)
        if registry.stopping:
            return
        async with registry.starting(key):
            begun = await db.run(
                turn_claims.begin_turn,
                turn_id=following.turn_id,
                user_id=following.user_id,
                owner=await registry.open_channel(),
            )
            if begun is None:
                self.look()
                return
            turn = registry.here(key) or registry.add(begun.request, begun.claimed)
            self._turns.pop(following.turn_id, None)
            turn.begin(begun.claimed)
            registry.renew_leases()
            if registry.stopping:
                turn.stop()
        if begun.request.origin is not None:
            await device_notices.send(following.user_id, [_turn_started(begun.request, begun.request.origin)])

    async def adopt(self, user_id: uuid.UUID, request_id: str) -> None:
        """Care for a waiting turn, since its process is gone."""
        registry, key = self._registry, (user_id, request_id)
        row = await db.run(find_turn, user_id, request_id)
        if row.state == Turn.State.RUNNING and row.waiting_request is not None:
            await self.begin(HandedOver(row.pk, user_id, request_id, row.owner))
            await asyncio.sleep(_ADOPT_AGAIN_S)  # another process may have begun it
            return
        async with registry.starting(key):
            adopted = await db.run(turn_claims.adopt_turn, row=row, owner=await registry.open_channel())
            if adopted is not None and registry.here(key) is None:
                self.add(registry.add(adopted.request, adopted.claimed))
                return
        await asyncio.sleep(_ADOPT_AGAIN_S)

    async def cancel(self, row: Turn) -> bool:
        """Take a waiting turn out of the queue, wherever it waits. Returns False if it no longer waits."""
        if not await db.run(turn_queue.cancel, turn=row):
            return False
        await self._say_changed(row)
        return True

    async def tell_running(self, turn: LiveTurn) -> None:
        """Tell the turn that runs before a waiting one that the user has said something."""
        registry, request = self._registry, turn.request
        if turn.claimed.conversation_id is None:
            return
        running = await db.run(turn_queue.running_in, turn.claimed.conversation_id)
        if running is None or running.request_id == request.request_id:  # its time has come meanwhile
            return
        if (here := await registry.find((request.user_id, running.request_id))) is not None:
            here.user_has_spoken()
            return
        with suppress(ConnectionError):  # then the message gets an answer of its own
            await registry.tell(running.owner, "spoken", request.user_id, request=running.request_id)

    async def end_joined(self, steered: Sequence[Steered]) -> None:
        """End waiting turns whose messages the model has read."""
        for row in await db.run(turn_queue.join, steered=steered):
            await self._say_changed(row)

    async def _say_changed(self, row: Turn) -> None:
        """Tell the process that cares for a waiting turn that something has happened to it."""
        if row.owner in ("", self._registry.channel):
            self.look()
            return
        with suppress(ConnectionError):  # it looks every two seconds
            await self._registry.tell(row.owner, "look", row.user_id, request=row.request_id)

    # ── Looking ─────────────────────────────────────────────────────────────────────────────────────────

    async def _keep_looking(self) -> None:
        while self._turns:
            self._changed.clear()
            try:
                turns = dict(self._turns)  # a copy: another may be added while the rows are read
                rows = await db.run(turn_queue.rows_of, list(turns))
            except Exception as error:
                log_failure("turn.waiting_not_seen", error, logger=log, turns=len(self._turns))
            else:
                for turn_id, turn in turns.items():
                    try:
                        await self._follow_row(turn, rows.get(turn_id))
                    except Exception as error:
                        log_failure("turn.not_begun", error, logger=log, turn=str(turn_id))
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _follow_row(self, turn: LiveTurn, row: Turn | None) -> None:
        key = turn.claimed.turn_id
        if not turn.waits:
            self._turns.pop(key, None)
        elif row is None:
            self._end(turn, "error", "user_gone")
        elif row.ended_at is not None:
            self._end(turn, _finish_of(row), row.code)
        elif row.state == Turn.State.RUNNING and row.waiting_request is not None:
            await self.begin(HandedOver(key, row.user_id, row.request_id, row.owner))
        elif row.owner and row.owner != self._registry.channel:
            self._turns.pop(key, None)
            self._registry.move_away(turn)

    def _end(self, turn: LiveTurn, finish: Finish, code: str) -> None:
        self._turns.pop(turn.claimed.turn_id, None)
        turn.end_waiting(finish, code)

    async def _keep_searching(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_FOR_ABANDONED_S)
            try:
                found = await db.run(turn_queue.find_abandoned, _MOST_ABANDONED)
            except Exception as error:
                log_failure("turn.waiting_not_seen", error, logger=log, turns=0)
                continue
            for following in found:
                try:
                    await self.begin(following)
                except Exception as error:
                    log_failure("turn.not_begun", error, logger=log, turn=str(following.turn_id))


def _turn_started(request: ChatRequest, origin: RunEnds) -> TurnStarted:
    return TurnStarted(
        request_id=request.request_id,
        conversation_id=request.conversation_id or "",
        kind=request.kind.value,
        origin=TurnOrigin(run_ids=list(origin.run_ids), agent_names=list(origin.agent_names)),
    )


def _finish_of(row: Turn) -> Finish:
    match row.state:
        case Turn.State.STOP:
            return "stop"
        case Turn.State.CANCELLED:
            return "cancelled"
        case Turn.State.LIMIT:
            return "limit"
    return "error"
