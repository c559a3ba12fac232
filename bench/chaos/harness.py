"""A storm from beginning to end: people, devices and agents; what is written meanwhile; calm; the comparison."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import aiohttp
import psycopg

from bench.chaos import audit, documents, schedule
from bench.chaos.audit import Findings
from bench.chaos.documents import Agent
from bench.chaos.servers import Servers
from bench.chaos.tcp_chaos_proxy import Front

WAVES: Final = 6
_PASSWORD: Final = "correct horse battery"
_PROCESSES: Final = 2  # of devices
_LOOK_EVERY_S: Final = 0.5
_TRIES: Final = 8  # of a run that is to cover an agent's last document


@dataclass(frozen=True)
class Form:
    """How much of everything."""

    seconds: float = 600.0
    records: int = 20_000
    devices: int = 100
    kills: int = 96
    cuts: int = 330  # some sockets end before the moment that their cut waits for
    seed: int = 1
    lease_s: float = 60.0
    model_s: float = 0.5
    fails: float = 0.01  # of the model's calls
    control: str = ""
    brief: bool = False  # without the measure of how soon runs are taken up when all workers have died


@dataclass
class Outcome:
    findings: Findings
    kills: Counter[str]
    cuts: Counter[str]
    ended_by_themselves: Counter[str]
    sockets: int
    storm_s: float
    calm_s: float
    all_s: float
    extra_runs: int  # after the storm, for agents whose last documents no run had read in full
    recoveries_s: list[float]
    endings: Counter[str]
    errors: Counter[str]


@dataclass
class _Known:
    """What the database says of an agent's runs."""

    live: bool = False
    covered_at: float = 0.0  # when the latest run began that ended well


@dataclass
class _Driven:
    """An agent, its owner's session, and how far it is."""

    agent: Agent
    token: str
    id: str = ""
    written_at: float = 0.0
    known: _Known = field(default_factory=_Known)

    @property
    def is_covered(self) -> bool:
        return not self.known.live and self.known.covered_at > self.written_at


class Harness:
    def __init__(self, form: Form, folder: Path, say: Callable[[str], None]) -> None:
        self.form, self.folder, self.say = form, folder, say
        self.chance = random.Random(form.seed)
        self.front = Front(random.Random(form.seed + 1))
        self.servers = Servers(
            folder,
            control=form.control,
            ADIUVA_RUN_LEASE_S=str(form.lease_s),
            ADIUVA_RUN_QUARANTINE_S="2",  # a storm kills as many workers in minutes as others in years
            ADIUVA_ACCESS_TOKEN_S="7200",
            ADIUVA_ANSWER_S="10",
        )
        self.agents = documents.agents(
            folder / "documents",
            devices=form.devices,
            records=form.records,
            waves=WAVES + (not form.brief),  # the last is for the time after the storm
            seed=form.seed,
        )
        self.driven: list[_Driven] = []
        self.extra_runs = 0

    async def run(self) -> Outcome:
        began = time.monotonic()
        self.servers.start(model_s=self.form.model_s, fails=self.form.fails)
        keeping = asyncio.create_task(self.servers.keep_up())
        try:
            self.front.ports = list(self.servers.ports.values())
            port = await self.front.open()
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}/api/v1/") as self.http:
                await self._people(port)
                watching = asyncio.create_task(self._watch())
                self.say(f"up after {time.monotonic() - began:.0f} s; the storm begins")
                storm_began = time.monotonic()
                await self._storm()
                calm_began = time.monotonic()
                await self.servers.until_up()
                await self._calm()
                self.say(f"calm after {time.monotonic() - calm_began:.0f} s")
                recoveries = [] if self.form.brief else await self._kill_all_workers()
                watching.cancel()
            calm_s = time.monotonic() - calm_began
            findings = await asyncio.to_thread(
                audit.compare, self.agents, self.folder / "workspaces", self.servers.database
            )
            endings = await asyncio.to_thread(audit.why_runs_failed, self.servers.database)
        finally:
            keeping.cancel()
            await self.front.close()
            self.servers.stop()
        return Outcome(
            findings,
            self.servers.kills,
            self.front.cut,
            self.servers.ended_by_themselves,
            self.front.sockets,
            calm_began - storm_began,
            calm_s,
            time.monotonic() - began,
            self.extra_runs,
            recoveries,
            endings,
            audit.errors(self.folder),
        )

    # People

    async def _people(self, port: int) -> None:
        """Accounts, devices and agents, by the front door. The second agent of every fifth device has a schedule."""
        lines: list[str] = []
        gate = asyncio.Semaphore(8)

        async def person(place: int) -> str:
            email = f"{uuid4().hex}@example.com"
            async with gate:
                answer = await self._ask(
                    "POST", "auth/register", json={"email": email, "password": _PASSWORD}
                )
                for agent in self.agents[2 * place : 2 * place + 2]:
                    driven = _Driven(agent, answer["access_token"])
                    scheduled = agent.number == 2 and agent.device % 5 == 0
                    await self._make(driven, "* * * * *" if scheduled else "")
                    self.driven.append(driven)
            about = {
                "workspace": str(self.folder / "workspaces" / str(place)),
                "folder": str(self.agents[2 * place].folder.parent),
                "email": email,
                "password": _PASSWORD,
                "device_id": f"device-{place}",
            }
            return json.dumps(about)

        lines = await asyncio.gather(*(person(place) for place in range(self.form.devices)))
        file = self.folder / "devices.jsonl"
        file.write_text("\n".join(lines), "utf-8")
        share = -(-self.form.devices // _PROCESSES)
        for number in range(_PROCESSES):
            first, last = number * share, min((number + 1) * share, self.form.devices)
            module = (
                "-m",
                "bench.chaos.devices",
                f"http://127.0.0.1:{port}",
                str(file),
                str(first),
                str(last),
            )
            self.servers.add(f"devices-{number + 1}", *module)
        async with asyncio.timeout(60):
            while self.front.sockets < self.form.devices:
                await asyncio.sleep(0.1)

    async def _make(self, driven: _Driven, schedule: str) -> None:
        agent = driven.agent
        agent.folder.mkdir(parents=True, exist_ok=True)
        body = {
            "name": agent.name,
            "device_id": f"device-{agent.device}",
            "directory_paths": [str(agent.folder)],
            "data_types": ["tasks", "notes"],
            "prompt_template": "Find what is to be done, and what is to be kept.",
            "file_extensions": [".md"],
            "schedule_cron": schedule,
        }
        made = await self._ask("POST", "agents/local", token=driven.token, json=body)
        driven.id = made["id"]

    async def _ask(self, method: str, path: str, *, token: str = "", **options: Any) -> Any:
        """An answer of the API; tried again while the servers are away. A conflict is an answer, too."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with asyncio.timeout(120):
            while True:
                try:
                    async with self.http.request(method, path, headers=headers, **options) as answer:
                        if answer.status < 300 or answer.status == 409:
                            return await answer.json()
                        if answer.status < 500:
                            raise RuntimeError(f"{method} {path}: {answer.status} {await answer.text()}")
                except (aiohttp.ClientError, OSError):
                    pass
                await asyncio.sleep(0.2)

    # The storm

    async def _storm(self) -> None:
        form = self.form
        blows = schedule.plan(seconds=form.seconds, kills=form.kills, cuts=form.cuts, chance=self.chance)
        async with asyncio.TaskGroup() as group:
            group.create_task(schedule.rage(blows, self.servers, self.front, self.chance))
            for driven in self.driven:
                group.create_task(self._write(driven, self.chance.random()))

    async def _write(self, driven: _Driven, offset: float) -> None:
        """An agent's documents come into its folder over the time of the storm, and each time it is run."""
        began, step = time.monotonic(), self.form.seconds / WAVES
        for wave in range(WAVES):
            await asyncio.sleep(max(0.0, began + (wave + offset) * step * 0.95 - time.monotonic()))
            self._put(driven, wave)
            await self._start(driven)

    def _put(self, driven: _Driven, wave: int) -> None:
        driven.agent.write(wave)
        driven.written_at = time.time()

    async def _start(self, driven: _Driven) -> None:
        await self._ask("POST", f"agents/{driven.id}/run", token=driven.token)

    async def _watch(self) -> None:
        """Read from the database how the agents' runs stand, for ever."""
        by_id = {UUID(driven.id): driven for driven in self.driven}
        while True:
            for agent_id, live, covered_at in await asyncio.to_thread(self._look):
                by_id[agent_id].known = _Known(live, covered_at.timestamp() if covered_at else 0.0)
            await asyncio.sleep(_LOOK_EVERY_S)

    def _look(self) -> list[tuple[UUID, bool, dt.datetime | None]]:
        query = """
            SELECT agent_ref, bool_or(state IN ('queued', 'waiting_device', 'awaiting_reauth', 'running')),
                max(started_at) FILTER (WHERE state = 'success' AND NOT EXISTS (
                    SELECT FROM agents_source AS source WHERE source.agent_id = agent_ref AND outcome = 'poison'))
            FROM agents_run GROUP BY agent_ref
        """
        try:
            with psycopg.connect(self.servers.database, connect_timeout=2) as connection:
                return connection.execute(query).fetchall()
        except psycopg.Error:
            return []

    # Calm

    async def _calm(self) -> None:
        """Wait until each agent has had a run that began after its last document and ended well, and none is live, nor
        any document set aside over which three workers died by chance.

        An agent whose run ended otherwise in the storm is run again, as its schedule would. What is not there after
        the time that two lost leases take is stuck; the comparison says so.
        """
        left_s = 2 * self.form.lease_s + 60
        tries: Counter[str] = Counter()
        until = time.monotonic() + left_s
        await asyncio.sleep(2 * _LOOK_EVERY_S)
        while time.monotonic() < until:
            open_ = [driven for driven in self.driven if not driven.is_covered]
            if not open_:
                return
            idle = [driven for driven in open_ if not driven.known.live and tries[driven.id] < _TRIES]
            for driven in idle:
                tries[driven.id] += 1
                self.extra_runs += 1
                await self._start(driven)
            await asyncio.sleep(2 * _LOOK_EVERY_S)
        self.say(f"not calm after {left_s:.0f} s: {len(open_)} agents have not read all of their documents")

    async def _kill_all_workers(self) -> list[float]:
        """Kill all workers while they have runs; how long each run was in nobody's hands."""
        await self._in_turn(self._put_last)
        until, wanted = time.monotonic() + 5, max(1, len(self.driven) // 20)
        while time.monotonic() < until and len(await asyncio.to_thread(self._running)) < wanted:
            await asyncio.sleep(0.02)
        killed_at = dt.datetime.now(dt.UTC)
        workers = [name for name in self.servers.children if name.startswith("worker")]
        for name in workers:
            self.servers.kill(name)
        running = await asyncio.to_thread(self._running)
        for name in workers:
            self.servers.back(name)
        await self._calm()
        return await asyncio.to_thread(self._taken_up, running, killed_at)

    async def _put_last(self, driven: _Driven) -> None:
        self._put(driven, WAVES)
        await self._start(driven)

    async def _in_turn(self, work: Callable[[_Driven], Awaitable[None]]) -> None:
        await asyncio.gather(*(work(driven) for driven in self.driven))

    def _running(self) -> list[UUID]:
        with psycopg.connect(self.servers.database) as connection:
            return [row[0] for row in connection.execute("SELECT id FROM agents_run WHERE state = 'running'")]

    def _taken_up(self, runs: list[UUID], since: dt.datetime) -> list[float]:
        query = """
            SELECT min(extract(epoch FROM at - %s)) FROM agents_runevent
            WHERE run_id = ANY(%s) AND at > %s AND kind IN ('started', 'finished') GROUP BY run_id
        """
        with psycopg.connect(self.servers.database) as connection:
            return [float(row[0]) for row in connection.execute(query, [since, runs, since])]
