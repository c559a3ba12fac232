"""All of Adiuva on loopback, in processes that may be killed: two web processes, two workers, beat, PostgreSQL, Valkey.

The databases are durable, as in production. A killed process is restarted on the same port with the same data; one that
exits by itself is restarted as well, and counted.
"""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psycopg

from adiuva.embedded.ports import free_port
from adiuva.embedded.postgres import Postgres
from adiuva.embedded.processes import Child, StackError, python, tail
from adiuva.embedded.rest_client import is_up
from adiuva.embedded.valkey import Valkey
from bench.harness import ROOT, listens
from tests.forkserver import ForkedChild

_POLL_S: Final = 0.2
_START_TIMEOUT_S: Final = 60.0
_WORKER_OPTIONS: Final = ("--without-mingle", "--without-gossip")


class Servers:
    """Processes by name: web-1, web-2, worker-1, worker-2, beat, valkey, postgres, devices-1, devices-2."""

    def __init__(self, folder: Path, *, sabotage: str = "", web: str = "adiuva.server", **env: str) -> None:
        """`sabotage`: of the workers. `web`: the module of the web processes."""
        self.folder, self.sabotage, self.web = folder, sabotage, web
        self.children: dict[str, Child] = {}
        self.kills: Counter[str] = Counter()
        self.unplanned_exits: Counter[str] = Counter()
        self.killed: set[str] = set()  # and not restarted yet
        self.database = ""
        self.ports: dict[str, int] = {}
        password = secrets.token_hex(16)
        self._postgres = Postgres(folder / "postgres", password=password, log=folder / "postgres.log")
        self._valkey = Valkey(folder / "valkey", password=password, log=folder / "valkey.log")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("ADIUVA_")} | {
            "ADIUVA_ENV_FILE": os.devnull,
            "ADIUVA_ENV": "development",
            "ADIUVA_STATE_DIR": str(folder / "state"),
            "ADIUVA_SECRET_KEY": secrets.token_urlsafe(40),
            "ADIUVA_KEYS": f"chaos:{base64.b64encode(secrets.token_bytes(32)).decode()}",
            "ADIUVA_LOGIN_ADDRESS_RATE": "1000000/min",  # all devices come from one address
            "ADIUVA_LOGIN_RATE": "1000000/min",
            "ADIUVA_REFRESH_RATE": "1000000/min",
            "DJANGO_SETTINGS_MODULE": "adiuva.settings",
            **env,
        }

    def start(self, *, model_s: float = 0.0, failure_rate: float = 0.0, model: str = "") -> None:
        """Start everything. Call it from a thread that outlives the servers: they end with it.

        `model`: the base URL of one that runs already; without it, the extraction model starts.
        """
        self.database = self._postgres.start()
        assert self._postgres.child is not None
        self.children["postgres"] = self._postgres.child
        redis = self._valkey.start()
        assert self._valkey.child is not None
        self.children["valkey"] = self._valkey.child
        port, is_given = free_port(), bool(model)
        model = model or f"http://127.0.0.1:{port}/v1"
        self.env |= {
            "DATABASE_URL": self.database,
            "REDIS_URL": redis,
            "ADIUVA_MODEL": "openai/scripted",
            "ADIUVA_MODEL_API_BASE": model,
        }
        if not is_given:
            self.add(
                "model", "-m", "bench.chaos.extraction_model", str(port), str(model_s), str(failure_rate)
            )
        celery = ("-m", "bench.chaos.sabotaged_worker", self.sabotage) if self.sabotage else ("-m", "celery")
        for number in (1, 2):
            port = self.ports[f"web-{number}"] = free_port()
            self.add(f"web-{number}", "-m", self.web, ADIUVA_PORT=str(port))
            node = ("-n", f"chaos{number}@localhost")
            self.add(f"worker-{number}", *celery, "-A", "adiuva", "worker", *_WORKER_OPTIONS, *node)
        self._migrate()  # the processes load meanwhile
        self.add("beat", "-m", "celery", "-A", "adiuva", "beat", "--pidfile=")
        for name, port in self.ports.items():
            child, base = self.children[name], f"http://127.0.0.1:{port}"
            child.wait_until(lambda base=base: is_up(base), within_s=_START_TIMEOUT_S, every_s=0.1)  # type: ignore[misc]

    def _migrate(self) -> None:
        log = self.folder / "migrate.log"
        migration = ForkedChild(
            "migrate", python("-m", "adiuva.embedded.migrate"), log, env=self.env, cwd=ROOT
        )
        migration.start()
        if migration.wait(within_s=120):
            raise StackError(f"the database could not be prepared: {tail(log)}")

    def add(self, name: str, *arguments: str, **env: str) -> Child:
        child = ForkedChild(
            name, python(*arguments), self.folder / f"{name}.log", env=self.env | env, cwd=ROOT
        )
        self.children[name] = child
        child.start()
        return child

    def stop(self) -> None:
        """Stop everything, in reverse order of the start."""
        for child in reversed(list(self.children.values())):
            child.stop()

    # Killing

    def kill(self, name: str) -> bool:
        """Send SIGKILL. Returns False if the process is down already."""
        child = self.children[name]
        if name in self.killed or not child.alive:
            return False
        self.killed.add(name)
        self.kills[name] += 1
        child.kill()
        return True

    def restart(self, name: str) -> None:
        """Start a killed process. `restart_exited` tries again if it fails, as PostgreSQL does while its former child
        processes still run."""
        self.children[name].start()
        self.killed.discard(name)

    async def restart_exited(self) -> None:
        """Restart processes that exit by themselves, until cancelled."""
        while True:
            await asyncio.sleep(_POLL_S)
            for name, child in self.children.items():
                if name not in self.killed and not child.alive:
                    if not (name == "postgres" and time.monotonic() - child.since < 5):
                        self.unplanned_exits[name] += 1
                    child.start()

    async def wait_until_up(self) -> None:
        """Restart what is down, and wait until everything answers."""
        for name in list(self.killed):
            self.restart(name)
        checks: list[Callable[[], bool]] = [self.database_is_up]
        checks += [lambda port=port: listens(port) for port in self.ports.values()]  # type: ignore[misc]
        async with asyncio.timeout(_START_TIMEOUT_S):
            while not all([await asyncio.to_thread(check) for check in checks]):
                await asyncio.sleep(0.1)

    def database_is_up(self) -> bool:
        try:
            with psycopg.connect(self.database, connect_timeout=2) as connection:
                connection.execute("SELECT 1")
        except psycopg.Error:
            return False
        return True
