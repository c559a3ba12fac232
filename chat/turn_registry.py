"""The registry of running turns and of the process that owns each.

A turn runs in one process; a client may reconnect to another. The turn's row names the channel of its owner. While the
turn runs, its owner answers from memory. If nobody listens on that channel any more, the turn is lost and ends as
such. After the end, the stream log answers (chat.stream_replay).
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary

import structlog
from channels.layers import get_channel_layer
from django.conf import settings
from django.db import Error as DatabaseError
from redis.exceptions import RedisError

from adiuva.core import db
from adiuva.core.channel_layer import INTERRUPTED
from adiuva.core.errors import AdiuvaError, Invalid, Unavailable
from adiuva.devices import presence
from adiuva.devices.codec import dump
from adiuva.devices.link import DeviceOffline
from adiuva.devices.protocol import ApprovalRequest, Mutation, Usage
from chat import conversations, stream_log
from chat.assistants import SUPERVISORS
from chat.conversations import AlreadyClaimed
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
from chat.turn import TooManySteers, Turn
from chat.turn_bus import ChannelListener, error_message
from chat.turn_errors import (
    MAX_TURNS,
    ApprovalOver,
    ServerRestarting,
    TooManyTurns,
    as_client_error,
    refusal_of,
)

log = structlog.get_logger("adiuva.chat")

_STOP_S: Final = 5.0  # for the ends of turns, when the process is to end


class TurnElsewhere(Exception):
    """The turn runs in another process; `owner` is its channel."""

    def __init__(self, owner: str) -> None:
        self.owner = owner


@dataclass(frozen=True)
class TurnResult:
    """A whole turn for who did not listen to it."""

    text: str
    mutations: list[Mutation]
    finish: str
    code: str
    usage: Usage
    conversation_id: uuid.UUID | None


class TurnRegistry:
    """The turns of one event loop."""

    def __init__(self) -> None:
        self._turns: dict[tuple[uuid.UUID, str], Turn] = {}
        self._opening: dict[tuple[uuid.UUID, str], asyncio.Event] = {}
        self._stopping = False
        self._channel = ""
        self._taking_channel = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    # Requests

    async def open(self, request: ChatRequest, listener: Listener) -> None:
        """Carry out a request, or join it; one that is refused ends in a stream_end too. Raise TurnElsewhere."""
        try:
            try:
                turn = await self.find_or_start(request)
            except AlreadyClaimed as taken:
                await ensure_same_request(request, taken.turn)
                await self.resume(request.user_id, request.request_id, FROM_START, listener)
            else:
                turn.stream.follow(listener)
        except TurnElsewhere:
            raise
        except Exception as error:
            code = as_client_error(error).code
            await listener.hear(request.request_id, refusal_of(request, code))

    async def find_or_start(self, request: ChatRequest) -> Turn:
        """Raise what `start` does, and RequestIdReused."""
        if (turn := await self.find(request.key)) is None:
            return await self.start(request)
        if turn.request.message != request.message:
            raise RequestIdReused
        return turn

    async def start(self, request: ChatRequest) -> Turn:
        """Begin a turn. Raise Taken, TooManyTurns, ServerRestarting, ConversationNotFound, Invalid, NoSuchUser."""
        _check(request.message)
        if self._stopping:
            raise ServerRestarting
        running = (key for key, turn in self._turns.items() if not turn.ended.is_set())
        if sum(1 for user_id, _ in (*running, *self._opening) if user_id == request.user_id) >= MAX_TURNS:
            raise TooManyTurns
        opened = self._opening[request.key] = asyncio.Event()
        # Not by the asker's own task: it may go while the row is being written, and nobody would carry it out then.
        beginning = asyncio.get_running_loop().create_task(self._begin(request, opened), name="turn begins")
        self._tasks.add(beginning)
        beginning.add_done_callback(self._claimed)
        return await asyncio.shield(beginning)

    def _claimed(self, task: asyncio.Task[Turn]) -> None:
        """Hear its error also where the asker is gone, who would have been told."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, AdiuvaError):
            log.error("chat.turn_not_begun", error=type(error).__name__)

    async def _begin(self, request: ChatRequest, opened: asyncio.Event) -> Turn:
        try:
            claimed = await db.run(
                conversations.claim_turn,
                request=request,
                owner=await self._own_channel(),
                prompt_version=SUPERVISORS[request.kind].prompt.version,
            )
            turn = Turn(request, claimed, announce=lambda question: self._announce(request, question))
            self._turns[request.key] = turn
        finally:
            del self._opening[request.key]
            opened.set()
        turn.start(saved=lambda: self._forget(turn))
        if self._stopping:
            turn.stop()
        return turn

    def _forget(self, turn: Turn) -> None:
        self._turns.pop(turn.request.key, None)

    async def find(self, key: tuple[uuid.UUID, str]) -> Turn | None:
        """This process' turn; one that is just beginning is waited for."""
        while (opening := self._opening.get(key)) is not None:
            await opening.wait()
        return self._turns.get(key)

    async def resume(self, user_id: uuid.UUID, request_id: str, after: int, listener: Listener) -> None:
        """Send a listener what it missed and what follows. Raise NotRunning, StreamExpired, TurnElsewhere."""
        if (turn := await self.find((user_id, request_id))) is not None:
            turn.stream.follow(listener, after)
            return
        row = await db.run(find_turn, user_id, request_id)
        if (turn := await self.find((user_id, request_id))) is not None:  # it has begun meanwhile
            turn.stream.follow(listener, after)
            return
        if row.state == Row.State.RUNNING:
            if not row.owner:  # it began while Redis was away, so nobody can ask for it
                raise Unavailable("this request cannot be reached for now")
            if row.owner != self._channel:
                raise TurnElsewhere(row.owner)
        await replay(row, after, listener)

    # While it runs

    async def cancel(self, user_id: uuid.UUID, request_id: str) -> None:
        """Raise NotRunning."""
        if (turn := await self.find((user_id, request_id))) is not None:
            if turn.ended.is_set():  # its log is being written still
                raise NotRunning
            turn.cancel()
            return
        row = await db.run(find_turn, user_id, request_id)
        if row.state != Row.State.RUNNING or not await self._tell(
            row.owner, "cancel", user_id, request=request_id
        ):
            raise NotRunning

    async def steer(
        self, user_id: uuid.UUID, request_id: str, message: str, *, reply: str
    ) -> ChatRequest | None:
        """Say something more to a turn. One that has ended takes no more: then the request that it becomes is returned,
        to be opened. `reply` is where another process says that it came too late, or is too much. Raise NotRunning,
        Invalid, TooManySteers."""
        _check(message)
        if (turn := await self.find((user_id, request_id))) is not None:
            hearing = asyncio.get_running_loop().create_task(turn.steer(message), name="steer")
            try:
                return None if await asyncio.shield(hearing) else turn.follow_up(message)
            except asyncio.CancelledError:  # who said it is gone; what was said stays
                self._spawn(self._go_on(turn, message, hearing))
                raise
        row = await db.run(find_turn, user_id, request_id)
        told = row.state == Row.State.RUNNING and await self._tell(
            row.owner, "steer", user_id, request=request_id, message=message, reply=reply
        )
        return None if told else await follow_up_request(user_id, request_id, message)

    async def _go_on(self, turn: Turn, message: str, hearing: asyncio.Task[bool]) -> None:
        if not await hearing:
            await self.start(turn.follow_up(message))

    async def decide(self, user_id: uuid.UUID, approval: str, approved: bool, reply: str) -> None:
        """Answer an approval_request of any of the user's turns. Raise ApprovalOver."""
        if self._decide(user_id, approval, approved):
            return
        try:
            # It stays there: the turn counts one answer, and this one may not reach it.
            owner: bytes | None = await stream_log.log_writer().redis.get(_approval_key(user_id, approval))
        except (RedisError, OSError):
            owner = None
        told = owner is not None and await self._tell(
            owner.decode(), "decide", user_id, approval=approval, approved=approved, reply=reply
        )
        if not told:
            raise ApprovalOver

    def _decide(self, user_id: uuid.UUID, approval: str, approved: bool) -> bool:
        return any(
            turn.decide(approval, approved)
            for (turn_user, _), turn in self._turns.items()
            if turn_user == user_id
        )

    def leave(self, user_id: uuid.UUID, listener: Listener) -> None:
        """A listener is gone."""
        for (turn_user, _), turn in self._turns.items():
            if turn_user == user_id:
                turn.stream.leave(listener)

    # Between processes

    async def follow_far(
        self, owner: str, user_id: uuid.UUID, request_id: str, after: int, *, reply: str, anew: bool
    ) -> bool:
        """Ask the process that has a turn for what comes after `after`, if it does not send it already or if that is
        wanted `anew`. False: nobody is there. Raise ConnectionError."""
        return await self._tell(
            owner, "follow", user_id, request=request_id, after=after, reply=reply, anew=anew
        )

    async def _tell(self, owner: str, kind: str, user_id: uuid.UUID, **fields: Any) -> bool:
        if not owner:
            return False
        try:
            return bool(await get_channel_layer().send(owner, {"type": kind, "user": str(user_id), **fields}))
        except ConnectionError:
            log.warning("chat.owner_not_reached", kind=kind)
            raise

    async def _own_channel(self) -> str:
        """Where other processes reach this one's turns; "" while Redis is away, when nobody can."""
        async with self._taking_channel:
            if not self._channel:
                layer = get_channel_layer()
                try:
                    self._channel = await layer.new_channel("turns.")
                except ConnectionError:
                    log.warning("chat.no_channel")
                    return ""
                self._spawn(self._listen(layer))
        return self._channel

    async def _listen(self, layer: Any) -> None:
        while True:
            message = await layer.receive(self._channel)
            if message is not INTERRUPTED:  # who asked and heard nothing asks again
                self._spawn(self._told(message))

    async def _told(self, message: dict[str, Any]) -> None:
        user_id = uuid.UUID(message["user"])
        layer = get_channel_layer()
        match message["type"]:
            case "follow":
                listener = ChannelListener(message["reply"])
                turn = await self.find((user_id, message["request"]))
                if turn is None:
                    await layer.send(listener.channel, {"type": "stream_over", "request": message["request"]})
                elif not turn.stream.has(listener) or message["anew"]:
                    turn.stream.follow(listener, message["after"])
            case "cancel":
                if (turn := await self.find((user_id, message["request"]))) is not None:
                    turn.cancel()
            case "steer":
                turn = await self.find((user_id, message["request"]))
                try:
                    heard = turn is not None and await turn.steer(message["message"])
                except TooManySteers as error:
                    await layer.send(message["reply"], error_message(error, message["request"]))
                    return
                if not heard:
                    late = {
                        "type": "steer_late",
                        "request": message["request"],
                        "message": message["message"],
                    }
                    if not await layer.send(message["reply"], late):  # who said it is gone
                        await self.start(
                            turn.follow_up(message["message"])
                            if turn is not None
                            else await follow_up_request(user_id, message["request"], message["message"])
                        )
            case "decide":
                if not self._decide(user_id, message["approval"], message["approved"]):
                    await layer.send(message["reply"], error_message(ApprovalOver(), message["approval"]))

    async def _announce(self, request: ChatRequest, question: ApprovalRequest) -> None:
        """Let any process decide it, and ask the user's other devices too."""
        life = max(1, int(settings.CHAT["turn_deadline_s"]))
        try:
            key = _approval_key(request.user_id, question.id)
            await stream_log.log_writer().redis.set(key, self._channel, ex=life)
        except (RedisError, OSError) as error:
            log.warning("chat.others_not_asked", error=type(error).__name__)
        else:
            self._spawn(self._ask_others(request, question))

    async def _ask_others(self, request: ChatRequest, question: ApprovalRequest) -> None:
        layer = get_channel_layer()
        try:
            others = await db.run(presence.channels_with, user_id=request.user_id, capability="approval")
            for device, channel in others:
                if device != request.device_id:
                    await layer.send(channel, {"type": "notice", "text": dump(question)})
        except (OSError, DatabaseError) as error:
            log.warning("chat.others_not_asked", error=type(error).__name__)

    # The end of the process

    async def stop(self) -> None:
        """Take no more requests, and end those that run in order: what they did is kept, and who listens is told."""
        self._stopping = True
        for turn in self._turns.values():
            turn.stop()
        try:
            async with asyncio.timeout(_STOP_S):
                while self._opening:  # what is just beginning ends as well
                    await next(iter(self._opening.values())).wait()
                for turn in list(self._turns.values()):
                    await turn.ended.wait()
                    await turn.stream.heard()
                await stream_log.log_writer().flush()
        except TimeoutError:
            log.warning("chat.turns_cut_off", turns=len(self._turns))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work, name="switchboard")
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("chat.switchboard_failed", error=type(error).__name__)


async def ask(request: ChatRequest) -> TurnResult:
    """A whole turn without a socket, on the user's device that was seen last. Raise DeviceOffline when there is none,
    Taken, and what `find_or_start` does."""
    if await db.run(presence.find, user_id=request.user_id, pk=request.device_id) is None:
        raise DeviceOffline
    turn = await registry().find_or_start(request)
    await turn.ended.wait()
    return TurnResult(
        turn.output.text, turn.mutations, turn.finish, turn.code, turn.usage, turn.claimed.conversation_id
    )


def _check(message: str) -> None:
    if not message.strip() or len(message) > MAX_MESSAGE_CHARS:
        raise Invalid(
            f"a message has 1 to {MAX_MESSAGE_CHARS} characters", fields={"message": ["Its length."]}
        )


def _approval_key(user_id: uuid.UUID, approval: str) -> str:
    return f"adiuva:approval:{user_id}:{approval}"


_boards: WeakKeyDictionary[asyncio.AbstractEventLoop, TurnRegistry] = WeakKeyDictionary()


def registry() -> TurnRegistry:
    """The one of the running loop."""
    loop = asyncio.get_running_loop()
    found = _boards.get(loop)
    if found is None:
        found = _boards[loop] = TurnRegistry()
    return found
