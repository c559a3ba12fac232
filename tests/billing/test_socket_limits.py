"""The socket counts what users ask for, by the same count as REST, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from adiuva.core import db
from adiuva.devices.protocol import Error, HomeRequest, RequestCancel, RequestSteer
from billing import plans, request_limits
from chat.chat_handler import ChatHandler
from tests.factories import Person


class Socket:
    """Keeps what is sent, and the work that is begun."""

    channel_name, closing = "nobody", False

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.work: list[asyncio.Task[None]] = []

    async def send_text(self, text: str) -> bool:
        self.sent.append(text)
        return True

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self.work.append(asyncio.create_task(work, name=name))


class Device:
    def __init__(self, person: Person, socket: Socket) -> None:
        self.user_id, self.pk, self.device_id, self.protocol, self.tier = person.id, None, "desk", 2, ""
        self.socket = socket

    async def send_frame(self, frame: Any) -> None:
        await self.socket.send_text(frame.model_dump_json())

    async def send_error(self, code: str, message: str, ref: str | None = None) -> None:
        await self.send_frame(Error(type="error", code=code, message=message, ref=ref))


@pytest.mark.parametrize(
    ("frame", "is_counted"),
    [
        (HomeRequest(type="home_request", request_id="one", message="hello"), True),
        (RequestSteer(type="request_steer", request_id="one", message="and more"), True),
        (RequestCancel(type="request_cancel", request_id="one"), False),
    ],
)
async def test_a_request_beyond_the_plan_is_refused_and_what_ends_work_is_not(
    person: Person, settings: Any, frame: Any, is_counted: bool
) -> None:
    settings.PLANS = True
    plans.forget()
    await db.run(_use_up, person)
    socket = Socket()
    device: Any = Device(person, socket)
    handler: Any = ChatHandler(socket, device)  # type: ignore[arg-type]
    await handler.receive(frame)
    await asyncio.gather(*socket.work)
    assert ("throttled" in "".join(socket.sent)) is is_counted
    if is_counted:
        assert device.tier == "free"


def _use_up(person: Person) -> None:
    while not request_limits.take(person.id, "free")[1].wait_s:
        pass
