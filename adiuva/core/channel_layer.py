"""Channel layer: Channels' interface on Redis' publish and subscribe, with sealed messages.

Each event loop has one inbox in Redis. Its channels are names in that inbox, in Channels' own form for a channel of a
process, `inbox!name`. All that one turn of the loop sends to an inbox is one message, sealed once. So one of many calls
costs Redis and both ends little, and neither a channel nor a socket costs a subscription.

Why it is ours and not channels_redis':

- Messages are sealed for their inbox. A frame that crosses Redis holds a user's rows; someone who can read or write
  Redis must be able neither to read it nor to move it to another process.
- `send` returns how many listened, so a caller knows at once that nobody did.
- A listener learns (INTERRUPTED) that the connection was lost, so that it may have missed messages.
- Many channels share a connection, and a callback gets a message where it arrives, without a queue and a task.

Messages do not expire, and a channel's queue has no capacity: they are handed over as they arrive, or not at all.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from asyncio import Future, Queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson
import structlog
from channels.layers import BaseChannelLayer
from channels_redis.utils import decode_hosts
from django.conf import settings

from adiuva.core.channel_envelope import Message, pack, pack_batch, unpack_batch
from adiuva.core.crypto import SealBroken, TransitCipher
from adiuva.core.logging import log_failure
from adiuva.core.pubsub_connection import ANSWER_TIMEOUT_S, ChannelLayerUnavailable, Fate, PubSubConnection

__all__ = ["INTERRUPTED", "ChannelLayerUnavailable", "Message", "SealedPubSubLayer"]

log = structlog.get_logger(__name__)

# A listener receives this once the connection is back after a loss: it may have missed messages.
INTERRUPTED: Final[Message] = {"type": "interrupted"}

_PREFIX: Final = "adiuva."
# The associated data of messages to a group, whose members do not know the group's name.
_GROUPS: Final = b"groups"
# At most this many bytes are sealed and published at once; a larger message goes alone.
_BATCH_BYTES: Final = 256 * 1024

Callback = Callable[[Message], object]


class SealedPubSubLayer(BaseChannelLayer):  # type: ignore[misc]  # channels has no types
    """Channel layer. Whoever makes a channel with `new_channel` must end it with `end_channel`.

    `hosts` names one Redis in the form of channels_redis' layers: a URL, host and port, or options of a connection,
    also to Sentinels.
    """

    extensions = ("groups", "flush")

    def __init__(self, hosts: Sequence[Any]) -> None:
        super().__init__()
        (self._host,) = decode_hosts(hosts)
        self.cipher: TransitCipher = settings.KEY_RING.transit
        self._layers: dict[asyncio.AbstractEventLoop, _LoopLayer] = {}

    async def send(self, channel: str, message: Message, body: bytes = b"") -> int:
        """Send a message. Returns how many listened (0: nobody got it). A `body` arrives as the key of this name.

        Raises ChannelLayerUnavailable, or ConnectionError if it is not known whether it arrived.
        """
        return await self._here().send(channel, message, body)

    def post(self, channel: str, message: Message, body: bytes = b"") -> None:
        """Send a message without waiting to learn what becomes of it.

        If the message did not arrive, or may not have arrived, and it names a channel of this process as its `reply`,
        that channel receives {"type": "returned", "why": …, "message": the message without its body}. `why` is "nobody"
        (nobody listens), "unavailable" (Redis is, and nothing was sent) or "lost" (it is not known).
        """
        self._here().post(channel, message, body)

    async def new_channel(self, prefix: str = "", callback: Callback | None = None) -> str:
        """Return the name of a new channel, to which others can send at once. Raises ConnectionError.

        Its messages go to `callback` as they arrive, in their order; without one, to `receive`.
        """
        return await self._here().new_channel(prefix, callback)

    async def receive(self, channel: str) -> Message:
        """Return the next message of a channel of this loop that has no callback."""
        return await self._here().queues[channel].get()

    def end_channel(self, channel: str) -> list[Message]:
        """End a channel. Returns the messages that had arrived and were not received."""
        return self._here().end_channel(channel)

    async def group_add(self, group: str, channel: str) -> None:
        """Add a channel of this loop to a group. Raises ConnectionError."""
        await self._here().group_add(group, channel)

    async def group_discard(self, group: str, channel: str) -> None:
        """Take a channel out of a group, if it is in it."""
        self._here().group_discard(group, channel)

    async def group_send(self, group: str, message: Message) -> None:
        """Send a message to all members of a group. Raises ChannelLayerUnavailable or ConnectionError."""
        await self._here().group_send(group, message)

    async def flush(self) -> None:
        """Forget the channels and groups of this loop, and close its connection; the next use opens a new one."""
        self._here().flush()

    def _here(self) -> _LoopLayer:
        loop = asyncio.get_running_loop()
        found = self._layers.get(loop)
        if found is None:
            found = self._layers[loop] = _LoopLayer(
                self.cipher, self._host, loop, lambda: self._layers.pop(loop, None)
            )
        return found


class _Posted(NamedTuple):
    """Message to send. `number`: 0 if no sender waits for word of it. `returnable`: what to give back if it gets
    lost."""

    packed: bytes
    number: int
    returnable: Message | None


# More than 15 methods: those of the layer, and those that the connection calls.
class _LoopLayer:
    """Inbox of one event loop, with its channels and groups, on one connection."""

    def __init__(
        self,
        cipher: TransitCipher,
        host: Mapping[str, Any],
        loop: asyncio.AbstractEventLoop,
        on_close: Callable[[], object],
    ) -> None:
        self.queues: dict[str, Queue[Message]] = {}
        self._on_close = on_close
        self._cipher, self._loop = cipher, loop
        self._inbox = f"{_PREFIX}{uuid.uuid4().hex}"
        self._is_subscribed = False
        # Channels by name within the inbox; and the names of each group's members.
        self._callbacks: dict[str, Callback] = {}
        self._groups: dict[str, set[str]] = {}
        self._numbers = itertools.count(1)
        self._outgoing: dict[str, list[_Posted]] = {}
        self._awaited: dict[int, Future[int]] = {}
        self._connecting: asyncio.Task[None] | None = None
        self._connection = PubSubConnection(host, self, loop)

    # ── Channels and groups ─────────────────────────────────────────────────────────────────────────────

    async def new_channel(self, prefix: str, callback: Callback | None) -> str:
        # Connect before the channel is registered, or it would receive INTERRUPTED for this connect.
        await self._open()
        name = f"{prefix}{next(self._numbers)}"
        channel = f"{self._inbox}!{name}"
        if callback is None:
            queue = self.queues[channel] = Queue()
            callback = queue.put_nowait
        self._callbacks[name] = callback
        return channel

    async def _open(self) -> None:
        await self._connection.ready()
        if not self._is_subscribed:
            await self._connection.subscribe(self._inbox)
            self._is_subscribed = True

    def end_channel(self, channel: str) -> list[Message]:
        self._callbacks.pop(channel.partition("!")[2], None)
        queue = self.queues.pop(channel, None)
        return [] if queue is None else [queue.get_nowait() for _ in range(queue.qsize())]

    async def group_add(self, group: str, channel: str) -> None:
        name = channel.partition("!")[2]
        if name not in self._callbacks:
            raise RuntimeError("only channels of this process can be added to a group")
        # Before Redis answers, so that another member who leaves meanwhile does not take the subscription along.
        self._groups.setdefault(_group_name(group), set()).add(name)
        try:
            await self._connection.subscribe(_group_name(group))
        except BaseException:
            self.group_discard(group, channel)
            raise

    def group_discard(self, group: str, channel: str) -> None:
        members = self._groups.get(_group_name(group), set())
        members.discard(channel.partition("!")[2])
        if not members and self._groups.pop(_group_name(group), None) is not None:
            self._connection.unsubscribe(_group_name(group))

    async def group_send(self, group: str, message: Message) -> None:
        sealed = self._cipher.seal(orjson.dumps(message), _GROUPS)
        await self._connection.ready()
        future: Future[int] = self._loop.create_future()
        self._connection.publish(_group_name(group), sealed, lambda fate: _settle(future, fate))
        await future

    def flush(self) -> None:
        self._callbacks.clear()
        self.queues.clear()
        self._groups.clear()
        self._connection.abort()

    # ── Sending ─────────────────────────────────────────────────────────────────────────────────────────

    async def send(self, channel: str, message: Message, body: bytes) -> int:
        inbox, _, name = channel.partition("!")
        number = next(self._numbers)
        packed = pack(name, message, body, number)
        if not name:
            return 0
        if not self._is_subscribed:  # the inbox hears of the message by its subscription
            await self._open()
        future = self._awaited[number] = self._loop.create_future()
        self._put(inbox, _Posted(packed, number, None))
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                heard: int = await future
            return heard
        except TimeoutError:
            raise ConnectionError("the process that was sent a message does not answer") from None
        finally:
            del self._awaited[number]

    def post(self, channel: str, message: Message, body: bytes) -> None:
        inbox, _, name = channel.partition("!")
        self._put(inbox, _Posted(pack(name, message, body), 0, message if "reply" in message else None))

    def _put(self, inbox: str, posted: _Posted) -> None:
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        if (waiting := self._outgoing.get(inbox)) is None:
            waiting = self._outgoing[inbox] = []
        waiting.append(posted)

    def _flush(self) -> None:
        if not self._connection.is_open:
            self._connecting = self._loop.create_task(self._flush_when_open(), name="channel layer")
            return
        outgoing, self._outgoing = self._outgoing, {}
        sender = self._inbox if self._is_subscribed else ""
        for inbox, waiting in outgoing.items():
            for batch in _batches(waiting):
                sealed = self._cipher.seal(
                    pack_batch(sender, [each.packed for each in batch]), inbox.encode()
                )
                self._connection.publish(inbox, sealed, _Answer(self, batch))

    async def _flush_when_open(self) -> None:
        try:
            await self._connection.ready()
        except ConnectionError:
            outgoing, self._outgoing = self._outgoing, {}
            for waiting in outgoing.values():
                self.published(waiting, "unavailable")
        else:
            self._flush()

    def published(self, batch: Sequence[_Posted], fate: Fate) -> None:
        """Tell senders what became of their messages, unless their process has them and will report itself."""
        if fate not in (0, "unavailable", "lost"):
            return
        unheard = 0
        for _, number, returnable in batch:
            if number:
                if (future := self._awaited.get(number)) is not None:
                    _settle(future, fate)
            elif returnable is not None:
                inbox, _, name = returnable["reply"].partition("!")
                if inbox == self._inbox:
                    self._receive(name, _returned(returnable, fate or "nobody"))
            else:
                unheard += 1
        if unheard and fate:
            log.warning("channel_layer.messages_lost", count=unheard)

    # ── Receiving ───────────────────────────────────────────────────────────────────────────────────────

    def names(self) -> list[str]:
        return [*([self._inbox] if self._is_subscribed else []), *self._groups]

    def closed(self) -> None:
        self._on_close()

    def lost(self) -> None:
        """Report sent messages without an answer as lost, since the answer may have been missed."""
        unsent = {posted.number for waiting in self._outgoing.values() for posted in waiting}
        for number, future in self._awaited.items():
            if number not in unsent:
                _settle(future, "lost")

    def interrupted(self) -> None:
        for name in list(self._callbacks):
            self._receive(name, INTERRUPTED)

    def arrived(self, name: bytes, payload: bytes) -> None:
        where = name.decode()
        try:
            if where == self._inbox:
                self._open_batch(self._cipher.unseal(payload, name))
            else:
                content = self._cipher.unseal(payload, _GROUPS)
                for member in list(self._groups.get(where, ())):
                    self._receive(member, orjson.loads(content))
        except (SealBroken, ValueError):
            log.error("channel_layer.message_unreadable", name=where)

    def _open_batch(self, content: bytes) -> None:
        sender, messages = unpack_batch(content)
        # By number: 1 if somebody listened, 0 if nobody did.
        heard: list[tuple[int, int]] = []
        for number, name, message in messages:
            if not name:
                self._hear(message["heard"])
                continue
            is_heard = self._receive(name, message)
            if number:
                heard.append((number, int(is_heard)))
            elif not is_heard and "reply" in message:
                message.pop("body", None)
                self.post(message["reply"], _returned(message, "nobody"), b"")
        if heard and sender:
            self._put(sender, _Posted(pack("", {"heard": heard}), 0, None))

    def _hear(self, heard: Sequence[tuple[int, int]]) -> None:
        for number, count in heard:
            if (future := self._awaited.get(number)) is not None:
                _settle(future, count)

    def _receive(self, name: str, message: Message) -> bool:
        if (callback := self._callbacks.get(name)) is None:
            return False
        try:
            callback(message)
        except Exception as error:  # others have messages in this batch too
            log_failure("channel_layer.callback_failed", error, channel=name)
        return True


class _Answer:
    """Callback for Redis' answer about a batch. An object costs less than a closure, and each batch has one."""

    __slots__ = ("_batch", "_layer")

    def __init__(self, layer: _LoopLayer, batch: Sequence[_Posted]) -> None:
        self._layer, self._batch = layer, batch

    def __call__(self, fate: Fate) -> None:
        self._layer.published(self._batch, fate)


def _batches(waiting: Sequence[_Posted]) -> Iterator[Sequence[_Posted]]:
    """Split what waits for one inbox, in order, into batches of at most _BATCH_BYTES; a larger message goes alone."""
    start = size = 0
    for place, posted in enumerate(waiting):
        if size and size + len(posted.packed) > _BATCH_BYTES:
            yield waiting[start:place]
            start, size = place, 0
        size += len(posted.packed)
    yield waiting[start:]


def _settle(future: Future[int], fate: Fate) -> None:
    if future.done():
        return  # the waiter was cancelled
    if isinstance(fate, int):
        future.set_result(fate)
    elif fate == "unavailable":
        future.set_exception(ChannelLayerUnavailable())
    else:
        future.set_exception(ConnectionError("the connection to Redis was lost"))


def _returned(message: Message, why: str) -> Message:
    return {"type": "returned", "why": why, "message": message}


def _group_name(group: str) -> str:
    return f"{_PREFIX}group.{group}"
