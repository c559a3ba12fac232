"""The one socket: the device's half from below, and what is asked over it. It parses, matches and hands off."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, Final

from adiuva.core import db
from adiuva.core.errors import AdiuvaError
from adiuva.devices.codec import BadFrame
from adiuva.devices.consumer import DeviceConsumer
from adiuva.devices.protocol import (
    ApprovalResponse,
    ClientFrame,
    Close,
    DeviceHello,
    Error,
    FloatingRequest,
    HomeRequest,
    RequestCancel,
    RequestSteer,
    StreamEnd,
    StreamResume,
    StreamText,
)
from agents import schedules
from chat.end_messages import end_message
from chat.models import AssistantKind
from chat.remote_stream import RemoteStream
from chat.request import ChatRequest
from chat.stream import FROM_START, StreamFrame, refusal_frames
from chat.stream_replay import follow_up_request
from chat.turn_errors import as_client_error, refusal_of
from chat.turn_registry import TurnElsewhere, registry

_REQUESTS: Final = ("home_request", "floating_request")
_AT_ONCE: Final = 128  # of a socket's requests, in whatever state; a hello may resume a hundred
_A_MINUTE: Final = 1200


class TooManyRequests(AdiuvaError):
    code, status = "too_many_requests", 429

    def __init__(self) -> None:
        super().__init__(f"at most {_AT_ONCE} requests of a connection are under way at once")


class ClientConsumer(DeviceConsumer):
    def __init__(self) -> None:
        super().__init__()
        self._approves = False
        self._far: dict[str, RemoteStream] = {}
        self._under_way = self._this_minute = 0
        self._minute_ends = 0.0
        self._spoken: set[str] = set()  # requests that a client of protocol 1 has read words of

    async def greeted(self, hello: DeviceHello) -> None:
        """What waited for this device goes on, and so do the streams that it lost."""
        self._approves = self.protocol >= 2 and "approval" in hello.capabilities
        for stream in hello.streams or ():
            self._hand_off(self._resume(stream.request_id, stream.after), stream.request_id)
        await db.run(schedules.device_connected, user_id=self.user_id, device_id=hello.device_id)

    async def request(self, frame: ClientFrame) -> None:
        now = self._loop.time()
        if now >= self._minute_ends:
            self._minute_ends, self._this_minute = now + 60.0, 0
        self._this_minute += 1
        if self._this_minute > _A_MINUTE:
            await self.close(Close.TOO_MANY)
            return
        match frame:
            case HomeRequest() | FloatingRequest():
                request = self._chat_request(frame)
                self._hand_off(
                    self._open(request), request.request_id, lambda code: refusal_of(request, code)
                )
            case RequestCancel(request_id=key):
                self._hand_off(registry().cancel(self.user_id, key), key)
            case RequestSteer(request_id=key):
                self._hand_off(self._steer(frame), key)
            case StreamResume(request_id=key):
                self._hand_off(self._resume(key, frame.after), key)
            case ApprovalResponse():
                decision = registry().decide(self.user_id, frame.id, frame.approved, reply=self.channel_name)
                self._hand_off(decision, frame.id)

    def _chat_request(self, frame: HomeRequest | FloatingRequest) -> ChatRequest:
        home = frame if isinstance(frame, HomeRequest) else None
        return ChatRequest(
            user_id=self.user_id,
            request_id=frame.request_id or uuid.uuid4().hex,
            kind=AssistantKind.HOME if home else AssistantKind.FLOATING,
            message=frame.message,
            device_id=self.pk,
            history=tuple(home.conversation_history or ()) if home else (),
            scope=frame.scope if isinstance(frame, FloatingRequest) else None,
            conversation_id=frame.conversation_id if self.protocol >= 2 else None,
            starts_conversation=self.protocol >= 2,
            can_ask_approval=self._approves,
            memory=frame.memory,
        )

    def _hand_off(
        self,
        work: Coroutine[Any, Any, None],
        ref: str,
        ends: Callable[[str], list[StreamFrame]] | None = None,
    ) -> None:
        """`ends` makes the frames that end a request which failed, of its code; else it is answered with an error."""
        if self._under_way >= _AT_ONCE:
            work.close()
            work = _too_many()
        self._under_way += 1
        self.spawn(self._answered(work, ref, ends), "request")

    async def _answered(
        self, work: Coroutine[Any, Any, None], ref: str, ends: Callable[[str], list[StreamFrame]] | None
    ) -> None:
        """What cannot be done is said, with the id it is about."""
        try:
            await work
        except Exception as error:
            said = as_client_error(error)
            if ends is not None:
                await self.hear(ref, ends(said.code))
            else:
                await self.send_frame(Error(code=said.code, message=said.message, ref=ref))
        finally:
            self._under_way -= 1

    async def _open(self, request: ChatRequest) -> None:
        try:
            await registry().open(request, self)
        except TurnElsewhere as elsewhere:
            self._follow(request.request_id, elsewhere.owner, FROM_START, request)

    async def _resume(self, request_id: str, after: int) -> None:
        try:
            await registry().resume(self.user_id, request_id, after, self)
        except TurnElsewhere as elsewhere:
            self._follow(request_id, elsewhere.owner, after)

    async def _steer(self, frame: RequestSteer) -> None:
        request = await registry().steer(
            self.user_id, frame.request_id, frame.message, reply=self.channel_name
        )
        if request is not None:
            await self._open(replace(request, device_id=self.pk, can_ask_approval=self._approves))

    async def _steer_late(self, request_id: str, message: str) -> None:
        request = await follow_up_request(self.user_id, request_id, message)
        await self._open(replace(request, device_id=self.pk, can_ask_approval=self._approves))

    def _follow(self, request_id: str, owner: str, after: int, request: ChatRequest | None = None) -> None:
        if (older := self._far.get(request_id)) is not None:
            older.stop()
        far = self._far[request_id] = RemoteStream(
            self,
            user_id=self.user_id,
            request_id=request_id,
            owner=owner,
            after=after,
            reply=self.channel_name,
        )
        self._hand_off(
            self._follow_far(far, request_id),
            request_id,
            None if request is None else lambda code: refusal_of(request, code, far.after),
        )

    async def _follow_far(self, far: RemoteStream, request_id: str) -> None:
        try:
            await far.follow()
        finally:
            if self._far.get(request_id) is far:
                del self._far[request_id]

    async def _refuse(self, bad: BadFrame) -> None:
        await super()._refuse(bad)
        if self.pk is not None and self.protocol < 2 and bad.kind in _REQUESTS:
            # It knows no error frames, and would wait for the end of its request for ever.
            key = bad.ref or uuid.uuid4().hex
            await self.hear(key, refusal_frames(key, bad.code, floating=bad.kind == "floating_request"))

    async def hear(self, request_id: str, entries: Sequence[StreamFrame]) -> bool:
        """A turn's frames, for this socket."""
        for entry in entries:
            if self.protocol >= 2:
                if not await self.send_text(entry.text):
                    return False
                continue
            frame = entry.frame
            if isinstance(frame, StreamText):
                self._spoken.add(request_id)
            elif isinstance(frame, StreamEnd):
                if words := end_message(frame):
                    chunk = f"\n\n{words}" if request_id in self._spoken else words
                    await self.send_frame(StreamText(request_id=request_id, chunk=chunk))
                self._spoken.discard(request_id)
            await self.send_frame(frame)
        return not self.closing

    async def channel_message(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "stream":
                if (far := self._far.get(message["request"])) is not None:
                    await far.arrived(message["texts"])
            case "stream_over":
                if (far := self._far.get(message["request"])) is not None:
                    far.over()
            case "steer_late":
                self._hand_off(self._steer_late(message["request"], message["message"]), message["request"])
            case "refused":
                await self.send_frame(
                    Error(code=message["code"], message=message["message"], ref=message["ref"])
                )
            case "notice":
                await self.send_text(message["text"])
            case "interrupted":
                for far in self._far.values():
                    far.interrupted()
            case _:
                await super().channel_message(message)

    async def disconnect(self) -> None:
        if self.pk is not None:
            registry().leave(self.user_id, self)
        await super().disconnect()


async def _too_many() -> None:
    raise TooManyRequests
