"""The registry of running turns and of the process that owns each.

A turn runs in one process; a client may reconnect to another. The turn's row names the channel of its owner. While the
turn runs, its owner answers from memory, and other processes follow it over that channel
(chat.cross_process_stream). If nobody listens on the channel any more, the turn is lost and ends as such. After the
end, the stream log answers (chat.stream_replay).
"""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import structlog
from django.conf import settings

from adiuva.core import db
from adiuva.core.background import BackgroundTasks
from adiuva.core.errors import Invalid, Unavailable
from adiuva.core.per_loop import PerLoop
from adiuva.devices import presence
from adiuva.devices.protocol import ApprovalRequest, Mutation, Usage
from chat import approval_routing, peer_requests, stream_log, turn_rows
from chat.assistants import supervisor
from chat.cross_process_stream import RemoteStream, RemoteStreams
from chat.models import Turn as Row
from chat.request import MAX_MESSAGE_CHARS, ChatRequest
from chat.stream import FROM_START, Listener
from chat.stream_replay import (
    NotRunning,
    RequestIdReused,
    ensure_same_request,
    find_turn,
    follow_up_request,
    replay,
)
from chat.turn import Turn
from chat.turn_bus import TurnBus
from chat.turn_errors import (
    MAX_TURNS,
    ApprovalOver,
    ServerRestarting,
    TooManyTurns,
    as_client_error,
    refusal_of,
)
from chat.turn_rows import AlreadyClaimed

# How long listeners may take to receive the end of a turn that could not be stored before the process stops.
_SEND_ENDS_S: Final = 1.0

log = structlog.get_logger(__name__)


# More than 15 methods: each request about a turn is one, and most are a few lines.
class TurnRegistry:
    """The turns of one event loop, and the way to those of other processes."""

    def __init__(self) -> None:
        self._turns: dict[tuple[uuid.UUID, str], Turn] = {}
        # Turns whose rows are being written; the event is set when that is done.
        self._starting: dict[tuple[uuid.UUID, str], asyncio.Event] = {}
        self._stopping = False
        self._tasks = BackgroundTasks("turn_registry.task_failed", log)
        self._bus = TurnBus(partial(peer_requests.handle, self))
        self.remote_streams = RemoteStreams(self._bus)

    # Starting and following

    async def open(self, request: ChatRequest, listener: Listener) -> None:
        """Carry out a request, or join its turn if it was made before.

        Returns once the listener follows the turn; a turn of another process, once its end was passed on. A request
        that is refused ends in a stream_end for the listener.
        """
        remote: RemoteStream | None = None
        try:
            try:
                turn = await self.find_or_start(request)
            except AlreadyClaimed as claimed:
                await ensure_same_request(request, claimed.turn)
                remote = await self._join(request.user_id, request.request_id, FROM_START, listener)
                if remote is not None:
                    await self.remote_streams.follow(remote)
            else:
                turn.stream.follow(listener)
        except Exception as error:
            after = FROM_START if remote is None else remote.after
            await listener.send_frames(
                request.request_id, refusal_of(request, as_client_error(error).code, after)
            )

    async def resume(self, user_id: uuid.UUID, request_id: str, after: int, listener: Listener) -> None:
        """Send a listener the frames after seq `after` and those that follow; returns as `open` does.

        Raises NotRunning or StreamExpired.
        """
        remote = await self._join(user_id, request_id, after, listener)
        if remote is not None:
            await self.remote_streams.follow(remote)

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
        if row.state == Row.State.RUNNING:
            if not row.owner:  # it was started while Redis was away, so no other process can reach it
                raise Unavailable("this request cannot be reached for now")
            if row.owner != self._bus.channel:
                return self.remote_streams.add(
                    listener, user_id=user_id, request_id=request_id, owner=row.owner, after=after
                )
        await replay(row, after, listener)
        return None

    async def find_or_start(self, request: ChatRequest) -> Turn:
        """This process's turn for a request, started if need be. Raises what `start` does, and RequestIdReused."""
        if (turn := await self.find(request.key)) is None:
            return await self.start(request)
        if turn.request.message != request.message:
            raise RequestIdReused
        return turn

    async def find(self, key: tuple[uuid.UUID, str]) -> Turn | None:
        """This process's turn of a user and request id. Waits for one that is being started."""
        while (starting := self._starting.get(key)) is not None:
            await starting.wait()
        return self._turns.get(key)

    async def start(self, request: ChatRequest) -> Turn:
        """Start a turn.

        Raises AlreadyClaimed, TooManyTurns, ServerRestarting, ConversationNotFound, Invalid or NoSuchUser.
        """
        _check_length(request.message)
        if self._stopping:
            raise ServerRestarting
        running = (key for key, turn in self._turns.items() if not turn.ended.is_set())
        mine = sum(1 for user_id, _ in (*running, *self._starting) if user_id == request.user_id)
        if mine >= MAX_TURNS:
            raise TooManyTurns
        started = self._starting[request.key] = asyncio.Event()
        # In a task of its own: if the caller is cancelled while the row is written, the turn still has to run.
        return await asyncio.shield(self._tasks.spawn(self._start(request, started), "start turn"))

    async def _start(self, request: ChatRequest, started: asyncio.Event) -> Turn:
        try:
            claimed = await db.run(
                turn_rows.claim_turn,
                request=request,
                owner=await self._bus.open(),
                prompt_version=supervisor(request.kind, None).prompt.version,
            )
            turn = Turn(request, claimed, announce=partial(self._announce, request))
            self._turns[request.key] = turn
        finally:
            del self._starting[request.key]
            started.set()
        turn.start(saved=partial(self._forget, request))
        if self._stopping:
            turn.stop()
        return turn

    def _forget(self, request: ChatRequest) -> None:
        self._turns.pop(request.key, None)

    async def _announce(self, request: ChatRequest, question: ApprovalRequest) -> None:
        """Let any of the user's devices answer a turn's approval_request, through any process."""
        if await approval_routing.remember_owner(request.user_id, question.id, self._bus.channel):
            self._tasks.spawn(approval_routing.ask_other_devices(request, question), "ask other devices")

    # While a turn runs

    async def cancel(self, user_id: uuid.UUID, request_id: str) -> None:
        """Cancel a turn, wherever it runs. Raises NotRunning."""
        if (turn := await self.find((user_id, request_id))) is not None:
            if turn.ended.is_set():  # it is only still here because its log is being written
                raise NotRunning
            turn.cancel()
            return
        row = await db.run(find_turn, user_id, request_id)
        if row.state != Row.State.RUNNING or not await self._bus.send(
            row.owner, "cancel", user_id, request=request_id
        ):
            raise NotRunning

    async def steer(
        self, user_id: uuid.UUID, request_id: str, message: str, *, reply: str
    ) -> ChatRequest | None:
        """Give a running turn another message. If it has ended, returns the request that the message becomes, for the
        caller to open. A turn of another process answers on the channel `reply` if it has ended or takes no more.

        Raises NotRunning, Invalid or TooManySteers.
        """
        _check_length(message)
        if (turn := await self.find((user_id, request_id))) is not None:
            steering = asyncio.get_running_loop().create_task(turn.steer(message), name="steer")
            try:
                return None if await asyncio.shield(steering) else turn.follow_up(message)
            except asyncio.CancelledError:
                # The client is gone, but what the user said still counts.
                self._tasks.spawn(self._finish_steering(turn, message, steering), "finish steering")
                raise
        row = await db.run(find_turn, user_id, request_id)
        sent = row.state == Row.State.RUNNING and await self._bus.send(
            row.owner, "steer", user_id, request=request_id, message=message, reply=reply
        )
        return None if sent else await follow_up_request(user_id, request_id, message)

    async def _finish_steering(self, turn: Turn, message: str, steering: asyncio.Task[bool]) -> None:
        if not await steering:
            await self.start(turn.follow_up(message))

    async def decide(self, user_id: uuid.UUID, approval: str, approved: bool, *, reply: str) -> None:
        """Answer an approval_request of any of the user's turns. If a turn of another process no longer waits for it,
        that process says so on the channel `reply`. Raises ApprovalOver."""
        if self.decide_here(user_id, approval, approved):
            return
        owner = await approval_routing.find_owner(user_id, approval)
        if not await self._bus.send(
            owner, "decide", user_id, approval=approval, approved=approved, reply=reply
        ):
            raise ApprovalOver

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


def _check_length(message: str) -> None:
    if not message.strip() or len(message) > MAX_MESSAGE_CHARS:
        raise Invalid(
            f"a message has 1 to {MAX_MESSAGE_CHARS} characters", fields={"message": ["Its length."]}
        )


_registries = PerLoop(TurnRegistry)


def registry() -> TurnRegistry:
    """The running event loop's registry."""
    return _registries.get()


@dataclass(frozen=True)
class TurnResult:
    """A whole turn, for a caller that did not listen to it."""

    text: str
    mutations: list[Mutation]
    finish: str
    code: str
    usage: Usage
    conversation_id: uuid.UUID | None
    device_id: str | None


async def run_to_end(request: ChatRequest) -> TurnResult:
    """Run a whole turn without a socket, on the device that it names, or the user's that was seen last.

    Without one it answers from the request's context, and tools say that the device is offline. Raises AlreadyClaimed,
    and what `find_or_start` does.
    """
    if await db.run(presence.find, user_id=request.user_id, pk=request.device_id) is None:
        request = replace(request, expects_device=False)
    turn = await registry().find_or_start(request)
    await turn.ended.wait()
    return TurnResult(
        turn.output.text,
        turn.mutations,
        turn.finish,
        turn.code,
        turn.usage,
        turn.claimed.conversation_id,
        turn.device_id,
    )
