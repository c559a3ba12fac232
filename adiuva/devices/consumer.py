"""The device's half of the socket: who it is, that it is alive, and the answers it owes.

It parses, matches and hands off. Nothing here waits for a device's answer: whoever asked waits, on the link.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from typing import Any, Final, Protocol
from urllib.parse import parse_qs

import structlog
from channels.layers import get_channel_layer
from django.conf import settings

from adiuva.accounts import services as accounts
from adiuva.core import db
from adiuva.core.errors import NotAuthenticated
from adiuva.core.websocket import SocketConsumer
from adiuva.devices import connections, presence
from adiuva.devices.codec import MAX_FRAME_BYTES, BadFrame, FrameTooLarge, dump, is_in_protocol, parse
from adiuva.devices.protocol import (
    AgentComplete,
    AgentData,
    AgentManifest,
    ClientFrame,
    Close,
    DeviceHello,
    Error,
    HelloAck,
    Ping,
    Pong,
    Sent,
    ToolBatchResult,
    ToolResult,
)

_BAD_FRAMES: Final = 20
_BAD_FRAMES_S: Final = 60.0
_FORGOTTEN_S: Final = 300.0  # after which nobody waits for an answer any more
_PING: Final = dump(Ping())

log = structlog.get_logger("adiuva.devices")


class Reply(Protocol):
    """Where a device's answers go; False says that nobody is there. `kind` is result, frame (of a run), unsent (these
    calls, an id a line, never left) or gone (the connection, whose epoch is the text, has ended)."""

    async def __call__(self, kind: str, text: str, frame: ClientFrame | None) -> bool: ...


class ChannelReply:
    """To another process, over the channel layer. Equal when they lead to the same channel."""

    __slots__ = ("channel",)

    def __init__(self, channel: str) -> None:
        self.channel = channel

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChannelReply) and other.channel == self.channel

    def __hash__(self) -> int:
        return hash(self.channel)

    async def __call__(self, kind: str, text: str, frame: ClientFrame | None) -> bool:
        try:
            return bool(await get_channel_layer().send(self.channel, {"type": kind, "text": text}))
        except ConnectionError:
            # Whoever waits there is told of the interruption by the layer, and asks again if it may.
            log.warning("device.answer_lost", kind=kind)
            return False


class DeviceConsumer(SocketConsumer):
    """`/api/v1/ws/device`. Subclasses add what is not about the device: `request`, `greeted`."""

    def __init__(self) -> None:
        super().__init__()
        self.close_timeout_s = settings.SOCKET["pong_timeout_s"]
        self.user_id: uuid.UUID
        self.session_id: uuid.UUID
        self.pk: uuid.UUID | None = None
        self.epoch = 0
        self.protocol = 1
        self._heart = connections.current()
        self._opened_at = self._heard_at = self._loop.time()
        self._ping_due = self._pinged_at = 0.0
        self._bad: deque[float] = deque(maxlen=_BAD_FRAMES)
        # Call id and run id → who waits for it, since when.
        self._calls: dict[str, tuple[Reply, float]] = {}
        self._runs: dict[str, Reply] = {}

    # Opening and ending

    async def connect(self) -> None:
        headers = {name: value.decode("latin-1") for name, value in self.scope["headers"]}
        await self.accept()  # a close code can only be told to a peer that was let in
        origin = headers.get(b"origin")
        if origin is not None and origin not in settings.ALLOWED_ORIGINS:
            await self.close(Close.ORIGIN_REFUSED)
            return
        try:
            self.user_id, self.session_id = await self._who(headers.get(b"authorization", ""))
        except NotAuthenticated:
            await self.close(Close.NOT_AUTHENTICATED)
            return
        self._opened_at = self._loop.time()
        self._heart.add(self)

    async def _who(self, authorization: str) -> tuple[uuid.UUID, uuid.UUID]:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() == "bearer" and token:
            return await db.run(accounts.authenticate_socket, token.strip())
        query = parse_qs(self.scope.get("query_string", b"").decode("latin-1"))
        if ticket := query.get("ticket"):
            return await db.run(accounts.redeem_ticket, ticket[0])
        if old := query.get("token"):
            return await db.run(accounts.authenticate_socket, old[0])
        raise NotAuthenticated("no credentials")

    async def disconnect(self) -> None:
        self._heart.remove(self)
        for message in self.unsubscribe():
            await self.channel_message(message)  # closed as it is, it says that they were not sent
        waiting = {reply for reply, _ in self._calls.values()} | set(self._runs.values())
        self._calls.clear()
        self._runs.clear()
        for reply in waiting:
            await reply("gone", str(self.epoch), None)
        if self.pk is not None:
            await db.run(presence.close_connection, pk=self.pk, epoch=self.epoch)
            log.info("device.left", user_id=str(self.user_id), device=str(self.pk), epoch=self.epoch)

    def end(self, code: int) -> None:
        """Close from outside of the socket's own task. Once: a close under way is not hurried by another."""
        if not self.closing:
            self.spawn(self.close(code), "close")

    # What comes from the device

    async def receive(self, text: str | None) -> None:
        self._heard_at = self._loop.time()
        try:
            if text is None:
                raise BadFrame("bad_json", "frames are text")
            frame = parse(text)
            if type(frame) is ToolResult and (waiting := self._calls.pop(frame.id, None)):
                await waiting[0]("result", text, frame)  # what comes most, and costs the least
                return
            if self.pk is None and not isinstance(frame, DeviceHello | Pong):
                raise BadFrame("hello_first", "the first frame is device_hello", _ref(frame))
            await self._handle(frame, text)
        except FrameTooLarge:
            await self.close(Close.TOO_LARGE)
        except BadFrame as bad:
            await self._refuse(bad)

    async def _handle(self, frame: ClientFrame, text: str) -> None:
        match frame:
            case ToolResult():
                pass  # nobody waits for it any more, or it is a repeat
            case ToolBatchResult():
                replies = [self._calls.pop(result.id, None) for result in frame.results]
                for reply in {waiting[0] for waiting in replies if waiting}:
                    await reply("result", text, frame)
            case AgentManifest() | AgentData() | AgentComplete():
                run = self._runs.get(frame.run_id)
                if run is None or not await run("frame", text, frame):
                    # A run that has missed a frame must not get the next: it would look whole.
                    self._runs.pop(frame.run_id, None)
                    await self.stray(frame)
            case Pong():
                self._pinged_at = 0.0
            case DeviceHello():
                if self.pk is not None:
                    raise BadFrame("hello_twice", "this connection has said hello")
                await self._greet(frame)
            case _:
                await self.request(frame)

    async def _greet(self, hello: DeviceHello) -> None:
        self.protocol = 2 if hello.protocol >= 2 else 1
        await self.subscribe()
        arrival = await db.run(
            presence.open_connection,
            user_id=self.user_id,
            session_id=self.session_id,
            hello=hello,
            channel=self.channel_name,
        )
        older = self._heart.greet(self, arrival.pk, arrival.epoch)
        self._ping_due = self._loop.time() + settings.SOCKET["ping_interval_s"]
        is_here = await self.send_frame(
            HelloAck(
                session_id=f"{arrival.pk}:{arrival.epoch}",
                protocol=self.protocol,
                ping_s=settings.SOCKET["ping_interval_s"],
                max_frame_bytes=MAX_FRAME_BYTES,
                max_inflight=settings.SOCKET["max_batches_in_flight"],
                server_time=time.time_ns() // 1_000_000,
            )
        )
        # One that left while its hello waited here may have replaced its own next connection, which is to come back.
        code = Close.SUPERSEDED if is_here else Close.RESTARTING
        if older is not None:
            older.end(code)
        elif arrival.superseded:
            await self._supersede(arrival.superseded, code)
        log.info(
            "device.arrived",
            user_id=str(self.user_id),
            device=str(arrival.pk),
            epoch=arrival.epoch,
            protocol=self.protocol,
        )
        await self.greeted(hello)

    async def _supersede(self, channel: str, code: int) -> None:
        try:
            await get_channel_layer().send(channel, close_message(code))
        except ConnectionError:
            log.warning("device.not_told", user_id=str(self.user_id))  # it ends when its lease is not renewed

    async def greeted(self, hello: DeviceHello) -> None:
        """The device is reachable from now on."""

    async def request(self, frame: ClientFrame) -> None:
        """A frame that is not about the device itself."""

    async def stray(self, frame: AgentManifest | AgentData | AgentComplete) -> None:
        """A frame of a run that nobody here waits for, such as one that ended meanwhile."""
        if not isinstance(frame, AgentComplete):
            await self.send_frame(
                Error(code="run_not_active", message="this run takes no files now", ref=frame.run_id)
            )

    async def _refuse(self, bad: BadFrame) -> None:
        if bad.code != "unknown_type":
            now = self._loop.time()
            self._bad.append(now)
            if len(self._bad) == _BAD_FRAMES and now - self._bad[0] < _BAD_FRAMES_S:
                await self.close(Close.TOO_MANY)
                return
        # Before its hello a client has not said that it knows error frames; they hurt none that do not.
        if self.pk is None or self.protocol >= 2:
            await self.send_text(dump(Error(code=bad.code, message=bad.message, ref=bad.ref)))

    async def handler_failed(self) -> None:
        if self.pk is None:
            await self.close(Close.RESTARTING)  # it could not be let in; it comes back with jitter
        else:
            await self.send_frame(Error(code="internal_error", message="the server failed on this frame"))

    # What goes to the device

    async def send_frame(self, frame: Sent) -> bool:
        """Send a frame, if the client's protocol has it. False: the client is gone."""
        return not is_in_protocol(type(frame), self.protocol) or await self.send_text(
            dump(frame, self.protocol)
        )

    async def channel_message(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "frame":
                reply, calls = ChannelReply(message["reply"]), message["calls"]
                if not await self.deliver(message["text"], reply, calls=calls, run=message["run"]) and calls:
                    await reply("unsent", "\n".join(calls), None)
            case "run_over":
                self.run_over(message["run"])
            case "close":
                await self.close(message["code"])

    async def deliver(self, text: str, reply: Reply, *, calls: list[str], run: str | None) -> bool:
        """Send a frame for somebody and remember whom its answers are for, first. False: it was not sent."""
        now = self._loop.time()
        for call in calls:
            self._calls[call] = (reply, now)
        if run is not None:
            self._runs[run] = reply
        if await self.send_text(text):
            return True
        for call in calls:
            self._calls.pop(call, None)
        return False

    def run_over(self, run: str) -> None:
        self._runs.pop(run, None)

    def beat(self, now: float) -> int | None:
        """What the heart calls twice a second."""
        if self.closing:
            return None
        if self.sending_since and now - self.sending_since > self.close_timeout_s:
            return Close.TIMEOUT
        if self.pk is None:
            return Close.TIMEOUT if now - self._opened_at > settings.SOCKET["hello_timeout_s"] else None
        if self._pinged_at:
            # A pong may stand behind files that the device was sending already.
            patience = settings.SOCKET["pong_timeout_s"] * (6 if self._heard_at > self._pinged_at else 1)
            if now - self._pinged_at > patience:
                return Close.TIMEOUT
        elif now >= self._ping_due:
            self._ping_due, self._pinged_at = now + settings.SOCKET["ping_interval_s"], now
            self.spawn(self.send_text(_PING), "ping")
            self._forget_old_calls(now)
        return None

    def _forget_old_calls(self, now: float) -> None:
        old = [call for call, (_, since) in self._calls.items() if now - since > _FORGOTTEN_S]
        for call in old:
            del self._calls[call]


def close_message(code: int) -> dict[str, Any]:
    """The channel message that makes a connection close itself."""
    return {"type": "close", "code": code}


def _ref(frame: ClientFrame) -> str | None:
    return getattr(frame, "request_id", None) or getattr(frame, "id", None) or getattr(frame, "run_id", None)
