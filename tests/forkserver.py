"""A server that runs `python -m …` and `python -c …` as forks of itself, after it has imported what they need.

One of our web processes takes 3 s of CPU before it serves, nearly all of it to import modules and to set Django up, and
the suite starts more than a hundred processes. The server does that once, and then forgets Django's settings and what
was computed from them. So a fork reads its own environment and runs the same code as a new interpreter, in 0.1 s.
Whether modules can be imported in the order of a real start is told by tests/embedded/test_started_anew.py.

An environment variable tells other processes where the server listens. A fork ends with the process that asked for it,
and all forks end with the process that started the server.
"""

from __future__ import annotations

import gc
import importlib
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from adiuva.embedded import forks, parent_death
from adiuva.embedded.processes import Child, Process, python

_SOCKET_VARIABLE = "TESTS_FORKSERVER_SOCKET"
_ROOT = Path(__file__).resolve().parent.parent
_LIBRARIES = (
    "aiohttp",
    "argon2",
    "autobahn.twisted.websocket",
    "billiard.pool",
    "celery.app.control",
    "celery.apps.worker",
    "celery.backends.redis",
    "celery.bin.celery",
    "celery.concurrency.thread",
    "celery.contrib.django.task",
    "celery.events.dispatcher",
    "celery.events.state",
    "celery.worker.autoscale",
    "celery.worker.components",
    "celery.worker.consumer",
    "celery.worker.consumer.delayed_delivery",
    "celery.worker.strategy",
    "channels_redis.utils",
    "cryptography.hazmat.primitives.ciphers.aead",
    "corsheaders.middleware",
    "django.contrib.admin",
    "django.contrib.messages.storage.fallback",
    "django.contrib.postgres.fields",
    "django.contrib.sessions.serializers",
    "django.core.asgi",
    "django.core.cache.backends.redis",
    "django.core.management",
    "django.core.management.commands.makemigrations",
    "django.core.management.commands.migrate",
    "django.db.backends.postgresql.base",
    "django.middleware.common",
    "django.middleware.security",
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
    "uvicorn.lifespan.off",
    "uvicorn.loops.uvloop",
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
    "adiuva.body_streams",
    "adiuva.http_handler",
    "adiuva.urls",
    "adiuva.accounts.tasks",
    "adiuva.core.celery_heartbeat",
    "adiuva.core.metrics",
    "adiuva.core.tracing",
    "adiuva.export.tasks",
    "adiuva.llm.litellm_client",
    "adiuva.object_store.tasks",
    "adiuva.uvicorn_protocol",
    "adiuva.uvicorn_websocket",
    "adiuva.vault.tasks",
    "agents.runner",
    "agents.tasks",
    "billing.tasks",
    "chat.routing",
    "chat.tasks",
    "integrations.tasks",
    "memory.tasks",
)
# Settings that no environment changes, or whose use is made anew in a fork.
_READ_AT_IMPORT = {
    "ABSOLUTE_URL_OVERRIDES",
    "AUTH_USER_MODEL",
    "BASE_DIR",
    "DATABASES",
    "DEBUG",
    "DEFAULT_AUTO_FIELD",
    "DEFAULT_EXCEPTION_REPORTER",
    "DEFAULT_INDEX_TABLESPACE",
    "DEFAULT_TABLESPACE",
    "DEVELOPMENT_KEYS",
    "DEVELOPMENT_PLUGIN_KEYS",
    "DEVELOPMENT_SECRET_KEY",
    "FORCE_SCRIPT_NAME",
    "INSTALLED_APPS",
    "LANGUAGE_CODE",
    "LOCALE_PATHS",
    "LOGGING",
    "LOGGING_CONFIG",
    "REST_FRAMEWORK",
    "ROOT_URLCONF",
    "SPECTACULAR_SETTINGS",
    "USE_DEPRECATED_PYTZ",
    "USE_I18N",
    "USE_TZ",
}
_OUR_PACKAGES = ("adiuva", "agents", "billing", "chat", "integrations", "memory", "tests")


# ── The client ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Server:
    """The server that listens at this path."""

    path: str
    alive = True

    def fork(self, child: Child) -> Process:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.path)
        return forks.ask(connection, child)


class ForkedChild(Child):
    """A child that the server forks, if one runs; otherwise it starts as any other. `argv` comes from `python()`."""

    def start(self) -> None:
        path = os.environ.get(_SOCKET_VARIABLE)
        self.forked_by = _Server(path) if path else None
        super().start()


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
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # for numpy, which is not to start threads here
        cwd=_ROOT,
        keeps=(number,),
    )
    child.start()
    listening.close()
    os.environ[_SOCKET_VARIABLE] = path
    return child


# ── The server ──────────────────────────────────────────────────────────────────────────────────────────


def _prepare() -> None:
    gc.disable()  # what is imported stays: to look through it takes a fifth of the time
    for name in [name for name in os.environ if name.startswith("ADIUVA_")]:
        del os.environ[name]
    os.environ |= {"DJANGO_SETTINGS_MODULE": "adiuva.settings", "ADIUVA_ENV_FILE": os.devnull}
    with settings_are_forgotten():
        import_modules()


def import_modules() -> None:
    """What our processes import."""
    for name in _LIBRARIES:
        importlib.import_module(name)
    import django

    django.setup()
    for name in _OUR_MODULES:
        importlib.import_module(name)
    from django.urls import get_resolver

    _ = get_resolver("adiuva.urls").reverse_dict  # all addresses, which each fork would collect
    assert "twisted.internet.reactor" not in sys.modules  # daphne chooses it


@contextmanager
def settings_are_forgotten() -> Iterator[None]:
    """Modules are imported meanwhile. Afterwards, what there is stays as it is, but for Django's settings.

    Raises AssertionError if a module read a setting: what it made of that, no fork would make anew.
    """
    with _settings_that_are_read() as read:
        yield
    assert not (read - _READ_AT_IMPORT), f"read when modules are imported: {read - _READ_AT_IMPORT}"
    _forget_settings()
    gc.freeze()  # shared with the forks, for as long as nothing walks over it
    gc.enable()


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
    _prepare()
    listening = socket.socket(fileno=int(sys.argv[1]))
    forks.run(forks.serve(listening, lambda: listening.accept()[0]))
