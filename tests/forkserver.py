"""A server that runs `python -m …` and `python -c …` as forks of itself, after it has imported what they need.

One of our web processes takes 2.5 s of CPU before it serves, mostly to import libraries, and the suite starts more than
a hundred processes. The server imports only modules that read neither settings nor the environment. So a fork reads its
own environment and runs the same code as a new interpreter.

An environment variable tells other processes where the server listens. A fork ends with the process that asked for it,
and all forks end with the process that started the server.
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
    "channels.generic.websocket",
    "cron_descriptor",
    "dotenv",
    "fido2.server",
    "idna",
    "inflection",
    "jwt",
    "msal",
    "pgvector.django",
    "pygments",
    "pyotp",
    "segno",
    "smtplib",
    "uritemplate",
    "whitenoise.middleware",
    "yaml",
)
# Those of our modules that take time to import and can be imported where Django has no settings, with what they import.
_OUR_MODULES = (
    "adiuva.core.channel_layer",
    "adiuva.core.enqueue",
    "adiuva.core.logging",
    "adiuva.devices.codec",
    "adiuva.devices.large_selects",
    "adiuva.devices.run_frame_buffer",
    "adiuva.documents.html",
    "adiuva.documents.mail",
    "adiuva.documents.parts",
    "adiuva.env_variables",
    "adiuva.llm.litellm_client",
    "adiuva.llm.local",
    "adiuva.llm.openai_client",
    "adiuva.sanitizer",
    "agents.cron",
    "agents.extraction",
    "agents.prompt_context",
    "agents.reconciliation",
    "chat.agent_loop",
    "chat.prompts",
    "chat.stream_log",
    "chat.turn_bus",
    "chat.user_intent",
    "integrations.mail.documents",
    "integrations.mail.mailbox_limiter",
    "memory.grounding",
    "memory.intent",
)


# ── The client ──────────────────────────────────────────────────────────────────────────────────────────


class ForkedProcess:
    """A process that the server forked for us, with the interface of `subprocess.Popen`.

    It is not our child, so the server waits for it and reports its exit code.
    """

    stdin = None

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.returncode: int | None = None
        self.pid = int(connection.recv(_PID_DIGITS, socket.MSG_WAITALL))

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self.returncode = int(self._connection.recv(64) or -signal.SIGKILL)
            self._connection.close()
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
    """A child that the server forks, if one runs; otherwise it starts as any other. `argv` comes from `python()`."""

    def start(self) -> None:
        path = os.environ.get(_SOCKET_VARIABLE)
        if not path:
            super().start()
            return
        self.log.parent.mkdir(parents=True, exist_ok=True)
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(path)
        request = {"argv": [str(part) for part in self.argv], "env": dict(self.env or os.environ)}
        body = json.dumps(request).encode()
        with self.log.open("ab") as out:
            socket.send_fds(connection, [b"%0*d" % (_LENGTH_DIGITS, len(body))], [out.fileno()])
            connection.sendall(body)
            self.process = ForkedProcess(connection)  # type: ignore[assignment]  # as good as one
        self.since, self._gone = time.monotonic(), False


def start(folder: Path) -> Child | None:
    """Start the server for this process and those that it starts. None if one runs already, or outside Linux."""
    if _SOCKET_VARIABLE in os.environ or not parent_death.HAS_KERNEL_SUPPORT:
        return None
    path = str(folder / "forkserver")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
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
    os.environ[_SOCKET_VARIABLE] = path
    return child


# ── The server ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _ForkRequest:
    argv: Sequence[str]
    env: Mapping[str, str]
    out: int


def _serve(listening: socket.socket) -> _ForkRequest:
    """Fork for each request. Returns only in the forks, with the request to carry out."""
    wakeup_read, wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    connections: dict[int, socket.socket] = {}
    while True:
        ready = select.select([listening, wakeup_read, *connections.values()], [], [])[0]
        for pid, connection in list(connections.items()):
            if connection in ready:  # the client closed it: it has ended
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
        if wakeup_read in ready:
            os.read(wakeup_read, 4096)
        _report_ended(connections)
        if listening in ready:
            connection, _ = listening.accept()
            request = _read(connection)
            server = os.getpid()
            if pid := os.fork():
                with suppress(ProcessLookupError, PermissionError):
                    os.setpgid(pid, pid)  # in parent and child, because either may run first
                os.close(request.out)
                connections[pid] = connection
                connection.sendall(b"%0*d" % (_PID_DIGITS, pid))
                continue
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # A shell ignores it for what it starts in the background, and Twisted leaves an ignored signal alone.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.setpgid(0, 0)
            parent_death.request_death_signal(server, signal.SIGKILL)()
            for end in (listening, connection, *connections.values()):
                end.close()
            os.close(wakeup_read)
            os.close(wakeup_write)
            return request


def _report_ended(connections: dict[int, socket.socket]) -> None:
    for pid in list(connections):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            with connections.pop(pid) as connection, suppress(OSError):
                connection.sendall(b"%d" % os.waitstatus_to_exitcode(status))


def _read(connection: socket.socket) -> _ForkRequest:
    length, [out], _, _ = socket.recv_fds(connection, _LENGTH_DIGITS, 1)
    with connection.makefile("rb") as file:
        request = json.loads(file.read(int(length)))
    return _ForkRequest(request["argv"], request["env"], out)


def _run_as_requested(request: _ForkRequest) -> None:
    """Do what a new interpreter would do with these arguments."""
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


def _import_modules() -> None:
    from django.conf import settings

    for name in (*_LIBRARIES, *_OUR_MODULES):
        importlib.import_module(name)
    assert not settings.configured and "adiuva.settings" not in sys.modules
    gc.collect()
    gc.freeze()  # shared with the forks, for as long as nothing walks over it


if __name__ == "__main__":
    _import_modules()
    _run_as_requested(_serve(socket.socket(fileno=int(sys.argv[1]))))
