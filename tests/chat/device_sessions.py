"""Device sessions for tests of the tools: with a real headless device, or with a scripted socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from langchain_core.tools import ToolException

from adiuva.devices.client import IN_MEMORY, Device, DeviceConfig
from adiuva.devices.link import DeviceLink
from chat.device_session import DeviceSession
from chat.tools import DEVICE_TOOLS
from tests.devices.link_endpoints import Answer, Frame, Local, answering
from tests.factories import Person

TOOLS = {tool.name: tool for tool in DEVICE_TOOLS}
NOW = datetime(2026, 11, 18, 9, 30, tzinfo=UTC)  # a Wednesday


def make_session(link: DeviceLink, zone: str = "Europe/Rome", now: datetime = NOW) -> DeviceSession:
    return DeviceSession(link, zone=ZoneInfo(zone), now=now)


async def call_tool(session: DeviceSession, name: str, /, **arguments: Any) -> str:
    """What a tool answers, called as the turn loop calls it."""
    call = {"name": name, "args": arguments, "id": "call-1", "type": "tool_call"}
    answer = await TOOLS[name].ainvoke(call, {"configurable": {"session": session}})
    assert (answer.tool_call_id, answer.status) == ("call-1", "success")
    return str(answer.content)


async def tool_failure(session: DeviceSession, name: str, /, **arguments: Any) -> str:
    """What a tool says when it fails."""
    try:
        answer = await call_tool(session, name, **arguments)
    except ToolException as failed:
        return str(failed)
    raise AssertionError(f"it answered: {answer}")


class ConnectedDevice:
    """A person's device with its rows, and the device session of a turn that works on it."""

    def __init__(self, device: Device, link: DeviceLink) -> None:
        self.device, self.link = device, link
        self.session = make_session(link)

    def at(self, zone: str, now: datetime = NOW) -> DeviceSession:
        """The device session of another turn."""
        return make_session(self.link, zone, now)

    def put(self, table: str, /, **row: Any) -> str:
        """Put a row on the device; returns its id."""
        [result] = self.device.store.apply(
            [{"id": f"put-{table}-{row}", "action": "insert", "table": table, "data": row}]
        )
        assert "row" in result, result
        return str(result["row"]["id"])

    def rows(self, table: str) -> list[dict[str, Any]]:
        from adiuva.devices.tables import TABLES

        return self.device.store.select(TABLES[table], {"includeArchived": True})

    async def use(self, name: str, /, **arguments: Any) -> str:
        return await call_tool(self.session, name, **arguments)


@asynccontextmanager
async def connected_device(web: str, person: Person, **options: Any) -> AsyncIterator[ConnectedDevice]:
    config = DeviceConfig(
        server=web,
        workspace=IN_MEMORY,
        email=person.email,
        password=person.password,
        access_token=person.access_token,
        refresh_token=person.refresh_token,
        **options,
    )
    async with Device(config) as device, DeviceLink(person.id) as link:
        await device.connected()
        yield ConnectedDevice(device, link)


@asynccontextmanager
async def scripted_device(
    person: Person, answer: Answer, **hello: Any
) -> AsyncIterator[tuple[DeviceSession, list[Frame]]]:
    """A device session, and the frames that its device was sent."""
    async with (
        Local("http://local", person.access_token) as socket,
        answering(socket, answer=answer, **hello) as frames,
        DeviceLink(person.id, wait_s=20.0) as link,  # a hello of protocol 1 is not acknowledged
    ):
        yield make_session(link), frames


def rows(*found: dict[str, Any]) -> Answer:
    """A device that answers each call with these rows."""
    return lambda call: {"id": call["id"], "rows": list(found)}
