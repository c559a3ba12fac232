"""The channel layer: channels_redis' pub/sub layer, each message sealed for its channel, on a connection of our own.

A frame that crosses Redis holds a user's rows, and whoever reads or writes Redis must neither read it nor move it to
another's channel. And the stock connection waits for Redis once a message, does not say whether anybody was listening,
and cannot tell a listener that it has missed something. Here a connection that redis-py has opened is read by hiredis
where the bytes arrive, and what is to be sent in one turn of the loop is one write.
"""

from __future__ import annotations

import asyncio
from asyncio import Future, Queue, Transport
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

import hiredis
import orjson
from channels_redis.pubsub import RedisPubSubChannelLayer, RedisPubSubLoopLayer
from django.conf import settings
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import RedisError

from adiuva.core.crypto import SealBroken
from adiuva.core.errors import Unavailable
from adiuva.core.logging import log

Message = dict[str, Any]

# What a listener gets when the connection was lost and is back: messages may have passed meanwhile.
INTERRUPTED: Final[Message] = {"type": "interrupted"}

_PREFIX: Final = "adiuva."
_GROUPS: Final = (
    b"groups"  # what goes to a group is sealed for all of them: its members know no group by name
)
_TEND_S: Final = 0.25
_AGAIN_S: Final = 1.0
_QUIET_S: Final = 10.0  # without a word from Redis, after which it is asked whether it is there
_PATIENCE_S: Final = 10.0  # for an answer of Redis


class ChannelLayerUnavailable(Unavailable, ConnectionError):
    """Redis cannot be reached: nothing was sent. A plain ConnectionError says that it is not known."""

    code = "channel_layer_away"

    def __init__(self) -> None:
        super().__init__("the servers cannot reach each other for now")


class SealedPubSubLayer(RedisPubSubChannelLayer):  # type: ignore[misc]  # channels_redis has no types
    """Whoever takes a channel with `new_channel` gives it back with `end_channel`."""

    def __init__(self, hosts: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        (self._host,) = hosts
        self.cipher = settings.KEY_RING.transit

    async def send(self, channel: str, message: Message) -> int:
        """How many were listening: 0 says that nobody got it. Raise LayerAway, or ConnectionError when the
        connection broke before Redis had answered."""
        return await self._get_layer().send(channel, message)

    async def new_channel(self, prefix: str = "") -> str:
        """A channel of one's own. What is sent to it from now on arrives. Raise ConnectionError."""
        return await self._get_layer().new_channel(prefix)

    def end_channel(self, channel: str) -> list[Message]:
        """Give a channel back; returns what has arrived on it and was not read."""
        return self._get_layer().end_channel(channel)

    def serialize(self, message: Message) -> bytes:
        """What channels_redis sends to groups."""
        sealed: bytes = self.cipher.seal(orjson.dumps(message), _GROUPS)
        return sealed

    def _get_layer(self) -> _LoopLayer:
        loop = asyncio.get_running_loop()
        found: _LoopLayer | None = self._layers.get(loop)
        if found is None:
            found = self._layers[loop] = _LoopLayer(self, self._host, loop)
        return found


class _LoopLayer(RedisPubSubLoopLayer):  # type: ignore[misc]
    """One event loop's channels and groups, on one line to Redis instead of channels_redis' shards."""

    def __init__(
        self, layer: SealedPubSubLayer, host: Mapping[str, Any], loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(prefix=_PREFIX, channel_layer=layer)
        self._cipher = layer.cipher
        self._line = _RedisConnection(self, host, loop, lambda: layer._layers.pop(loop, None))
        self._shards = [self._line]

    async def send(self, channel: str, message: Message) -> int:
        return await self._line.publish(channel, self._cipher.seal(orjson.dumps(message), channel.encode()))

    async def new_channel(self, prefix: str = "") -> str:
        return cast(str, await super().new_channel(prefix))

    async def _subscribe_to_channel(self, channel: str) -> None:
        await self._line.ready()  # first, or it would be told that the connection had been away
        self.channels[channel] = Queue()
        try:
            await self._line.subscribe(channel)
        except BaseException:
            self.end_channel(channel)
            raise

    async def receive(self, channel: str) -> Message:
        """The next message on a channel that was taken here."""
        queue = self.channels[channel]
        while True:
            if (message := self._open(channel, await queue.get())) is not None:
                return message

    def end_channel(self, channel: str) -> list[Message]:
        queue: Queue[bytes | None] | None = self.channels.pop(channel, None)
        if queue is None:
            return []
        self._line.unsubscribe_soon(channel)
        left = [self._open(channel, queue.get_nowait()) for _ in range(queue.qsize())]
        return [message for message in left if message is not None]

    def arrived(self, name: str, sealed: bytes) -> None:
        for channel in (name, *self.groups.get(name, ())):
            if (queue := self.channels.get(channel)) is not None:
                queue.put_nowait(sealed)

    def interrupted(self) -> None:
        for queue in self.channels.values():
            queue.put_nowait(None)

    def names(self) -> list[str]:
        """All that Redis is to send us."""
        return [*self.channels, *self.groups]

    def _open(self, channel: str, sealed: bytes | None) -> Message | None:
        if sealed is None:
            return INTERRUPTED
        for where in (channel.encode(), _GROUPS):
            try:
                return cast(Message, orjson.loads(self._cipher.unseal(sealed, where)))
            except SealBroken:
                continue
        log.error("layer.seal_broken", channel=channel)
        return None


class _RedisConnection(asyncio.Protocol):
    """One event loop's connection. It comes back by itself while a channel is open, and ends with the loop."""

    def __init__(
        self,
        layer: _LoopLayer,
        host: Mapping[str, Any],
        loop: asyncio.AbstractEventLoop,
        ended: Callable[[], object],
    ) -> None:
        # RESP3: answers and what is published can share a connection.
        options = {name: value for name, value in host.items() if name != "address"}
        self._pool: ConnectionPool = ConnectionPool.from_url(host["address"], protocol=3, **options)
        self._layer, self._loop = layer, loop
        self._transport: Transport | None = None
        self._stream: asyncio.StreamWriter  # kept, since it closes the transport when it goes
        self._connecting = asyncio.Lock()
        self._reader = hiredis.Reader()
        self._outgoing: list[bytes] = []
        self._unanswered: deque[tuple[Future[int], float]] = deque()
        self._subscribing: dict[bytes, Future[None]] = {}
        self._heard_at = 0.0
        self._tending = loop.create_task(self._tend(ended), name="channel layer")

    async def publish(self, channel: str, message: bytes) -> int:
        if self._transport is None:
            await self._connect()
        return await self._ask("PUBLISH", channel, message)

    async def ready(self) -> None:
        """Raise LayerAway."""
        if self._transport is None:
            await self._connect()

    async def subscribe(self, name: str) -> None:
        await self.ready()
        await self._confirmed(name)

    async def unsubscribe(self, name: str) -> None:
        self.unsubscribe_soon(name)

    def unsubscribe_soon(self, name: str) -> None:
        if self._transport is not None:
            self._write("UNSUBSCRIBE", name)

    async def flush(self) -> None:
        """End the connection; the next use makes a new one."""
        if self._transport is not None:
            self._transport.abort()

    def _ask(self, *command: str | bytes) -> Future[int]:
        future: Future[int] = self._loop.create_future()
        self._unanswered.append((future, self._loop.time()))
        self._write(*command)
        return future

    async def _confirmed(self, channel: str) -> None:
        future = self._subscribing[channel.encode()] = self._loop.create_future()
        self._write("SUBSCRIBE", channel)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await future
        except TimeoutError:
            raise ConnectionError("Redis did not confirm a subscription") from None

    def _write(self, *command: str | bytes) -> None:
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(hiredis.pack_command(command))  # type: ignore[arg-type]  # its stub knows no str and bytes

    def _flush(self) -> None:
        batch, self._outgoing = self._outgoing, []
        if self._transport is not None:
            self._transport.write(b"".join(batch))

    # What Redis says

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        self._reader.feed(data)
        while (said := self._reader.gets()) is not False:
            if type(said) is not hiredis.PushNotification:
                future, _ = self._unanswered.popleft()
                if future.done():
                    continue  # who asked was cancelled meanwhile
                if isinstance(said, Exception):
                    future.set_exception(
                        ChannelLayerUnavailable()
                    )  # refused: read only, out of memory, still loading
                else:
                    future.set_result(said)
            elif said[0] == b"message":
                self._layer.arrived(said[1].decode(), said[2])
            elif said[0] == b"subscribe":
                waiting = self._subscribing.pop(said[1], None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._outgoing = []
        waiting = [future for future, _ in self._unanswered] + list(self._subscribing.values())
        self._unanswered.clear()
        self._subscribing.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(ConnectionError("the connection to Redis was lost"))

    # Coming and going

    async def _connect(self) -> None:
        async with self._connecting:
            if self._transport is not None:
                return
            connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    await connection.connect()  # type: ignore[no-untyped-call]
            except (RedisError, OSError) as error:
                raise ChannelLayerUnavailable from error
            assert connection._writer is not None
            self._reader = hiredis.Reader()
            self._heard_at = self._loop.time()
            # It has signed in and nothing is under way, so what comes from here on is ours to read.
            self._stream = connection._writer
            connection._reader = connection._writer = None
            self._transport = cast(Transport, self._stream.transport)
            self._transport.set_protocol(self)
            if names := self._layer.names():
                self._write("SUBSCRIBE", *names)
                self._layer.interrupted()

    async def _tend(self, ended: Callable[[], object]) -> None:
        """Bring subscriptions back, notice a Redis that hangs, and close when the loop ends its tasks."""
        try:
            while True:
                await asyncio.sleep(_TEND_S)
                if self._transport is None:
                    if self._layer.names():
                        await self._come_back()
                elif self._unanswered and self._loop.time() - self._unanswered[0][1] > _PATIENCE_S:
                    log.warning("layer.redis_hangs")
                    self._transport.abort()
                elif not self._unanswered and self._loop.time() - self._heard_at > _QUIET_S:
                    self._ask("PING").add_done_callback(Future.exception)
        finally:
            ended()
            if self._transport is not None:
                self._transport.close()

    async def _come_back(self) -> None:
        try:
            await self._connect()
        except ChannelLayerUnavailable:
            log.warning("layer.redis_away", channels=len(self._layer.names()))
            await asyncio.sleep(_AGAIN_S)
        else:
            log.info("layer.redis_back", channels=len(self._layer.names()))
