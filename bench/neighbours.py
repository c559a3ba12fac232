"""Delays of a bystander while twenty agents of another user wait for a silent device or a hanging model.

`python -m bench.neighbours`. Web, a worker for each lane, and real devices; the bystander runs an agent over one file,
exports the account and chats, alone and beside those agents, by turns.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from bench.harness import BenchServers, bench_servers, median, record

if TYPE_CHECKING:  # needs Django, which is set up on servers of the bench's own
    from tests.agents.device_owner import DeviceOwner

AGENTS: Final = 20
FILES: Final = 10  # of each agent whose model hangs
ROUNDS: Final = 3
SAMPLES: Final = 4  # in each round
PATIENCE_S: Final = 120
WHAT: Final = ("run", "export", "chat")


class Neighbourhood:
    """People at one web process, whose model is the fake provider: it never answers what holds the word "hang"."""

    def __init__(self, servers: BenchServers) -> None:
        from tests.agents.device_owner import document_text, tasks_from_lines
        from tests.fakes.provider import Hold, Provider, Request

        def answer(request: Request) -> Any:
            if not request.schema:
                return "Hello."
            return Hold() if "hang" in document_text(request) else tasks_from_lines(request)

        self.servers = servers
        self.provider = servers.exit_stack.enter_context(Provider(default=answer))
        model = {"ADIUVA_MODEL": "openai/scripted", "ADIUVA_MODEL_API_BASE": self.provider.url}
        self.web = servers.web(**model)
        for lane in ("runs", "short"):
            arguments = (
                "worker",
                f"-Q{lane}",
                "--without-mingle",
                "--without-gossip",
                "-n",
                f"{lane}@localhost",
            )
            servers.run(f"worker-{lane}", "-m", "celery", "-A", "adiuva", *arguments, **model)

    async def newcomer(self) -> DeviceOwner:
        """A person with a folder, whose device is not connected."""
        from adiuva.core import db
        from tests.agents.device_owner import DeviceOwner
        from tests.factories import somebody

        folder = self.servers.folder / uuid4().hex / "documents"
        folder.mkdir(parents=True)
        return DeviceOwner(self.web, await db.run(somebody), folder)

    @asynccontextmanager
    async def owner(self) -> AsyncIterator[DeviceOwner]:
        """A person whose device reads a folder."""
        from tests.agents.device_owner import connected

        async with connected(await self.newcomer()) as owner:
            yield owner
        await owner.rest.aclose()

    @asynccontextmanager
    async def silent(self) -> AsyncIterator[None]:
        """Twenty agents were started whose device answers pings and nothing else."""
        from tests.socket_client import Socket

        owner = await self.newcomer()
        async with Socket(self.web, owner.person.access_token) as socket:
            await socket.hello(device_id="desk")
            answering = asyncio.create_task(socket.receive("never"))
            runs = [await owner.start(await owner.agent()) for _ in range(AGENTS)]
            await owner.until(runs[0], lambda seen: seen["state"] == "running")
            yield
            await _cancel(owner, runs)
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
        await owner.rest.aclose()

    @asynccontextmanager
    async def hanging(self) -> AsyncIterator[None]:
        """Twenty agents were started over files that the model never answers."""
        async with self.owner() as owner:
            for number in range(FILES):
                owner.write(f"{number}.md", f"do hang {number}")
            asked = len(self.provider.calls)
            runs = [await owner.start(await owner.agent()) for _ in range(AGENTS)]
            async with asyncio.timeout(PATIENCE_S):
                while len(self.provider.calls) == asked:
                    await asyncio.sleep(0.05)
            yield
            await _cancel(owner, runs)


async def _cancel(owner: DeviceOwner, runs: list[str]) -> None:
    for run in reversed(runs):  # those that wait first, so that none begins meanwhile
        (await owner.rest.post(f"/agents/runs/{run}/cancel")).raise_for_status()


async def bystand(place: Neighbourhood, took: dict[str, list[float]]) -> None:
    """A new person runs an agent over one file, exports the account and chats, once each."""
    from tests.chat.chat_client import connect

    async with place.owner() as owner:
        owner.write("one.md", f"do call {uuid4().hex}")
        agent = await owner.agent()

        async def run() -> None:
            seen = await owner.run(agent)
            assert (seen["state"], seen["items_created"]) == ("success", 1), seen

        async def export() -> None:
            answer = await owner.rest.post("/account/export", json={"password": owner.person.password})
            made = answer.raise_for_status().json()
            async with asyncio.timeout(PATIENCE_S):
                while (await owner.rest.get(f"/account/export/{made['id']}")).json()["state"] != "ready":
                    await asyncio.sleep(0.02)

        async with connect(place.web, owner.person, device_id="chat") as client:

            async def chat() -> None:
                stream = await client.say("Hello")
                assert stream.end is not None

            await chat()  # warm
            for name, work in zip(WHAT, (run, export, chat), strict=True):
                took[name].append(await _seconds(work))


async def _seconds(work: Callable[[], Awaitable[None]]) -> float:
    started = time.perf_counter()
    await work()
    return time.perf_counter() - started


async def measure(place: Neighbourhood) -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = {
        kind: {name: [] for name in WHAT} for kind in ("alone", "silent", "hanging")
    }
    await bystand(place, {name: [] for name in WHAT})  # warm
    for _ in range(ROUNDS):  # by turns, so that all see the same machine
        for _ in range(SAMPLES):
            await bystand(place, found["alone"])
        for kind, neighbours in (("silent", place.silent), ("hanging", place.hanging)):
            async with neighbours():
                for _ in range(SAMPLES):
                    await bystand(place, found[kind])
    return found


def main(servers: BenchServers) -> None:
    found = asyncio.run(measure(Neighbourhood(servers)))
    print(f"A bystander beside {AGENTS} agents of another user, medians of {ROUNDS * SAMPLES}")
    for name in WHAT:
        for kind, meaning in (("silent", "a silent device"), ("hanging", "a model that hangs")):
            took, alone = (_by_turns(found[each][name]) for each in (kind, "alone"))
            record(f"{name}: beside {meaning}", took, "ms", beside=alone, name="alone", ratio_most=1.5)


def _by_turns(seconds: list[float]) -> list[float]:
    """Of each round, the median in ms."""
    return [median(seconds[at : at + SAMPLES]) * 1000 for at in range(0, len(seconds), SAMPLES)]


if __name__ == "__main__":
    with bench_servers() as started:
        main(started)
    sys.exit(0)
