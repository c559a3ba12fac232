"""The one socket: the device's half from below, and what is asked over it."""

from __future__ import annotations

import uuid

from adiuva import db
from adiuva.devices.consumer import DeviceConsumer
from adiuva.devices.protocol import (
    BadFrame,
    ClientFrame,
    DeviceHello,
    FloatingRequest,
    HomeRequest,
    StreamEnd,
    StreamStart,
    StreamText,
)
from agents import runs


class ClientConsumer(DeviceConsumer):
    async def greeted(self, hello: DeviceHello) -> None:
        """What waited for this device goes on."""
        await db.run(runs.wake, user_id=self.user_id, device_id=hello.device_id)

    async def request(self, frame: ClientFrame) -> None:
        match frame:
            case HomeRequest() | FloatingRequest():
                await self._no_chat(frame.request_id or uuid.uuid4().hex)
            case _:
                raise BadFrame("not_running", "there is no such request", getattr(frame, "request_id", None))

    async def _no_chat(self, request_id: str) -> None:
        """This server has no assistant yet. A request ends as the protocol says, and not as an empty success."""
        await self.send_frame(StreamStart(request_id=request_id))
        words = "This server does not chat yet; it runs agents."
        await self.send_frame(StreamText(request_id=request_id, chunk=words, seq=0))
        await self.send_frame(
            StreamEnd(request_id=request_id, seq=1, finish="error", code="chat_not_available")
        )
