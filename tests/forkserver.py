"""Starts `python -m …` and `python -c …` as forks of one process that has imported the libraries they need already.

A web process of ours costs 2.5 s of CPU before it serves, most of it for importing libraries, and the suite starts more
than a hundred processes. What is imported here reads no settings and no environment, and nothing of ours that does: a
fork reads its own environment and runs the same code as a new interpreter would.

The one process is started by whoever comes first, and the others are told where it listens by an environment variable.
A fork ends with whoever asked for it, and all of them end with the process that started the first.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from adiuva.embedded import parent_death
from adiuva.embedded.processes import Child, python

_SOCKET_VARIABLE = "TESTS_FORKSERVER_SOCKET"
_PID_DIGITS, _LENGTH_DIGITS = 10, 8
_ROOT = Path(__file__).resolve().parent.parent
_LIBRARIES = (
    "aiohttp",
    "argon2",
    "celery.apps.worker",
    "celery.backends.redis",
    "celery.bin.celery",
    "channels_redis.pubsub",
    "cryptography.hazmat.primitives.ciphers.aead",
    "django.contrib.admin",
    "django.contrib.postgres.fields",
    "django.core.asgi",
    "django.core.management",
    "django.db.backends.postgresql.base",
    "django.template.backends.django",
    "django.test",
    "googleapiclient.discovery",
    "httpx",
    "jsonschema",
    "kombu.transport.redis",
    "langchain_core.language_models.chat_models",
    "langchain_core.tools",
    "langchain_core.utils.function_calling",
    "numpy",
    "orjson",
    "psycopg_pool",
    "redis.asyncio",
    "structlog",
    "uvicorn.protocols.websockets.websockets_sansio_impl",
    "uvloop",
)


# ── Whoever wants a process ─────────────────────────────────────────────────────────────────────────────


class ForkedProcess:
    """A process that was forked for us. To be used as a `subprocess.Popen`: not ours to wait for, it is waited for
    by the one that forked it, which tells us."""

    stdin = None

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self.returncode: int | None = None
        self.pid = int(line.recv(_PID_DIGITS, socket.MSG_WAITALL))

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._line], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self.returncode = int(self._line.recv(64) or -signal.SIGKILL)
            self._line.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkedChild(Child):
    """A child that starts quickly: `argv` is what `python()` made. Where it cannot be, it starts as any other."""

    def start(self) -> None:
        where = os.environ.get(_SOCKET_VARIABLE)
        if not where:
            super().start()
            return
        self.log.parent.mkdir(parents=True, exist_ok=True)
        line = socket.socket(socket.AF_UNIX)
        line.connect(where)
        request = {"argv": [str(part) for part in self.argv], "env": dict(self.env or os.environ)}
        body = json.dumps(request).encode()
        with self.log.open("ab") as out:
            socket.send_fds(line, [b"%0*d" % (_LENGTH_DIGITS, len(body))], [out.fileno()])
            line.sendall(body)
            self.process = ForkedProcess(line)  # type: ignore[assignment]  # as good as one
        self.since, self._gone = time.monotonic(), False


def start(folder: Path) -> Child | None:
    """Start the process that forks, for us and all that we start; not where there is one, or no Linux."""
    if _SOCKET_VARIABLE in os.environ or not parent_death.HAS_KERNEL_SUPPORT:
        return None
    where = str(folder / "forkserver")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(where)
    listening.listen(64)
    number = listening.fileno()
    child = Child(
        "forkserver",
        python("-m", "tests.forkserver", str(number)),
        folder / "forkserver.log",
        cwd=_ROOT,
        keeps=(number,),
    )
    child.start()
    listening.close()
    os.environ[_SOCKET_VARIABLE] = where
    return child


# ── The process that forks ──────────────────────────────────────────────────────────────────────────────


@dataclass
class _ForkRequest:
    argv: Sequence[str]
    env: Mapping[str, str]
    out: int


def _serve(listening: socket.socket) -> _ForkRequest:
    """Fork for whoever asks. Returns in the forks only, with what each is to be."""
    wakes, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    lines: dict[int, socket.socket] = {}
    while True:
        ready = select.select([listening, wakes, *lines.values()], [], [])[0]
        for pid, line in list(lines.items()):
            if line in ready:  # it asks for nothing more: it has gone
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
        if wakes in ready:
            os.read(wakes, 4096)
        _report_ended(lines)
        if listening in ready:
            line, _ = listening.accept()
            request = _read(line)
            me = os.getpid()
            if pid := os.fork():
                with suppress(ProcessLookupError, PermissionError):
                    os.setpgid(pid, pid)  # in both: whoever is first
                os.close(request.out)
                lines[pid] = line
                line.sendall(b"%0*d" % (_PID_DIGITS, pid))
                continue
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setpgid(0, 0)
            parent_death.request_death_signal(me, signal.SIGKILL)()
            for end in (listening, line, *lines.values()):
                end.close()
            os.close(wakes)
            os.close(wake)
            return request


def _report_ended(lines: dict[int, socket.socket]) -> None:
    for pid in list(lines):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            with lines.pop(pid) as line, suppress(OSError):
                line.sendall(b"%d" % os.waitstatus_to_exitcode(status))


def _read(line: socket.socket) -> _ForkRequest:
    length, [out], _, _ = socket.recv_fds(line, _LENGTH_DIGITS, 1)
    with line.makefile("rb") as file:
        request = json.loads(file.read(int(length)))
    return _ForkRequest(request["argv"], request["env"], out)


def _run_as_requested(request: _ForkRequest) -> None:
    """What a new interpreter would do with these arguments, from here to its end."""
    os.dup2(request.out, 1)
    os.dup2(request.out, 2)
    os.close(request.out)
    os.environ.clear()
    os.environ.update(request.env)
    time.tzset()
    _, kind, what, *arguments = request.argv
    if kind == "-m":
        sys.argv = [what, *arguments]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        assert kind == "-c"
        sys.argv = ["-c", *arguments]
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), main.__dict__)  # as `python -c` does


def _import_libraries() -> None:
    for name in _LIBRARIES:
        importlib.import_module(name)
    ours: Any = [
        name for name in sys.modules if name.partition(".")[0] in {"agents", "chat", "integrations", "memory"}
    ]
    assert not ours and "adiuva.settings" not in sys.modules
    gc.collect()
    gc.freeze()  # shared with the forks, for as long as nothing walks over it


if __name__ == "__main__":
    _import_libraries()
    _run_as_requested(_serve(socket.socket(fileno=int(sys.argv[1]))))
