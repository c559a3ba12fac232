"""Django's PostgreSQL backend, with a pool that sees whether a connection is alive without asking the server.

Django has the pool run an empty query before each use of a connection, which is a round trip for every short piece of
work. But a server that ends a connection, because it restarts or an administrator wants it, says so on that connection.
So only an idle connection that has something to read needs a check.

The pool's own check of connections is not used, because it waits between two dead ones: for a second, then two, then
four. After a restart of the server every idle connection is dead, so the first caller would be refused.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from functools import partial
from typing import Any

import orjson
import psycopg
from django.db.backends.postgresql import base, operations
from psycopg.types.json import JsonbBinaryLoader
from psycopg_pool import ConnectionPool

Connection = psycopg.Connection[Any]


class _JSONLoader(JsonbBinaryLoader):
    """Loader for prepared statements, which gives JSON as values. Django's own gives text, which its fields parse."""

    _loads = orjson.loads  # type: ignore[assignment]  # jsonb has no NaN, in which json.loads would differ


class DatabaseOperations(operations.DatabaseOperations):
    def last_executed_query(self, cursor: Any, sql: Any, params: Any) -> str:
        # psycopg keeps no text of a prepared statement; it is then shown without its values.
        return super().last_executed_query(cursor, sql, params) or str(sql)


class DatabaseWrapper(base.DatabaseWrapper):
    ops_class = DatabaseOperations

    def get_connection_params(self) -> dict[str, Any]:
        """Return None to take a connection from the pool, which has had the parameters since it was made."""
        if self.alias in self._connection_pools and self.pool:  # type: ignore[attr-defined]  # not in the stubs
            return {}
        found: dict[str, Any] = super().get_connection_params()
        found["context"].adapters.register_loader("jsonb", _JSONLoader)
        return found

    def _set_autocommit(self, autocommit: bool) -> None:
        """Set autocommit only if it differs: psycopg asks for the transaction's state each time."""
        if self.connection.autocommit != autocommit:
            super()._set_autocommit(autocommit)  # type: ignore[misc]  # the same

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        take = partial(super().get_new_connection, conn_params)
        return live_connection(self.pool, take) if self.pool else take()


def live_connection(pool: ConnectionPool[Any], take: Callable[[], Connection]) -> Connection:
    """Return the first connection that `take` takes from the pool and that the server has not ended.

    The pool replaces the others at once. It can meet each dead one once, so it gives up after as many as the pool
    holds.
    """
    for _ in range(pool.max_size):
        connection = take()
        if _is_alive(connection):
            return connection
        pool.putconn(connection)
    return take()


def _is_alive(connection: Connection) -> bool:
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    if not poll.poll(0):
        return True
    try:
        ConnectionPool.check_connection(connection)
    except psycopg.Error:
        return False
    return True
