"""Device half of a socket: who the device is, whether it is alive, and the answers it owes.

Nothing here waits for a device's answer: the link that sent the call waits, and hears of it through its reply.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, Protocol
from urllib.parse import parse_qs

import structlog
from channels.layers import get_channel_layer
from django.conf import settings
from django.utils.translation import gettext_noop

from adiuva.accounts import services as accounts
from adiuva.accounts.models import Session
from adiuva.core import db, origins
from adiuva.core.channel_layer import Message
from adiuva.core.errors import NotAuthenticated
from adiuva.core.language import said, speaking
from adiuva.core.logging import log_failure
from adiuva.core.outages import as_unavailable
from adiuva.core.websocket import SocketConsumer
from adiuva.devices import connections, presence, tool_results
from adiuva.devices.codec import MAX_FRAME_BYTES, BadFrame, FrameTooLarge, dump, is_in_protocol, parse
from adiuva.devices.presence import Target
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
from adiuva.devices.reply_routing import ChannelReply, Reply, close_message

# A socket that sends this many bad frames within this time is closed.
_MAX_BAD_FRAMES: Final = 20
_BAD_FRAMES_WINDOW_S: Final = 60.0
# A result of at most this many characters is within the limit of a frame, however many bytes they are in UTF-8.
_MAX_UNREAD_CHARS: Final = MAX_FRAME_BYTES // 4
# A larger frame is sent in a turn of the loop of its own, after the message that brought it has left memory. Otherwise
# glibc gives memory back and fetches it again with each frame, which doubled the CPU of 200 kB.
_MAX_AT_ONCE_BYTES: Final = 64 * 1024
# Nobody waits for the answer to a call that is older than this.
_CALL_EXPIRES_S: Final = 300.0
# A pong may take this much longer while other frames arrive: it may queue behind files that the device is sending.
_BUSY_PONG_FACTOR: Final = 6
_PING: Final = dump(Ping())
_FAILED: Final = gettext_noop("the server failed on this frame")
_UNKNOWN_ZONE: Final = gettext_noop("the hello's timezone is not one of the IANA database")
_NO_FILES_NOW: Final = gettext_noop("this run takes no files now")
# The web server ends a connection with this code over a frame that is too large for us to see (RFC 6455).
_MESSAGE_TOO_BIG: Final = 1009

log = structlog.get_logger(__name__)


class StartWaitingWork(Protocol):
    """Start of waiting work in the apps above when a device arrives, in the thread that wrote its arrival, before it is
    acknowledged."""

    def __call__(self, *, user_id: uuid.UUID, device_id: str) -> object: ...


# More than 15 methods: one small one for each kind of frame, channel message and event of the socket.
class DeviceHandler:
    """Handler of the handshake, the hello, pings, tool results and frames of runs for `socket`.

    It is the connection (adiuva.devices.connections) through which links reach the device. The consumer passes on
    `connect`, `receive`, `disconnect` and the channel messages. Thousands of sockets hold the same state, so what few
    of them need is made when they need it.
    """

    def __init__(self, socket: SocketConsumer, start_waiting_work: StartWaitingWork) -> None:
        self.socket, self._start_waiting_work = socket, start_waiting_work
        socket.close_timeout_s = settings.SOCKET["pong_timeout_s"]
        self.user_id: uuid.UUID
        self.session_id: uuid.UUID
        # The user's plan and language.
        self.tier = self.locale = ""
        # Set by the hello.
        self.pk: uuid.UUID | None = None
        self.device_id = ""
        self.epoch = 0
        self.protocol = 1
        self._capabilities = frozenset[str]()
        self._loop = asyncio.get_running_loop()
        self._registry = connections.current()
        self._opened_at = self._heard_at = self._loop.time()
        self._ping_due = self._pinged_at = 0.0
        self._bad_frames_at: deque[float] | None = None
        # Call id → the reply for its answer, and when it was sent.
        self._calls: dict[str, tuple[Reply, float]] = {}
        # Run id → the reply for its frames.
        self._runs: dict[str, Reply] = {}
        # Other processes find the device as soon as its row is committed, but the first frame it gets is hello_ack.
        # None afterwards.
        self._acknowledged: asyncio.Event | None = asyncio.Event()

    # Opening

    async def connect(self) -> None:
        headers = {name: value.decode("latin-1") for name, value in self.socket.scope["headers"]}
        await self.socket.accept()  # a close code reaches only a peer that was accepted
        origin = headers.get(b"origin")
        if origin is not None and not origins.is_allowed(origin, headers.get(b"host", "")):
            await self.socket.close(Close.ORIGIN_REFUSED)
            return
        try:
            session = await self._authenticate(headers.get(b"authorization", ""))
        except NotAuthenticated:
            await self.socket.close(Close.NOT_AUTHENTICATED)
            return
        self.user_id, self.session_id = session.user_id, session.pk
        self.tier, self.locale = session.user.tier, session.user.locale
        self._opened_at = self._loop.time()
        self._registry.add(self)

    async def _authenticate(self, authorization: str) -> Session:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() == "bearer" and token:
            return await db.run(accounts.authenticate, access_token=token.strip())
        query = parse_qs(self.socket.scope.get("query_string", b"").decode("latin-1"))
        if ticket := query.get("ticket"):
            return await db.run(accounts.redeem_ticket, ticket[0])
        if token_in_url := query.get("token"):
            return await db.run(accounts.authenticate, access_token=token_in_url[0])
        raise NotAuthenticated("no credentials")

    # Frames from the device

    async def receive(self, text: str | None) -> ClientFrame | None:
        """Handle a frame about the device that `take_result` has not taken. Returns any other frame, and the hello once
        it is acknowledged.

        Raises BadFrame.
        """
        self._heard_at = self._loop.time()
        if text is None:
            raise BadFrame("bad_json", "frames are text")
        try:
            frame = parse(text)
        except BadFrame as bad:
            if self._fail_answered_calls(text, bad) and isinstance(bad, FrameTooLarge):
                # The caller asks for less. Closing the socket would cost the device its other calls.
                await self.send_frame(Error(code=bad.code, message=bad.message))
                return None
            raise
        if type(frame) is ToolResult and (waiting := self._calls.pop(frame.id, None)):
            waiting[0].result(text, [frame.id], frame)
            return None
        if self.pk is None and not isinstance(frame, DeviceHello | Pong):
            raise BadFrame("hello_first", "the first frame is device_hello", _ref(frame))
        match frame:
            case ToolResult():
                return None  # nobody waits for it any more, or it repeats another
            case ToolBatchResult():
                answered: dict[Reply, list[str]] = {}
                for result in frame.results:
                    if (waiting := self._calls.pop(result.id, None)) is not None:
                        answered.setdefault(waiting[0], []).append(result.id)
                for reply, calls in answered.items():
                    reply.result(text, calls, frame)
                return None
            case AgentManifest() | AgentData() | AgentComplete():
                await self._pass_to_run(frame, text)
                return None
            case Pong():
                self._pinged_at = 0.0
                return None
            case DeviceHello():
                await self._greet(frame)
        return frame

    def take_result(self, text: str) -> bool:
        """Hand the answer to a call to its waiter. Returns False if it is none, or unreadable.

        Results are the most frequent frames. The waiting process reads them; here the call's id is enough.
        """
        call = tool_results.leading_id(text)
        if call is None or (waiting := self._calls.get(call)) is None or len(text) > _MAX_UNREAD_CHARS:
            return False
        reply, result = waiting[0], None
        if not reply.is_remote:
            try:
                frame = parse(text)
            except BadFrame:
                return False
            if not isinstance(frame, ToolResult) or frame.id != call:
                return False
            result = frame
        self._heard_at = self._loop.time()
        del self._calls[call]
        reply.result(text, [call], result)
        return True

    def _fail_answered_calls(self, text: str, bad: BadFrame) -> bool:
        """End the calls that an unreadable frame answers. Returns whether there are any."""
        if not tool_results.may_be_result(text):
            return False
        code = tool_results.TOO_LARGE if isinstance(bad, FrameTooLarge) else tool_results.MALFORMED
        named = [call for call in self._calls if call in text]
        self._fail_calls(named, code)
        return bool(named)

    def _fail_calls(self, calls: Sequence[str], code: str) -> None:
        for call in calls:
            reply, _ = self._calls.pop(call)
            result = tool_results.failed(call, code)
            reply.result(dump(result), [call], result)

    async def _pass_to_run(self, frame: AgentManifest | AgentData | AgentComplete, text: str) -> None:
        reply = self._runs.get(frame.run_id)
        if reply is not None and await reply.run_frame(text, frame):
            return
        # A run that has missed a frame must not get later ones, or it would look complete.
        self._runs.pop(frame.run_id, None)
        if not isinstance(frame, AgentComplete):
            await self.send_error("run_not_active", _NO_FILES_NOW, frame.run_id)

    async def _greet(self, hello: DeviceHello) -> None:
        if self.pk is not None:
            raise BadFrame("hello_twice", "this connection has said hello")
        self.protocol = 2 if hello.protocol >= 2 else 1
        await self.socket.subscribe()
        opened = await db.run(self._arrive, hello)
        self.device_id, self._capabilities = hello.device_id, _shared(opened.capabilities)
        older = self._registry.register(self, opened.pk, opened.epoch)
        self._ping_due = self._loop.time() + settings.SOCKET["ping_interval_s"]
        try:
            is_open = await self.send_frame(
                HelloAck(
                    session_id=f"{opened.pk}:{opened.epoch}",
                    protocol=self.protocol,
                    ping_s=settings.SOCKET["ping_interval_s"],
                    max_frame_bytes=MAX_FRAME_BYTES,
                    max_inflight=settings.SOCKET["max_batches_in_flight"],
                    server_time=time.time_ns() // 1_000_000,
                )
            )
        finally:
            if self._acknowledged is not None:
                self._acknowledged.set()
                self._acknowledged = None
        # A device that left while its hello was queued may have replaced its own newer connection, which must return.
        code = Close.SUPERSEDED if is_open else Close.RESTARTING
        if older is not None:
            older.end(code)
        elif opened.superseded:
            # If this message is lost, the older connection still ends when its lease is not renewed.
            get_channel_layer().post(opened.superseded, close_message(code))
        if self.protocol >= 2 and presence.has_unknown_zone(hello):
            await self.send_error("unknown_timezone", _UNKNOWN_ZONE)
        log.info(
            "device.connected",
            user_id=str(self.user_id),
            device=str(opened.pk),
            epoch=opened.epoch,
            protocol=self.protocol,
        )

    def _arrive(self, hello: DeviceHello) -> presence.OpenedConnection:
        opened = presence.open_connection(
            process=self._registry.process,
            user_id=self.user_id,
            session_id=self.session_id,
            hello=hello,
            channel=self.socket.channel_name,
        )
        try:
            self._start_waiting_work(user_id=self.user_id, device_id=hello.device_id)
        except Exception as error:  # the device is here all the same, and sweeps find its waiting work
            log_failure("device.waiting_work_not_started", error, logger=log)
        return opened

    async def refuse(self, bad: BadFrame) -> None:
        """Answer a bad frame with an error frame, or close the socket after too many of them."""
        if bad.code != "unknown_type":
            now = self._loop.time()
            if self._bad_frames_at is None:
                self._bad_frames_at = deque(maxlen=_MAX_BAD_FRAMES)
            self._bad_frames_at.append(now)
            if (
                len(self._bad_frames_at) == _MAX_BAD_FRAMES
                and now - self._bad_frames_at[0] < _BAD_FRAMES_WINDOW_S
            ):
                await self.socket.close(Close.TOO_MANY)
                return
        # Before its hello it is not known whether a client knows error frames; they do no harm if it does not.
        if self.pk is None or self.protocol >= 2:
            await self.socket.send_text(dump(Error(code=bad.code, message=bad.message, ref=bad.ref)))

    async def handler_failed(self, error: Exception) -> None:
        """Tell the device that one of our handlers raised."""
        if self.pk is None:
            await self.socket.close(Close.RESTARTING)  # it reconnects with jitter
        elif (unavailable := as_unavailable(error)) is not None:
            await self.send_error(unavailable.code, unavailable.message)
        else:
            await self.send_error("internal_error", _FAILED)

    # Frames to the device

    async def send_error(self, code: str, message: str, ref: str | None = None) -> bool:
        """Send an error frame. `message`, of an AdiuvaError, is translated to the account's language."""
        with speaking(self.locale):
            frame = Error(code=code, message=said(message), ref=ref)
        return await self.send_frame(frame)

    async def send_frame(self, frame: Sent) -> bool:
        """Send a frame unless the client's protocol lacks it. Returns False if the client is gone."""
        return not is_in_protocol(type(frame), self.protocol) or await self.socket.send_text(
            dump(frame, self.protocol)
        )

    def target(self) -> Target:
        assert self.pk is not None
        channel = self.socket.channel_name
        return Target(self.pk, self.device_id, self.epoch, channel, self.protocol, self._capabilities)

    async def deliver(self, text: bytes, reply: Reply, *, calls: Sequence[str], run: str | None) -> bool:
        if self._acknowledged is not None:
            await self._acknowledged.wait()
        self._expect(reply, calls, run)
        if self.socket.push_soon(text) or await self.socket.send_in_turn(text.decode()):
            return True
        for call in calls:
            self._calls.pop(call, None)
        return False

    def _expect(self, reply: Reply, calls: Sequence[str], run: str | None) -> None:
        """Register a reply before its frame leaves, because the answer may be faster than the sender."""
        now = self._loop.time()
        for call in calls:
            self._calls[call] = (reply, now)
        if run is not None:
            self._runs[run] = reply

    def run_over(self, run: str) -> None:
        self._runs.pop(run, None)

    def take_message(self, message: Message) -> bool:
        """Handle a channel message at once, if that needs no waiting. Returns whether it did."""
        if (
            message["type"] != "frame"
            or len(message["body"]) > _MAX_AT_ONCE_BYTES
            or self._acknowledged is not None
            or self.socket.closing
            or not self.socket.push_soon(message["body"])
        ):
            return False
        self._expect(ChannelReply(message["reply"]), message["calls"], message["run"])
        return True

    async def channel_message(self, message: Message) -> bool:
        """Handle a channel message. Returns False if it is not about the device."""
        match message["type"]:
            case "frame":
                await self._on_frame_message(message)
            case "bad_frame":
                await self.refuse(BadFrame(message["code"], message["message"], message["ref"]))
            case "run_over":
                self.run_over(message["run"])
            case "close":
                await self.socket.close(message["code"])
            case _:
                return False
        return True

    async def _on_frame_message(self, message: Message) -> None:
        reply, calls, text = ChannelReply(message["reply"]), message["calls"], message["body"]
        if not await self.deliver(text, reply, calls=calls, run=message["run"]) and calls:
            reply.unsent(calls)

    # The timer

    def tick(self, now: float) -> int | None:
        if self.socket.closing:
            return None
        if self.socket.sending_since and now - self.socket.sending_since > self.socket.close_timeout_s:
            return Close.TIMEOUT
        if self.pk is None:
            return Close.TIMEOUT if now - self._opened_at > settings.SOCKET["hello_timeout_s"] else None
        if self._pinged_at:
            patience_s = settings.SOCKET["pong_timeout_s"]
            if self._heard_at > self._pinged_at:
                patience_s *= _BUSY_PONG_FACTOR
            if now - self._pinged_at > patience_s:
                return Close.TIMEOUT
        elif now >= self._ping_due:
            self._ping_due, self._pinged_at = now + settings.SOCKET["ping_interval_s"], now
            self.socket.spawn(self.socket.send_text(_PING), "ping")
            self._drop_expired_calls(now)
        return None

    def _drop_expired_calls(self, now: float) -> None:
        expired = [call for call, (_, since) in self._calls.items() if now - since > _CALL_EXPIRES_S]
        for call in expired:
            del self._calls[call]

    # Closing

    def end(self, code: int) -> None:
        if not self.socket.closing:
            self.socket.spawn(self.socket.close(code), "close")

    def unregister(self) -> None:
        """Take the connection out of the registry, so that links of this process no longer find it."""
        self._registry.remove(self)

    async def disconnect(self) -> None:
        """Tell all who wait for this device that it is gone."""
        if self.socket.peer_close_code == _MESSAGE_TOO_BIG:
            self._fail_calls(list(self._calls), tool_results.TOO_LARGE)
        replies = {reply for reply, _ in self._calls.values()} | set(self._runs.values())
        self._calls.clear()
        self._runs.clear()
        for reply in replies:
            reply.gone(self.epoch)
        if self.pk is not None:
            await self._registry.record_end(self.pk, self.epoch)
            log.info("device.disconnected", user_id=str(self.user_id), device=str(self.pk), epoch=self.epoch)


@lru_cache(256)
def _shared(capabilities: frozenset[str]) -> frozenset[str]:
    """Return one object for all connections that have equal values."""
    return capabilities


def _ref(frame: ClientFrame) -> str | None:
    return getattr(frame, "request_id", None) or getattr(frame, "id", None) or getattr(frame, "run_id", None)
