"""The channel layer on a Valkey of its own: what others can see of it, and what it does when Valkey goes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from redis.asyncio import Redis

from adiuva.core.channel_envelope import Message, pack, pack_batch
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
async def other(url: str) -> SealedPubSubLayer:
    """As another process has it."""
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


async def published(watcher: Redis) -> int:
    """How many messages have been published."""
    counts = await watcher.info("commandstats")
    return int(counts["cmdstat_publish"]["calls"]) if "cmdstat_publish" in counts else 0


async def test_redis_is_named_as_for_the_layers_of_channels_redis(layer: SealedPubSubLayer, url: str) -> None:
    address = urlsplit(url)
    channel = await layer.new_channel()
    for named in (url, {"host": address.hostname, "port": address.port, "password": address.password}):
        assert await SealedPubSubLayer([named]).send(channel, {"n": 1}) == 1
        assert await layer.receive(channel) == {"n": 1}
    with pytest.raises(ValueError, match="list"):
        SealedPubSubLayer(url)
    layer.end_channel(channel)


async def test_a_message_arrives_unchanged_and_send_returns_the_number_of_listeners(
    layer: SealedPubSubLayer,
) -> None:
    channel = await layer.new_channel("a.")
    message = {"type": "frame", "text": "日本 ü", "calls": ["1"], "run": None}
    assert await layer.send(channel, message) == 1
    assert await layer.receive(channel) == message


async def test_sending_to_a_channel_without_listeners_returns_zero(layer: SealedPubSubLayer) -> None:
    channel = await layer.new_channel()
    layer.end_channel(channel)
    for nobody in (
        "adiuva.nobody",
        "adiuva.nobody!x",
        channel,
    ):  # no channel; no process; a process without it
        assert await layer.send(nobody, {"type": "x"}) == 0


async def test_a_body_arrives_as_the_bytes_it_was(layer: SealedPubSubLayer) -> None:
    channel = await layer.new_channel()
    body = bytes(range(256)) * 10_000
    assert await layer.send(channel, {"type": "frame"}, body) == 1
    assert await layer.receive(channel) == {"type": "frame", "body": body}


async def test_what_one_turn_of_the_loop_sends_to_a_process_is_one_message(
    layer: SealedPubSubLayer, other: SealedPubSubLayer, watcher: Redis
) -> None:
    channels = [await other.new_channel() for _ in range(10)]
    before = await published(watcher)
    for place, channel in enumerate(channels):
        layer.post(channel, {"place": place}, b"x" * 100)
    assert [(await other.receive(channel))["place"] for channel in channels] == list(range(10))
    assert await published(watcher) == before + 1
    large = [b"x" * 200_000] * 3
    for body in large:
        layer.post(channels[0], {}, body)
    assert [(await other.receive(channels[0]))["body"] for _ in large] == large
    assert await published(watcher) == before + 4


async def test_a_channel_costs_redis_no_subscription(layer: SealedPubSubLayer, watcher: Redis) -> None:
    channels = [await layer.new_channel() for _ in range(10)]
    (inbox,) = {channel.partition("!")[0].encode() for channel in channels}
    assert inbox in await watcher.pubsub_channels()
    assert not any(b"!" in name for name in await watcher.pubsub_channels())


async def test_a_callback_gets_its_messages_in_order_and_may_fail(layer: SealedPubSubLayer) -> None:
    got: list[int] = []

    def take(message: Message) -> None:
        got.append(message["n"])
        if message["n"] % 2:
            raise ValueError

    channel = await layer.new_channel("", take)
    assert await asyncio.gather(*(layer.send(channel, {"n": n}) for n in range(10))) == [1] * 10
    assert got == list(range(10))
    assert layer.end_channel(channel) == []


async def test_what_was_posted_and_nobody_heard_comes_back(
    layer: SealedPubSubLayer, other: SealedPubSubLayer
) -> None:
    reply, ended = await layer.new_channel(), await other.new_channel()
    other.end_channel(ended)
    for nobody in ("adiuva.nobody!x", ended):
        message = {"type": "frame", "calls": ["1"], "reply": reply}
        layer.post(nobody, message, b"a frame")
        assert await layer.receive(reply) == {"type": "returned", "why": "nobody", "message": message}
    layer.post(ended, {"type": "frame"})  # and without a reply it is gone
    assert await layer.send(reply, {"type": "end"}) == 1
    assert await layer.receive(reply) == {"type": "end"}


async def test_messages_are_encrypted_in_redis(layer: SealedPubSubLayer, watcher: Redis) -> None:
    channel = await layer.new_channel("socket.")
    inbox = channel.partition("!")[0]
    async with watcher.monitor() as monitor:
        await layer.send(
            channel, {"type": "frame", "text": "the plumber calls on Tuesday"}, b"at ten o'clock"
        )
        commands = monitor.listen()
        while not (seen := (await anext(commands))["command"]).startswith(f"PUBLISH {inbox}"):
            pass
    assert all(word not in seen for word in ("plumber", "frame", "text", "type", "clock", "socket."))
    assert (await layer.receive(channel))["text"].startswith("the plumber")


async def test_a_moved_or_altered_message_is_dropped_and_the_next_one_is_read(
    layer: SealedPubSubLayer, other: SealedPubSubLayer, watcher: Redis
) -> None:
    mine, theirs = await layer.new_channel("a"), await other.new_channel("a")
    my_inbox, their_inbox = (channel.partition("!")[0] for channel in (mine, theirs))
    async with watcher.pubsub() as spy:
        await spy.subscribe(their_inbox)
        await spy.get_message(timeout=PATIENCE_S)
        layer.post(theirs, {"type": "frame", "text": "of another user"})
        sealed = (await spy.get_message(timeout=PATIENCE_S))["data"]
    for forged in (sealed, sealed[:-1] + bytes([sealed[-1] ^ 1]), b"", b"{}"):
        await watcher.publish(my_inbox, forged)
    for broken in (b"", b"\x02\x00\x00", pack_batch("", [pack("a1", {})])[:-1]):  # sealed, and yet no batch
        await watcher.publish(my_inbox, layer.cipher.seal(broken, my_inbox.encode()))
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


async def test_who_joins_a_group_while_its_last_member_leaves_hears_it(
    layer: SealedPubSubLayer, other: SealedPubSubLayer
) -> None:
    leaving, joining = [await layer.new_channel() for _ in range(2)]
    await layer.group_add("people", leaving)
    joined = asyncio.create_task(layer.group_add("people", joining))
    await asyncio.sleep(0)  # it has asked Redis, and waits for the answer
    await layer.group_discard("people", leaving)
    await joined
    await other.group_send("people", {"type": "hello"})
    assert await asyncio.wait_for(layer.receive(joining), PATIENCE_S) == {"type": "hello"}


async def test_messages_keep_their_order(layer: SealedPubSubLayer) -> None:
    channel = await layer.new_channel()
    heard = await asyncio.gather(*(layer.send(channel, {"n": n}) for n in range(2_000)))
    assert heard == [1] * 2_000
    assert [(await layer.receive(channel))["n"] for _ in range(2_000)] == list(range(2_000))


async def test_ending_a_channel_returns_its_unread_messages(layer: SealedPubSubLayer) -> None:
    channel = await layer.new_channel()
    await layer.send(channel, {"n": 1})
    assert layer.end_channel(channel) == [{"n": 1}]
    assert layer.end_channel(channel) == []
    assert await layer.send(channel, {"n": 2}) == 0


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


@pytest.mark.parametrize("cut", ["never", "pubsub", "normal"])
async def test_it_is_known_of_each_message_whether_it_arrived(
    url: str, layer: SealedPubSubLayer, other: SealedPubSubLayer, watcher: Redis, cut: str
) -> None:
    """Sent or posted, whatever its size, while connections are cut: it arrived once, or its sender is told that it did
    not, or that it may not have; and what arrived is in order."""
    dice = random.Random(uuid4().hex)
    got: list[Message] = []
    returned: list[Message] = []
    channel = await other.new_channel("", got.append)
    reply = await layer.new_channel("", returned.append)
    sent: list[asyncio.Task[int]] = []
    posted = 0
    for _ in range(40):
        for _ in range(dice.randrange(8)):
            size = dice.choice([0, 10, 1_000, 100_000, 300_000])
            layer.post(channel, {"kind": "posted", "n": posted, "reply": reply}, b"x" * size)
            posted += 1
            sent.append(
                asyncio.create_task(layer.send(channel, {"kind": "sent", "n": len(sent)}, b"x" * size))
            )
        await asyncio.sleep(dice.choice([0, 0, 0.001, 0.01]))
        if cut != "never" and dice.random() < 0.3:
            await watcher.client_kill_filter(_type=cut)
    outcomes = await asyncio.gather(*sent, return_exceptions=True)
    await until(lambda: layer.send(channel, {"kind": "last", "n": 0}))  # 0 while the listener reconnects

    arrived = {kind: [m["n"] for m in got if m.get("kind") == kind] for kind in ("sent", "posted")}
    for numbers in arrived.values():
        assert numbers == sorted(set(numbers))
    for number, outcome in enumerate(outcomes):
        if isinstance(outcome, ConnectionError) and not isinstance(outcome, ChannelLayerUnavailable):
            continue  # it is not known
        assert outcome == int(number in arrived["sent"]) or isinstance(outcome, ChannelLayerUnavailable)
        assert not (isinstance(outcome, ChannelLayerUnavailable) and number in arrived["sent"])
    back = {m["message"]["n"]: m["why"] for m in returned if m["type"] == "returned"}
    assert not [n for n, why in back.items() if why != "lost" and n in arrived["posted"]]
    silent = [n for n in range(posted) if n not in arrived["posted"] and n not in back]
    assert not silent or INTERRUPTED in got  # lost on the way to the listener, which is told so
    if cut == "never":
        assert outcomes == [1] * len(sent) and arrived["posted"] == list(range(posted)) and not returned
