"""Kills processes while runs that were started from chats end, and counts how often each end is told.

    python -m bench.chaos.run_ends                 # 300 runs from 60 conversations, 49 kills in six minutes
    python -m bench.chaos.run_ends --sabotage      # message and mark in two transactions: some must be told twice
    python -m bench.chaos.run_ends --users 3 --kills 10 --seconds 40

Users ask for runs in three conversations each, say other things meanwhile, and wait for some of the runs. An end may be
told by the turn that waits for it, by one that runs anyway, by a turn of its own, or by a notice. The model is slow and
fails now and then. Exit code 0: within five minutes of calm each was told exactly once; with the sabotage, not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import UUID, uuid4

import httpx

from bench.chaos import audit, fault_schedule
from bench.chaos.fault_schedule import Fault
from bench.chaos.servers import Servers
from bench.chaos.tcp_chaos_proxy import ChaosProxy
from bench.harness import record, show

CONVERSATIONS: Final = 3  # of a user
RUNS: Final = 5  # of a conversation
CALM_S: Final = 300.0
_SLOWEST_S: Final = 1.5  # an answer of the model
_FAILS: Final = 0.02  # share of its answers
_NAME: Final = re.compile(r"“(agent \d+ \d+)” has ended")  # not those that the memory recalls

T = TypeVar("T")


@dataclass
class Place:
    """A conversation, and its agents by name: their ids."""

    person: Any
    conversation: UUID
    device: str
    agents: dict[str, UUID] = field(default_factory=dict)


class Model:
    """Starts what users name, waits for half of it, and says HEARD with each name whose end it is told."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance

    async def __call__(self, request: Any) -> Any:
        from tests.agents.device_owner import tasks_from_lines
        from tests.fakes.provider import Fail

        await asyncio.sleep(self.chance.random() * _SLOWEST_S)
        if self.chance.random() < _FAILS:
            return Fail(503)
        return tasks_from_lines(request) if request.schema else self._chat(request)

    def _chat(self, request: Any) -> Any:
        from tests.chat.run_end_timings import newest_of
        from tests.fakes.provider import Call

        newest = newest_of(request.body["messages"])
        told = "\n".join(str(message["content"]) for message in newest)
        of_tools = "\n".join(str(message["content"]) for message in newest if message["role"] == "tool")
        if "[From the app, not from the user: a run" in told or "has ended" in of_tools:
            return " ".join(f"HEARD {name}." for name in sorted(set(_NAME.findall(told))))
        asked = re.search(r"run (agent \d+ \d+)\Z", told)
        if of_tools or asked is None:
            return "Very well."
        wait = self.chance.choice([0, 0, 2, 20])
        return Call("run_agent", {"agent": asked[1], "wait_for_result": wait})


class Experiment:
    def __init__(self, folder: Path, given: argparse.Namespace) -> None:
        self.folder, self.given = folder, given
        self.chance = random.Random(given.seed)
        self.proxy = ChaosProxy(random.Random(given.seed + 1))
        self.servers = Servers(
            folder,
            web="bench.chaos.sabotaged_web" if given.sabotage else "adiuva.server",
            ADIUVA_RUN_LEASE_S="15",
            ADIUVA_TURN_LEASE_S="15",
            ADIUVA_RUN_QUARANTINE_S="2",
            ADIUVA_ACCESS_TOKEN_S="7200",
            ADIUVA_EMBEDDING_MODEL="",
        )
        self.places: list[Place] = []
        self.ends: Counter[str] = Counter()

    async def run(self) -> bool:
        """Whether each end was told exactly once."""
        from tests.fakes.provider import Provider

        with Provider(default=Model(self.chance)) as provider:
            self.servers.start(model=provider.url)
            os.environ |= self.servers.env | {"ADIUVA_LOG_LEVEL": "ERROR"}
            import django

            django.setup()
            restarting = asyncio.create_task(self.servers.restart_exited())
            try:
                self.proxy.ports = list(self.servers.ports.values())
                self.base = f"http://127.0.0.1:{await self.proxy.open()}"
                return await self._run()
            finally:
                restarting.cancel()
                await self.proxy.close()
                self.servers.stop()

    async def _run(self) -> bool:
        from adiuva.core import db

        for number in range(self.given.users):
            await db.run(self._create_user, number)
        await self._start_devices()
        print("  up; killing", flush=True)
        async with (
            httpx.AsyncClient(base_url=f"{self.base}/api/v1", timeout=60) as self.http,
            asyncio.TaskGroup() as group,
        ):
            faults = self._faults()
            group.create_task(fault_schedule.inject(faults, self.servers, self.proxy, self.chance))
            for place in self.places:
                group.create_task(self._talk(place))
        await self.servers.wait_until_up()
        began = time.monotonic()
        states: Counter[str] = Counter()
        while time.monotonic() < began + CALM_S:
            states = await self._try(_states)
            if states.total() >= self._runs() and not states.keys() & {"waiting", "due", "held"}:
                break
            await asyncio.sleep(1)
        calm_s = time.monotonic() - began
        await asyncio.sleep(12)  # a second telling might come with the next sweep
        told = await self._try(self._told)
        return self._show(states, told, calm_s)

    def _runs(self) -> int:
        return len(self.places) * RUNS

    def _faults(self) -> list[Fault]:
        """49 kills at the most: five of Redis and two of PostgreSQL, the others of web processes and workers."""
        kills, seconds = self.given.kills, self.given.seconds
        kinds = ["valkey"] * min(5, kills // 8) + ["postgres"] * min(2, kills // 8)
        kinds += [("web", "worker")[number % 2] for number in range(kills - len(kinds))]
        faults = [
            Fault(self.chance.uniform(0.05, 1) * seconds, kind, self.chance.uniform(0, 2)) for kind in kinds
        ]
        return sorted(faults, key=lambda fault: fault.at_s)

    # ── Users ───────────────────────────────────────────────────────────────────────────────────────────

    def _create_user(self, number: int) -> None:
        from tests.agents.factories import create_agent
        from tests.chat.factories import make_conversation
        from tests.factories import somebody

        person, folder = somebody(), self.folder / "documents" / str(number)
        for of_user in range(CONVERSATIONS):
            place = Place(person, make_conversation(person.id).pk, f"device-{number}")
            for run in range(RUNS):
                name = f"agent {number * CONVERSATIONS + of_user} {run}"
                own = folder / name.replace(" ", "-")
                own.mkdir(parents=True)
                (own / "a.md").write_text(f"do what {name} says\n", "utf-8")
                fields = {"directory_paths": [str(own)], "file_extensions": [".md"], "schedule_cron": ""}
                made = create_agent(person.id, name=name, device_id=place.device, **fields)
                place.agents[name] = made.pk
            self.places.append(place)

    async def _start_devices(self) -> None:
        file, users = self.folder / "devices.jsonl", self.places[::CONVERSATIONS]
        lines = [
            json.dumps(
                {
                    "workspace": str(self.folder / "workspaces" / place.device),
                    "folder": str(self.folder / "documents" / str(number)),
                    "email": place.person.email,
                    "password": place.person.password,
                    "device_id": place.device,
                }
            )
            for number, place in enumerate(users)
        ]
        file.write_text("\n".join(lines), "utf-8")
        self.servers.add("devices-1", "-m", "bench.chaos.devices", self.base, str(file), "0", str(len(users)))
        async with asyncio.timeout(120):
            while self.proxy.sockets < len(users):
                await asyncio.sleep(0.2)

    async def _talk(self, place: Place) -> None:
        """Ask for all runs of a conversation over the time of the faults, and say other things in between."""
        pause_s = self.given.seconds / RUNS
        for name, agent in place.agents.items():
            await asyncio.sleep(self.chance.random() * pause_s)
            while not await self._try(_is_started, agent):
                await self._say(place, f"run {name}")
            if self.chance.random() < 0.5:
                await self._say(place, "hello")

    async def _say(self, place: Place, message: str) -> None:
        """Say something, and wait until it is answered or lost."""
        key = uuid4().hex
        body = {"message": message, "request_id": key, "conversation_id": str(place.conversation)}
        headers = {"Authorization": f"Bearer {place.person.access_token}"}
        while (end := await self._try(_end_of, place.person.id, key)) is None or not end:
            if end is None:
                try:
                    answer = await self.http.post(
                        "/chat", json=body | {"device_id": place.device}, headers=headers
                    )
                    if answer.status_code in (400, 401, 404):
                        raise RuntimeError(answer.text)
                except httpx.HTTPError:
                    pass
            await asyncio.sleep(0.3)
        self.ends[end] += 1

    async def _try(self, ask: Callable[..., T], *given: Any) -> T:
        """Ask the database, which may be away."""
        from django.db import Error

        from adiuva.core import db

        while True:
            try:
                return await db.run(ask, *given)
            except Error:
                await asyncio.sleep(0.5)

    # ── Count ───────────────────────────────────────────────────────────────────────────────────────────

    def _told(self) -> dict[str, int]:
        """How often each agent's run was told, by the agent's name."""
        from agents.models import Run
        from chat import conversations
        from chat.models import Conversation

        told = {name: 0 for place in self.places for name in place.agents}
        names = {name: agent for place in self.places for name, agent in place.agents.items()}
        runs = {str(run.pk): run.agent_ref for run in Run.objects.all()}
        of_agent = {agent: name for name, agent in names.items()}
        for place in self.places:
            for message in conversations.read_messages(Conversation.objects.get(pk=place.conversation)):
                if origin := message.get("origin"):
                    heard = [of_agent[runs[run]] for run in origin["run_ids"]]
                else:
                    heard = re.findall(r"HEARD (agent \d+ \d+)\.", message["text"])
                for name in heard:
                    told[name] += 1
        return told

    def _show(self, states: Counter[str], told: dict[str, int], calm_s: float) -> bool:
        kills = ", ".join(f"{name} {count}" for name, count in sorted(self.servers.kills.items()))
        print(f"  killed: {kills}; exited by themselves: {dict(self.servers.unplanned_exits)}")
        print(f"  how the users' requests ended: {dict(self.ends)}; logged: {dict(self._errors())}")
        print(f"  watches: {dict(states)}")
        open_ = sum(count for state, count in states.items() if state in ("waiting", "due", "held"))
        for name, count in told.items():
            if count != 1:
                print(f"  {name} was told {count} times")
        show("processes killed", f"{self.servers.kills.total()}")
        record("settled after the last kill", calm_s, "s", most=300)
        show("runs from conversations", f"{self._runs()} from {len(self.places)}")
        show("told exactly once", f"{sum(count == 1 for count in told.values())}")
        record("told more often", sum(count > 1 for count in told.values()), most=0)
        record("never told", sum(count == 0 for count in told.values()), most=0)
        record("neither done, told nor dead", open_, most=0)
        return not open_ and all(count == 1 for count in told.values())

    def _errors(self) -> dict[str, int]:
        return dict(audit.count_logged_errors(self.folder).most_common(8))


def _states() -> Counter[str]:
    from agents.models import Watch

    return Counter(Watch.objects.values_list("state", flat=True))


def _is_started(agent: UUID) -> bool:
    from agents.models import Watch

    return Watch.objects.filter(run__agent_ref=agent).exists()


def _end_of(user_id: UUID, request_id: str) -> str | None:
    """How a request ended; "" while it has not, None if nobody has taken it."""
    from chat.models import Turn

    row = (
        Turn.objects.of(user_id)
        .filter(request_id=request_id)
        .values_list("ended_at", "state", "code")
        .first()
    )
    if row is None:
        return None
    return "" if row[0] is None else f"{row[1]} {row[2]}".strip()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.chaos.run_ends")
    parser.add_argument("--users", type=int, default=20, help="with three conversations and 15 runs each")
    parser.add_argument("--kills", type=int, default=49)
    parser.add_argument("--seconds", type=float, default=360.0, help="length of the fault phase")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sabotage", action="store_true", help="message and mark in two transactions")
    parser.add_argument("--keep", type=Path, help="folder in which logs and data are kept")
    given = parser.parse_args()
    print(f"Ends of runs under kills, {given.users} users, seed {given.seed}", flush=True)
    from tests import forkserver

    with tempfile.TemporaryDirectory(prefix="adiuva-run-ends-", ignore_cleanup_errors=True) as temporary:
        folder = Path(given.keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o711)  # for PostgreSQL's user, where we are root
        forks = forkserver.start(folder)
        try:
            is_right = asyncio.run(Experiment(folder, given).run())
        finally:
            if forks:
                forks.stop()
    return 0 if is_right is not given.sabotage else 1


if __name__ == "__main__":
    sys.exit(main())
