"""A device's arrival: what it asks of the database, and what becomes of it when the process ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from adiuva.core import db
from agents import schedules
from tests.devices.link_endpoints import Local, Remote
from tests.factories import Person
from tests.server_processes import Stack


async def test_a_device_asks_the_database_once_for_its_session_and_once_for_its_arrival(
    committed_db: str, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a restart all devices come at once."""
    asked: list[str] = []
    run = db.run

    async def counted(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        asked.append(function.__qualname__)
        return await run(function, *args, **kwargs)

    monkeypatch.setattr(db, "run", counted)
    async with Local("", person.access_token) as socket:
        await socket.hello()
        assert asked == ["authenticate", "DeviceHandler._arrive"]


async def test_a_device_is_here_although_what_waits_for_it_cannot_be_started(
    committed_db: str, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> int:
        raise RuntimeError("this happens to be broken")

    monkeypatch.setattr(schedules, "device_connected", fail)
    async with Local("", person.access_token) as socket:
        assert (await socket.hello())["type"] == "hello_ack"


async def test_the_devices_of_a_process_that_stops_are_gone_with_it(stack: Stack, person: Person) -> None:
    from adiuva.devices.models import Device, Process

    stops = stack.web()
    async with Remote(stops, person.access_token) as socket:
        await socket.hello()
        process = await db.run(lambda: Device.objects.get(user_id=person.id).process_id)
        ended = stack.end(stops).process
        assert await socket.code() == 1012
        assert ended is not None
        await asyncio.to_thread(ended.wait, 60)
        assert not await db.run(Process.objects.filter(pk=process).exists)
        assert not await db.run(Device.objects.of(person.id).online().exists)
