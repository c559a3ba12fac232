"""Database access: the ORM from async code, the database's clock, and prepared statements.

Django's and Channels' own bridges run all database work of a process on one thread, so that one slow query delays
every socket. Here a pool of threads shares Django's connection pool, and each call returns its connection.
"""

from __future__ import annotations

import asyncio
import contextvars
import datetime as dt
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

import psycopg
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, OperationalError, connection, connections
from django.db.backends.utils import CursorWrapper
from django.utils import translation
from psycopg.adapt import Transformer
from psycopg.errors import DeadlockDetected, SerializationFailure

from adiuva.core.array_parameters import array
from adiuva.core.logging import log_failure

if TYPE_CHECKING:
    from psycopg._queries import PostgresQuery

_PARAMETER: Final = re.compile(r"%(?:%|s|\((\w+)\)s)")

P = ParamSpec("P")
R = TypeVar("R")
# Those of a statement, by place or by name.
Parameters = Sequence[Any] | Mapping[str, Any]


@cache
def _threads() -> ThreadPoolExecutor:
    # Half of the connections; the other half is for REST and the admin in the same process.
    size = max(2, settings.DATABASES["default"]["OPTIONS"]["pool"]["max_size"] // 2)
    return ThreadPoolExecutor(size, thread_name_prefix="db")


def _call(function: Callable[[], R]) -> R:
    try:
        return function()
    finally:
        connections.close_all()


async def run(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function that uses the ORM in a thread. Returns after its transaction has ended, unless the caller is
    cancelled: then the thread may go on, and commit.

    The function sees the caller's context variables, and gettext speaks the caller's language.
    """
    return await run_in(_threads(), partial(function, *args, **kwargs))


async def run_in(threads: ThreadPoolExecutor, wanted: Callable[[], R]) -> R:
    """Call a function as `run` does, in a thread of another pool, for ORM code that blocks long on something else."""
    language = translation.get_language()
    if language != settings.LANGUAGE_CODE:
        wanted = partial(_speaking, language, wanted)
    call = partial(contextvars.copy_context().run, wanted)
    return await asyncio.get_running_loop().run_in_executor(threads, _call, call)


def _speaking(language: str | None, function: Callable[[], R]) -> R:
    """Call a function with the caller's language. Django ties it to the thread too, so a copied context lacks it."""
    with translation.override(language):
        return function()


def clock() -> dt.datetime:
    """Return the current time of PostgreSQL. Deadlines go by it, since the clocks of processes differ."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT statement_timestamp()")
        now: dt.datetime = cursor.fetchone()[0]
    return now


def is_conflict(error: BaseException) -> bool:
    """Return whether PostgreSQL ended a transaction for another's sake: nothing was written, and a retry may
    succeed."""
    return isinstance(error, OperationalError) and isinstance(
        error.__cause__, (DeadlockDetected, SerializationFailure)
    )


@contextmanager
def conflicts_put_off(event: str, **ids: object) -> Iterator[None]:
    """Log a conflict in one piece of a poller's work; the next round finds what is left to do.

    The piece is a transaction of its own, so that the work after it goes on.
    """
    try:
        yield
    except OperationalError as error:
        if not is_conflict(error):
            raise
        log_failure(event, error, level="warning", **ids)


def prepared_cursor() -> CursorWrapper:
    """Return a cursor, to be used with `with`, for a long statement that runs often.

    PostgreSQL parses and plans the statement once for each connection. Django's own cursors write the values into the
    text, so that each is a new statement. The statement must cast a parameter if PostgreSQL cannot infer its type.
    """
    database = connections[DEFAULT_DB_ALIAS]  # each access through the proxy `connection` looks it up anew
    database.ensure_connection()
    wrap = database.make_debug_cursor if database.queries_logged else database.make_cursor
    return wrap(PreparedCursor(database.connection))  # type: ignore[arg-type]  # Django wraps psycopg's cursors as well


def prepared_value(statement: str, *parameters: Any) -> Any:
    """Return the one value of a prepared statement's one row."""
    with prepared_cursor() as cursor:
        cursor.execute(statement, parameters)
        return cursor.fetchone()[0]


class PreparedCursor(psycopg.RawCursor[Any]):
    """Cursor whose statements PostgreSQL keeps parsed and planned."""

    def execute(self, query: Any, params: Any = None, **_: Any) -> PreparedCursor:
        return super().execute(*_raw(query, params), prepare=True, binary=True)

    def converted(self, statement: str, params: Parameters) -> PostgresQuery:
        """Return a statement with its values, for `enqueue`. Raises what psycopg does for values that cannot be
        written."""
        self._tx = Transformer(self)
        return self._convert_query(*_raw(statement, params))

    def enqueue(self, query: PostgresQuery) -> None:
        """Put a statement into the connection's pipeline, to be sent with others."""
        # In a pipeline nothing is sent here, so there is nothing to wait for.
        for _ in self._maybe_prepare_gen(query, prepare=True, binary=True):
            raise AssertionError


def _raw(statement: Any, params: Any) -> tuple[Any, Sequence[Any] | None]:
    """Return a statement with numbered parameters, and their values in that order."""
    if params is None:
        return statement, None
    numbered, names = _numbered(statement)
    given: Iterable[Any] = [params[name] for name in names] if names is not None else params
    return numbered, [array(value) if type(value) is list else value for value in given]


@cache
def _numbered(statement: str) -> tuple[bytes, list[str] | None]:
    """Return a statement as PostgreSQL takes it, with numbered parameters, and their names in that order, if any.

    psycopg would do this again at each execution of a long statement.
    """
    names: list[str] = []

    def number(found: re.Match[str]) -> str:
        match found[0], found[1]:
            case "%%", _:
                return "%"
            case "%s", _:
                names.append("")
                return f"${len(names)}"
            case _, name:
                if name not in names:
                    names.append(name)
                return f"${names.index(name) + 1}"

    numbered = _PARAMETER.sub(number, statement).encode()
    return numbered, names if any(names) else None
