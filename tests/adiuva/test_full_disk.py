"""A full disk under Valkey or PostgreSQL, and a database that takes no writes: 503 with a code, and then all goes on.

Each server's data is on a small file system of its own, which the test fills. That needs a right to mount.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
import redis

from adiuva.embedded.ports import free_port
from adiuva.embedded.postgres import Postgres
from adiuva.embedded.processes import Child, python
from adiuva.embedded.valkey import Valkey
from tests.fakes.provider import Provider
from tests.server_processes import Stack, answers, model_of
from tests.socket_client import Socket

WITHIN_S = 90
PASSWORD = "correct horse battery"


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of this size. Skips the test where none can be mounted."""
    folder.mkdir(parents=True)
    options = f"size={megabytes}m,mode=0755"
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small file system cannot be mounted here ({type(error).__name__})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=False, capture_output=True)


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """The file system is full, and has room again however the block ends: other tests use it, too."""
    filling = disk / "filling"
    try:
        with filling.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        yield
    finally:
        filling.unlink()


def wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + WITHIN_S
    while not holds():
        assert time.monotonic() < until, "it did not come to that in time"
        time.sleep(0.2)


@dataclass
class Installation:
    """Web, a worker and beat, on servers whose disks are small."""

    web: str
    database_disk: Path
    redis_disk: Path
    database_url: str
    redis_url: str
    children: dict[str, Child]

    def checks(self) -> dict[str, Any]:
        answer = httpx.get(f"{self.web}/api/v1/health/ready", timeout=30)
        found: dict[str, Any] = answer.json()["checks"]
        assert (answer.status_code == 200) == all(check["ok"] for check in found.values())
        return found

    def is_ready(self) -> bool:
        return all(check["ok"] for check in self.checks().values())

    def failing(self) -> set[str]:
        return {name for name, check in self.checks().items() if not check["ok"]}

    def assert_nothing_has_died(self) -> None:
        assert [name for name, child in self.children.items() if not child.alive] == []

    def owner(self) -> httpx.Client:
        client = httpx.Client(base_url=f"{self.web}/api/v1", timeout=60)
        body = {"email": f"{uuid4().hex}@example.com", "password": PASSWORD}
        made = client.post("/auth/register", json=body)
        assert made.status_code in (200, 201), made.text
        client.headers["Authorization"] = f"Bearer {made.json()['access_token']}"
        return client


@pytest.fixture(scope="module")
def installation(forkserver: None, _provider: Provider) -> Iterator[Installation]:
    with ExitStack() as ends:
        # Not below pytest's folder, which it closes to other users, and PostgreSQL runs as one where we are root.
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="adiuva-disks-")))
        folder.chmod(0o711)
        database_disk = ends.enter_context(small_disk(folder / "database", 220))
        redis_disk = ends.enter_context(small_disk(folder / "redis", 4))
        postgres = Postgres(database_disk / "data", password="secret", log=folder / "postgres.log")
        valkey = Valkey(redis_disk / "data", password="secret", log=folder / "valkey.log")
        ends.callback(postgres.stop)
        ends.callback(valkey.stop)
        servers = {"DATABASE_URL": postgres.start(), "REDIS_URL": valkey.start()}
        stack = Stack(servers["DATABASE_URL"], folder, REDIS_URL=servers["REDIS_URL"], **model_of(_provider))
        ends.callback(stack.stop)
        migrating = stack.run("migrate", python("-m", "django", "migrate", "-v0")).process
        assert migrating is not None and migrating.wait(300) == 0
        port = free_port()
        web = f"http://127.0.0.1:{port}"
        celery = ("-m", "celery", "-A", "adiuva")
        children = {
            "web": stack.run("web", python("-m", "adiuva.server"), ADIUVA_PORT=str(port)),
            "worker": stack.run("worker", python(*celery, "worker", "--without-mingle", "--without-gossip")),
            "beat": stack.run("beat", python(*celery, "beat", "--pidfile=")),
        }
        children["web"].wait_until(lambda: answers(f"{web}/api/v1/health"), within_s=120, every_s=0.1)
        made = Installation(web, database_disk, redis_disk, *servers.values(), children)
        wait_until(made.is_ready)
        yield made


def refused(answer: httpx.Response, store: str) -> bool:
    """Whether a request was refused because of a store. It must be that, or have succeeded."""
    if answer.status_code < 300:
        return False
    body = answer.json()
    assert (answer.status_code, body["code"], body.get("store")) == (503, "unavailable", store), answer.text
    assert answer.headers["Retry-After"]
    return True


def agent(client: httpx.Client, text: str = "Find what is to be done.") -> httpx.Response:
    body = {
        "name": "Desk",
        "device_id": "desk",
        "directory_paths": ["/documents"],
        "data_types": ["tasks"],
        "prompt_template": text,
        "schedule_cron": "",
    }
    return client.post("/agents/local", json=body)


def ask_export(client: httpx.Client) -> httpx.Response:
    return client.post("/account/export", json={"password": PASSWORD})


def has_export(client: httpx.Client) -> None:
    """The workers do their work: a new export is made."""
    made = ask_export(client)
    assert made.status_code == 202, made.text
    seen: dict[str, Any] = {}

    def has_ended() -> bool:
        seen.update(client.get(f"/account/export/{made.json()['id']}").json())
        return seen["state"] not in ("queued", "running")

    wait_until(has_ended)
    assert seen["state"] == "ready", seen


def test_valkey_on_a_full_disk(installation: Installation) -> None:
    owner = installation.owner()
    store = redis.Redis.from_url(installation.redis_url)

    def takes_no_writes() -> bool:
        try:
            store.set("filler", bytes(100_000))
        except redis.ResponseError as error:
            return str(error).startswith("MISCONF")
        return False

    with filled(installation.redis_disk):
        wait_until(takes_no_writes)
        checks = installation.checks()
        assert checks["redis"]["reason"] == "Redis takes no writes (MISCONF)"
        login = {"email": "nobody@example.com", "password": "x"}
        assert refused(httpx.post(f"{installation.web}/api/v1/auth/login", json=login, timeout=60), "redis")
        assert refused(ask_export(owner), "redis")  # guesses of the password are counted there
        # What needs no Redis goes on, and nothing of it is lost: the row decides, and the workers find it.
        made = agent(owner)
        assert made.status_code == 201
        run = owner.post(f"/agents/{made.json()['id']}/run").json()["run_id"]
    wait_until(installation.is_ready)
    installation.assert_nothing_has_died()
    wait_until(lambda: owner.get(f"/agents/runs/{run}").json()["state"] == "waiting_device")
    has_export(owner)


async def test_postgresql_on_a_full_disk(installation: Installation) -> None:
    owner = installation.owner()
    token = owner.headers["Authorization"].removeprefix("Bearer ")
    async with Socket(installation.web, token) as socket:
        await socket.hello(device_id="desk")
        kept: list[str] = []

        def is_full() -> bool:
            answer = agent(owner, os.urandom(9_000).hex())
            if refused(answer, "database"):
                return True
            kept.append(answer.json()["id"])
            return False

        with filled(installation.database_disk):
            wait_until(is_full)
            assert "database" in installation.failing()
            reason = installation.checks()["database"]["reason"]
            assert reason.startswith(("the database takes no writes", "the database does not answer"))
    wait_until(installation.is_ready)
    installation.assert_nothing_has_died()
    # What was answered with success is there, and what was refused is not.
    wait_until(lambda: owner.get("/agents/local?limit=1").status_code == 200)
    assert owner.get("/agents/local?limit=1").headers["X-Total-Count"] == str(len(kept))
    has_export(owner)


async def test_a_database_that_takes_no_writes(installation: Installation) -> None:
    owner = installation.owner()
    token = owner.headers["Authorization"].removeprefix("Bearer ")

    def set_read_only(value: str) -> None:
        with psycopg.connect(installation.database_url, autocommit=True) as database:
            database.execute("SET default_transaction_read_only = off")
            database.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")  # type: ignore[arg-type]
            database.execute("SELECT pg_reload_conf()")

    async with Socket(installation.web, token) as socket:
        await socket.hello(device_id="desk")
        set_read_only("on")
        try:
            wait_until(lambda: "database" in installation.failing())
            assert (
                installation.checks()["database"]["reason"]
                == "the database takes no writes (it is read only)"
            )
            assert refused(agent(owner), "database")
            assert refused(ask_export(owner), "database")
            assert owner.get("/agents/local").status_code == 200  # reads go on
            # A request over the socket ends with the same code, and so does one that opens a connection.
            await socket.send({"type": "home_request", "message": "Hello", "request_id": "r1"})
            while (frame := await socket.receive())["type"] != "stream_end":
                pass
            assert "unavailable" in str(frame), frame
            page = httpx.post(
                f"{installation.web}/api-auth/login/",
                data={"username": "a@example.com", "password": "b"},
                timeout=60,
            )
            assert page.status_code < 500 or page.json()["code"] == "unavailable"
        finally:
            set_read_only("off")
    wait_until(installation.is_ready)
    installation.assert_nothing_has_died()
    assert agent(owner).status_code == 201
    has_export(owner)
