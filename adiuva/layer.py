"""The channel layer: channels_redis' pub/sub layer, with messages sealed on their way, and sent together.

A frame that crosses Redis holds a user's rows. The stock encryption (Fernet over msgpack) costs 16 times as much
as AES-GCM, and the tool-call path pays it four times a call. And the stock layer waits for Redis once a message;
here they are pipelined.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from channels_redis.pubsub import (
    RedisPubSubChannelLayer,
    RedisPubSubLoopLayer,
    RedisSingleShardConnection,
)
from channels_redis.serializers import registry
from channels_redis.utils import _wrap_close, create_pool, decode_hosts
from django.conf import settings
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

_WHERE = b"channel layer"


class SealedJSON:
    """Message dict ↔ sealed orjson. What JSON cannot say is refused when it is sent, not when it is read."""

    def __init__(self, **_: Any) -> None:
        self._cipher = settings.KEY_RING.transit

    def serialize(self, message: dict[str, Any]) -> bytes:
        sealed: bytes = self._cipher.seal(orjson.dumps(message), _WHERE)
        return sealed

    def deserialize(self, message: bytes) -> Any:
        return orjson.loads(self._cipher.unseal(message, _WHERE))


registry.register_serializer("sealed-json", SealedJSON)


class Layer(RedisPubSubChannelLayer):  # type: ignore[misc]  # channels_redis has no types
    """`send` returns how many were listening: 0 says that nobody got the message."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, serializer_format="sealed-json", **kwargs)

    def _get_layer(self) -> Any:
        loop = asyncio.get_running_loop()
        found = self._layers.get(loop)
        if found is None:
            found = self._layers[loop] = _LoopLayer(*self._args, **self._kwargs, channel_layer=self)
            _wrap_close(self, loop)
        return found


class _LoopLayer(RedisPubSubLoopLayer):  # type: ignore[misc]
    def __init__(self, hosts: Any = None, **kwargs: Any) -> None:
        super().__init__(hosts=hosts, **kwargs)
        self._shards = [_Shard(host, self) for host in decode_hosts(hosts)]

    async def send(self, channel: str, message: dict[str, Any]) -> int:
        sealed = self.channel_layer.serialize(message)
        heard: int = await self._get_shard(channel).publish(channel, sealed)
        return heard


class _Shard(RedisSingleShardConnection):  # type: ignore[misc]
    def __init__(self, host: Any, channel_layer: Any) -> None:
        super().__init__(host, channel_layer)
        self._publisher = _Publisher(host)

    async def publish(self, channel: str, message: bytes) -> int:
        return await self._publisher.publish(channel, message)

    async def flush(self) -> None:
        await super().flush()
        await self._publisher.close()


class _Publisher:
    """PUBLISH on a connection of its own, pipelined: what is to be sent in one turn of the loop is one write, and
    nothing waits for the answer to what went before. The client's own pipelines cost four times as much a message.
    """

    def __init__(self, host: Any) -> None:
        self._pool = create_pool(host)
        self._connection: AbstractConnection | None = None
        self._connecting = asyncio.Lock()
        self._outgoing: list[bytes] = []
        self._unanswered: deque[asyncio.Future[int]] = deque()
        self._wanted = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def publish(self, channel: str, message: bytes) -> int:
        """How many got the message. Raise ConnectionError when Redis is away: it is not known who got it then."""
        if self._connection is None:
            await self._connect()
        assert self._connection is not None
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._outgoing += self._connection.pack_command("PUBLISH", channel, message)
        self._unanswered.append(future)
        self._wanted.set()
        return await future

    async def _connect(self) -> None:
        async with self._connecting:
            if self._connection is not None:
                return
            connection = self._pool.make_connection()
            try:
                await connection.connect()
            except (RedisError, OSError) as error:
                raise ConnectionError("Redis is away") from error
            self._connection = connection
            self._tasks = [
                asyncio.create_task(self._guarded(work, connection), name=f"channel layer {work.__name__}")
                for work in (self._write, self._read)
            ]

    async def _guarded(
        self, work: Callable[[AbstractConnection], Awaitable[None]], connection: AbstractConnection
    ) -> None:
        try:
            await work(connection)
        except (RedisError, OSError) as error:
            if self._connection is connection:
                await self._drop(error)

    async def _write(self, connection: AbstractConnection) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            batch, self._outgoing = self._outgoing, []
            await connection.send_packed_command(batch, check_health=False)

    async def _read(self, connection: AbstractConnection) -> None:
        while True:
            answer = await connection.read_response()
            future = self._unanswered.popleft()
            if not future.done():  # or who sent it was cancelled meanwhile
                future.set_result(answer)

    async def _drop(self, error: Exception) -> None:
        connection, self._connection = self._connection, None
        self._outgoing, unanswered, self._unanswered = [], self._unanswered, deque()
        for future in unanswered:
            if not future.done():
                future.set_exception(ConnectionError(f"Redis went away ({type(error).__name__})"))
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        if connection is not None:
            await connection.disconnect()

    async def close(self) -> None:
        await self._drop(ConnectionError("closed"))
