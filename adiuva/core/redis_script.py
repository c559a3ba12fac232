"""Lua scripts in Redis that run on every request, at about a third of the CPU of redis-py's own way to call them.

redis-py makes the connections, with all that a URL may ask for. A script packs its command itself and waits for the one
answer. One thread at a time uses a connection.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import redis
from redis.exceptions import NoScriptError

from adiuva.core.redis import Purpose, sync_redis

_MOST_IDLE: Final = 32


class RedisScript:
    """Script for one purpose. Several threads may call it. Raises redis.RedisError."""

    def __init__(self, purpose: Purpose, source: str) -> None:
        self._purpose, self._source = purpose, source.encode()
        self._sha = hashlib.sha1(self._source, usedforsecurity=False).hexdigest().encode()
        # Connections, each with the client that made it: in tests, settings may name another server.
        self._idle: deque[tuple[redis.Redis, Any]] = deque()

    def __call__(self, keys: Sequence[str], arguments: tuple[int, ...]) -> Any:
        """Run the script. `keys` are ASCII. The same `arguments` come again and again, so they are packed once."""
        packed_keys = "".join([f"${len(key)}\r\n{key}\r\n" for key in keys]).encode("ascii")
        words = packed_keys + _pack_numbers(arguments)
        counts = 3 + len(keys) + len(arguments), len(keys)
        client = sync_redis(self._purpose)
        try:
            owner, connection = self._idle.pop()
        except IndexError:
            return self._run_anew(client, words, counts)
        if owner is not client:
            connection.disconnect()
            return self._run_anew(client, words, counts)
        try:
            return self._run(client, connection, words, counts)
        except redis.TimeoutError:
            raise
        except redis.ConnectionError:  # the server ended an idle connection
            return self._run_anew(client, words, counts)

    def _run_anew(self, client: redis.Redis, words: bytes, counts: tuple[int, int]) -> Any:
        connection = client.connection_pool.make_connection()
        connection.connect()  # type: ignore[no-untyped-call]
        return self._run(client, connection, words, counts)

    def _run(self, client: redis.Redis, connection: Any, words: bytes, counts: tuple[int, int]) -> Any:
        try:
            try:
                answer = _ask(connection, _pack_head(b"EVALSHA", self._sha, *counts) + words)
            except NoScriptError:  # the server was restarted
                answer = _ask(connection, _pack_head(b"EVAL", self._source, *counts) + words)
        except redis.ResponseError:
            self._keep(client, connection)
            raise
        except BaseException:
            connection.disconnect()  # an answer that still comes would be taken for that of the next call
            raise
        self._keep(client, connection)
        return answer

    def _keep(self, client: redis.Redis, connection: Any) -> None:
        if len(self._idle) < _MOST_IDLE:
            self._idle.append((client, connection))
        else:
            connection.disconnect()


def _ask(connection: Any, command: bytes) -> Any:
    connection.send_packed_command([command], check_health=False)
    return connection.read_response()


@lru_cache(64)
def _pack_head(command: bytes, script: bytes, parts: int, keys: int) -> bytes:
    """Return the beginning of a command with this number of parts, up to the number of its keys."""
    return b"*%d\r\n" % parts + b"".join(map(_pack, (command, script, b"%d" % keys)))


@lru_cache(1024)
def _pack_numbers(numbers: tuple[int, ...]) -> bytes:
    return b"".join(_pack(b"%d" % number) for number in numbers)


def _pack(part: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(part), part)
