"""Who has which turn. A turn lives in one process; a client may come back on another, and finds it all the same.

The row of a turn names its process' channel. While the turn runs, that process is asked, and its memory answers; when
nobody listens there any more, the turn is lost and ends as that; after the end the stream log answers, from anywhere.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from weakref import WeakKeyDictionary

import structlog
from channels.layers import get_channel_layer
from django.conf import settings
from django.db import Error as DatabaseError
from redis.exceptions import RedisError

from adiuva import db
from adiuva.accounts.keys import cipher_for
from adiuva.crypto import UserCipher
from adiuva.devices import presence
from adiuva.devices.link import DeviceOffline
from adiuva.devices.protocol import (
    ApprovalRequest,
    HistoryMessage,
    Mutation,
    Scope,
    StreamEnd,
    StreamText,
    Usage,
    dump,
    parse_server,
)
from adiuva.errors import AdiuvaError, Conflict, Invalid, NotFound, Unavailable
from adiuva.layer import INTERRUPTED
from chat import conversations
from chat import log as stream_log
from chat.asked import MAX_MESSAGE_CHARS, Asked
from chat.assistants import SUPERVISORS
from chat.conversations import Taken
from chat.models import Kind
from chat.models import Turn as Row
from chat.stream import START, Entry, Listener, Stream
from chat.turn import Turn

log = structlog.get_logger("adiuva.chat")

MAX_TURNS: Final = 8  # of one user at once, in a process
_TRIES: Final = 20
_AGAIN_S: Final = 0.25
_SETTLED: Final = timedelta(seconds=5)  # after its end the log has all of a turn, unless Redis was away


class NotRunning(NotFound):
    code = "not_running"

    def __init__(self) -> None:
        super().__init__("there is no such request, or it has ended")


class StreamExpired(NotFound):
    code = "stream_expired"

    def __init__(self) -> None:
        super().__init__(
            "what was said is no longer kept as a stream; the conversation has it, if there is one"
        )


class ApprovalOver(Conflict):
    code = "approval_over"

    def __init__(self) -> None:
        super().__init__("nothing waits for this approval any more")


class TooManyTurns(AdiuvaError):
    code, status = "too_many_requests", 429

    def __init__(self) -> None:
        super().__init__(f"at most {MAX_TURNS} requests run at once")


class TurnElsewhere(Exception):
    """The turn runs in another process; `owner` is its channel."""

    def __init__(self, owner: str) -> None:
        self.owner = owner


@dataclass(frozen=True)
class Answer:
    """A whole turn for who did not listen to it."""

    text: str
    mutations: list[Mutation]
    finish: str
    code: str
    usage: Usage
    conversation_id: uuid.UUID | None


@dataclass(frozen=True)
class ChannelListener:
    """A client's socket in another process."""

    channel: str

    async def hear(self, request_id: str, entries: Sequence[Entry]) -> bool:
        message = {"type": "stream", "request": request_id, "texts": [entry.text for entry in entries]}
        for _ in range(_TRIES):
            try:
                return bool(await get_channel_layer().send(self.channel, message))
            except ConnectionError:
                await asyncio.sleep(_AGAIN_S)  # what comes twice is known by its seq
        return False


class Switchboard:
    """The turns of one event loop."""

    def __init__(self) -> None:
        self._turns: dict[tuple[uuid.UUID, str], Turn] = {}
        self._opening: dict[tuple[uuid.UUID, str], asyncio.Event] = {}
        self._channel = ""
        self._taking_channel = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    # Requests

    async def open(self, asked: Asked, listener: Listener) -> None:
        """Carry out a request, or join it; one that is refused ends in a stream_end too. Raise TurnElsewhere."""
        try:
            turn = await self.find(asked.key) or await self.start(asked)
        except Taken:
            await self.resume(asked.user_id, asked.request_id, START, listener)
        except AdiuvaError as error:
            _refused(asked, error.code).follow(listener)
        except (DatabaseError, OSError) as error:
            log.warning("chat.request_failed", error=type(error).__name__, user_id=str(asked.user_id))
            _refused(asked, Unavailable.code).follow(listener)
        else:
            turn.stream.follow(listener)

    async def start(self, asked: Asked) -> Turn:
        """Begin a turn. Raise Taken, TooManyTurns, ConversationNotFound, Invalid, NoSuchUser."""
        _check(asked.message)
        running = (key for key, turn in self._turns.items() if not turn.ended.is_set())
        if sum(1 for user_id, _ in (*running, *self._opening) if user_id == asked.user_id) >= MAX_TURNS:
            raise TooManyTurns
        opened = self._opening[asked.key] = asyncio.Event()
        # Not by the asker's own task: it may go while the row is being written, and nobody would carry it out then.
        beginning = asyncio.get_running_loop().create_task(self._begin(asked, opened), name="turn begins")
        self._tasks.add(beginning)
        beginning.add_done_callback(self._tasks.discard)
        return await asyncio.shield(beginning)

    async def _begin(self, asked: Asked, opened: asyncio.Event) -> Turn:
        try:
            begun = await db.run(
                conversations.begin,
                asked=asked,
                owner=await self._own_channel(),
                prompt_version=SUPERVISORS[asked.kind].prompt.version,
            )
            turn = Turn(asked, begun, announce=lambda question: self._announce(asked, question))
            self._turns[asked.key] = turn
        finally:
            del self._opening[asked.key]
            opened.set()
        turn.start(saved=lambda: self._forget(turn))
        return turn

    def _forget(self, turn: Turn) -> None:
        self._turns.pop(turn.asked.key, None)

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
        row = await db.run(row_of, user_id, request_id)
        if (turn := await self.find((user_id, request_id))) is not None:  # it has begun meanwhile
            turn.stream.follow(listener, after)
            return
        if row.state == Row.State.RUNNING:
            if not row.owner:  # it began while Redis was away, so nobody can ask for it
                raise Unavailable("this request cannot be reached for now")
            if row.owner != self._channel:
                raise TurnElsewhere(row.owner)
        await self.replay(row, after, listener)

    async def replay(self, row: Row, after: int, listener: Listener) -> None:
        """From the log. A turn that is still said to run has lost its process. Raise StreamExpired."""
        cipher = await db.run(cipher_for, row.user_id)
        kept = await _read(row, cipher)
        frames = [parse_server(text) for text in kept.frames] if kept else []
        end = frames[-1] if frames and isinstance(frames[-1], StreamEnd) else None
        code = (end.code if end else row.code) or "turn_lost"
        if row.state == Row.State.RUNNING:
            if not await db.run(conversations.give_up, turn=row, code=code):
                # It has ended after all, or another process was quicker to say so: there is one end.
                await self.replay(await db.run(row_of, row.user_id, row.request_id), after, listener)
                return
            log.warning("chat.turn_lost", turn=str(row.pk), user_id=str(row.user_id))
        elif not frames:
            raise StreamExpired
        if end is None:
            seq = 1 + max([after, *(getattr(frame, "seq", None) or 0 for frame in frames)])
            frames.append(StreamEnd(request_id=row.request_id, seq=seq, finish="error", code=code))
            await stream_log.append(
                user_id=row.user_id,
                request_id=row.request_id,
                cipher=cipher,
                frames=len(frames) - 1,
                frame=dump(frames[-1]),
            )
        missed = [Entry(frame) for frame in frames if _is_after(frame, after)]
        await listener.hear(row.request_id, missed)

    # While it runs

    async def cancel(self, user_id: uuid.UUID, request_id: str) -> None:
        """Raise NotRunning."""
        if (turn := await self.find((user_id, request_id))) is not None:
            turn.cancel()
            return
        row = await db.run(row_of, user_id, request_id)
        if row.state != Row.State.RUNNING or not await self._tell(
            row.owner, "cancel", user_id, request=request_id
        ):
            raise NotRunning

    async def steer(self, user_id: uuid.UUID, request_id: str, message: str, *, reply: str) -> Asked | None:
        """Say something more to a turn. One that has ended takes no more: then the request that it becomes is returned,
        to be opened. `reply` is where another process says that it came too late. Raise NotRunning, Invalid."""
        _check(message)
        if (turn := await self.find((user_id, request_id))) is not None:
            hearing = asyncio.get_running_loop().create_task(turn.steer(message), name="steer")
            try:
                return None if await asyncio.shield(hearing) else turn.follow_up(message)
            except asyncio.CancelledError:  # who said it is gone; what was said stays
                self._spawn(self._go_on(turn, message, hearing))
                raise
        row = await db.run(row_of, user_id, request_id)
        told = row.state == Row.State.RUNNING and await self._tell(
            row.owner, "steer", user_id, request=request_id, message=message, reply=reply
        )
        return None if told else await self.follow_up(user_id, request_id, message)

    async def _go_on(self, turn: Turn, message: str, hearing: asyncio.Task[bool]) -> None:
        if not await hearing:
            await self.start(turn.follow_up(message))

    async def follow_up(self, user_id: uuid.UUID, request_id: str, message: str) -> Asked:
        """The request that a message becomes whose turn has ended, here or elsewhere. Raise NotRunning."""
        row = await db.run(row_of, user_id, request_id)
        if row.conversation_id is None:
            kept = await _read(row, await db.run(cipher_for, user_id))
            if kept is None:
                raise NotRunning
            return _asked_again(row, kept, message)
        return Asked(
            user_id=user_id,
            request_id=uuid.uuid4().hex,
            kind=Kind(row.kind),
            message=message,
            conversation_id=str(row.conversation_id),
        )

    async def decide(self, user_id: uuid.UUID, approval: str, approved: bool, reply: str) -> None:
        """Answer an approval_request of any of the user's turns. Raise ApprovalOver."""
        if self._decide(user_id, approval, approved):
            return
        try:
            # It stays there: the turn counts one answer, and this one may not reach it.
            owner: bytes | None = await stream_log.recorder().redis.get(_approval_key(user_id, approval))
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
                if turn is None or not await turn.steer(message["message"]):
                    late = {
                        "type": "steer_late",
                        "request": message["request"],
                        "message": message["message"],
                    }
                    if not await layer.send(message["reply"], late):  # who said it is gone
                        await self.start(
                            turn.follow_up(message["message"])
                            if turn is not None
                            else await self.follow_up(user_id, message["request"], message["message"])
                        )
            case "decide":
                if not self._decide(user_id, message["approval"], message["approved"]):
                    await layer.send(
                        message["reply"], {"type": "approval_over", "approval": message["approval"]}
                    )

    async def _announce(self, asked: Asked, question: ApprovalRequest) -> None:
        """Let any process decide it, and ask the user's other devices too."""
        life = max(1, int(settings.CHAT["deadline_s"]))
        layer = get_channel_layer()
        try:
            key = _approval_key(asked.user_id, question.id)
            await stream_log.recorder().redis.set(key, self._channel, ex=life)
            others = await db.run(presence.channels, user_id=asked.user_id, capability="approval")
            for device, channel in others:
                if device != asked.device:
                    await layer.send(channel, {"type": "notice", "text": dump(question)})
        except (RedisError, OSError) as error:
            log.warning("chat.others_not_asked", error=type(error).__name__)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work, name="switchboard")
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("chat.switchboard_failed", error=type(error).__name__)


async def ask(asked: Asked) -> Answer:
    """A whole turn without a socket, on the user's device that was seen last. Raise DeviceOffline when there is none,
    Taken, ConversationNotFound, TooManyTurns."""
    if await db.run(presence.find, user_id=asked.user_id, pk=asked.device) is None:
        raise DeviceOffline
    turn = await board().find(asked.key) or await board().start(asked)
    await turn.ended.wait()
    return Answer(
        turn.speech.text, turn.mutations, turn.finish, turn.code, turn.usage, turn.begun.conversation_id
    )


def _check(message: str) -> None:
    if not message.strip() or len(message) > MAX_MESSAGE_CHARS:
        raise Invalid(
            f"a message has 1 to {MAX_MESSAGE_CHARS} characters", fields={"message": ["Its length."]}
        )


def row_of(user_id: uuid.UUID, request_id: str) -> Row:
    """Raise NotRunning."""
    found = Row.objects.of(user_id).filter(request_id=request_id).first()
    if found is None:
        raise NotRunning
    return found


def _approval_key(user_id: uuid.UUID, approval: str) -> str:
    return f"adiuva:approval:{user_id}:{approval}"


def _refused(asked: Asked, code: str) -> Stream:
    """The stream of a request that is not carried out."""
    stream = Stream(asked.request_id)
    if asked.kind == Kind.FLOATING:
        stream.domain("tasks")
    stream.start(None)
    stream.end(StreamEnd(request_id=asked.request_id, finish="error", code=code))
    return stream


async def _read(row: Row, cipher: UserCipher) -> stream_log.Replay | None:
    """A turn's log. What is missing of one that has just ended may be on its way: it is waited for."""
    while True:
        kept = await stream_log.read(user_id=row.user_id, request_id=row.request_id, cipher=cipher)
        if kept is not None and stream_log.is_end(kept.frames[-1]):
            return kept
        if row.ended_at is None or datetime.now(UTC) - row.ended_at > _SETTLED:
            return kept
        await asyncio.sleep(_AGAIN_S)


def _is_after(frame: Any, after: int) -> bool:
    seq = getattr(frame, "seq", None)
    return isinstance(frame, StreamEnd) or (after < 0 if seq is None else seq > after)


def _asked_again(row: Row, kept: stream_log.Replay, message: str) -> Asked:
    head = kept.head
    frames = [parse_server(text) for text in kept.frames]
    answer = "".join(frame.chunk for frame in frames if isinstance(frame, StreamText))
    before = [HistoryMessage.model_validate(said) for said in head["history"]]
    return Asked(
        user_id=row.user_id,
        request_id=uuid.uuid4().hex,
        kind=Kind(head["kind"]),
        message=message,
        history=(
            *before,
            HistoryMessage(role="user", content=head["message"]),
            HistoryMessage(role="assistant", content=answer),
        ),
        scope=Scope.model_validate(head["scope"]) if head["scope"] else None,
        context=head["context"],
    )


_boards: WeakKeyDictionary[asyncio.AbstractEventLoop, Switchboard] = WeakKeyDictionary()


def board() -> Switchboard:
    """The one of the running loop."""
    loop = asyncio.get_running_loop()
    found = _boards.get(loop)
    if found is None:
        found = _boards[loop] = Switchboard()
    return found
