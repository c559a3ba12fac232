"""The channel layer: channels_redis' pub/sub layer with sealed messages, on a Redis connection of its own.

Why it is ours and not channels_redis' own:

- Messages are sealed for their channel. A frame that crosses Redis holds a user's rows; someone who can read or write
  Redis must be able neither to read it nor to move it to another user's channel.
- `send` returns how many subscribers received the message, so a caller knows at once that nobody did.
- A subscriber receives INTERRUPTED when the connection was lost and messages may have been missed.

Speed alone would not justify it. It takes over a connection that redis-py has opened and signed in (its private
`_writer` and `_reader`), parses what arrives with hiredis, and writes everything sent in one turn of the event loop
at once. After an upgrade of redis-py or channels_redis run tests/core/test_channel_layer.py.
"""

from __future__ import annotations

import asyncio
from asyncio import Future, Queue, Transport
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

import hiredis
import orjson
import structlog
from channels_redis.pubsub import RedisPubSubChannelLayer, RedisPubSubLoopLayer
from django.conf import settings
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import RedisError

from adiuva.core.crypto import SealBroken
from adiuva.core.errors import Unavailable

log = structlog.get_logger(__name__)

Message = dict[str, Any]

# What a subscriber receives once the connection is back after a loss: messages may have been missed.
INTERRUPTED: Final[Message] = {"type": "interrupted"}

_PREFIX: Final = "adiuva."
# The associated data of messages to a group: its members do not know the group's name.
_GROUPS: Final = b"groups"
_CHECK_INTERVAL_S: Final = 0.25  # how often the connection is looked after
_RECONNECT_PAUSE_S: Final = 1.0
_PING_AFTER_S: Final = 10.0  # of silence; the PING shows whether Redis still answers
_ANSWER_TIMEOUT_S: Final = 10.0


class ChannelLayerUnavailable(Unavailable, ConnectionError):
    """Redis cannot be reached, and nothing was sent. After a plain ConnectionError the message may have been sent."""

    code = "channel_layer_away"

    def __init__(self) -> None:
        super().__init__("the servers cannot reach each other for now")


class SealedPubSubLayer(RedisPubSubChannelLayer):  # type: ignore[misc]  # channels_redis has no types
    """Each channel made with `new_channel` must be ended with `end_channel`."""

    def __init__(self, hosts: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        (self._host,) = hosts
        self.cipher = settings.KEY_RING.transit

    async def send(self, channel: str, message: Message) -> int:
        """Send a message; returns how many listened (0: nobody got it).

        Raises ChannelLayerUnavailable, or ConnectionError if the connection broke before Redis answered.
        """
        return await self._get_layer().send(channel, message)

    async def new_channel(self, prefix: str = "") -> str:
        """The name of a new channel, which is subscribed to already. Raises ConnectionError."""
        return await self._get_layer().new_channel(prefix)

    def end_channel(self, channel: str) -> list[Message]:
        """Unsubscribe from a channel; returns the messages that had arrived and were not received."""
        return self._get_layer().end_channel(channel)

    def serialize(self, message: Message) -> bytes:
        """The bytes that channels_redis sends to a group."""
        sealed: bytes = self.cipher.seal(orjson.dumps(message), _GROUPS)
        return sealed

    def _get_layer(self) -> _LoopLayer:
        loop = asyncio.get_running_loop()
        found: _LoopLayer | None = self._layers.get(loop)
        if found is None:
            found = self._layers[loop] = _LoopLayer(self, self._host, loop)
        return found


class _LoopLayer(RedisPubSubLoopLayer):  # type: ignore[misc]
    """One event loop's channels and groups, on one connection instead of channels_redis' shards."""

    def __init__(
        self, layer: SealedPubSubLayer, host: Mapping[str, Any], loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(prefix=_PREFIX, channel_layer=layer)
        self._cipher = layer.cipher
        self._connection = _RedisConnection(self, host, loop, lambda: layer._layers.pop(loop, None))
        self._shards = [self._connection]

    async def send(self, channel: str, message: Message) -> int:
        return await self._connection.publish(
            channel, self._cipher.seal(orjson.dumps(message), channel.encode())
        )

    async def new_channel(self, prefix: str = "") -> str:
        return cast(str, await super().new_channel(prefix))

    async def _subscribe_to_channel(self, channel: str) -> None:
        await (
            self._connection.ready()
        )  # before it is registered, or it would receive INTERRUPTED for this connect
        self.channels[channel] = Queue()
        try:
            await self._connection.subscribe(channel)
        except BaseException:
            self.end_channel(channel)
            raise

    async def receive(self, channel: str) -> Message:
        """The next message on a channel of this loop."""
        queue = self.channels[channel]
        while True:
            if (message := self._unseal(channel, await queue.get())) is not None:
                return message

    def end_channel(self, channel: str) -> list[Message]:
        queue: Queue[bytes | None] | None = self.channels.pop(channel, None)
        if queue is None:
            return []
        self._connection.unsubscribe_soon(channel)
        left = [self._unseal(channel, queue.get_nowait()) for _ in range(queue.qsize())]
        return [message for message in left if message is not None]

    def message_arrived(self, name: str, sealed: bytes) -> None:
        for channel in (name, *self.groups.get(name, ())):
            if (queue := self.channels.get(channel)) is not None:
                queue.put_nowait(sealed)

    def interrupted(self) -> None:
        for queue in self.channels.values():
            queue.put_nowait(None)

    def names(self) -> list[str]:
        """The names to subscribe to after a reconnect."""
        return [*self.channels, *self.groups]

    def _unseal(self, channel: str, sealed: bytes | None) -> Message | None:
        if sealed is None:
            return INTERRUPTED
        for where in (channel.encode(), _GROUPS):
            try:
                return cast(Message, orjson.loads(self._cipher.unseal(sealed, where)))
            except SealBroken:
                continue
        log.error("channel_layer.seal_broken", channel=channel)
        return None


# More than 15 methods: asyncio calls some, and reconnecting is a chain of small steps over the same state.
class _RedisConnection(asyncio.Protocol):
    """One event loop's connection. It reconnects while a channel is open, and closes with the loop's tasks."""

    def __init__(
        self,
        layer: _LoopLayer,
        host: Mapping[str, Any],
        loop: asyncio.AbstractEventLoop,
        on_close: Callable[[], object],
    ) -> None:
        # With RESP3 a connection can both subscribe and send commands.
        options = {name: value for name, value in host.items() if name != "address"}
        self._pool: ConnectionPool = ConnectionPool.from_url(host["address"], protocol=3, **options)
        self._layer, self._loop = layer, loop
        self._transport: Transport | None = None
        self._stream: asyncio.StreamWriter  # kept: it closes the transport when it is garbage-collected
        self._connecting = asyncio.Lock()
        self._reader = hiredis.Reader()
        self._outgoing: list[bytes] = []
        self._unanswered: deque[tuple[Future[int], float]] = deque()
        self._subscribing: dict[bytes, Future[None]] = {}
        self._last_read_at = 0.0
        self._maintenance = loop.create_task(self._maintain(on_close), name="channel layer")

    async def publish(self, channel: str, message: bytes) -> int:
        if self._transport is None:
            await self._connect()
        return await self._command("PUBLISH", channel, message)

    async def ready(self) -> None:
        """Raises ChannelLayerUnavailable if Redis cannot be reached."""
        if self._transport is None:
            await self._connect()

    async def subscribe(self, name: str) -> None:
        await self.ready()
        await self._confirm_subscription(name)

    async def unsubscribe(self, name: str) -> None:
        self.unsubscribe_soon(name)

    def unsubscribe_soon(self, name: str) -> None:
        if self._transport is not None:
            self._write("UNSUBSCRIBE", name)

    async def flush(self) -> None:
        """Close the connection; the next use opens a new one."""
        if self._transport is not None:
            self._transport.abort()

    def _command(self, *command: str | bytes) -> Future[int]:
        future: Future[int] = self._loop.create_future()
        self._unanswered.append((future, self._loop.time()))
        self._write(*command)
        return future

    async def _confirm_subscription(self, channel: str) -> None:
        future = self._subscribing[channel.encode()] = self._loop.create_future()
        self._write("SUBSCRIBE", channel)
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
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

    # ── What Redis sends ────────────────────────────────────────────────────────────────────────────────

    def data_received(self, data: bytes) -> None:
        self._last_read_at = self._loop.time()
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            if type(reply) is not hiredis.PushNotification:
                future, _ = self._unanswered.popleft()
                if future.done():
                    continue  # its caller was cancelled
                if isinstance(reply, Exception):
                    future.set_exception(ChannelLayerUnavailable())  # read only, out of memory, loading
                else:
                    future.set_result(reply)
            elif reply[0] == b"message":
                self._layer.message_arrived(reply[1].decode(), reply[2])
            elif reply[0] == b"subscribe":
                confirmed = self._subscribing.pop(reply[1], None)
                if confirmed is not None and not confirmed.done():
                    confirmed.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._outgoing = []
        waiting = [future for future, _ in self._unanswered] + list(self._subscribing.values())
        self._unanswered.clear()
        self._subscribing.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(ConnectionError("the connection to Redis was lost"))

    # ── Connecting and reconnecting ─────────────────────────────────────────────────────────────────────

    async def _connect(self) -> None:
        async with self._connecting:
            if self._transport is not None:
                return
            connection: AbstractConnection = self._pool.make_connection()  # type: ignore[no-untyped-call]
            try:
                async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                    await connection.connect()  # type: ignore[no-untyped-call]
            except (RedisError, OSError) as error:
                raise ChannelLayerUnavailable from error
            assert connection._writer is not None
            self._reader = hiredis.Reader()
            self._last_read_at = self._loop.time()
            # redis-py has signed in and awaits no reply, so this protocol can take over the transport.
            self._stream = connection._writer
            connection._reader = connection._writer = None
            self._transport = cast(Transport, self._stream.transport)
            self._transport.set_protocol(self)
            if names := self._layer.names():
                self._write("SUBSCRIBE", *names)
                self._layer.interrupted()

    async def _maintain(self, on_close: Callable[[], object]) -> None:
        """Reconnect while there are subscriptions, detect a Redis that hangs, close when this task is cancelled."""
        try:
            while True:
                await asyncio.sleep(_CHECK_INTERVAL_S)
                if self._transport is None:
                    if self._layer.names():
                        await self._reconnect()
                elif self._unanswered and self._loop.time() - self._unanswered[0][1] > _ANSWER_TIMEOUT_S:
                    log.warning("channel_layer.redis_hung")
                    self._transport.abort()
                elif not self._unanswered and self._loop.time() - self._last_read_at > _PING_AFTER_S:
                    self._command("PING").add_done_callback(Future.exception)
        finally:
            on_close()
            if self._transport is not None:
                self._transport.close()

    async def _reconnect(self) -> None:
        try:
            await self._connect()
        except ChannelLayerUnavailable:
            log.warning("channel_layer.disconnected", channels=len(self._layer.names()))
            await asyncio.sleep(_RECONNECT_PAUSE_S)
        else:
            log.info("channel_layer.reconnected", channels=len(self._layer.names()))
