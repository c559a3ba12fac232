"""One chaos experiment: create users and agents, inject faults while documents arrive, let it settle, audit."""

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

from bench.chaos import audit, documents, fault_schedule
from bench.chaos.audit import Findings
from bench.chaos.documents import Agent
from bench.chaos.servers import Servers
from bench.chaos.tcp_chaos_proxy import ChaosProxy

WAVES: Final = 6
_PASSWORD: Final = "correct horse battery"
_PROCESSES: Final = 2  # processes that hold the devices
_POLL_S: Final = 0.5
_TRIES: Final = 8  # runs started for an agent after the fault phase, at most


@dataclass(frozen=True)
class ChaosConfig:
    """How large the experiment is."""

    seconds: float = 600.0
    records: int = 20_000
    devices: int = 100
    kills: int = 96
    cuts: int = 330  # some sockets end before the frame that their cut waits for
    seed: int = 1
    lease_s: float = 60.0
    model_s: float = 0.5
    failure_rate: float = 0.01  # share of the model's calls that fail
    sabotage: str = ""
    brief: bool = False  # skip measuring how soon runs are reclaimed after all workers died


@dataclass
class Outcome:
    findings: Findings
    kills: Counter[str]
    cuts: Counter[str]
    unplanned_exits: Counter[str]
    sockets: int
    fault_phase_s: float
    settling_s: float
    all_s: float
    extra_runs: int  # started after the fault phase, for agents whose last documents no run had read in full
    recoveries_s: list[float]
    endings: Counter[str]
    errors: Counter[str]


@dataclass
class _RunStatus:
    """The state of an agent's runs, from the database."""

    live: bool = False
    covered_at: float = 0.0  # start of the latest successful run


@dataclass
class _TrackedAgent:
    """An agent, its owner's access token, and its progress."""

    agent: Agent
    token: str
    id: str = ""
    written_at: float = 0.0
    status: _RunStatus = field(default_factory=_RunStatus)

    @property
    def is_covered(self) -> bool:
        return not self.status.live and self.status.covered_at > self.written_at


class ChaosExperiment:
    def __init__(self, config: ChaosConfig, folder: Path, report: Callable[[str], None]) -> None:
        self.config, self.folder, self.report = config, folder, report
        self.rng = random.Random(config.seed)
        self.proxy = ChaosProxy(random.Random(config.seed + 1))
        self.servers = Servers(
            folder,
            sabotage=config.sabotage,
            ADIUVA_RUN_LEASE_S=str(config.lease_s),
            ADIUVA_RUN_QUARANTINE_S="2",  # this kills as many workers in minutes as production does in years
            ADIUVA_ACCESS_TOKEN_S="7200",
            ADIUVA_ANSWER_S="10",
        )
        self.agents = documents.agents(
            folder / "documents",
            devices=config.devices,
            records=config.records,
            waves=WAVES + (not config.brief),  # the last is written after the fault phase
            seed=config.seed,
        )
        self.tracked: list[_TrackedAgent] = []
        self.extra_runs = 0

    async def run(self) -> Outcome:
        began = time.monotonic()
        self.servers.start(model_s=self.config.model_s, failure_rate=self.config.failure_rate)
        restarting = asyncio.create_task(self.servers.restart_exited())
        try:
            self.proxy.ports = list(self.servers.ports.values())
            port = await self.proxy.open()
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}/api/v1/") as self.http:
                await self._create_users(port)
                watching = asyncio.create_task(self._poll_runs())
                self.report(f"up after {time.monotonic() - began:.0f} s; injecting faults")
                faults_began = time.monotonic()
                await self._inject_faults()
                settling_began = time.monotonic()
                await self.servers.wait_until_up()
                await self._settle()
                self.report(f"settled after {time.monotonic() - settling_began:.0f} s")
                recoveries = [] if self.config.brief else await self._kill_all_workers()
                watching.cancel()
            settling_s = time.monotonic() - settling_began
            findings = await asyncio.to_thread(
                audit.audit_devices, self.agents, self.folder / "workspaces", self.servers.database
            )
            endings = await asyncio.to_thread(audit.count_failure_codes, self.servers.database)
        finally:
            restarting.cancel()
            await self.proxy.close()
            self.servers.stop()
        return Outcome(
            findings,
            self.servers.kills,
            self.proxy.cut,
            self.servers.unplanned_exits,
            self.proxy.sockets,
            settling_began - faults_began,
            settling_s,
            time.monotonic() - began,
            self.extra_runs,
            recoveries,
            endings,
            audit.count_logged_errors(self.folder),
        )

    # Users

    async def _create_users(self, port: int) -> None:
        """Create accounts and agents through the REST API. The second agent of every fifth device has a schedule."""
        lines: list[str] = []
        limit = asyncio.Semaphore(8)

        async def person(place: int) -> str:
            email = f"{uuid4().hex}@example.com"
            async with limit:
                answer = await self._request(
                    "POST", "auth/register", json={"email": email, "password": _PASSWORD}
                )
                for agent in self.agents[2 * place : 2 * place + 2]:
                    tracked = _TrackedAgent(agent, answer["access_token"])
                    scheduled = agent.number == 2 and agent.device % 5 == 0
                    await self._create_agent(tracked, "* * * * *" if scheduled else "")
                    self.tracked.append(tracked)
            about = {
                "workspace": str(self.folder / "workspaces" / str(place)),
                "folder": str(self.agents[2 * place].folder.parent),
                "email": email,
                "password": _PASSWORD,
                "device_id": f"device-{place}",
            }
            return json.dumps(about)

        lines = await asyncio.gather(*(person(place) for place in range(self.config.devices)))
        file = self.folder / "devices.jsonl"
        file.write_text("\n".join(lines), "utf-8")
        share = -(-self.config.devices // _PROCESSES)
        for number in range(_PROCESSES):
            first, last = number * share, min((number + 1) * share, self.config.devices)
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
            while self.proxy.sockets < self.config.devices:
                await asyncio.sleep(0.1)

    async def _create_agent(self, tracked: _TrackedAgent, schedule: str) -> None:
        agent = tracked.agent
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
        made = await self._request("POST", "agents/local", token=tracked.token, json=body)
        tracked.id = made["id"]

    async def _request(self, method: str, path: str, *, token: str = "", **options: Any) -> Any:
        """Returns the API's answer; retries while the servers are down. A conflict (409) counts as an answer."""
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

    # Fault injection

    async def _inject_faults(self) -> None:
        config = self.config
        faults = fault_schedule.plan(
            seconds=config.seconds, kills=config.kills, cuts=config.cuts, rng=self.rng
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(fault_schedule.inject(faults, self.servers, self.proxy, self.rng))
            for tracked in self.tracked:
                group.create_task(self._write(tracked, self.rng.random()))

    async def _write(self, tracked: _TrackedAgent, offset: float) -> None:
        """Write an agent's documents wave by wave over the fault phase, and start a run after each wave."""
        began, step = time.monotonic(), self.config.seconds / WAVES
        for wave in range(WAVES):
            await asyncio.sleep(max(0.0, began + (wave + offset) * step * 0.95 - time.monotonic()))
            self._write_documents(tracked, wave)
            await self._start_run(tracked)

    def _write_documents(self, tracked: _TrackedAgent, wave: int) -> None:
        tracked.agent.write(wave)
        tracked.written_at = time.time()

    async def _start_run(self, tracked: _TrackedAgent) -> None:
        await self._request("POST", f"agents/{tracked.id}/run", token=tracked.token)

    async def _poll_runs(self) -> None:
        """Keep the status of all agents' runs up to date, until cancelled."""
        by_id = {UUID(tracked.id): tracked for tracked in self.tracked}
        while True:
            for agent_id, live, covered_at in await asyncio.to_thread(self._read_run_statuses):
                by_id[agent_id].status = _RunStatus(live, covered_at.timestamp() if covered_at else 0.0)
            await asyncio.sleep(_POLL_S)

    def _read_run_statuses(self) -> list[tuple[UUID, bool, dt.datetime | None]]:
        query = """
            SELECT agent_ref,
                bool_or(state IN ('queued', 'waiting_device', 'awaiting_reauth', 'awaiting_budget', 'running')),
                max(started_at) FILTER (WHERE state = 'success' AND NOT EXISTS (
                    SELECT FROM agents_source AS source WHERE source.agent_id = agent_ref AND outcome = 'poison'))
            FROM agents_run GROUP BY agent_ref
        """
        try:
            with psycopg.connect(self.servers.database, connect_timeout=2) as connection:
                return connection.execute(query).fetchall()
        except psycopg.Error:
            return []

    # Settling

    async def _settle(self) -> None:
        """Wait until each agent has had a successful run that began after its last document, no run is live, and no
        document is quarantined because three workers happened to die over it.

        Agents whose runs failed meanwhile are run again, as their schedules would. What is missing after the time of
        two lost leases is stuck; the audit reports it.
        """
        left_s = 2 * self.config.lease_s + 60
        tries: Counter[str] = Counter()
        until = time.monotonic() + left_s
        await asyncio.sleep(2 * _POLL_S)
        while time.monotonic() < until:
            open_ = [tracked for tracked in self.tracked if not tracked.is_covered]
            if not open_:
                return
            idle = [tracked for tracked in open_ if not tracked.status.live and tries[tracked.id] < _TRIES]
            for tracked in idle:
                tries[tracked.id] += 1
                self.extra_runs += 1
                await self._start_run(tracked)
            await asyncio.sleep(2 * _POLL_S)
        self.report(
            f"not settled after {left_s:.0f} s: {len(open_)} agents have not read all of their documents"
        )

    async def _kill_all_workers(self) -> list[float]:
        """Kill all workers while they hold runs; returns for each run the seconds until it was reclaimed."""
        await self._for_all_agents(self._write_last_documents)
        until, wanted = time.monotonic() + 5, max(1, len(self.tracked) // 20)
        while time.monotonic() < until and len(await asyncio.to_thread(self._running)) < wanted:
            await asyncio.sleep(0.02)
        killed_at = dt.datetime.now(dt.UTC)
        workers = [name for name in self.servers.children if name.startswith("worker")]
        for name in workers:
            self.servers.kill(name)
        running = await asyncio.to_thread(self._running)
        for name in workers:
            self.servers.restart(name)
        await self._settle()
        return await asyncio.to_thread(self._recovery_times, running, killed_at)

    async def _write_last_documents(self, tracked: _TrackedAgent) -> None:
        self._write_documents(tracked, WAVES)
        await self._start_run(tracked)

    async def _for_all_agents(self, work: Callable[[_TrackedAgent], Awaitable[None]]) -> None:
        await asyncio.gather(*(work(tracked) for tracked in self.tracked))

    def _running(self) -> list[UUID]:
        with psycopg.connect(self.servers.database) as connection:
            return [row[0] for row in connection.execute("SELECT id FROM agents_run WHERE state = 'running'")]

    def _recovery_times(self, runs: list[UUID], since: dt.datetime) -> list[float]:
        query = """
            SELECT min(extract(epoch FROM at - %s)) FROM agents_runevent
            WHERE run_id = ANY(%s) AND at > %s AND kind IN ('started', 'finished') GROUP BY run_id
        """
        with psycopg.connect(self.servers.database) as connection:
            return [float(row[0]) for row in connection.execute(query, [since, runs, since])]
