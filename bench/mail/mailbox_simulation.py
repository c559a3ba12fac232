"""Servers, people, devices and mailboxes, and what of the mailboxes' messages is on the devices in the end."""

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
from bench.harness import Ground, ground, listens
from bench.mail.fault_scripts import LATENCY_S, PAGE, Scene
from tests.fakes.google import Google
from tests.fakes.graph import Graph
from tests.fakes.identity import Identity

_PASSWORD: Final = "correct horse battery"
_LOOK_EVERY_S: Final = 0.3
_SWEEP_EVERY_S: Final = 1.0
MOST_RUNS: Final = 25
PATIENCE_S: Final = 900.0
# A busy machine takes its time until what was sent has arrived.
_ON_THE_WAY_S: Final = 1.2


@dataclass
class Person:
    name: str
    email: str
    token: str
    workspace: Path


@dataclass
class Outcome:
    """What became of a scene. `wrong`: what must not be, in words."""

    scene: Scene
    wrong: list[str] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)  # of its runs
    held: int = 0
    listed: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def asked(self) -> int:
        return len(self.scene.box.asked)


class World:
    """All of Adiuva on loopback, beside providers that misbehave."""

    def __init__(self, there: Ground, identity: Identity, google: Google, graph: Graph, control: str) -> None:
        self.there, self.identity, self.google, self.graph = there, identity, google, graph
        self._celery = ("-m", "bench.mail.control", control) if control else ("-m", "celery")
        self._consents = threading.Lock()
        self._http = httpx.Client(timeout=60, trust_env=False)
        self.base = there.web(ADIUVA_ACCESS_TOKEN_S="7200")
        self._sweeping = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep, name="sweep", daemon=True)
        self._sweeper.start()

    def close(self) -> None:
        self._sweeping.set()
        self._sweeper.join()

    def worker(self, name: str, **env: str) -> Child:
        options = ("--without-mingle", "--without-gossip", "-n", f"{name}@localhost")
        return self.there.run(name, *self._celery, "-A", "adiuva", "worker", *options, **env)

    def _sweep(self) -> None:
        """What beat has done each ten seconds."""
        from django.db import connections

        from agents import runs

        while not self._sweeping.wait(_SWEEP_EVERY_S):
            try:
                runs.sweep()
            finally:
                connections.close_all()

    # People

    def people(self, names: Sequence[str]) -> list[Person]:
        """Users who each have a device, which is connected when this returns."""
        from adiuva.devices.models import Device

        found = []
        for name in names:
            email = f"{name}@users.example.com"
            answer = self.ask("POST", "auth/register", json={"email": email, "password": _PASSWORD})
            found.append(Person(name, email, answer["access_token"], self.there.folder / "devices" / name))
        empty = self.there.folder / "empty"
        empty.mkdir(exist_ok=True)
        file = self.there.folder / f"devices-{names[0]}.jsonl"
        about = [
            {
                "workspace": str(person.workspace),
                "folder": str(empty),
                "email": person.email,
                "password": _PASSWORD,
                "device_id": f"device of {person.name}",
            }
            for person in found
        ]
        file.write_text("\n".join(map(json.dumps, about)), "utf-8")
        before = Device.objects.online().count()
        arguments = (self.base, str(file), "0", str(len(found)))
        self.there.run(f"devices-{names[0]}", "-m", "bench.chaos.devices", *arguments)
        until = time.monotonic() + 60
        while Device.objects.online().count() < before + len(found):
            if time.monotonic() > until:
                raise TimeoutError("the devices did not come")
            time.sleep(0.1)
        return found

    def ask(self, method: str, path: str, token: str = "", **options: Any) -> Any:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        url = path if path.startswith("/") else f"/api/v1/{path}"
        answer = self._http.request(method, f"{self.base}{url}", headers=headers, **options)
        if answer.status_code >= 300 and answer.status_code != 409:
            raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
        return answer.json() if "json" in answer.headers.get("Content-Type", "") else answer.text

    def scene(self, name: str, person: Person, provider: str, size: int, seed: int) -> Scene:
        server = self.google if provider == "gmail" else self.graph
        box: Any = server.mailbox(person.name)
        box.page, box.latency_s = PAGE, LATENCY_S
        if provider == "outlook":
            box.folder("Clients")
        return Scene(name, provider, box, self.identity, size, seed)

    def connect(self, scene: Scene, person: Person) -> None:
        """The user's way through the provider's consent page."""
        begun = self.ask("GET", f"oauth/{scene.provider}/authorize", person.token)
        with self._consents:
            self.identity.account = scene.account
            back = urlsplit(self.identity.consent(begun["authorization_url"]))
        self.ask("GET", f"{back.path}?{back.query}")

    def agent(self, scene: Scene, person: Person, name: str = "Mail") -> str:
        body = {
            "provider": scene.provider,
            "name": name,
            "data_types": ["tasks"],
            "prompt_template": "Find what is to be done.",
        }
        return str(self.ask("POST", "agents/cloud", person.token, json=body)["id"])

    # Runs

    def play(self, scene: Scene, person: Person) -> Outcome:
        """Run an agent until nothing is left to be found, as its schedule would; then compare."""
        from django.db import connections

        outcome, began = Outcome(scene), time.monotonic()
        try:
            self.connect(scene, person)
            agent = self.agent(scene, person)
            while not self.is_over(scene, self.run(scene, person, agent, outcome)):
                if len(outcome.ends) >= MOST_RUNS:
                    outcome.wrong.append(f"not read in full after {MOST_RUNS} runs")
                    break
            compare(outcome, person, agent)
        except Exception as error:
            outcome.wrong.append(f"{type(error).__name__}: {error}")
        finally:
            connections.close_all()
        outcome.seconds = time.monotonic() - began
        return outcome

    @staticmethod
    def is_over(scene: Scene, run: Any) -> bool:
        """Whether a run ended well and found nothing new, with nothing more to happen."""
        if run.state not in ("success", "partial") or run.files_seen > run.files_unchanged + run.files_failed:
            return False
        if scene.after:
            scene.after.pop(0)()
            return False
        return True

    def run(self, scene: Scene, person: Person, agent: str, outcome: Outcome) -> Any:
        """One run to its end and to the end of its delivery; an account that is lost is connected again."""
        from agents.models import Run

        run_id = self.ask("POST", f"agents/{agent}/run", person.token)["run_id"]
        until, again = time.monotonic() + PATIENCE_S, 0
        while (run := Run.objects.get(pk=run_id)).is_live or run.undelivered or run.lease_until:
            if time.monotonic() > until:
                outcome.wrong.append(f"a run is stuck as {run.state} {run.phase}")
                raise TimeoutError("stuck")
            if run.state == "awaiting_reauth":
                again += 1
                if not scene.may_be_lost:
                    outcome.wrong.append("an account was lost that was not taken back")
                self.connect(scene, person)
            time.sleep(_LOOK_EVERY_S)
        outcome.ends.append(" ".join(filter(None, [run.state, "reconnected" if again else ""])))
        return run


@contextmanager
def world(control: str) -> Iterator[World]:
    """`control`: of the workers, or none."""
    port = free_port()
    with Identity() as identity, Google(identity) as google, Graph(identity) as graph:
        google.on_the_way_s = graph.on_the_way_s = _ON_THE_WAY_S
        os.environ |= {
            **identity.env(),
            "ADIUVA_GMAIL_API": google.url,
            "ADIUVA_GRAPH_API": graph.api,
            "ADIUVA_MODEL": "openai/scripted",
            "ADIUVA_MODEL_API_BASE": f"http://127.0.0.1:{port}/v1",
            "ADIUVA_RUN_RETRY_S": "1",
            "ADIUVA_RUN_LONGEST_RETRY_S": "2",
        }
        with ground() as there:
            model = there.run("model", "-m", "bench.chaos.model", str(port))
            made = World(there, identity, google, graph, control)
            model.wait_until(lambda: listens(port), within_s=30)
            try:
                yield made
            finally:
                made.close()


# ── The comparison ──────────────────────────────────────────────────────────────────────────────────────


def compare(outcome: Outcome, person: Person, agent: str) -> None:
    """What the device holds against what it must hold; what is listed; what the provider saw."""
    scene, wrong = outcome.scene, outcome.wrong
    held, listed = _rows(person.workspace), _listed(agent)
    outcome.held = held.total()
    outcome.listed = Counter(code for codes in listed.values() for code in codes)
    either = Counter(scene.either.values())
    lost = scene.due - held
    double = held - scene.due - either - Counter(scene.perhaps)
    unsaid = {key for key, title in scene.either.items() if not held[title] and key not in listed}
    for what, found in (
        ("lost", list(lost.elements())),
        ("double, or of no message", list(double.elements())),
        ("neither on the device nor listed", sorted(unsaid)),
        ("not listed", sorted(scene.listed - listed.keys())),
        ("asked for before its time", scene.box.early),
    ):
        if found:
            wrong.append(f"{len(found)} {what}, such as {found[0]!r}")
    if scene.box.peak > 4:
        wrong.append(f"{scene.box.peak} requests at once")
    for state, count in _records(person).items():
        if state != "delivered":
            wrong.append(f"{count} records are {state}")


def _rows(workspace: Path) -> Counter[str]:
    with closing(sqlite3.connect(f"file:{workspace / 'data.sqlite3'}?mode=ro", uri=True)) as store:
        return Counter(row[0] for row in store.execute("SELECT title FROM tasks"))


def _listed(agent: str) -> dict[str, set[str]]:
    """The messages that the journals of an agent's runs name, with the reasons."""
    from agents import journal
    from agents.models import Run

    found: dict[str, set[str]] = {}
    for run in Run.objects.filter(agent_ref=agent):
        after = 0
        while events := journal.read(run, after=after):
            after = events[-1]["seq"]
            for event in events:
                if event["kind"] == "source_failed" and event.get("source") and event.get("message"):
                    found.setdefault(event["source"].removeprefix("message "), set()).add(event["code"])
    return found


def _records(person: Person) -> Counter[str]:
    """The user's records by their states."""
    from adiuva.devices.models import OutboxRecord

    mine = OutboxRecord.objects.filter(user__email=person.email)
    return Counter(mine.order_by().values_list("state", flat=True))
