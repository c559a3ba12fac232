"""Preloading for `make run`: two servers that import modules once and fork the programs.

`python -m adiuva.embedded.preload` knows no setting and no secret. It forks the device and the models, and the second
server, `… django`, which sets Django up with the whole configuration and forks what needs that.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType

from django.core.exceptions import ImproperlyConfigured

from adiuva.core.env import forget
from adiuva.embedded import forks

# None of these modules starts a thread; numpy is missing because its matrix library does. First what all programs
# share, so that the second server is soon forked.
_SHARED = (
    "aiohttp",
    "adiuva.devices.protocol",
    "cryptography.hazmat.primitives.ciphers.aead",
    "orjson",
    "structlog",
)
# Then, while the second server imports its own, what the device needs.
_DEVICE = ("aiohttp.web", "adiuva.devices.client.program", "sqlite3")
_APPLICATION = (
    "argon2",
    "celery.apps.worker",
    "celery.backends.redis",
    "celery.bin.celery",
    "celery.concurrency.thread",
    "celery.contrib.django.task",
    "celery.events",
    "celery.worker.autoscale",
    "celery.worker.components",
    "celery.worker.consumer",
    "celery.worker.consumer.delayed_delivery",
    "celery.worker.strategy",
    "channels.generic.websocket",
    "django.core.management",
    "django.core.handlers.asgi",
    "httpx",
    "kombu.transport.redis",
    "langchain_core.tools",
    "langchain_core.utils.function_calling",
    "psycopg_pool",
    "redis.asyncio",
    "uvicorn.lifespan.off",
    "uvicorn.loops.uvloop",
    "uvicorn.protocols.websockets.websockets_sansio_impl",
    "uvloop",
    "adiuva.asgi",
    "adiuva.celery",
    "adiuva.urls",
    "adiuva.accounts.hashers",
    "adiuva.uvicorn_protocol",
    "django.contrib.messages.storage.fallback",
    "django.contrib.sessions.serializers",
    "django_celery_beat.schedulers",
)
# Packages that others import where they are installed, and of which our programs use nothing: a fifth of all time. A
# fork that does use one, such as a web process under daphne, imports it then.
_UNUSED = ("chardet", "jinja2", "opentelemetry", "pygments", "rich", "twisted")


def main() -> None:
    gc.disable()  # imported modules stay for ever
    meanwhile: Iterable[None] = ()
    if sys.argv[1:] == ["django"]:
        try:
            _set_up_application()
        except ImproperlyConfigured as error:
            sys.exit(" ".join(str(error).split()))
    else:
        forks.show_as("preload")
        _import(_SHARED)
        meanwhile = _imports(_DEVICE)
    # The memory stays shared while nothing walks over it. Collecting garbage first would take 0.3 s and find 2 MB.
    gc.freeze()
    request = forks.serve_parent(meanwhile)
    gc.enable()
    forget()  # a fork reads its own variables
    forks.run(request)


def _import(names: Iterable[str]) -> None:
    for _ in _imports(names):
        pass


def _imports(names: Iterable[str]) -> Iterator[None]:
    """Import one after the other."""
    for name in names:
        with _unused_left_out():
            importlib.import_module(name)
        yield
    gc.freeze()


@contextmanager
def _unused_left_out() -> Iterator[None]:
    """Import as if these packages were not installed, with a stand-in for one that langchain_core must have: langsmith,
    to which it would send what tools do if they were called through its callbacks, which ours are not."""
    langsmith = ModuleType("langsmith")
    langsmith.RunTree = type("RunTree", (), {})  # type: ignore[attr-defined]
    stand_ins = dict.fromkeys(_UNUSED) | {"langsmith": langsmith}
    sys.modules.update(stand_ins)  # type: ignore[arg-type]  # None lets an import fail
    try:
        yield
    finally:
        for name in stand_ins:
            sys.modules.pop(name, None)


def _set_up_application() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "adiuva.settings")
    import django

    with _unused_left_out():
        django.setup()
    _import(_APPLICATION)
    from celery import current_app
    from django.urls import get_resolver

    current_app.loader.import_default_modules()  # all tasks
    _ = get_resolver().reverse_dict  # reads all addresses, which would otherwise happen at the first request


if __name__ == "__main__":
    main()
