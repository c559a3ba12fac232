"""Twenty agents of another user, whose device is silent or whose model hangs, keep nobody from anything.

These tests count; how long things take beside such a neighbour is measured by `bench.neighbours`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

from pytest_django import Settings

from adiuva.core import db
from adiuva.llm.concurrency import FIRST_LIMIT
from agents.models import Run
from agents.run_loop import RunLoop
from tests.agents.device_owner import TIMEOUT_S, DeviceOwner, connected, document_text, tasks_from_lines
from tests.chat.chat_client import connect
from tests.factories import somebody
from tests.fakes.provider import Hold, Provider, Request
from tests.socket_client import Socket

AGENTS = 20
SLOTS_PER_USER = 4  # the default of ADIUVA_RUN_SLOTS_PER_USER

State = Run.State


def states(owner: DeviceOwner) -> Counter[str]:
    return Counter(Run.objects.of(owner.person.id).values_list("state", flat=True))


@asynccontextmanager
async def newcomer(web: str, folder: Path) -> AsyncIterator[DeviceOwner]:
    folder.mkdir(parents=True)
    made = DeviceOwner(web, await db.run(somebody), folder)
    yield made
    await made.rest.aclose()


async def start_all(owner: DeviceOwner) -> list[str]:
    runs = [await owner.start(await owner.agent()) for _ in range(AGENTS)]
    async with asyncio.timeout(TIMEOUT_S):
        while (await db.run(states, owner))["running"] < SLOTS_PER_USER:
            await asyncio.sleep(0.05)
    return runs


async def assert_nothing_is_held_up(bystander: DeviceOwner, neighbour: DeviceOwner) -> None:
    """The bystander's run, export and chat come to their ends while the neighbour's runs hold all they may hold."""
    bystander.write("one.md", "do call Ada")
    async with connected(bystander):
        seen = await bystander.run(await bystander.agent())
        assert (seen["state"], seen["items_created"]) == ("success", 1)
        answer = await bystander.rest.post("/account/export", json={"password": bystander.person.password})
        assert answer.status_code == 202, answer.text
        export = answer.json()
        async with asyncio.timeout(TIMEOUT_S):
            while (await bystander.rest.get(f"/account/export/{export['id']}")).json()["state"] != "ready":
                await asyncio.sleep(0.05)
        async with connect(bystander.web, bystander.person, device_id="chat") as client:
            assert (await client.say("Hello")).kinds()[-1] == "stream_end"
    found = await db.run(states, neighbour)
    assert found["running"] <= SLOTS_PER_USER
    assert found["queued"] == AGENTS - found["running"] >= AGENTS - SLOTS_PER_USER


async def cancel_all(owner: DeviceOwner, runs: list[str]) -> None:
    for run in reversed(runs):
        assert (await owner.rest.post(f"/agents/runs/{run}/cancel")).status_code in (200, 202)
    for run in runs:
        await owner.until(run, lambda seen: seen["state"] == "cancelled")


async def test_the_agents_of_a_silent_device(desk: DeviceOwner, provider: Provider, tmp_path: Path) -> None:
    provider.default = lambda request: tasks_from_lines(request) if request.schema else "Hello."
    async with (
        newcomer(desk.web, tmp_path / "neighbour") as neighbour,
        Socket(desk.web, neighbour.person.access_token) as socket,
    ):
        await socket.hello(device_id="desk")
        pings = asyncio.create_task(socket.receive("never"))  # answered; nothing else is
        runs = await start_all(neighbour)
        await assert_nothing_is_held_up(desk, neighbour)
        await cancel_all(neighbour, runs)
        pings.cancel()
        await asyncio.gather(pings, return_exceptions=True)


async def test_the_agents_whose_model_hangs(desk: DeviceOwner, provider: Provider, tmp_path: Path) -> None:
    holds: list[Hold] = []

    def answer(request: Request) -> Any:
        if not request.schema:
            return "Hello."
        if "hang" not in document_text(request):
            return tasks_from_lines(request)
        holds.append(Hold({"records": []}))
        return holds[-1]

    provider.default = answer
    async with newcomer(desk.web, tmp_path / "neighbour" / "documents") as neighbour:
        for number in range(10):
            neighbour.write(f"{number}.md", f"do hang {number}")  # a copy would not be read
        async with connected(neighbour):
            runs = await start_all(neighbour)
            async with asyncio.timeout(TIMEOUT_S):
                while (
                    len(holds) < FIRST_LIMIT - FIRST_LIMIT // 4
                ):  # what one user may have of the endpoint's places
                    await asyncio.sleep(0.05)
            await assert_nothing_is_held_up(desk, neighbour)
            await cancel_all(neighbour, runs)
    for hold in holds:
        hold.release()


def test_a_run_that_waits_takes_no_slot_of_its_process(settings: Settings) -> None:
    settings.RUNS = settings.RUNS | {"slots": 1, "most_held": 3}
    loop = RunLoop()

    def holding(*waiting: bool) -> bool:
        loop._tasks = {Mock(): Mock(is_waiting=lambda waits=waits: waits) for waits in waiting}
        return not loop._has_room()

    assert not holding()
    assert not holding(True, True)
    assert holding(True, True, True)  # those that wait have a bound as well
    assert holding(True, False)
