"""A server that runs `python -m …` and `python -c …` as forks of itself, after it has imported what they need.

One of our web processes takes 3 s of CPU before it serves, nearly all of it to import modules and to set Django up, and
the suite starts more than a hundred processes. The server does that once, and then forgets Django's settings and what
was computed from them. So a fork reads its own environment and runs the same code as a new interpreter, in 0.1 s.
Whether modules can be imported in the order of a real start is told by the tests of `manage.py up`, which start each
kind of process anew.

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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
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
    "autobahn.twisted.websocket",
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
    "twisted.web.http",
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
# What our processes import in addition to Django's applications.
_OUR_MODULES = (
    "adiuva.body_guard",
    "adiuva.urls",
    "adiuva.core.celery_heartbeat",
    "adiuva.core.metrics",
    "adiuva.core.tracing",
    "adiuva.llm.litellm_client",
    "adiuva.uvicorn_protocol",
    "agents.runner",
    "agents.tasks",
    "chat.routing",
    "memory.tasks",
)
# Settings that no environment changes, or whose use is made anew in a fork.
_READ_AT_IMPORT = {
    "ABSOLUTE_URL_OVERRIDES",
    "AUTH_USER_MODEL",
    "DATABASES",
    "DEBUG",
    "DEFAULT_AUTO_FIELD",
    "DEFAULT_EXCEPTION_REPORTER",
    "DEFAULT_INDEX_TABLESPACE",
    "DEFAULT_TABLESPACE",
    "FORCE_SCRIPT_NAME",
    "INSTALLED_APPS",
    "LANGUAGE_CODE",
    "LOCALE_PATHS",
    "LOGGING",
    "LOGGING_CONFIG",
    "REST_FRAMEWORK",
    "SPECTACULAR_SETTINGS",
    "USE_DEPRECATED_PYTZ",
    "USE_I18N",
}
_OUR_PACKAGES = ("adiuva", "agents", "billing", "chat", "integrations", "memory")


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
    for name in [name for name in os.environ if name.startswith("ADIUVA_")]:
        del os.environ[name]
    os.environ |= {"DJANGO_SETTINGS_MODULE": "adiuva.settings", "ADIUVA_ENV_FILE": os.devnull}
    for name in _LIBRARIES:
        importlib.import_module(name)
    import django

    with _settings_that_are_read() as read:
        django.setup()
        for name in _OUR_MODULES:
            importlib.import_module(name)
    # What a module makes of a setting when it is imported, no fork would make anew.
    assert not (read - _READ_AT_IMPORT), f"read when modules are imported: {read - _READ_AT_IMPORT}"
    _forget_settings()
    assert "twisted.internet.reactor" not in sys.modules  # daphne chooses it
    gc.collect()
    gc.freeze()  # shared with the forks, for as long as nothing walks over it


@contextmanager
def _settings_that_are_read() -> Iterator[set[str]]:
    """The names of the settings that are read meanwhile."""
    from django.conf import LazySettings

    read: set[str] = set()
    look_up = LazySettings.__getattr__

    def note(settings: LazySettings, name: str) -> object:
        read.add(name)
        return look_up(settings, name)

    LazySettings.__getattr__ = note  # type: ignore[method-assign]
    yield read
    LazySettings.__getattr__ = look_up  # type: ignore[method-assign]


def _forget_settings() -> None:
    """Make Django and our modules as they are before settings are first read."""
    from celery import current_app
    from django.conf import settings
    from django.core.cache import caches
    from django.db import connections
    from django.template import engines
    from django.utils.functional import empty
    from rest_framework.settings import api_settings

    assert not current_app.configured
    for handler in (connections, caches):
        for made in handler.all(initialized_only=True):  # unused: models ask for the kind of database
            del handler[made.alias]
        handler._settings = None
        handler.__dict__.pop("settings", None)
    assert "templates" not in engines.__dict__
    api_settings.reload()
    settings._wrapped = empty
    import adiuva

    del sys.modules["adiuva.settings"], adiuva.settings
    cached = lru_cache(len)
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in _OUR_PACKAGES:
            for value in list(vars(module).values()):
                if type(value) is type(cached):  # isinstance would have a lazy value computed
                    value.cache_clear()
    assert not settings.configured and "adiuva.settings" not in sys.modules


if __name__ == "__main__":
    _import_modules()
    _run_as_requested(_serve(socket.socket(fileno=int(sys.argv[1]))))
