"""The headless device and the real server, over a real socket."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from adiuva.devices.client import IN_MEMORY, Connected, Device, DeviceConfig, Disconnected, Event, Superseded
from tests.factories import Person

PATIENCE_S = 60.0


async def devices(web: str, person: Person) -> list[dict[str, object]]:
    headers = {"Authorization": f"Bearer {person.access_token}"}
    async with httpx.AsyncClient(base_url=f"{web}/api/v1", headers=headers, timeout=60) as client:
        found: list[dict[str, object]] = (await client.get("/devices")).json()
        return found


@pytest.mark.parametrize("protocol", [1, 2])
async def test_the_device_signs_in_and_the_server_shows_it_online(
    web: str, person: Person, tmp_path: Path, protocol: int
) -> None:
    config = DeviceConfig(
        server=web,
        email=person.email,
        password=person.password,
        workspace=tmp_path,
        name="NAS",
        protocol=protocol,
    )
    device = Device(config)
    async with asyncio.timeout(PATIENCE_S), device:
        await device.connected()
        # Protocol 1 has no word for it: the list says when the server has read the hello.
        while not (found := await devices(web, person)):
            pass
    assert [row["device_id"] for row in found] == [device.device_id]
    assert found[0]["online"] is True


async def test_of_two_with_one_id_the_older_stops(web: str, person: Person) -> None:
    config = DeviceConfig(
        server=web, workspace=IN_MEMORY, device_id="the same", access_token=person.access_token
    )
    first = Device(config)
    running = asyncio.create_task(first.run())
    async with asyncio.timeout(PATIENCE_S):
        await first.connected()
        async with Device(config) as second:
            await second.connected()
            with pytest.raises(Superseded):
                await running


async def test_a_device_whose_session_was_ended_signs_in_anew(
    web: str, person: Person, tmp_path: Path
) -> None:
    seen: asyncio.Queue[Event] = asyncio.Queue()
    config = DeviceConfig(
        server=web,
        email=person.email,
        password=person.password,
        workspace=tmp_path,
    )
    device = Device(config, on_event=seen.put_nowait)
    async with asyncio.timeout(PATIENCE_S), device:
        while not isinstance(await seen.get(), Connected):
            pass
        headers = {"Authorization": f"Bearer {person.access_token}"}
        async with httpx.AsyncClient(base_url=f"{web}/api/v1", headers=headers, timeout=60) as client:
            for session in (await client.get("/auth/sessions")).json():
                if not session.get("current"):
                    assert (await client.delete(f"/auth/sessions/{session['id']}")).is_success
        while not isinstance(ended := await seen.get(), Disconnected):
            pass
        assert ended.code == 4401
        while not isinstance(await seen.get(), Connected):
            pass
