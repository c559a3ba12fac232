"""Isolation of clients: nothing that one does affects the others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from adiuva.core import db
from adiuva.devices.calls import new_call
from adiuva.devices.link import DeviceLink, OutcomeUnknown
from bench import fuzz
from tests.devices.link_endpoints import Remote, answering
from tests.factories import Person, somebody
from tests.server_processes import Stack


@pytest.fixture
def people(committed_db: str) -> list[Person]:
    return [somebody() for _ in range(4)]


@contextmanager
def no_faults(log: Path) -> Iterator[None]:
    """What a process says meanwhile names no fault; what it said before was another test's."""
    before = log.stat().st_size
    yield
    with log.open("rb") as file:
        file.seek(before)
        lines = file.read().decode().splitlines()
    words = ("Traceback", "handler_failed", "task_failed", "beat_failed", "chore_failed")
    assert [line for line in lines if any(word in line for word in words)] == []


async def test_whatever_clients_send_costs_them_no_more_than_the_protocol_says(
    stack: Stack, web: str, people: list[Person]
) -> None:
    with no_faults(stack.log(web)):
        found = await fuzz.fuzz(web, [person.access_token for person in people], 2_000)
    assert found.frames >= 2_000
    assert set(found.codes) <= fuzz.ALLOWED


@pytest.mark.parametrize("field", ["device_id", "name", "platform", "app_version", "capabilities"])
async def test_a_hello_that_no_database_can_hold_is_refused_like_any_bad_frame(
    web: str, people: list[Person], field: str
) -> None:
    value: Any = ["a\0b"] if field == "capabilities" else "a\0b"
    async with Remote(web, people[0].access_token) as socket:
        await socket.send({"type": "device_hello", "device_id": "x", "protocol": 2, field: value})
        error = await socket.receive("error")
        assert error["code"] == "bad_frame"
        assert "\0" not in error["message"]
        await socket.hello()


async def test_a_device_that_never_reads_is_dropped_and_the_others_are_served(
    stack: Stack, people: list[Person]
) -> None:
    impatient = stack.web(ADIUVA_PONG_S="0.5")
    deaf, other = people[:2]
    async with AsyncExitStack() as ends:
        ends.enter_context(no_faults(stack.log(impatient)))
        socket = await ends.enter_async_context(Remote(impatient, deaf.access_token))
        near = await ends.enter_async_context(Remote(impatient, other.access_token))
        await socket.hello(capabilities=[])
        socket.ws.transport.pause_reading()
        async with answering(near), DeviceLink(deaf.id) as link, DeviceLink(other.id) as served:
            large = {"title": "x" * 900_000}
            calls = [link.call(new_call("insert", "notes", data=large)) for _ in range(20)]
            sending = asyncio.gather(*calls, return_exceptions=True)
            while not sending.done():
                assert (await served.call(new_call("select", "tasks"))).row is not None
            # What lay in the server's hands was not sent, what lay on the network may have been: none is lost.
            outcomes = await sending
            assert all(
                getattr(error, "code", "") in ("device_offline", "outcome_unknown") for error in outcomes
            )
            assert any(isinstance(error, OutcomeUnknown) for error in outcomes)
            assert not await db.run(_online, deaf)
            assert await db.run(_online, other)
        await socket.drop()


def _online(person: Person) -> bool:
    from adiuva.devices.models import Device

    return Device.objects.of(person.id).online().exists()
