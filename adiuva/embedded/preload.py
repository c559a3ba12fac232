"""Preloading for `make run`: two servers that import modules once and fork the programs.

`python -m adiuva.embedded.preload` knows no setting and no secret. It forks the device and the models, and the second
server, `… django`, which sets Django up with the whole configuration and forks what needs that.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Iterable

from django.core.exceptions import ImproperlyConfigured

from adiuva.core.env import forget
from adiuva.embedded import forks

# None of these modules starts a thread; numpy is missing because its matrix library does.
_LIBRARIES = (
    "aiohttp.web",
    "argon2",
    "adiuva.devices.client.program",
    "adiuva.offline_llm.server",
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
    "cryptography.hazmat.primitives.ciphers.aead",
    "django.core.management",
    "django.core.handlers.asgi",
    "httpx",
    "jsonschema",
    "kombu.transport.redis",
    "langchain_core.tools",
    "langchain_core.utils.function_calling",
    "orjson",
    "psycopg_pool",
    "redis.asyncio",
    "sqlite3",
    "structlog",
    "uvicorn.lifespan.off",
    "uvicorn.loops.uvloop",
    "uvicorn.protocols.websockets.websockets_sansio_impl",
    "uvloop",
)
_APPLICATION = (
    "adiuva.asgi",
    "adiuva.celery",
    "adiuva.urls",
    "adiuva.accounts.hashers",
    "adiuva.uvicorn_protocol",
    "django.contrib.messages.storage.fallback",
    "django.contrib.sessions.serializers",
    "django_celery_beat.schedulers",
)


def main() -> None:
    gc.disable()  # imported modules stay for ever
    if sys.argv[1:] == ["django"]:
        try:
            _set_up_application()
        except ImproperlyConfigured as error:
            sys.exit(" ".join(str(error).split()))
    else:
        forks.show_as("preload")
        _import(_LIBRARIES)
    # The memory stays shared while nothing walks over it. Collecting garbage first would take 0.3 s and find 2 MB.
    gc.freeze()
    gc.enable()
    request = forks.serve_parent()
    forget()  # a fork reads its own variables
    forks.run(request)


def _import(names: Iterable[str]) -> None:
    for name in names:
        importlib.import_module(name)


def _set_up_application() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "adiuva.settings")
    import django

    django.setup()
    _import(_APPLICATION)
    from celery import current_app
    from django.urls import get_resolver

    current_app.loader.import_default_modules()  # all tasks
    _ = get_resolver().reverse_dict  # reads all addresses, which would otherwise happen at the first request


if __name__ == "__main__":
    main()
