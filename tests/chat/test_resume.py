"""Streams that are lost and found again: on the same process or another one, in the middle or after the end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from redis.asyncio import Redis

from adiuva.core import db
from adiuva.embedded.valkey import Valkey
from chat.models import Turn
from chat.tasks import sweep
from tests.chat.chat_client import (
    ClientStream,
    DeviceRows,
    Frame,
    FrameTap,
    connect,
    conversation_of,
    dump_redis,
    end_frame,
    stored_messages,
    wait_for,
)
from tests.chat.lost_streams import age, flowing, forget, heard_to, keys, logged, resume, row_of
from tests.factories import Person, somebody
from tests.fakes.provider import Call, Provider, Say
from tests.sampling import ONE_SERVER
from tests.server_processes import Stack, model_of

PIECES = [f"{number} 🌱 wörds,\n" if number % 9 == 0 else f"word {number}, " for number in range(40)] + [
    "end."
]


@pytest.fixture
def other_web(stack: Stack, provider: Provider) -> str:
    """Another web process of the same installation."""
    return another(stack, provider)


def another(stack: Stack, provider: Provider, server: str = "uvicorn", **env: str) -> str:
    return stack.web(server, ADIUVA_PING_S="29", **env)


def after(frames: list[Frame], seq: int) -> list[Frame]:
    """What is missing to a client that has seen so much."""
    return [frame for frame in frames if frame.get("seq", -1) > seq] if seq >= 0 else list(frames)


# ── Drops ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("server", ONE_SERVER)
async def test_an_answer_survives_fifty_drops_between_two_processes(
    chat_web: str, stack: Stack, provider: Provider, person: Person, server: str
) -> None:
    other_web = another(stack, provider, server)
    words = [f"{number} 🌱 wörds,\n" if number % 50 == 0 else f"word {number}, " for number in range(5000)]
    first = FrameTap([*words[:2500], "half."], calls=[Call("create_task", {"title": "Second"})])
    second = FrameTap([*words[2500:], "end."])
    provider.script(Call("create_task", {"title": "First"}), first, second)
    rows, heard, key = DeviceRows(), ClientStream(), "a request"
    places = 0

    for drop in range(51):
        position = [] if drop == 0 else [{"request_id": key, "after": heard.seq}]
        base = (chat_web, other_web)[drop % 2]
        async with connect(base, person, rows, streams=position) as client:
            client.streams[key] = heard
            if drop == 0:
                client.silent = True
                await client.ask("tell me a lot", key)
                await client.until(lambda: client.unanswered != [])  # it drops with a call in its hands
            elif drop == 1:
                await wait_for(first.reached)  # the call was answered on the other process
            elif drop == 50:
                for tap in (first, second):
                    tap.open()
                await client.ended(key)
                break
            for _ in range(4 if drop else 0):
                seq = heard.seq
                (first if places < 2500 else second).open(25)
                places += 25
                if places == 2500:
                    first.open()
                    await wait_for(second.reached)
                await heard_to(client, key, seq + 1)
            client.socket.ws.transport.abort()
    end = end_frame(heard)
    assert heard.text == "".join(first.pieces) + "\n\n" + "".join(second.pieces)
    assert end["finish"] == "stop"
    assert heard.kinds().count("stream_start") == 1
    assert [row["title"] for row in rows.tables["tasks"]] == ["First", "Second"]
    assert [mutation["data"]["title"] for mutation in end["mutations"]] == ["First", "Second"]
    assert len(provider.chats) == 3
    said = await stored_messages(chat_web, person, conversation_of(heard))
    assert [message["text"] for message in said] == ["tell me a lot", heard.text]


# ── Where and when a stream is resumed ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_running_stream_is_resumed_after_every_frame(
    chat_web: str, other_web: str, provider: Provider, person: Person, elsewhere: bool
) -> None:
    tap = FrameTap(PIECES)
    provider.script(tap)
    async with connect(chat_web, person) as client:
        key = await flowing(client, tap)
        frames = list(client.streams[key].frames)
        last = client.streams[key].seq
        assert last > 5
        base = other_web if elsewhere else chat_web
        async with connect(base, person, device_id="phone") as phone:
            for seq in range(-1, last):
                await resume(phone, key, seq)
                assert await heard_to(phone, key, last) == after(frames, seq)
            tap.open()
            end = end_frame(await client.ended(key))
            assert await heard_to(phone, key, end["seq"]) == after(client.streams[key].frames, last - 1)
    assert client.streams[key].text == "".join(PIECES)


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_an_ended_stream_is_resumed_from_the_log_after_every_frame(
    chat_web: str, other_web: str, provider: Provider, person: Person, elsewhere: bool
) -> None:
    tap = FrameTap(PIECES)
    provider.script(tap)
    async with connect(chat_web, person) as client:
        key = await flowing(client, tap)
        tap.open()
        end = end_frame(await client.ended(key))
        frames = client.streams[key].frames
    async with connect(other_web if elsewhere else chat_web, person) as client:
        for seq in range(-1, end["seq"]):
            await resume(client, key, seq)
            assert await heard_to(client, key, end["seq"]) == after(frames, seq)
        await resume(client, key, end["seq"])  # that it is over is said to whoever asks
        assert await heard_to(client, key, end["seq"]) == [end]


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_hello_brings_all_streams_back(
    chat_web: str, other_web: str, provider: Provider, person: Person, elsewhere: bool
) -> None:
    tap = FrameTap(PIECES)
    provider.script("A short answer.", tap)
    async with connect(chat_web, person) as client:
        done = await client.say("hello")
        ended = done.frames[0]["request_id"]
        running = await flowing(client, tap)
        seen = client.streams[running].frames[4]["seq"]
        client.socket.ws.transport.abort()
    lost = [
        {"request_id": ended, "after": -1},
        {"request_id": running, "after": seen},
        {"request_id": "never made", "after": 3},
    ]
    async with connect(other_web if elsewhere else chat_web, person, streams=lost) as client:
        await client.until(lambda: client.errors != [])
        assert (client.errors[0]["code"], client.errors[0]["ref"]) == ("not_running", "never made")
        assert (await client.ended(ended)).frames == done.frames
        tap.open()
        found = await client.ended(running)
        assert [frame["seq"] for frame in found.frames] == list(range(seen + 1, found.seq + 1))
        assert "".join(PIECES).endswith(found.text)


async def test_a_stream_that_is_not_ones_own_or_was_never_made_is_not_running(
    chat_web: str, other_web: str, provider: Provider, person: Person
) -> None:
    tap = FrameTap(PIECES)
    provider.script(tap)
    async with connect(chat_web, person) as client:
        key = await flowing(client, tap)
        stranger = await db.run(somebody)
        for base in (chat_web, other_web):
            async with connect(base, stranger) as other:
                for wanted in (key, "never made"):
                    await resume(other, wanted, -1)
                    await other.until(lambda: other.errors != [])
                    error = other.errors.pop()
                    assert (error["code"], error["ref"]) == ("not_running", wanted)
                    assert other.streams[wanted].frames == []
        tap.open()
        await client.ended(key)


async def test_a_stream_whose_log_is_gone_has_expired(
    chat_web: str, other_web: str, provider: Provider, person: Person
) -> None:
    provider.script("Hello.")
    async with connect(chat_web, person) as client, Redis.from_url(settings.REDIS_URL) as redis:
        stream = await client.say("hello")
        key = stream.frames[0]["request_id"]
        await logged(redis, person)
        await age(person, key)
        await forget(redis, person)
        for base in (chat_web, other_web):
            async with connect(base, person, device_id="phone") as phone:
                await resume(phone, key, -1)
                await phone.until(lambda: phone.errors != [])
                assert (phone.errors[0]["code"], phone.errors[0]["ref"]) == ("stream_expired", key)
            async with connect(base, person, device_id="old", protocol=1) as old:
                # It knows no error frames: it is told in words, and its request ends.
                await old.ask("hello", key)
                assert (await old.ended(key)).kinds() == ["stream_start", "stream_text", "stream_end"]
    assert len(provider.chats) == 1


# ── Requests that are made again ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("protocol", [1, 2])
async def test_a_request_that_is_made_again_joins_its_turn(
    chat_web: str, other_web: str, provider: Provider, person: Person, elsewhere: bool, protocol: int
) -> None:
    tap = FrameTap(PIECES)
    provider.script(tap)
    base = other_web if elsewhere else chat_web
    async with connect(chat_web, person, protocol=protocol) as client:
        key = await client.ask("tell me a lot")
        await wait_for(tap.reached)
        tap.open(20)
        await client.until(lambda: key in client.streams and client.streams[key].text != "")
        async with connect(base, person, protocol=protocol, device_id="phone") as phone:
            await phone.ask("tell me a lot", key)
            await phone.until(lambda: key in phone.streams and phone.streams[key].text != "")
            tap.open()
            await client.ended(key)
            await phone.ended(key)
        async with connect(base, person, protocol=protocol, device_id="tablet") as tablet:
            await tablet.ask("tell me a lot", key)
            await tablet.ended(key)
    said = client.streams[key].frames
    assert phone.streams[key].frames == tablet.streams[key].frames == said
    assert client.streams[key].text == "".join(PIECES)
    assert all(("seq" in frame) == (protocol == 2) for frame in said if frame["type"] == "stream_text")
    assert len(provider.chats) == 1
    assert await db.run(Turn.objects.filter(user_id=person.id).count) == 1


# ── Processes that die ──────────────────────────────────────────────────────────────────────────────────


async def test_a_turn_whose_process_is_killed_ends_as_lost_for_all_who_follow(
    stack: Stack, other_web: str, provider: Provider, person: Person
) -> None:
    tap = FrameTap(PIECES)
    provider.script(tap, FrameTap(PIECES))
    lease = timedelta(seconds=2)
    victim = stack.web(ADIUVA_PING_S="28", ADIUVA_TURN_LEASE_S=str(lease.total_seconds()))
    async with AsyncExitStack() as sockets:
        client = await sockets.enter_async_context(connect(victim, person))
        key = await flowing(client, tap)
        alone = await client.ask("tell me more")  # nobody will follow this one
        followers = [
            await sockets.enter_async_context(connect(other_web, person, device_id=f"phone {number}"))
            for number in range(2)
        ]
        for follower in followers:
            await resume(follower, key, -1)
            await heard_to(follower, key, client.streams[key].seq)
        async with Redis.from_url(settings.REDIS_URL) as redis:
            await logged(redis, person)
        await until_renewed(person, alone, lease)
        stack.kill(victim)
        late = await sockets.enter_async_context(connect(other_web, person, device_id="tablet"))
        await resume(late, key, -1)
        ends = [end_frame(await one.ended(key)) for one in (*followers, late)]
        later = await sockets.enter_async_context(connect(other_web, person, device_id="desk"))
        await resume(later, key, -1)
        ends.append(end_frame(await later.ended(key)))
    assert {(end["finish"], end["code"]) for end in ends} == {("error", "turn_lost")}
    for follower in followers:
        assert follower.streams[key].frames[:-1] == client.streams[key].frames
    # What was logged: the last half second may not have been.
    assert client.streams[key].text.startswith(late.streams[key].text)
    assert late.streams[key].text != ""
    assert later.streams[key].frames == late.streams[key].frames
    row = await row_of(person, key)
    assert (row.state, row.code) == ("error", "turn_lost")
    await until_swept(person, alone)


async def until_renewed(person: Person, key: str, lease: timedelta) -> None:
    async with asyncio.timeout(30):
        while (row := await find_row(person, key)) is None or row.lease_until <= row.started_at + lease:
            await asyncio.sleep(0.05)


async def until_swept(person: Person, key: str) -> None:
    """Until the sweep has ended a turn whose lease ran out."""
    async with asyncio.timeout(30):
        while (row := await row_of(person, key)).state == "running":
            await db.run(sweep)
            await asyncio.sleep(0.05)
    assert (row.state, row.code) == ("error", "turn_lost")
    assert row.ended_at is not None


async def find_row(person: Person, key: str) -> Turn | None:
    return await db.run(Turn.objects.filter(user_id=person.id, request_id=key).first)


async def test_the_late_end_of_a_process_that_was_thought_dead_does_no_harm(
    chat_web: str, other_web: str, provider: Provider, person: Person
) -> None:
    tap = FrameTap(PIECES)
    provider.script(tap)
    async with AsyncExitStack() as sockets:
        client = await sockets.enter_async_context(connect(chat_web, person))
        key = await flowing(client, tap)
        await db.run(Turn.objects.filter(user_id=person.id).update, owner="turns.nobody")
        phones = [
            await sockets.enter_async_context(connect(other_web, person, device_id=f"phone {number}"))
            for number in range(3)
        ]
        for phone in phones:  # all say at once that it is lost
            await resume(phone, key, -1)
        ends = [end_frame(await phone.ended(key)) for phone in phones]
        assert {(end["finish"], end["code"]) for end in ends} == {("error", "turn_lost")}
        tap.open()
        assert end_frame(await client.ended(key))["finish"] == "stop"  # who was there hears all of it
        assert client.streams[key].text == "".join(PIECES)
        async with Redis.from_url(settings.REDIS_URL) as redis:
            parts = -1
            while parts != (parts := sum([await redis.llen(log) for log in await keys(redis, person)])):
                await client.settled()
        await resume(phones[0], key, -1)
        assert end_frame(await phones[0].ended(key))["code"] == "turn_lost"
        assert "".join(PIECES).startswith(phones[0].streams[key].text)
    row = await row_of(person, key)
    assert (row.state, row.code) == ("error", "turn_lost")


# ── Redis ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["pubsub", "normal"])
async def test_connections_to_redis_that_are_killed_cost_no_byte(
    chat_web: str, other_web: str, provider: Provider, person: Person, kind: str
) -> None:
    tap = FrameTap([f"word {number}, " for number in range(400)])
    provider.script(tap)
    async with (
        connect(chat_web, person) as client,
        connect(other_web, person, device_id="phone") as phone,
        Redis.from_url(settings.REDIS_URL) as redis,
    ):
        key = await flowing(client, tap)
        await resume(phone, key, -1)
        await heard_to(phone, key, client.streams[key].seq)
        for _ in range(12):
            seq = client.streams[key].seq
            tap.open(10)
            await redis.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
            tap.open(10)
            await heard_to(client, key, seq + 1)
        tap.open()
        end = end_frame(await client.ended(key))
        end_frame(await phone.ended(key))
        assert phone.streams[key].frames == client.streams[key].frames
        assert phone.streams[key].text == "".join(tap.pieces)
        await resume(phone, key, -1)
        assert await heard_to(phone, key, end["seq"]) == client.streams[key].frames


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[tuple[Valkey, str]]:
    """A server of the test's own, with its URL."""
    with ExitStack() as ends:
        server = Valkey(tmp_path / "valkey", password="secret", log=tmp_path / "valkey.log", durable=False)
        ends.callback(server.stop)
        yield server, server.start()


async def test_a_redis_that_restarts_empty_in_mid_stream_costs_no_byte(
    stack: Stack,
    own_valkey: tuple[Valkey, str],
    committed_db: str,
    provider: Provider,
    person: Person,
    tmp_path: Path,
) -> None:
    server, url = own_valkey
    own = Stack(committed_db, tmp_path / "logs", **model_of(provider))
    tap = FrameTap([f"word {number}, " for number in range(400)])
    # The first answer of a model that this Redis knows nothing of is shown when it is whole.
    provider.script("The first.", tap)
    try:
        bases = [own.web(REDIS_URL=url, ADIUVA_PING_S=ping) for ping in ("29", "28")]
        async with (
            connect(bases[0], person) as client,
            connect(bases[1], person, device_id="phone") as phone,
            Redis.from_url(url) as redis,
        ):
            await client.say("Hello")
            key = await flowing(client, tap)
            await resume(phone, key, -1)
            await heard_to(phone, key, client.streams[key].seq)
            assert server.child is not None
            server.child.stop()
            for _ in range(5):  # the process that has the turn goes on as ever
                seq = client.streams[key].seq
                tap.open(20)
                await heard_to(client, key, seq + 1)
            server.child.start()
            await asyncio.to_thread(_answering, server, url)
            tap.open()
            end = end_frame(await client.ended(key))
            end_frame(await phone.ended(key))
            assert phone.streams[key].frames == client.streams[key].frames
            assert phone.streams[key].text == "".join(tap.pieces)
            await logged(redis, person)
            await resume(phone, key, -1)
            assert await heard_to(phone, key, end["seq"]) == client.streams[key].frames
    finally:
        own.stop()


def _answering(server: Valkey, url: str) -> None:
    import redis

    assert server.child is not None

    def ready() -> bool:
        try:
            with redis.Redis.from_url(url) as connection:
                return bool(connection.ping())
        except redis.RedisError:
            return False

    server.child.wait_until(ready, within_s=60)


# ── What it costs ───────────────────────────────────────────────────────────────────────────────────────


async def test_the_log_is_written_in_batches(
    chat_web: str, other_web: str, provider: Provider, person: Person
) -> None:
    tap = FrameTap([f"word {number}, " for number in range(300)])
    provider.script(tap)
    async with connect(chat_web, person) as client, Redis.from_url(settings.REDIS_URL) as redis:
        before = await pushes(redis)
        key = await flowing(client, tap, pieces=299)
        tap.open()
        stream = await client.ended(key)
        await logged(redis, person)
        assert len(stream.frames) > 250
        assert await pushes(redis) - before < len(stream.frames) / 5


async def test_redis_holds_nothing_of_a_chat_that_could_be_read(
    chat_web: str, other_web: str, provider: Provider, person: Person
) -> None:
    canary = "zzyzx-4711"
    rows = DeviceRows(tasks=[{"id": "3f2a9c01d4e54bb0", "title": canary, "status": "todo"}])
    tap = FrameTap([f"It is called {canary}, ", "is it not?"])
    provider.script(
        Call("create_task", {"title": f"{canary} again"}),
        Call("delete_task", {"task_id": "3f2a9c01d4e54bb0"}),
        tap,
    )
    async with (
        connect(chat_web, person, rows) as client,
        connect(other_web, person, device_id="phone") as phone,
        Redis.from_url(settings.REDIS_URL) as redis,
    ):
        key = await client.ask(f"delete {canary}", f"about {canary}")
        await wait_for(tap.reached)
        await resume(phone, key, -1)
        tap.open()
        assert canary in (await phone.ended(key)).text
        assert (await client.ended(key)).end is not None
        await logged(redis, person)
        found = await dump_redis(redis)
        assert str(person.id).encode() in found
        assert canary.encode() not in found


async def pushes(redis: Redis) -> int:
    stats: dict[str, Any] = await redis.info("commandstats")
    return int(stats.get("cmdstat_rpush", {}).get("calls", 0))


async def test_tokens_of_one_read_come_as_one_frame(
    chat_web: str, provider: Provider, person: Person
) -> None:
    words = [f"word {number}, " for number in range(50)]
    provider.script(Say(pieces=words))
    async with connect(chat_web, person) as client:
        stream = await client.say("tell me a lot")
    assert stream.text == "".join(words)
    assert stream.kinds().count("stream_text") <= 2  # what is held back for a moment may come behind


async def test_a_client_that_does_not_read_slows_neither_its_turn_nor_others(
    chat_web: str, provider: Provider, person: Person
) -> None:
    tap = FrameTap([f"word {number} of many, " for number in range(8000)])
    provider.script(tap)
    provider.default = "Hello."
    async with connect(chat_web, person) as client:
        key = await client.ask("tell me a lot")
        await wait_for(tap.reached)
        client.socket.ws.transport.pause_reading()
        async with connect(chat_web, person, device_id="phone") as phone:
            await resume(phone, key, -1)
            for _ in range(40):
                seq = phone.streams[key].seq
                tap.open(200)
                await heard_to(phone, key, seq + 1)
            tap.open()
            stream = await phone.ended(key)
            assert stream.text == "".join(tap.pieces)
            assert (await phone.say("hello")).text == "Hello."
        assert client.streams.get(key, ClientStream()).end is None
        client.socket.ws.transport.resume_reading()
        assert (await client.ended(key)).frames == stream.frames
