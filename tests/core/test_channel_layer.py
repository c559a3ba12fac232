"""The channel layer on a Valkey of its own: what others can see of it, and what it does when Valkey goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from redis.asyncio import Redis

from adiuva.core.channel_layer import INTERRUPTED, ChannelLayerUnavailable, SealedPubSubLayer
from adiuva.embedded.valkey import Valkey

PATIENCE_S = 60


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Valkey, str]]:
    folder = tmp_path_factory.mktemp("valkey")
    server = Valkey(folder / "data", password="secret", log=folder / "log", durable=False)
    url = server.start()
    yield server, url
    server.stop()


@pytest.fixture
def url(valkey: tuple[Valkey, str]) -> str:
    server, url = valkey
    if not server.alive:
        restart(server)
    return url


def restart(server: Valkey) -> None:
    """The same server at the same address; `Valkey.start` would take a new port."""
    from adiuva.embedded import valkey as module

    child = server.child
    assert child is not None
    child.start()
    port = int(child.stdin.decode().split("port ")[1].split()[0])
    child.wait_until(lambda: module._answers("secret", port), within_s=PATIENCE_S)


@pytest.fixture
async def layer(url: str) -> SealedPubSubLayer:
    return SealedPubSubLayer([{"address": url, "socket_timeout": None}])


@pytest.fixture
async def watcher(url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(url) as redis:
        yield redis


async def until(asked: Callable[[], Awaitable[Any]]) -> Any:
    """Ask until it is so."""
    async with asyncio.timeout(PATIENCE_S):
        while not (found := await asked()):
            await asyncio.sleep(0)
        return found


async def test_a_message_arrives_unchanged_and_send_returns_the_number_of_listeners(
    layer: SealedPubSubLayer,
) -> None:
    channel = await layer.new_channel("a.")
    message = {"type": "frame", "text": "日本 ü", "calls": ["1"], "run": None}
    assert await layer.send(channel, message) == 1
    assert await layer.receive(channel) == message


async def test_sending_to_a_channel_without_listeners_returns_zero(layer: SealedPubSubLayer) -> None:
    assert await layer.send("adiuva.nobody", {"type": "x"}) == 0


async def test_messages_are_encrypted_in_redis(layer: SealedPubSubLayer, watcher: Redis) -> None:
    channel = await layer.new_channel()
    async with watcher.monitor() as monitor:
        await layer.send(channel, {"type": "frame", "text": "the plumber calls on Tuesday"})
        commands = monitor.listen()
        while not (seen := (await anext(commands))["command"]).startswith("PUBLISH"):
            pass
    assert channel in seen
    assert all(word not in seen for word in ("plumber", "frame", "text", "type"))
    assert (await layer.receive(channel))["text"].startswith("the plumber")


async def test_a_moved_or_altered_message_is_dropped_and_the_next_one_is_read(
    layer: SealedPubSubLayer, watcher: Redis
) -> None:
    mine, other = await layer.new_channel(), await layer.new_channel()
    async with watcher.pubsub() as spy:
        await spy.subscribe(other)
        await spy.get_message(timeout=PATIENCE_S)
        await layer.send(other, {"type": "frame", "text": "of another user"})
        sealed = (await spy.get_message(timeout=PATIENCE_S))["data"]
    for forged in (sealed, sealed[:-1] + bytes([sealed[-1] ^ 1]), b"", b"{}"):
        await watcher.publish(mine, forged)
    await layer.send(mine, {"type": "mine"})
    assert await layer.receive(mine) == {"type": "mine"}


async def test_groups_follow_the_channels_specification_and_are_sealed(
    layer: SealedPubSubLayer, watcher: Redis
) -> None:
    channels = [await layer.new_channel() for _ in range(3)]
    for channel in channels[:2]:
        await layer.group_add("people", channel)
    async with watcher.pubsub() as spy:
        await spy.psubscribe("*")
        await spy.get_message(timeout=PATIENCE_S)
        await layer.group_send("people", {"type": "hello", "text": "the plumber comes on Friday"})
        seen = await spy.get_message(timeout=PATIENCE_S)
    assert b"plumber" not in seen["data"]
    for channel in channels[:2]:
        assert (await layer.receive(channel))["text"] == "the plumber comes on Friday"
    await layer.group_discard("people", channels[0])
    await layer.group_send("people", {"type": "again"})
    assert await layer.receive(channels[1]) == {"type": "again"}
    assert [layer.end_channel(channel) for channel in channels] == [[], [], []]


async def test_messages_keep_their_order(layer: SealedPubSubLayer) -> None:
    channel = await layer.new_channel()
    heard = await asyncio.gather(*(layer.send(channel, {"n": n}) for n in range(2_000)))
    assert heard == [1] * 2_000
    assert [(await layer.receive(channel))["n"] for _ in range(2_000)] == list(range(2_000))


async def test_unsubscribing_drops_a_channel_and_its_unread_messages(
    layer: SealedPubSubLayer, watcher: Redis
) -> None:
    channel = await layer.new_channel()
    await layer.send(channel, {"n": 1})
    assert layer.end_channel(channel) == [{"n": 1}]
    assert layer.end_channel(channel) == []
    assert await layer.send(channel, {"n": 2}) == 0
    assert channel.encode() not in await watcher.pubsub_channels()


async def test_a_message_that_json_cannot_represent_is_refused_on_sending(layer: SealedPubSubLayer) -> None:
    with pytest.raises(TypeError):
        await layer.send("adiuva.x", {"type": "x", "value": object()})


async def test_cancelling_one_sender_does_not_mix_up_the_answers_of_others(layer: SealedPubSubLayer) -> None:
    channel = await layer.new_channel()
    senders = [asyncio.create_task(layer.send(channel, {"n": n})) for n in range(10)]
    await asyncio.sleep(0)
    for sender in senders[::2]:
        sender.cancel()
    assert await asyncio.gather(*senders[1::2]) == [1] * 5
    assert await layer.send("adiuva.nobody", {}) == 0


async def test_listeners_are_told_of_a_restart_of_redis_and_keep_working(
    layer: SealedPubSubLayer, valkey: tuple[Valkey, str]
) -> None:
    server, _ = valkey
    channels = [await layer.new_channel() for _ in range(50)]
    await asyncio.to_thread(server.stop)
    with pytest.raises(ConnectionError):
        await layer.send(channels[0], {"n": 0})
    with pytest.raises(ChannelLayerUnavailable):  # and now it is known before anything is sent
        await layer.send(channels[0], {"n": 0})
    with pytest.raises(ChannelLayerUnavailable):
        await layer.new_channel()
    restart(server)  # in this thread, since a child ends with the thread that started it
    async with asyncio.timeout(PATIENCE_S):
        assert [await layer.receive(channel) for channel in channels] == [INTERRUPTED] * 50
    assert await asyncio.gather(*(layer.send(channel, {"n": 1}) for channel in channels)) == [1] * 50
    assert [await layer.receive(channel) for channel in channels] == [{"n": 1}] * 50


async def test_a_cut_connection_is_restored(layer: SealedPubSubLayer, watcher: Redis) -> None:
    channel = await layer.new_channel()
    await watcher.client_kill_filter(_type="pubsub")
    async with asyncio.timeout(PATIENCE_S):
        assert await layer.receive(channel) == INTERRUPTED
    assert await layer.send(channel, {"n": 1}) == 1


def test_the_connection_is_closed_with_its_event_loop(url: str) -> None:
    async def one_loop() -> None:
        layer = SealedPubSubLayer([{"address": url}])
        await layer.new_channel()

    for _ in range(3):
        asyncio.run(one_loop())

    async def left() -> bool:
        async with Redis.from_url(url) as redis:
            return not await redis.client_list(_type="pubsub")

    assert asyncio.run(until(left))  # type: ignore[arg-type]
