"""The chat half of a socket: requests to the assistants, and the frames of the turns that answer them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, Final

from django.conf import settings

from adiuva.accounts.services import tier_of
from adiuva.core import db
from adiuva.core.errors import AdiuvaError, Text, unpacked
from adiuva.core.language import speaking
from adiuva.core.websocket import SocketConsumer
from adiuva.devices.codec import BadFrame
from adiuva.devices.device_handler import DeviceHandler
from adiuva.devices.protocol import (
    ApprovalResponse,
    ClientFrame,
    Close,
    DeviceHello,
    FloatingRequest,
    HomeRequest,
    RequestCancel,
    RequestSteer,
    StreamEnd,
    StreamResume,
    StreamText,
)
from billing import request_limits
from chat import turn_control
from chat.device_choice import find_device
from chat.end_messages import unsaid_end_message
from chat.models import AssistantKind
from chat.request import ChatRequest
from chat.stream import FROM_START, StreamFrame, refusal_frames
from chat.stream_replay import follow_up_request
from chat.turn_errors import as_client_error, refusal_of
from chat.turn_registry import registry

_REQUEST_TYPES: Final = ("home_request", "floating_request")
# Requests of one socket in progress at once, resumed streams included: a hello may resume a hundred.
_MAX_REQUESTS: Final = 128
# Frames of the chat that a socket may send in a minute.
_MAX_FRAMES_PER_MINUTE: Final = 1200


class TooManyRequests(AdiuvaError):
    """One socket has too many requests in progress."""

    code, status = "too_many_requests", 429

    def __init__(self) -> None:
        super().__init__(
            Text("at most {most} requests of a connection are under way at once", most=_MAX_REQUESTS)
        )


# More than 15 methods: one small one for each kind of frame and channel message.
class ChatHandler:
    """Handles chat frames for `socket`, each in a task of its own, and follows the turns that it asked for.

    The consumer passes on `receive`, `refuse`, `disconnect` and the channel messages.
    """

    def __init__(self, socket: SocketConsumer, device: DeviceHandler) -> None:
        self.socket, self.device = socket, device
        self._loop = asyncio.get_running_loop()
        self._can_approve = False
        self._requests = self._frames_this_minute = 0
        self._minute_ends = 0.0
        # Requests of a protocol 1 client that have been answered with some text.
        self._answered_with_text: set[str] = set()

    @property
    def channel(self) -> str:
        """The channel to which other processes send frames for this socket."""
        return self.socket.channel_name

    # Frames from the client

    async def receive(self, frame: ClientFrame) -> None:
        """Handle a frame about the chat, or the hello once the device half has acknowledged it."""
        if isinstance(frame, DeviceHello):
            self._greet(frame)
            return
        if self._is_over_limit():
            await self.socket.close(Close.TOO_MANY)
            return
        match frame:
            case HomeRequest() | FloatingRequest():
                request = self._request(frame)
                self._start(
                    self._open(request, frame.device_id if self.device.protocol >= 2 else None),
                    request.request_id,
                    refusal=lambda code: refusal_of(request, code),
                )
            case RequestCancel(request_id=key):
                self._start(turn_control.cancel(registry(), self.device.user_id, key), key)
            case RequestSteer(request_id=key):
                self._start(self._steer(frame), key)
            case StreamResume(request_id=key):
                self._start(registry().resume(self.device.user_id, key, frame.after, self), key)
            case ApprovalResponse():
                decision = turn_control.decide(
                    registry(), self.device.user_id, frame.id, frame.approved, reply=self.channel
                )
                self._start(decision, frame.id)

    def _greet(self, hello: DeviceHello) -> None:
        """Resume the device's streams."""
        self._can_approve = self.device.protocol >= 2 and "approval" in hello.capabilities
        registry().waiting.search()
        for stream in hello.streams or ():
            key = stream.request_id
            self._start(registry().resume(self.device.user_id, key, stream.after, self), key)

    def _is_over_limit(self) -> bool:
        now = self._loop.time()
        if now >= self._minute_ends:
            self._minute_ends, self._frames_this_minute = now + 60.0, 0
        self._frames_this_minute += 1
        return self._frames_this_minute > _MAX_FRAMES_PER_MINUTE

    def _request(self, frame: HomeRequest | FloatingRequest) -> ChatRequest:
        home = frame if isinstance(frame, HomeRequest) else None
        is_protocol_2 = self.device.protocol >= 2
        return ChatRequest(
            user_id=self.device.user_id,
            request_id=frame.request_id or uuid.uuid4().hex,
            kind=AssistantKind.HOME if home else AssistantKind.FLOATING,
            message=frame.message,
            device_id=self.device.pk,
            history=tuple(home.conversation_history or ()) if home else (),
            scope=frame.scope if isinstance(frame, FloatingRequest) else None,
            conversation_id=frame.conversation_id if is_protocol_2 else None,
            starts_conversation=is_protocol_2,
            can_ask_approval=self._can_approve,
            memory=frame.memory,
            busy=frame.busy or "enqueue",
        )

    def _start(
        self,
        work: Coroutine[Any, Any, None],
        ref: str,
        *,
        refusal: Callable[[str], list[StreamFrame]] | None = None,
    ) -> None:
        """Handle a frame in a task. If that fails, send the client an error frame about `ref`, or the frames that
        `refusal` makes of the error's code.
        """
        if self._requests >= _MAX_REQUESTS:
            work.close()
            work = _too_many_requests()
        self._requests += 1
        self.socket.spawn(self._run(work, ref, refusal), "request")

    async def _run(
        self, work: Coroutine[Any, Any, None], ref: str, refusal: Callable[[str], list[StreamFrame]] | None
    ) -> None:
        try:
            await work
        except Exception as error:
            told = as_client_error(error)
            if refusal is not None:
                await self.send_frames(ref, refusal(told.code))
            else:
                await self.device.send_error(told.code, told.message, ref)
        finally:
            self._requests -= 1

    async def _count(self) -> None:
        """Count a request of the user. Raises Throttled."""
        if settings.PLANS:
            user_id = self.device.user_id
            self.device.tier = self.device.tier or await db.run(tier_of, user_id)
            await db.run(request_limits.require, user_id, self.device.tier)

    async def _open(self, request: ChatRequest, named: str | None) -> None:
        await self._count()
        if named and named != self.device.device_id:
            device = await db.run(find_device, request.user_id, named)
            request = replace(request, device_id=device)
        await registry().open(request, self)

    async def _steer(self, frame: RequestSteer) -> None:
        await self._count()
        follow_up = await turn_control.steer(
            registry(), self.device.user_id, frame.request_id, frame.message, reply=self.channel
        )
        if follow_up is not None:
            await self._open_follow_up(follow_up)

    async def _open_follow_up(self, request: ChatRequest) -> None:
        device = request.device_id or self.device.pk
        request = replace(request, device_id=device, can_ask_approval=self._can_approve)
        await registry().open(request, self)

    async def refuse(self, bad: BadFrame) -> None:
        """End a request that could not be read, for a protocol 1 client: it knows no error frames and would wait."""
        if self.device.pk is not None and self.device.protocol < 2 and bad.kind in _REQUEST_TYPES:
            key = bad.ref or uuid.uuid4().hex
            await self.send_frames(
                key, refusal_frames(key, bad.code, floating=bad.kind == "floating_request")
            )

    # Frames to the client

    async def send_frames(self, request_id: str, frames: Sequence[StreamFrame]) -> bool:
        """Send a turn's frames. Returns False if the client is gone."""
        for each in frames:
            if self.device.protocol >= 2:
                if not await self.socket.send_text(each.text):
                    return False
                continue
            frame = each.frame
            if isinstance(frame, StreamText):
                self._answered_with_text.add(request_id)
            elif isinstance(frame, StreamEnd):
                await self._explain_end(request_id, frame)
            await self.device.send_frame(frame)
        return not self.socket.closing

    def push(self, text: bytes) -> bool:
        """Send the text of a frame at once. Returns False, without having sent anything, if that is not possible."""
        return self.device.protocol >= 2 and self.socket.push(text)

    async def _explain_end(self, request_id: str, end: StreamEnd) -> None:
        """Say in words why a turn ended, as protocol 1 has no codes."""
        with speaking(self.device.locale):
            words = unsaid_end_message(end)
        if words:
            chunk = f"\n\n{words}" if request_id in self._answered_with_text else words
            await self.device.send_frame(StreamText(request_id=request_id, chunk=chunk))
        self._answered_with_text.discard(request_id)

    async def channel_message(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "stream" | "stream_over" | "interrupted":
                await self._on_remote_stream(message)
            case "steer_late":
                await self._on_steer_late(message)
            case "refused":
                await self._on_refused(message)
            case "notice":
                await self._on_notice(message)
            case "turn_started":
                await self._on_turn_started(message)
            # A newer release may send types that this one lacks.

    async def _on_remote_stream(self, message: dict[str, Any]) -> None:
        await registry().remote_streams.channel_message(self, message)

    async def _on_steer_late(self, message: dict[str, Any]) -> None:
        """Make a message a request of its own: the turn of another process ended before it could take it."""
        self._start(self._steer_late(message["request"], message["message"]), message["request"])

    async def _steer_late(self, request_id: str, message: str) -> None:
        follow_up = await follow_up_request(self.device.user_id, request_id, message, is_early=True)
        await self._open_follow_up(follow_up)

    async def _on_refused(self, message: dict[str, Any]) -> None:
        await self.device.send_error(message["code"], unpacked(message["message"]), message["ref"])

    async def _on_notice(self, message: dict[str, Any]) -> None:
        await self.socket.send_text(message["text"])

    async def _on_turn_started(self, message: dict[str, Any]) -> None:
        await self.socket.send_text(message["text"])
        key = message["request"]
        self._start(registry().resume(self.device.user_id, key, FROM_START, self), key)

    def disconnect(self) -> None:
        """Stop listening to turns."""
        if self.device.pk is not None:
            registry().leave(self.device.user_id, self)


async def _too_many_requests() -> None:
    raise TooManyRequests
