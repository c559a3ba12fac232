"""Streams at their edges: a database that is away, rows and frames that are too much, ids that were used before."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.conf import settings
from redis.asyncio import Redis

from adiuva.accounts.keys import cipher_for
from adiuva.core import db
from adiuva.devices.codec import INT64_MAX, parse_server
from adiuva.devices.protocol import Mutation
from chat import stream_log
from chat.models import Turn
from chat.stream import Stream as TurnStream
from chat.stream_log import StreamRecording
from tests.chat.chat_client import (
    CAPABILITIES,
    ChatClient,
    ClientStream,
    DeviceRows,
    Frame,
    FrameTap,
    connect,
    end_frame,
    wait_for,
)
from tests.chat.lost_streams import age, flowing, forget, logged, resume
from tests.factories import Person
from tests.fakes.provider import Call, Hold, Provider
from tests.server_processes import Stack
from tests.socket_client import PATIENCE_S, Socket

TASK = {"id": "3f2a9c01d4e54bb0", "title": "Call Ada", "status": "todo"}
RENAME = Call("update_task", {"task_id": TASK["id"], "title": "Call Bob"})
PIECES = [f"word {number}, " for number in range(20)]
APPROVES = [*CAPABILITIES, "approval"]


@pytest.fixture
def other_web(stack: Stack, provider: Provider) -> str:
    """Another web process of the same installation."""
    return stack.web(ADIUVA_PING_S="29")


async def answer(client: ChatClient, frame: Frame) -> Frame:
    """The error that a frame is answered with."""
    key = frame.get("request_id") or frame["id"]
    await client.socket.send(frame)
    await client.until(lambda: any(error.get("ref") == key for error in client.errors))
    return next(error for error in client.errors if error.get("ref") == key)


# ── PostgreSQL ──────────────────────────────────────────────────────────────────────────────────────────


class Wire:
    """What a process reaches PostgreSQL through, until it is cut."""

    def __init__(self, url: str) -> None:
        self._to = urlsplit(url)
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server
        self._cut = False

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        account = self._to.netloc.rpartition("@")[0]
        return self._to._replace(netloc=f"{account}@127.0.0.1:{port}").geturl()

    def cut(self) -> None:
        self._cut = True
        self._server.close()
        for writer in self._open:
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(self._to.hostname, self._to.port or 5432)
        self._open |= {writer, there[1]}
        await asyncio.gather(_pump(reader, there[1]), _pump(there[0], writer))


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65_536):
            target.write(data)
            await target.drain()
    except OSError:
        pass
    finally:
        target.close()


@pytest.fixture
async def wire(stack: Stack) -> AsyncIterator[Wire]:
    wire = Wire(stack.env["DATABASE_URL"])
    yield wire
    wire.cut()


async def test_a_database_that_goes_leaves_nobody_without_an_answer(
    stack: Stack, wire: Wire, provider: Provider, person: Person
) -> None:
    url = await wire.start()
    base = await asyncio.to_thread(lambda: stack.web(DATABASE_URL=url))
    rows = DeviceRows(tasks=[dict(TASK)])
    async with (
        connect(base, person, rows, capabilities=APPROVES) as client,
        connect(base, person, protocol=1, device_id="old") as old,
    ):
        provider.script("Hello.")
        await client.say("hello", request_id="over")
        hold = Hold(Call("delete_task", {"task_id": TASK["id"]}))
        provider.script(Call("list_tasks"), hold, "Done.")
        key = await client.ask("delete it")
        await wait_for(hold.reached)
        wire.cut()
        # A turn that runs goes on: it is asked and answered, and only what it said is not kept.
        hold.release()
        await client.decide((await client.asked_for(key))["id"], True)
        again, told, *errors = await asyncio.gather(
            client.say("again"),
            old.say("again"),
            answer(client, {"type": "stream_resume", "request_id": "none 1", "after": -1}),
            answer(client, {"type": "request_cancel", "request_id": "none 2"}),
            answer(client, {"type": "request_steer", "request_id": "none 3", "message": "more"}),
        )
        end = end_frame(await client.ended(key))
        assert (client.streams[key].text, end["code"]) == ("Done.", "not_saved")
        assert [mutation["action"] for mutation in end["mutations"]] == ["delete"]
        assert {error["code"] for error in errors} == {end_frame(again)["code"]} == {"unavailable"}
        assert told.kinds() == ["stream_start", "stream_text", "stream_end"]
        assert told.text == "The server cannot do this right now. Please try again in a moment."


# ── Rows and ends ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_row_that_nests_as_deep_as_a_frame_may_ends_up_in_an_end_that_can_be_read_anywhere(
    chat_web: str, other_web: str, provider: Provider, person: Person
) -> None:
    deep: dict[str, Any] = {"x": 1}
    for _ in range(28):
        deep = {"x": deep}
    rows = DeviceRows(tasks=[{**TASK, "deep": deep}])
    hold = Hold("Done.")
    provider.script(RENAME, hold)
    async with (
        # Without batches, in whose frame a row is deeper inside.
        connect(chat_web, person, rows, capabilities=["dedupe", "manifest"]) as session,
        connect(other_web, person, device_id="phone") as phone,
    ):
        key = await session.ask("rename it")
        await wait_for(hold.reached)
        await resume(phone, key, -1)
        await phone.until(lambda: phone.streams[key].frames != [])
        hold.release()
        end = end_frame(await session.ended(key))
        assert end_frame(await phone.ended(key)) == end
        async with Redis.from_url(settings.REDIS_URL) as redis:
            await logged(redis, person)
        for client in (session, phone):
            await resume(client, key, -1)
            assert end_frame(await client.ended(key)) == end
    assert [mutation["data"] for mutation in end["mutations"]] == [{"id": TASK["id"]}]
    assert parse_server(json.dumps(end)).type == "stream_end"


async def lost(person: Person) -> None:
    """Let the user's running turns have lost their process."""
    await db.run(Turn.objects.filter(user_id=person.id).running().update, owner="turns.nobody")


async def test_a_turn_that_is_lost_tells_what_it_had_changed(
    chat_web: str, other_web: str, provider: Provider, person: Person
) -> None:
    hold = Hold("never said")
    provider.script(RENAME, hold)
    rows = DeviceRows(tasks=[dict(TASK)])
    async with (
        connect(chat_web, person, rows) as session,
        connect(other_web, person, device_id="phone") as phone,
    ):
        key = await session.ask("rename it")
        await wait_for(hold.reached)
        cipher = await db.run(cipher_for, person.id)
        async with asyncio.timeout(60):
            while (
                kept := await stream_log.read(user_id=person.id, request_id=key, cipher=cipher)
            ) is None or not kept.mutations:
                await session.settled()
        await lost(person)
        for _ in range(2):
            await resume(phone, key, -1)
            end = end_frame(await phone.ended(key))
            assert (end["finish"], end["code"]) == ("error", "turn_lost")
            assert [mutation["data"]["title"] for mutation in end["mutations"]] == ["Call Bob"]
        hold.release()
        await session.ended(key)


async def test_the_end_of_a_lost_turn_comes_behind_all_that_anybody_has_seen(
    chat_web: str, other_web: str, provider: Provider, person: Person
) -> None:
    tap = FrameTap(PIECES)
    provider.script(tap)
    async with (
        connect(chat_web, person) as session,
        connect(other_web, person, device_id="phone") as phone,
        Redis.from_url(settings.REDIS_URL) as redis,
    ):
        key = await flowing(session, tap, pieces=5)
        await logged(redis, person)
        await lost(person)
        for after, seq in ((1000, 1001), (INT64_MAX, INT64_MAX), (500, 501)):
            await resume(phone, key, after)
            await phone.ended(key)
            assert [(frame["type"], frame["seq"]) for frame in phone.streams[key].frames] == [
                ("stream_end", seq)
            ]
        await resume(phone, key, -1)
        assert end_frame(await phone.ended(key))["seq"] < 1000  # and its log counts by itself
        tap.open()
        await session.ended(key)


async def test_what_a_turn_changed_reads_back_once_however_it_was_written(person: Person) -> None:
    cipher = await db.run(cipher_for, person.id)
    stream, changed = TurnStream("a request"), list[Mutation]()
    recording = StreamRecording(
        stream,
        user_id=person.id,
        cipher=cipher,
        head={},
        saved=lambda: None,
        mutations=lambda: changed,
    )

    async with Redis.from_url(settings.REDIS_URL) as redis:

        async def write(fate: str) -> None:
            part = recording.next_part()
            assert part is not None
            parts = await redis.rpush(recording.key, part.sealed)
            if fate == "answer lost":
                recording.start_again()
            else:
                recording.mark_written(part, parts=parts)
            kept = await stream_log.read(user_id=person.id, request_id="a request", cipher=cipher)
            if fate != "forgotten":
                assert kept is not None
                assert kept.mutations == changed

        for number, fate in enumerate(["", "answer lost", "", "forgotten", "", "answer lost", ""]):
            changed.append(Mutation(action="insert", table="tasks", data={"id": str(number)}))
            if number % 2:
                stream.write(f"word {number}")
            if fate == "forgotten":
                await redis.delete(recording.key)
            await write(fate)


# ── Too much ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_turn_is_told_so_much_before_it_listens_and_no_more(
    chat_web: str, other_web: str, provider: Provider, person: Person, elsewhere: bool
) -> None:
    hold = Hold("The first answer.")
    provider.script(hold, "The second answer.", "The third answer.")
    base = other_web if elsewhere else chat_web
    unread = Turn.objects.of(person.id).waiting().exclude(joins=None)
    async with connect(chat_web, person) as session, connect(base, person, device_id="phone") as phone:
        key = await session.ask("tell me a lot")
        await wait_for(hold.reached)
        said = ["x" * 90_000, "y" * 20_000, *(f"and {number}" for number in range(14))]
        for number, message in enumerate(said, 1):
            await session.steer(key, message)
            async with asyncio.timeout(PATIENCE_S):
                while await db.run(unread.count) < number:
                    await session.settled()
        one_more = {"type": "request_steer", "request_id": key, "message": "and more"}
        assert (await answer(phone, one_more))["code"] == "too_many_requests"
        await session.settled()
        hold.release()
        stream = await session.ended(key)
    assert stream.text.endswith("The third answer.")
    # Together they are as long as one message may be, so the rest comes in the next call.
    assert provider.chats[-2].body["messages"][-1]["content"].endswith("x" * 90_000)
    assert provider.last["messages"][-1]["content"].endswith("\n\n".join(said[1:]))


async def test_a_connection_has_so_many_requests_under_way_and_no_more(
    chat_web: str, provider: Provider, person: Person
) -> None:
    provider.default = hold = Hold()
    async with connect(chat_web, person) as client:
        keys = [await client.ask("tell me a lot", f"request {number}") for number in range(8)]
        await client.settled()
        for key in keys:
            for number in range(16):
                await client.steer(key, f"and {number}")
        frame = {"type": "stream_resume", "request_id": "another", "after": -1}
        assert (await answer(client, frame))["code"] == "too_many_requests"
        assert end_frame(await client.say("and this"))["code"] == "too_many_requests"
        provider.default = "ok"
        hold.release()
        for key in keys:
            assert end_frame(await client.ended(key))["finish"] == "stop"
        await client.settled()


@pytest.mark.parametrize("protocol", [1, 2])
async def test_a_connection_that_asks_without_end_is_closed(
    chat_web: str, person: Person, protocol: int
) -> None:
    async with Socket(chat_web, person.access_token) as socket:
        await socket.hello(protocol)

        async def ask() -> None:
            for number in range(1201):
                await socket.send({"type": "request_cancel", "request_id": str(number)})

        asking = asyncio.create_task(ask())
        assert await socket.code() == 4429
        await asyncio.gather(asking, return_exceptions=True)


# ── Ids that were used before ───────────────────────────────────────────────────────────────────────────


async def test_a_request_made_again_when_its_log_is_gone_ends_as_expired(
    chat_web: str, other_web: str, provider: Provider, person: Person
) -> None:
    provider.script("Hello.")
    async with connect(chat_web, person) as client, Redis.from_url(settings.REDIS_URL) as redis:
        key = (await client.say("hello")).frames[0]["request_id"]
        await logged(redis, person)
        await age(person, key)
        await forget(redis, person)
    for base in (chat_web, other_web):
        async with connect(base, person, device_id="phone") as phone:
            stream = await phone.say("hello", request_id=key)
            assert stream.kinds() == ["stream_start", "stream_end"]
            end = end_frame(stream)
            assert (end["finish"], end["code"], phone.errors) == ("error", "stream_expired", [])
        async with connect(base, person, device_id="old", protocol=1) as old:
            stream = await old.say("hello", request_id=key)
            assert stream.kinds() == ["stream_start", "stream_text", "stream_end"]
            assert stream.text == "The answer is no longer stored here. Please ask again."
    assert len(provider.chats) == 1


async def test_another_message_under_an_id_that_was_used_is_not_answered_with_the_old_answer(
    chat_web: str, other_web: str, provider: Provider, person: Person
) -> None:
    tap = FrameTap(PIECES)
    provider.script(tap)
    async with (
        connect(chat_web, person) as session,
        connect(other_web, person, device_id="phone") as phone,
        connect(chat_web, person, device_id="tablet") as tablet,
        Redis.from_url(settings.REDIS_URL) as redis,
    ):
        key = await flowing(session, tap, pieces=2)
        await logged(redis, person)
        for _ in ("while it runs", "after its end"):
            for client in (phone, tablet):
                client.streams[key] = ClientStream()
                end = end_frame(await client.say("something else", request_id=key))
                assert (end["finish"], end["code"]) == ("error", "request_id_reused")
            tap.open()
            assert end_frame(await session.ended(key))["finish"] == "stop"
    assert len(provider.chats) == 1


# ── Old clients ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "wrong",
    [
        {"scope": {"type": "galaxy"}},
        {"scope": None},
        {"message": ""},
        {"message": 1},
        {"message": "x", "more": [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]},
        {"message": "x", "more": 2**70},
    ],
)
async def test_an_old_client_whose_request_cannot_be_read_is_told_so_in_order(
    chat_web: str, person: Person, wrong: Frame
) -> None:
    frame = {"message": "x", "scope": {"type": "workspace"}, "request_id": "r"} | wrong
    async with connect(chat_web, person, protocol=1) as old:
        await old.socket.send({"type": "floating_request", **frame})
        stream = await old.ended("r")
        assert stream.kinds() == ["floating_domain", "stream_start", "stream_text", "stream_end"]
        assert stream.text == "This request could not be read."
        home = {key: value for key, value in frame.items() if key != "scope"} | {"request_id": "h"}
        if "scope" not in wrong:
            await old.socket.send({"type": "home_request", **home})
            assert (await old.ended("h")).kinds() == ["stream_start", "stream_text", "stream_end"]


async def test_an_old_client_may_send_no_history_as_null(
    chat_web: str, provider: Provider, person: Person
) -> None:
    provider.script("Hello.")
    async with connect(chat_web, person, protocol=1) as old:
        assert (await old.say("hello", conversation_history=None)).text == "Hello."
