"""The database as the rooms use it: the ORM from async code on threads of our own, and statements planned once.

Channels' and Django's own bridges run all database work of a process on one thread, so that one slow query holds up
every socket. Here a few threads share Django's connection pool, and each call gives its connection back.
"""

from __future__ import annotations

import asyncio
import contextvars
import datetime as dt
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, ParamSpec, TypeVar

import psycopg
from django.conf import settings
from django.db import connection, connections
from django.db.backends.utils import CursorWrapper

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


def clock() -> dt.datetime:
    """What time it is for PostgreSQL: processes' clocks differ."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT statement_timestamp()")
        now: dt.datetime = cursor.fetchone()[0]
    return now


def prepared_cursor() -> CursorWrapper:
    """A cursor for a long statement that is run often: PostgreSQL parses and plans it once a connection.

    Django's own cursors write the values into the text, so that each statement is a new one. Values go as they are,
    so the text must say their types where PostgreSQL cannot tell. For use with `with`.
    """
    connection.ensure_connection()
    wrap = connection.make_debug_cursor if connection.queries_logged else connection.make_cursor
    return wrap(_Prepared(connection.connection))  # type: ignore[arg-type]  # it wraps psycopg's, as Django's own do


class _Prepared(psycopg.Cursor[Any]):
    def execute(self, query: Any, params: Any = None, **_: Any) -> _Prepared:
        return super().execute(query, params, prepare=True, binary=True)
