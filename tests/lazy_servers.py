"""PostgreSQL and Valkey for the tests of one process: their addresses are known at once, and they start when needed.

Django's settings hold the addresses from the start. So each server's port is chosen, and reserved, before the server
runs. Where DATABASE_URL or REDIS_URL is given, that server is used and none starts.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from adiuva.embedded.postgres import Postgres
from adiuva.embedded.state_folder import is_process
from adiuva.embedded.valkey import Valkey
from tests import database_template

if TYPE_CHECKING:
    import psycopg

_PREFIX = "adiuva-test-"
_LOOPBACK = "127.0.0.1"


class LazyServers:
    """The servers of this process. `close()` ends what was started and removes its folder."""

    def __init__(self) -> None:
        self._closing = ExitStack()
        self._password = database_template.password() or secrets.token_hex(16)
        self.has_test_database = False  # a copy of the template
        self._reserved: dict[str, socket.socket] = {}
        self._test_database = ""
        self._emptying: psycopg.Connection | None = None
        self._tables: list[str] = []
        self._has_valkey = False
        self.close = self._closing.close
        self.at_close = self._closing.callback

    @cached_property
    def folder(self) -> Path:
        """A folder named by our process id. Folders of test processes that were killed are removed first."""
        for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
            pid = left.name.removeprefix(_PREFIX).partition("-")[0]
            if pid.isdigit() and not is_process(int(pid)):
                shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        folder.chmod(0o711)  # PostgreSQL runs as another user when we are root
        self.at_close(shutil.rmtree, folder, ignore_errors=True)
        return folder

    @cached_property
    def database_url(self) -> str:
        return os.environ.get("DATABASE_URL") or (
            f"postgresql://adiuva:{self._password}@{_LOOPBACK}:{self._reserve('postgres')}/adiuva"
        )

    @cached_property
    def redis_url(self) -> str:
        return os.environ.get("REDIS_URL") or (
            f"redis://:{self._password}@{_LOOPBACK}:{self._reserve('valkey')}/0"
        )

    def start_postgres(self) -> None:
        if port := self._take("postgres"):
            log, home = self.folder / "postgres.log", self.folder / "postgres"
            self.has_test_database = database_template.copy(home)
            server = Postgres(home, password=self._password, log=log, durable=False, port=port)
            # Its data is not always below our folder.
            self.at_close(lambda: shutil.rmtree(server.home, ignore_errors=True))
            self.at_close(server.stop)
            server.start()

    def start_valkey(self) -> None:
        if port := self._take("valkey"):
            log = self.folder / "valkey.log"
            server = Valkey(
                self.folder / "valkey", password=self._password, log=log, durable=False, port=port
            )
            self.at_close(server.stop)
            server.start()
            self._has_valkey = True

    def watch_tables(self, test_database: str) -> None:
        """The test database was just made: `empty()` empties those of its tables that have no rows yet."""
        import psycopg

        self._test_database = test_database
        with psycopg.connect(test_database) as connection:
            names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            tables = [name for (name,) in names]
            self._tables = sorted({*tables} - {*_with_rows(connection, tables)})
        self.at_close(self._forget_connection)

    def empty(self) -> None:
        """Remove the rows that tests have committed, and all keys of our Valkey (never those of another server)."""
        if self._tables:
            self._delete_rows()
        if self._has_valkey:
            import redis

            with redis.Redis.from_url(self.redis_url) as server:
                server.flushall()

    def _delete_rows(self) -> None:
        """Over a connection that stays: a new one reads the catalogue of all tables first, which takes 25 ms."""
        import psycopg

        for tries_left in (1, 0):
            try:
                if self._emptying is None:
                    # Foreign keys and triggers look away, so the order does not matter. TRUNCATE would take 20 times as
                    # long: it makes new files, also for the tables that refer to these, which are nearly all.
                    options = "-c lock_timeout=20s -c session_replication_role=replica"
                    self._emptying = psycopg.connect(self._test_database, options=options, autocommit=True)
                for name in _with_rows(self._emptying, self._tables):
                    _delete_all(self._emptying, name)
                return
            except psycopg.OperationalError:  # a test may have ended the server, or its connections
                ended = self._emptying is None or self._emptying.closed
                self._forget_connection()
                if not (ended and tries_left):
                    raise

    def _forget_connection(self) -> None:
        if self._emptying is not None:
            self._emptying.close()
            self._emptying = None

    def _reserve(self, name: str) -> int:
        """A free port that the kernel gives to nobody else: a socket stays bound to it and does not listen."""
        held = socket.socket()
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((_LOOPBACK, 0))
        self._reserved[name] = held
        port: int = held.getsockname()[1]
        return port

    def _take(self, name: str) -> int:
        """The reserved port, for a server to listen on. 0 if the server was started before, or is not ours."""
        held = self._reserved.pop(name, None)
        if held is None:
            return 0
        port: int = held.getsockname()[1]
        if sys.platform == "linux":
            self.at_close(held.close)  # Linux lets a server listen beside it
        else:
            held.close()
        return port


def _with_rows(connection: psycopg.Connection, tables: Sequence[str]) -> list[str]:
    """Those of the tables that have any row."""
    from psycopg import sql

    query = sql.SQL(" UNION ALL ").join(
        sql.SQL("SELECT {} WHERE EXISTS (SELECT FROM {})").format(name, sql.Identifier(name))
        for name in tables
    )
    return [name for (name,) in connection.execute(query, prepare=True)]


def _delete_all(connection: psycopg.Connection, table: str) -> None:
    from psycopg import sql

    connection.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table)), prepare=False)
