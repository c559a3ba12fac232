"""All of Adiuva on loopback, in processes that may be killed: two web processes, two workers, beat, PostgreSQL, Valkey.

The servers are durable, as in production. Who is killed comes back on the same port with the same data; who ends by
itself is started again as well, and counted.
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

from adiuva.embedded.api_client import is_up
from adiuva.embedded.ports import free_port
from adiuva.embedded.postgres import Postgres
from adiuva.embedded.processes import Child, StackError, python, tail
from adiuva.embedded.valkey import Valkey
from bench.harness import ROOT, listens
from tests.forkserver import ForkedChild

_LOOK_EVERY_S: Final = 0.2
_UP_WITHIN_S: Final = 60.0
_QUIET: Final = ("--without-mingle", "--without-gossip")


class Servers:
    """`kill(name)` and `back(name)`; names are web-1, web-2, worker-1, worker-2, beat, valkey, postgres, devices-…"""

    def __init__(self, folder: Path, *, control: str = "", **env: str) -> None:
        self.folder, self.control = folder, control
        self.children: dict[str, Child] = {}
        self.kills: Counter[str] = Counter()
        self.ended_by_themselves: Counter[str] = Counter()
        self.killed: set[str] = set()  # and not to be started again yet
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

    def start(self, *, model_s: float, fails: float) -> None:
        """Bring all up. Call it from the thread that lives as long as they are to."""
        self.database = self._postgres.start()
        assert self._postgres.child is not None
        self.children["postgres"] = self._postgres.child
        redis = self._valkey.start()
        assert self._valkey.child is not None
        self.children["valkey"] = self._valkey.child
        port = free_port()
        model = f"http://127.0.0.1:{port}/v1"
        self.env |= {
            "DATABASE_URL": self.database,
            "REDIS_URL": redis,
            "ADIUVA_MODEL": "openai/scripted",
            "ADIUVA_MODEL_API_BASE": model,
        }
        self.add("model", "-m", "bench.chaos.model", str(port), str(model_s), str(fails))
        celery = ("-m", "bench.chaos.control", self.control) if self.control else ("-m", "celery")
        for number in (1, 2):
            port = self.ports[f"web-{number}"] = free_port()
            self.add(f"web-{number}", "-m", "adiuva.server", ADIUVA_PORT=str(port))
            node = ("-n", f"chaos{number}@localhost")
            self.add(f"worker-{number}", *celery, "-A", "adiuva", "worker", *_QUIET, *node)
        self._migrate()  # they load meanwhile
        self.add("beat", "-m", "celery", "-A", "adiuva", "beat", "--pidfile=")
        for name, port in self.ports.items():
            child, base = self.children[name], f"http://127.0.0.1:{port}"
            child.wait_until(lambda base=base: is_up(base), within_s=_UP_WITHIN_S, every_s=0.1)  # type: ignore[misc]

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
        """End all, the last one first."""
        for child in reversed(list(self.children.values())):
            child.stop()

    # Killing

    def kill(self, name: str) -> bool:
        """Kill -9. False: it is dead already."""
        child = self.children[name]
        if name in self.killed or not child.alive:
            return False
        self.killed.add(name)
        self.kills[name] += 1
        child.kill()
        return True

    def back(self, name: str) -> None:
        """Start one that was killed. `keep_up` starts it anew should it fail: PostgreSQL does, while processes of its
        former self are still there."""
        self.children[name].start()
        self.killed.discard(name)

    async def keep_up(self) -> None:
        """Start whoever ends by itself, for ever."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            for name, child in self.children.items():
                if name not in self.killed and not child.alive:
                    if not (name == "postgres" and time.monotonic() - child.since < 5):
                        self.ended_by_themselves[name] += 1
                    child.start()

    async def until_up(self) -> None:
        """Wait until all are there and answer."""
        for name in list(self.killed):
            self.back(name)
        checks: list[Callable[[], bool]] = [self.database_is_up]
        checks += [lambda port=port: listens(port) for port in self.ports.values()]  # type: ignore[misc]
        async with asyncio.timeout(_UP_WITHIN_S):
            while not all([await asyncio.to_thread(check) for check in checks]):
                await asyncio.sleep(0.1)

    def database_is_up(self) -> bool:
        try:
            with psycopg.connect(self.database, connect_timeout=2) as connection:
                connection.execute("SELECT 1")
        except psycopg.Error:
            return False
        return True
