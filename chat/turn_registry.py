"""The registry of running turns and of the process that owns each.

A turn runs in one process; a client may reconnect to another. The turn's row names the channel of its owner. While the
turn runs, its owner answers from memory, and other processes follow it over that channel
(chat.cross_process_stream). If nobody listens on the channel any more, or its owner does not renew its lease
(chat.turn_leases), the turn is lost and ends as such. After the end, the stream log answers (chat.stream_replay).
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import structlog
from django.conf import settings

from adiuva.core import db
from adiuva.core.background import BackgroundTasks
from adiuva.core.errors import Invalid, Text, Unavailable
from adiuva.core.leases import Lease
from adiuva.core.per_loop import PerLoop
from adiuva.devices.protocol import ApprovalRequest
from chat import (
    approval_routing,
    cross_process_requests,
    device_notices,
    stream_log,
    turn_claims,
    turn_queue,
    turn_saving,
)
from chat.assistants import supervisor
from chat.claimed_turn import ClaimedTurn
from chat.cross_process_stream import RemoteStream, RemoteStreams
from chat.memory_context import recall_at_once
from chat.models import Turn
from chat.queued_turns import WaitingTurns
from chat.request import MAX_MESSAGE_CHARS, ChatRequest
from chat.stream import FROM_START, Listener
from chat.stream_replay import (
    RequestIdReused,
    StillWaiting,
    ensure_same_request,
    find_turn,
    replay,
)
from chat.turn import LiveTurn, TurnHooks
from chat.turn_bus import ChannelListener, TurnBus
from chat.turn_claims import AlreadyClaimed
from chat.turn_errors import (
    MAX_TURNS,
    ServerRestarting,
    TooManyTurns,
    as_client_error,
    refusal_of,
)
from chat.turn_leases import TurnLeases

# How long listeners may take, before the process stops, to receive the end of a turn that could not be stored.
_SEND_ENDS_S: Final = 1.0

log = structlog.get_logger(__name__)


@dataclass
class Seen:
    """The last seq that a listener has seen."""

    after: int = FROM_START


# More than 15 methods: each request about a turn is one, and most are a few lines.
class TurnRegistry:
    """The turns of one event loop, and the way to those of other processes."""

    def __init__(self) -> None:
        self._turns: dict[tuple[uuid.UUID, str], LiveTurn] = {}
        # Turns whose rows are being written; the event is set when that is done.
        self._starting: dict[tuple[uuid.UUID, str], asyncio.Event] = {}
        self._stopping = False
        self._tasks = BackgroundTasks("turn_registry.task_failed", log)
        self._leases = TurnLeases(self._held)
        self.waiting = WaitingTurns(self)
        self._bus = TurnBus(partial(cross_process_requests.handle, self))
        self.remote_streams = RemoteStreams(self._bus)

    # Starting and following

    async def open(self, request: ChatRequest, listener: Listener) -> None:
        """Carry out a request, or join its turn if it was made before.

        Returns once the listener follows the turn; a turn of another process, once its end was passed on. A request
        that is refused ends in a stream_end for the listener.
        """
        if request.joins is not None:
            await self._say_to_turn(request, listener)
            return
        seen = Seen()
        try:
            try:
                turn = await self.find_or_start(request)
            except AlreadyClaimed as claimed:
                await ensure_same_request(request, claimed.turn)
                await self._follow(request.user_id, request.request_id, listener, seen)
            else:
                turn.stream.follow(listener)
        except Exception as error:
            await listener.send_frames(
                request.request_id, refusal_of(request, as_client_error(error).code, seen.after)
            )

    async def _say_to_turn(self, request: ChatRequest, listener: Listener) -> None:
        """Carry out a request that is addressed to a running turn.

        The listener follows it only if that turn ends before its model has read it. Raises what `start` does.
        """
        here = next((turn for turn in self._turns.values() if turn.claimed.turn_id == request.joins), None)
        with here.message_coming() if here is not None else nullcontext():
            turn = await self.start(request)
        await turn.has_come_up.wait()
        if turn.code == turn_queue.JOINED:
            return
        if self.here(request.key) is turn:
            turn.stream.follow(listener)
        elif not self._stopping:
            await self._follow(request.user_id, request.request_id, listener, Seen())

    async def resume(self, user_id: uuid.UUID, request_id: str, after: int, listener: Listener) -> None:
        """Send a listener the frames after seq `after` and those that follow; returns as `open` does.

        Raises NotRunning or StreamExpired.
        """
        await self._follow(user_id, request_id, listener, Seen(after))

    async def _follow(self, user_id: uuid.UUID, request_id: str, listener: Listener, seen: Seen) -> None:
        """Send a listener the frames that it has not seen yet. Returns as `open` does; `seen` is kept up to date."""
        while True:
            remote = None
            try:
                remote = await self._join(user_id, request_id, seen.after, listener)
                if remote is not None:
                    await self.remote_streams.follow(remote)
                return
            except StillWaiting:
                await self.waiting.adopt(user_id, request_id)
            finally:
                if remote is not None:
                    seen.after = remote.after

    async def _join(
        self, user_id: uuid.UUID, request_id: str, after: int, listener: Listener
    ) -> RemoteStream | None:
        """Follow a turn of this process, replay one that has ended, or return the stream of one that runs elsewhere."""
        key = (user_id, request_id)
        if (turn := await self.find(key)) is None:
            row = await db.run(find_turn, user_id, request_id)
            turn = await self.find(key)  # it may have started during the query
        if turn is not None:
            turn.stream.follow(listener, after)
            return None
        if row.ended_at is None:
            if not row.owner:  # it was started while Redis was away, so no other process can reach it
                raise Unavailable("this request cannot be reached for now")
            if row.owner != self._bus.channel:
                return self.remote_streams.add(
                    listener, user_id=user_id, request_id=request_id, owner=row.owner, after=after
                )
        await replay(row, after, listener)
        return None

    async def find_or_start(self, request: ChatRequest) -> LiveTurn:
        """Return this process's turn for a request, started if need be. Raises RequestIdReused, and as `start` does."""
        if (turn := await self.find(request.key)) is None:
            return await self.start(request)
        if turn.request.message != request.message:
            raise RequestIdReused
        return turn

    async def find(self, key: tuple[uuid.UUID, str]) -> LiveTurn | None:
        """Return this process's turn of a user and request id. Waits for one that is being started."""
        while (starting := self._starting.get(key)) is not None:
            await starting.wait()
        return self._turns.get(key)

    def here(self, key: tuple[uuid.UUID, str]) -> LiveTurn | None:
        """Return what `find` does, without waiting."""
        return self._turns.get(key)

    async def start(self, request: ChatRequest) -> LiveTurn:
        """Start a turn.

        Raises AlreadyClaimed, TooManyTurns, ServerRestarting, ConversationNotFound, Invalid or NoSuchUser.
        """
        check_length(request.message)
        if self._stopping:
            raise ServerRestarting
        running = (key for key, turn in self._turns.items() if not turn.ended.is_set() and not turn.waits)
        mine = sum(1 for user_id, _ in (*running, *self._starting) if user_id == request.user_id)
        if mine >= MAX_TURNS and request.joins is None:
            raise TooManyTurns
        # In a task of its own: if the caller is cancelled while the row is written, the turn still has to run.
        self._starting[request.key] = asyncio.Event()
        return await asyncio.shield(self._tasks.spawn(self._start(request), "start turn"))

    async def _start(self, request: ChatRequest) -> LiveTurn:
        try:
            claimed = await db.run(_claim, request, await self._bus.open())
            turn = self.add(request, claimed)
            if claimed.queued:
                self.waiting.add(turn)
            else:
                turn.start()
                self._leases.start()
        finally:
            self._starting.pop(request.key).set()
        if claimed.queued:
            self._tasks.spawn(self.waiting.tell_running(turn), "tell the running turn")
        if self._stopping:
            self.waiting.stop()
            turn.stop()
        return turn

    @asynccontextmanager
    async def starting(self, key: tuple[uuid.UUID, str]) -> AsyncIterator[None]:
        """Hold off, while a turn's row is written, all who look for the turn or want to write the row as well."""
        while (other := self._starting.get(key)) is not None:
            await other.wait()
        self._starting[key] = asyncio.Event()
        try:
            yield
        finally:
            self._starting.pop(key).set()

    def add(self, request: ChatRequest, claimed: ClaimedTurn) -> LiveTurn:
        """Start caring for a turn, and let it be found."""
        hooks = TurnHooks(
            announce=partial(self._announce, request),
            saved=partial(self._forget, request),
            joined=lambda steered: self.spawn(self.waiting.end_joined(steered), "end joined turns"),
            hand_over=lambda following: self.spawn(self.waiting.hand_over(following), "hand over"),
            send_notices=lambda frames, channels: self.spawn(
                device_notices.send(request.user_id, frames, channels), "send notices"
            ),
        )
        turn = self._turns[request.key] = LiveTurn(request, claimed, hooks)
        return turn

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._tasks.spawn(work, name)

    def _held(self) -> list[Lease[Turn]]:
        running = [
            turn.claimed
            for turn in self._turns.values()
            if not turn.ended.is_set() and not turn.waits and not turn.hangs
        ]
        return [claimed.lease for claimed in (*running, *turn_saving.unsaved())]

    def renew_leases(self) -> None:
        self._leases.start()

    def _forget(self, request: ChatRequest) -> None:
        self._turns.pop(request.key, None)

    async def _announce(self, request: ChatRequest, question: ApprovalRequest) -> None:
        """Let any of the user's devices answer a turn's approval_request, through any process."""
        if await approval_routing.remember_owner(request.user_id, question.id, self._bus.channel):
            self._tasks.spawn(approval_routing.ask_other_devices(request, question), "ask other devices")

    # For waiting turns

    @property
    def channel(self) -> str:
        """This process's channel; "" before its first turn, and while Redis is away."""
        return self._bus.channel

    @property
    def stopping(self) -> bool:
        return self._stopping

    async def open_channel(self) -> str:
        return await self._bus.open()

    async def tell(self, owner: str, kind: str, user_id: uuid.UUID, **fields: Any) -> bool:
        """Tell another process. Returns False if it is gone. Raises ConnectionError."""
        return await self._bus.send(owner, kind, user_id, **fields)

    def move_away(self, turn: LiveTurn) -> None:
        """Let the listeners of a turn that waited here follow it in another process, which has it now."""
        self._forget(turn.request)
        for listener in turn.give_away():
            if not isinstance(listener, ChannelListener):  # a socket of another process looks for it itself
                self.spawn(self._follow_elsewhere(turn, listener), "follow elsewhere")

    async def _follow_elsewhere(self, turn: LiveTurn, listener: Listener) -> None:
        request, seen = turn.request, Seen(turn.stream.seq)
        try:
            await self._follow(request.user_id, request.request_id, listener, seen)
        except Exception as error:
            frames = refusal_of(request, as_client_error(error).code, seen.after)
            await listener.send_frames(request.request_id, frames)

    # While a turn runs (see also chat.turn_control)

    def decide_here(self, user_id: uuid.UUID, approval: str, approved: bool) -> bool:
        """Answer an approval_request of a turn in this process. Returns False if none waits for it."""
        return any(
            turn.decide(approval, approved)
            for (turn_user, _), turn in self._turns.items()
            if turn_user == user_id
        )

    def leave(self, user_id: uuid.UUID, listener: Listener) -> None:
        """Stop sending to a listener that is gone."""
        for (turn_user, _), turn in self._turns.items():
            if turn_user == user_id:
                turn.stream.unfollow(listener)

    # The end of the process

    async def stop(self) -> None:
        """Take no more requests and end the running turns in order: results are saved and listeners are told."""
        self._stopping = True
        self.waiting.stop()
        for turn in self._turns.values():
            turn.stop()
        try:
            async with asyncio.timeout(settings.CHAT["stop_turns_s"]):
                while self._starting:  # turns that are being started end as well
                    await next(iter(self._starting.values())).wait()
                for turn in list(self._turns.values()):
                    await turn.ended.wait()
                await self._send_ends()
        except TimeoutError:
            log.warning("turn_registry.stop_timed_out", turns=len(self._turns))
            for turn in self._turns.values():
                turn.end_unsaved()
            with suppress(TimeoutError):
                async with asyncio.timeout(_SEND_ENDS_S):
                    await self._send_ends()

    async def _send_ends(self) -> None:
        """Wait until all listeners and the stream log have the ends of all turns."""
        for turn in list(self._turns.values()):
            await turn.stream.wait_until_sent()
        await stream_log.log_writer().flush()


def _claim(request: ChatRequest, owner: str) -> ClaimedTurn:
    """Claim a request and, if it can begin, recall memories for it, in one visit to the database."""
    version = supervisor(request.kind, None).prompt.version
    claimed = turn_claims.claim_turn(request=request, owner=owner, prompt_version=version)
    if not claimed.queued:
        claimed.recalled = recall_at_once(request, claimed)
    return claimed


def check_length(message: str) -> None:
    """Raise Invalid if the message is too long or empty."""
    if not message.strip() or len(message) > MAX_MESSAGE_CHARS:
        raise Invalid(
            Text("a message has 1 to {most} characters", most=MAX_MESSAGE_CHARS),
            fields={"message": ["Its length."]},
        )


_registries = PerLoop(TurnRegistry)


def registry() -> TurnRegistry:
    """Return the running event loop's registry."""
    return _registries.get()
