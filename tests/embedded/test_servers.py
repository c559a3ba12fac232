"""PostgreSQL and Valkey as `make run` and the tests start them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
import redis

from adiuva.embedded.postgres import Postgres
from adiuva.embedded.processes import StackError
from adiuva.embedded.valkey import Valkey


def postgres(folder: Path, say: Callable[[str], None] = print) -> Postgres:
    return Postgres(
        folder / "postgres", password="correct-horse", log=folder / "postgres.log", say=say, durable=False
    )


def test_postgres_keeps_its_data_over_a_restart_and_has_vectors_in_every_database(folder: Path) -> None:
    for start in range(2):
        server = postgres(folder)
        with psycopg.connect(server.start(), autocommit=True) as connection:
            if start == 0:
                connection.execute("CREATE TABLE kept AS SELECT 'ß €' AS word")
                connection.execute("CREATE DATABASE another")
            assert connection.execute("SELECT word, upper(word) FROM kept").fetchone() == ("ß €", "ß €")
            url = connection.info.dsn + " password=correct-horse dbname=another"
            with psycopg.connect(url) as other:
                assert other.execute("SELECT '[1,2]'::vector <-> '[1,4]'").fetchone() == (2.0,)
        server.stop()
        assert not server.alive


def test_postgres_lets_nobody_in_without_the_password(folder: Path) -> None:
    with closing(Stopping(postgres(folder))) as server:
        for guess in (":wrong@", "@"):
            with pytest.raises(psycopg.OperationalError, match="password"):
                psycopg.connect(server.url.replace(":correct-horse@", guess))


def test_half_written_data_is_told_and_left_alone(folder: Path) -> None:
    half = folder / "postgres" / "data" / "base"
    half.mkdir(parents=True)
    with pytest.raises(StackError, match="half written"):
        postgres(folder).start()
    assert half.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root hands PostgreSQL to another user")
def test_below_a_folder_of_root_alone_the_data_goes_where_its_user_can_reach_it(folder: Path) -> None:
    home = folder / "home"
    (home / "state").mkdir(parents=True)
    home.chmod(0o700)
    said: list[str] = []
    for _ in range(2):
        server = postgres(home / "state", said.append)
        server.start()
        server.stop()
    assert server.home == Path((home / "state" / "postgres" / "elsewhere").read_text().strip())
    assert (server.home / "data" / "PG_VERSION").exists()
    assert home.stat().st_mode & 0o777 == 0o700
    assert [line for line in said if f"data is in {server.home}" in line] == said[:1] * 2


def test_a_killed_valkey_comes_back_with_what_was_queued(folder: Path) -> None:
    server = Valkey(folder / "valkey", password="correct-horse", log=folder / "valkey.log")
    with redis.Redis.from_url(server.start()) as client:
        client.rpush("queue", "task")
    assert server.child and server.child.process
    server.child.process.send_signal(signal.SIGKILL)
    server.child.process.wait()
    with redis.Redis.from_url(server.start()) as client:
        assert client.lrange("queue", 0, -1) == [b"task"]
    server.stop()


class Stopping:
    """A started server that `closing` stops."""

    def __init__(self, server: Postgres) -> None:
        self.server = server
        self.url = server.start()

    def close(self) -> None:
        self.server.stop()
