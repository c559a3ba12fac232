"""Servers, users, devices and mailboxes, and the comparison of the mailboxes' messages with the devices' rows."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from adiuva.embedded.ports import free_port
from adiuva.embedded.processes import Child
from bench.harness import BenchServers, bench_servers, listens
from bench.mail.fault_scripts import LATENCY_S, PAGE, Scenario
from tests.fakes.google import Google
from tests.fakes.graph import Graph
from tests.fakes.identity import Identity

_PASSWORD: Final = "correct horse battery"
_POLL_S: Final = 0.3
_SWEEP_EVERY_S: Final = 1.0
MOST_RUNS: Final = 25
PATIENCE_S: Final = 900.0
# How early a request may seem to come: on a busy machine, an answer arrives some time after it was sent.
_TRANSIT_TOLERANCE_S: Final = 1.2


@dataclass
class SimulatedUser:
    name: str
    email: str
    token: str
    workspace: Path


@dataclass
class Outcome:
    """The result of a scenario. `problems` describes in words what does not hold."""

    scenario: Scenario
    problems: list[str] = field(default_factory=list)
    run_ends: list[str] = field(default_factory=list)  # how each of its runs ended
    on_device: int = 0
    listed: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def requests(self) -> int:
        return len(self.scenario.box.asked)


class MailboxSimulation:
    """All of Adiuva on loopback, with mail providers that misbehave."""

    def __init__(
        self, servers: BenchServers, identity: Identity, google: Google, graph: Graph, sabotage: str
    ) -> None:
        self.servers, self.identity, self.google, self.graph = servers, identity, google, graph
        self._celery = ("-m", "bench.mail.sabotaged_worker", sabotage) if sabotage else ("-m", "celery")
        self._consents = threading.Lock()
        self._http = httpx.Client(timeout=60, trust_env=False)
        self.base = servers.web(ADIUVA_ACCESS_TOKEN_S="7200")
        self._sweeping = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep, name="sweep", daemon=True)
        self._sweeper.start()

    def close(self) -> None:
        self._sweeping.set()
        self._sweeper.join()

    def worker(self, name: str, **env: str) -> Child:
        options = ("--without-mingle", "--without-gossip", "-n", f"{name}@localhost")
        return self.servers.run(name, *self._celery, "-A", "adiuva", "worker", *options, **env)

    def _sweep(self) -> None:
        """Sweep runs, as beat lets a worker do."""
        from django.db import connections

        from agents import runs

        while not self._sweeping.wait(_SWEEP_EVERY_S):
            try:
                runs.sweep()
            finally:
                connections.close_all()

    # Users

    def create_users(self, names: Sequence[str]) -> list[SimulatedUser]:
        """Create users with one device each. The devices are connected when this returns."""
        from adiuva.devices.models import Device

        found = []
        for name in names:
            email = f"{name}@users.example.com"
            answer = self.ask("POST", "auth/register", json={"email": email, "password": _PASSWORD})
            found.append(
                SimulatedUser(name, email, answer["access_token"], self.servers.folder / "devices" / name)
            )
        empty = self.servers.folder / "empty"
        empty.mkdir(exist_ok=True)
        file = self.servers.folder / f"devices-{names[0]}.jsonl"
        about = [
            {
                "workspace": str(user.workspace),
                "folder": str(empty),
                "email": user.email,
                "password": _PASSWORD,
                "device_id": f"device of {user.name}",
            }
            for user in found
        ]
        file.write_text("\n".join(map(json.dumps, about)), "utf-8")
        before = Device.objects.online().count()
        arguments = (self.base, str(file), "0", str(len(found)))
        self.servers.run(f"devices-{names[0]}", "-m", "bench.chaos.devices", *arguments)
        until = time.monotonic() + 60
        while Device.objects.online().count() < before + len(found):
            if time.monotonic() > until:
                raise TimeoutError("the devices did not connect")
            time.sleep(0.1)
        return found

    def ask(self, method: str, path: str, token: str = "", **options: Any) -> Any:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        url = path if path.startswith("/") else f"/api/v1/{path}"
        answer = self._http.request(method, f"{self.base}{url}", headers=headers, **options)
        if answer.status_code >= 300 and answer.status_code != 409:
            raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
        return answer.json() if "json" in answer.headers.get("Content-Type", "") else answer.text

    def scenario(self, name: str, user: SimulatedUser, provider: str, size: int, seed: int) -> Scenario:
        server = self.google if provider == "gmail" else self.graph
        box: Any = server.mailbox(user.name)
        box.page, box.latency_s = PAGE, LATENCY_S
        if provider == "outlook":
            box.folder("Clients")
        return Scenario(name, provider, box, self.identity, size, seed)

    def connect(self, scenario: Scenario, user: SimulatedUser) -> None:
        """Connect the account as its user would: through the provider's consent page."""
        begun = self.ask("GET", f"oauth/{scenario.provider}/authorize", user.token)
        with self._consents:
            self.identity.account = scenario.account
            back = urlsplit(self.identity.consent(begun["authorization_url"]))
        self.ask("GET", f"{back.path}?{back.query}")

    def agent(self, scenario: Scenario, user: SimulatedUser, name: str = "Mail") -> str:
        body = {
            "provider": scenario.provider,
            "name": name,
            "data_types": ["tasks"],
            "prompt_template": "Find what is to be done.",
        }
        return str(self.ask("POST", "agents/cloud", user.token, json=body)["id"])

    # Runs

    def run_scenario(self, scenario: Scenario, user: SimulatedUser) -> Outcome:
        """Run an agent until it finds nothing new, as its schedule would; then compare."""
        from django.db import connections

        outcome, began = Outcome(scenario), time.monotonic()
        try:
            self.connect(scenario, user)
            agent = self.agent(scenario, user)
            while not self.is_finished(scenario, self.run(scenario, user, agent, outcome)):
                if len(outcome.run_ends) >= MOST_RUNS:
                    outcome.problems.append(f"not read in full after {MOST_RUNS} runs")
                    break
            compare(outcome, user, agent)
        except Exception as error:
            outcome.problems.append(f"{type(error).__name__}: {error}")
        finally:
            connections.close_all()
        outcome.seconds = time.monotonic() - began
        return outcome

    @staticmethod
    def is_finished(scenario: Scenario, run: Any) -> bool:
        """Whether a run succeeded and found nothing new, and the script has no further step."""
        if run.state not in ("success", "partial") or run.files_seen > run.files_unchanged + run.files_failed:
            return False
        if scenario.after_runs:
            scenario.after_runs.pop(0)()
            return False
        return True

    def run(self, scenario: Scenario, user: SimulatedUser, agent: str, outcome: Outcome) -> Any:
        """Run the agent until the run and its delivery have ended. A lost account is connected again."""
        from agents.models import Run

        run_id = self.ask("POST", f"agents/{agent}/run", user.token)["run_id"]
        until, reconnections = time.monotonic() + PATIENCE_S, 0
        while (run := Run.objects.get(pk=run_id)).is_live or run.undelivered or run.lease_until:
            if time.monotonic() > until:
                outcome.problems.append(f"a run is stuck as {run.state} {run.phase}")
                raise TimeoutError("stuck")
            if run.state == "awaiting_reauth":
                reconnections += 1
                if not scenario.may_need_reconnect:
                    outcome.problems.append("the account needed a reconnect although nobody revoked it")
                self.connect(scenario, user)
            time.sleep(_POLL_S)
        outcome.run_ends.append(" ".join(filter(None, [run.state, "reconnected" if reconnections else ""])))
        return run


@contextmanager
def mailbox_simulation(sabotage: str) -> Iterator[MailboxSimulation]:
    """`sabotage` names the guarantee that the workers lack, or is empty."""
    port = free_port()
    with Identity() as identity, Google(identity) as google, Graph(identity) as graph:
        google.on_the_way_s = graph.on_the_way_s = _TRANSIT_TOLERANCE_S
        os.environ |= {
            **identity.env(),
            "ADIUVA_GMAIL_API": google.url,
            "ADIUVA_GRAPH_API": graph.api,
            "ADIUVA_MODEL": "openai/scripted",
            "ADIUVA_MODEL_API_BASE": f"http://127.0.0.1:{port}/v1",
            "ADIUVA_RUN_RETRY_S": "1",
            "ADIUVA_RUN_LONGEST_RETRY_S": "2",
        }
        with bench_servers() as servers:
            model = servers.run("model", "-m", "bench.chaos.extraction_model", str(port))
            made = MailboxSimulation(servers, identity, google, graph, sabotage)
            model.wait_until(lambda: listens(port), within_s=30)
            try:
                yield made
            finally:
                made.close()


# ── The comparison ──────────────────────────────────────────────────────────────────────────────────────


def compare(outcome: Outcome, user: SimulatedUser, agent: str) -> None:
    """Compare the device's rows, the journal and the provider's request log with what the scenario expects."""
    scenario, problems = outcome.scenario, outcome.problems
    on_device, listed = _rows(user.workspace), _listed(agent)
    outcome.on_device = on_device.total()
    outcome.listed = Counter(code for codes in listed.values() for code in codes)
    delivered_or_listed = Counter(scenario.delivered_or_listed.values())
    lost = scenario.expected - on_device
    double = on_device - scenario.expected - delivered_or_listed - Counter(scenario.optional)
    unsaid = {
        key
        for key, title in scenario.delivered_or_listed.items()
        if not on_device[title] and key not in listed
    }
    for what, found in (
        ("lost", list(lost.elements())),
        ("duplicate, or of no message", list(double.elements())),
        ("neither on the device nor listed", sorted(unsaid)),
        ("not listed", sorted(scenario.listed - listed.keys())),
        ("requested before the Retry-After had passed", scenario.box.early),
    ):
        if found:
            problems.append(f"{len(found)} {what}, such as {found[0]!r}")
    if scenario.box.peak > 4:
        problems.append(f"{scenario.box.peak} requests at once")
    for state, count in _records(user).items():
        if state != "delivered":
            problems.append(f"{count} records are {state}")


def _rows(workspace: Path) -> Counter[str]:
    with closing(sqlite3.connect(f"file:{workspace / 'data.sqlite3'}?mode=ro", uri=True)) as store:
        return Counter(row[0] for row in store.execute("SELECT title FROM tasks"))


def _listed(agent: str) -> dict[str, set[str]]:
    """Message id → failure codes, from the journals of an agent's runs."""
    from agents import journal
    from agents.models import Run

    found: dict[str, set[str]] = {}
    for run in Run.objects.filter(agent_ref=agent):
        after_runs = 0
        while events := journal.read(run, after=after_runs):
            after_runs = events[-1]["seq"]
            for event in events:
                if event["kind"] == "source_failed" and event.get("source") and event.get("message"):
                    found.setdefault(event["source"].removeprefix("message "), set()).add(event["code"])
    return found


def _records(user: SimulatedUser) -> Counter[str]:
    """Counts the user's outbox records by state."""
    from adiuva.devices.models import OutboxRecord

    mine = OutboxRecord.objects.filter(user__email=user.email)
    return Counter(mine.order_by().values_list("state", flat=True))
