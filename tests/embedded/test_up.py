"""`manage.py up`, as a newcomer meets it: everything starts, shows itself, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from adiuva.embedded.ports import free_port
from adiuva.embedded.rest_client import failing_checks
from adiuva.embedded.state_folder import StateFolder
from tests.server_processes import ROOT

_PATIENCE_S = 240.0


class Up:
    """A running `manage.py up`. Reading its lines is how a test waits for it."""

    def __init__(self, folder: Path, port: int, **env: str) -> None:
        ours = {name: value for name, value in os.environ.items() if not name.startswith("ADIUVA_")}
        del ours["DATABASE_URL"], ours["REDIS_URL"]
        self.process = subprocess.Popen(
            [sys.executable, "manage.py", "up"],
            cwd=ROOT,
            env=ours | _environment(folder, port) | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said: list[str] = []
        self._patience = threading.Timer(_PATIENCE_S, self.process.kill)
        self._patience.start()

    def wait_for(self, words: str) -> str:
        """Read on to the line with these words."""
        assert self.process.stdout
        for line in self.process.stdout:
            self.said.append(line)
            if words in line:
                return line
        raise AssertionError(f"{words!r} was never said:\n{''.join(self.said)}")

    def end(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        return self.wait()

    def wait(self) -> int:
        assert self.process.stdout
        self.said += self.process.stdout.readlines()
        self._patience.cancel()
        self.process.stdout.close()
        return self.process.wait()


def _environment(folder: Path, port: int) -> Mapping[str, str]:
    return {
        "ADIUVA_STATE_DIR": str(folder / "state"),
        "ADIUVA_PORT": str(port),
        "ADIUVA_ENV_FILE": os.devnull,
    }


def test_it_starts_shows_the_records_and_comes_back_with_them_after_a_kill(folder: Path) -> None:
    port = free_port()
    first = Up(folder, port, ADIUVA_GOOGLE_CLIENT_SECRET="a-secret-of-the-tests")
    assert "15 of 15 files" in first.wait_for("Read ")
    assert "new" in first.wait_for("Tasks: ")
    first.wait_for("Adiuva is up")
    password = first.wait_for("Sign in as").split()[-1]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/plugins", timeout=60) as answer:
        page = answer.read().decode()
    assert [name for name in ("Invoices to pay", "Calendar importer", "Paper") if name not in page] == []
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/health/ready", timeout=60) as answer:
        assert answer.status == 200
    assert _elsewhere(folder, port) == "up"
    if sys.platform == "linux":
        knowing = {"preload-django", "web", "worker-runs", "worker-short"}
        made = StateFolder(folder / "state").secrets()
        for secret in ("a-secret-of-the-tests", made.keys, made.database_password):
            assert _who_holds(secret.encode(), folder) == knowing

    second = Up(folder, free_port())
    assert second.wait() == 1
    assert second.said == [
        f"Adiuva cannot run: Adiuva is up already on {folder / 'state'}: process {first.process.pid}, at "
        f"http://127.0.0.1:{port}; end it first (Ctrl-C, or kill {first.process.pid}), or choose another folder "
        "with ADIUVA_STATE_DIR\n"
    ]

    first.end(signal.SIGKILL)
    left = StateFolder(folder / "state")
    left.acquire("a test")  # every child holds the lock while it lives
    left.release()

    again = Up(folder, port)
    again.wait_for("nothing was uploaded and nothing made")
    assert "none new" in again.wait_for("Tasks: ")
    assert again.wait_for("Sign in as").split()[-1] == password
    if sys.platform == "linux":
        _kill_each(again, folder, port)
    assert again.end(signal.SIGINT) == 0
    assert _processes(folder) == {}
    assert not (folder / "state" / "env").exists()
    assert "Traceback" not in "".join(first.said + again.said)


def _processes(folder: Path) -> dict[str, int]:
    """The Python processes of this stack, except the first, by their names."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended, or is another user's
            variables = process.joinpath("environ").read_bytes().split(b"\0")
            words = process.joinpath("cmdline").read_text().split("\0")
            if (
                "adiuva.embedded.preload" in words
                and f"ADIUVA_STATE_DIR={folder / 'state'}".encode() in variables
            ):
                found[process.joinpath("comm").read_text().strip()] = int(process.name)
    return found


def _who_holds(secret: bytes, folder: Path) -> set[str]:
    """Which of the processes have the secret in their environment or memory."""
    return {name for name, pid in _processes(folder).items() if _holds(pid, secret)}


def _holds(pid: int, secret: bytes) -> bool:
    process = Path(f"/proc/{pid}")
    if secret in process.joinpath("environ").read_bytes():
        return True
    with process.joinpath("mem").open("rb", buffering=0) as memory:
        for line in process.joinpath("maps").read_text().splitlines():
            place, rights = line.split()[:2]
            if rights.startswith("rw"):
                start, end = (int(address, 16) for address in place.split("-"))
                memory.seek(start)
                with contextlib.suppress(OSError):  # what cannot be read, such as the kernel's own
                    if secret in memory.read(end - start):
                        return True
    return False


def _kill_each(up: Up, folder: Path, port: int) -> None:
    """Kill each process of a stack, and then what they are forked from: each time all come back."""
    _wait_until(lambda: "migrate" not in _processes(folder), "migrate")  # the table does not wait for it
    before = _processes(folder)
    names = set(before)
    assert {"preload", "preload-django", "web", "worker-runs", "worker-short", "device"} < names
    for name in ("web", "worker-runs", "worker-short", "device", "offline-model"):
        os.kill(before[name], signal.SIGKILL)
        up.wait_for(f"{name} ended by itself (code -9) and is started again")
    _wait_until_back(names, folder, port)
    for server, last in (("preload-django", "web"), ("preload", "device")):
        before = _processes(folder)
        os.kill(before[server], signal.SIGKILL)
        up.wait_for(f"{server} ended by itself")
        up.wait_for(f"{last} ended by itself")
        _wait_until_back(names, folder, port)
    assert not set(_processes(folder).values()) & set(before.values())


def _wait_until_back(names: set[str], folder: Path, port: int) -> None:
    """Until these processes run, and no others, and the server is ready."""
    _wait_until(lambda: set(_processes(folder)) == names, names)
    _wait_until_ready(port)


def _wait_until(condition: Callable[[], bool], expected: object) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, expected
        time.sleep(0.1)


def _wait_until_ready(port: int) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while missing := failing_checks(f"http://127.0.0.1:{port}"):
        assert time.monotonic() < deadline, missing
        time.sleep(0.1)


def _elsewhere(folder: Path, port: int) -> str:
    """What a command in another terminal finds, which is told nothing but the state folder."""
    script = (
        "import django; django.setup(); from adiuva.accounts.models import User; "
        "print('up' if User.objects.filter(email='demo@adiuva.example', is_staff=True).exists() else 'empty')"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("ADIUVA_")}
    del env["DATABASE_URL"], env["REDIS_URL"]
    found = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=env | _environment(folder, port),
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.strip()


def test_a_taken_port_is_told_before_anything_is_started(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        up = Up(folder, port)
        assert up.wait() == 1
    [line] = up.said
    assert f"port {port}" in line
    assert f"ADIUVA_PORT={port + 1}" in line
    assert not (folder / "state" / "postgres").exists()


def test_a_half_written_state_folder_is_told_and_left_alone(folder: Path) -> None:
    (folder / "state").mkdir()
    (folder / "state" / "secrets.json").write_text('{"secret_key": "cut o')
    up = Up(folder, free_port())
    assert up.wait() == 1
    [line] = up.said
    assert "nothing was changed" in line
    assert sorted(path.name for path in (folder / "state").iterdir()) == ["lock", "secrets.json"]


@pytest.mark.parametrize(
    ("port", "problem"),
    [
        ("http", "must be a whole number, not 'http'"),
        ("0", "must be at least 1, not 0"),
        ("65536", "must be at most 65535, not 65536"),
    ],
)
def test_an_impossible_port_is_refused(folder: Path, port: str, problem: str) -> None:
    up = Up(folder, 0, ADIUVA_PORT=port)
    assert up.wait() == 1
    assert up.said == [f"Adiuva cannot run: ADIUVA_PORT {problem}\n"]
