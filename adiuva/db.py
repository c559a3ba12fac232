"""The ORM from async code, on threads of our own.

Channels' and Django's own bridges run all database work of a process on one thread, so that one slow query holds up
every socket. Here a few threads share Django's connection pool, and each call gives its connection back.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import ParamSpec, TypeVar

from django.conf import settings
from django.db import connections

P = ParamSpec("P")
R = TypeVar("R")


@cache
def _threads() -> ThreadPoolExecutor:
    # Half of the pool: the other half is for REST and admin in the same process.
    size = max(2, settings.DATABASES["default"]["OPTIONS"]["pool"]["max_size"] // 2)
    return ThreadPoolExecutor(size, thread_name_prefix="db")


def _call(function: Callable[[], R]) -> R:
    try:
        return function()
    finally:
        connections.close_all()


async def run(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function that uses the ORM, off the event loop. Its transaction ends before this returns."""
    call = partial(contextvars.copy_context().run, partial(function, *args, **kwargs))
    return await asyncio.get_running_loop().run_in_executor(_threads(), _call, call)
