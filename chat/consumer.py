"""The one socket: the device's half from below, and what is asked over it. It parses, matches and hands off."""

from __future__ import annotations

import uuid
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any, Final

from adiuva import db
from adiuva.devices.consumer import DeviceConsumer
from adiuva.devices.protocol import (
    ApprovalResponse,
    BadFrame,
    ClientFrame,
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
from adiuva.errors import AdiuvaError, Unavailable
from agents import runs
from chat.asked import Asked
from chat.far import Far
from chat.models import Kind
from chat.stream import START, Entry
from chat.switchboard import ApprovalOver, TurnElsewhere, board
from chat.words import sentence

_REQUESTS: Final = ("home_request", "floating_request")


class ClientConsumer(DeviceConsumer):
    def __init__(self) -> None:
        super().__init__()
        self._approves = False
        self._far: dict[str, Far] = {}
        self._spoken: set[str] = set()  # requests that a client of protocol 1 has read words of

    async def greeted(self, hello: DeviceHello) -> None:
        """What waited for this device goes on, and so do the streams that it lost."""
        self._approves = self.protocol >= 2 and "approval" in hello.capabilities
        for stream in hello.streams or ():
            self._hand_off(self._resume(stream.request_id, stream.after), stream.request_id)
        await db.run(runs.wake, user_id=self.user_id, device_id=hello.device_id)

    async def request(self, frame: ClientFrame) -> None:
        match frame:
            case HomeRequest() | FloatingRequest():
                asked = self._asked(frame)
                self._hand_off(self._open(asked), asked.request_id)
            case RequestCancel(request_id=key):
                self._hand_off(board().cancel(self.user_id, key), key)
            case RequestSteer(request_id=key):
                self._hand_off(self._steer(frame), key)
            case StreamResume(request_id=key):
                self._hand_off(self._resume(key, frame.after), key)
            case ApprovalResponse():
                decision = board().decide(self.user_id, frame.id, frame.approved, reply=self.channel_name)
                self._hand_off(decision, frame.id)

    def _asked(self, frame: HomeRequest | FloatingRequest) -> Asked:
        home = frame if isinstance(frame, HomeRequest) else None
        return Asked(
            user_id=self.user_id,
            request_id=frame.request_id or uuid.uuid4().hex,
            kind=Kind.HOME if home else Kind.FLOATING,
            message=frame.message,
            device=self.pk,
            history=tuple(home.conversation_history) if home else (),
            scope=frame.scope if isinstance(frame, FloatingRequest) else None,
            conversation_id=frame.conversation_id if self.protocol >= 2 else None,
            keeps=self.protocol >= 2,
            approves=self._approves,
        )

    def _hand_off(self, work: Coroutine[Any, Any, None], ref: str) -> None:
        self.spawn(self._answered(work, ref), "request")

    async def _answered(self, work: Coroutine[Any, Any, None], ref: str) -> None:
        """What cannot be done is said, with the id it is about."""
        try:
            await work
        except AdiuvaError as error:
            await self._say_error(error.code, error.message, ref)
        except ConnectionError:
            await self._say_error(Unavailable.code, "try again in a moment", ref)

    async def _say_error(self, code: str, message: str, ref: str) -> None:
        if self.protocol >= 2:
            await self.send_frame(Error(code=code, message=message, ref=ref))
        else:  # it knows no error frames, and would wait for the end of its request for ever
            await self.hear(ref, [Entry(StreamEnd(request_id=ref, finish="error", code=code))])

    async def _open(self, asked: Asked) -> None:
        try:
            await board().open(asked, self)
        except TurnElsewhere as elsewhere:
            self._follow(asked.request_id, elsewhere.owner, START)

    async def _resume(self, request_id: str, after: int) -> None:
        try:
            await board().resume(self.user_id, request_id, after, self)
        except TurnElsewhere as elsewhere:
            self._follow(request_id, elsewhere.owner, after)

    async def _steer(self, frame: RequestSteer) -> None:
        asked = await board().steer(self.user_id, frame.request_id, frame.message, reply=self.channel_name)
        if asked is not None:
            await self._open(replace(asked, device=self.pk, approves=self._approves))

    async def _steer_late(self, request_id: str, message: str) -> None:
        asked = await board().follow_up(self.user_id, request_id, message)
        await self._open(replace(asked, device=self.pk, approves=self._approves))

    def _follow(self, request_id: str, owner: str, after: int) -> None:
        if (older := self._far.get(request_id)) is not None:
            older.stop()
        far = self._far[request_id] = Far(
            self,
            user_id=self.user_id,
            request_id=request_id,
            owner=owner,
            after=after,
            reply=self.channel_name,
        )
        self._hand_off(self._follow_far(far, request_id), request_id)

    async def _follow_far(self, far: Far, request_id: str) -> None:
        try:
            await far.follow()
        finally:
            if self._far.get(request_id) is far:
                del self._far[request_id]

    async def _refuse(self, bad: BadFrame) -> None:
        await super()._refuse(bad)
        if self.pk is not None and self.protocol < 2 and bad.kind in _REQUESTS:
            await self._say_error("invalid", bad.message, bad.ref or "")

    async def hear(self, request_id: str, entries: Sequence[Entry]) -> bool:
        """A turn's frames, for this socket."""
        for entry in entries:
            if self.protocol >= 2:
                if not await self.send_text(entry.text):
                    return False
                continue
            if isinstance(entry.frame, StreamText):
                self._spoken.add(request_id)
            elif isinstance(entry.frame, StreamEnd) and (words := sentence(entry.frame)):
                chunk = f"\n\n{words}" if request_id in self._spoken else words
                await self.send_frame(StreamText(request_id=request_id, chunk=chunk))
            if isinstance(entry.frame, StreamEnd):
                self._spoken.discard(request_id)
            await self.send_frame(entry.frame)
        return not self.closing

    async def told(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "stream":
                if (far := self._far.get(message["request"])) is not None:
                    await far.arrived(message["texts"])
            case "stream_over":
                if (far := self._far.get(message["request"])) is not None:
                    far.over()
            case "steer_late":
                self._hand_off(self._steer_late(message["request"], message["message"]), message["request"])
            case "approval_over":
                over = ApprovalOver()
                await self.send_frame(Error(code=over.code, message=over.message, ref=message["approval"]))
            case "notice":
                await self.send_text(message["text"])
            case "interrupted":
                for far in self._far.values():
                    far.interrupted()
            case _:
                await super().told(message)

    async def ended(self) -> None:
        if self.pk is not None:
            board().leave(self.user_id, self)
        await super().ended()
