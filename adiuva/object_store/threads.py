"""Threads for work with the store. It blocks for long, and the threads of the database stay free."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Final, ParamSpec, TypeVar

from adiuva.core import db

P = ParamSpec("P")
R = TypeVar("R")

_THREADS: Final = 8


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="store")


async def run(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function that uses the store, and perhaps the ORM, in a thread."""
    return await db.run_in(_threads(), partial(function, *args, **kwargs))
