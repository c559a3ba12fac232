"""Turns between processes: what one process hears for another's turn, and what happens when things cross."""

from __future__ import annotations

import asyncio
import gc
import threading
import uuid
import weakref
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import pytest
from django.conf import settings
from redis.asyncio import Redis

from adiuva.core import db
from chat import turn_queue
from chat.models import AssistantKind, Turn
from chat.request import ChatRequest
from chat.stream import StreamFrame
from chat.turn_errors import TooManyTurns
from chat.turn_registry import registry
from tests.chat.chat_client import (
    CAPABILITIES,
    ChatClient,
    ClientStream,
    DeviceRows,
    FrameTap,
    connect,
    conversation_of,
    conversation_words,
    end_frame,
    stored_messages,
    told_from,
    wait_for,
)
from tests.factories import Person
from tests.fakes.provider import Call, Fail, Hold, Provider
from tests.server_processes import Stack
from tests.socket_client import PATIENCE_S

TASK = {"id": "3f2a9c01d4e54bb0", "title": "Call Ada", "status": "todo"}
APPROVES = [*CAPABILITIES, "approval"]
PIECES = [f"word {number}, " for number in range(40)]


@pytest.fixture
def other_web(stack: Stack, provider: Provider) -> str:
    """Another web process of the same installation."""
    return stack.web(ADIUVA_PING_S="29")


async def turns_of(person: Person) -> list[Turn]:
    return await db.run(lambda: list(Turn.objects.filter(user_id=person.id)))


async def resume(client: ChatClient, key: str, after: int = -1) -> None:
    client.streams[key] = ClientStream()
    await client.socket.send({"type": "stream_resume", "request_id": key, "after": after})


# ── From another process ────────────────────────────────────────────────────────────────────────────────


async def test_a_turn_is_cancelled_from_another_process(
    chat_web: str, other_web: str, provider: Provider, person: Person
) -> None:
    hold = Hold()
    provider.script(hold)
    async with connect(chat_web, person) as session, connect(other_web, person, device_id="phone") as phone:
        key = await session.ask("tell me a lot")
        await wait_for(hold.reached)
        await phone.cancel(key)
        assert end_frame(await session.ended(key))["finish"] == "cancelled"
        await wait_for(hold.gone)
        await phone.cancel(key)  # and once more, when it has ended
        await phone.until(lambda: phone.errors != [])
        assert (phone.errors[0]["code"], phone.errors[0]["ref"]) == ("not_running", key)


async def test_a_turn_hears_what_is_said_to_it_on_another_process(
    chat_web: str, other_web: str, provider: Provider, person: Person
) -> None:
    tap = FrameTap(PIECES)
    provider.script(tap, "In French, then.")
    async with connect(chat_web, person) as session, connect(other_web, person, device_id="phone") as phone:
        key = await session.ask("tell me a lot")
        await wait_for(tap.reached)
        await told_from(phone, lambda: phone.steer(key, "and in French"))
        await session.settled()
        tap.open()
        stream = await session.ended(key)
    assert stream.text.endswith("In French, then.")
    assert provider.last["messages"][-1]["content"] == "and in French"
    ends = sorted((turn.state, turn.code) for turn in await turns_of(person))
    assert ends == [("stop", ""), ("stop", "joined")]


@pytest.mark.parametrize("history", [None, [{"role": "user", "content": "I am Ada."}]])
async def test_what_is_said_after_the_end_on_another_process_becomes_a_new_turn(
    chat_web: str, other_web: str, provider: Provider, person: Person, history: list[dict[str, str]] | None
) -> None:
    provider.script("The first answer.", "The second answer.")
    fields: dict[str, Any] = {"conversation_history": history} if history else {}
    async with connect(chat_web, person) as session, connect(other_web, person, device_id="phone") as phone:
        first = await session.say("tell me a lot", **fields)
        await phone.steer(first.frames[0]["request_id"], "and more")
        await phone.until(lambda: any(stream.end for stream in phone.streams.values()))
        (second,) = phone.streams.values()
    end_frame(second)
    assert second.text == "The second answer."
    before = conversation_words(provider.last)
    assert before == [
        *([history[0]["content"], "(This was not answered.)"] if history else []),
        "tell me a lot",
        "The first answer.",
        "and more",
    ]
    if history is None:
        assert conversation_of(second) == conversation_of(first)
        said = await stored_messages(chat_web, person, conversation_of(first))
        assert [message["text"] for message in said] == [
            "tell me a lot",
            "The first answer.",
            "and more",
            "The second answer.",
        ]


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_what_was_said_to_a_turn_that_fails_is_carried_out_though_who_said_it_has_gone(
    chat_web: str, other_web: str, provider: Provider, person: Person, elsewhere: bool
) -> None:
    hold = Hold(Fail(401))
    provider.script(hold, "The second answer.")
    async with connect(chat_web, person) as session:
        key = await session.ask("tell me a lot")
        await wait_for(hold.reached)
        async with connect(other_web if elsewhere else chat_web, person, device_id="phone") as phone:
            if elsewhere:
                await told_from(phone, lambda: phone.steer(key, "and more"))
            else:
                await phone.steer(key, "and more")
                await phone.settled()
        await session.settled()
        hold.release()
        assert end_frame(await session.ended(key))["finish"] == "error"
        place = conversation_of(session.streams[key])
        async with asyncio.timeout(60):
            while (said := await stored_messages(chat_web, person, place))[-1][
                "text"
            ] != "The second answer.":
                await asyncio.sleep(0.02)
    assert [message["text"] for message in said] == ["tell me a lot", "", "and more", "The second answer."]


@pytest.mark.parametrize("approved", [True, False])
async def test_an_approval_is_given_on_another_process_and_counts_once(
    chat_web: str, other_web: str, provider: Provider, person: Person, approved: bool
) -> None:
    provider.script(Call("delete_task", {"task_id": TASK["id"]}), "So it is.")
    rows = DeviceRows(tasks=[dict(TASK)])
    async with (
        connect(chat_web, person, rows, capabilities=APPROVES) as session,
        connect(other_web, person, device_id="phone", capabilities=APPROVES) as phone,
    ):
        key = await session.ask("delete it")
        asked = await session.asked_for(key)
        await phone.until(lambda: key in phone.streams)  # all devices are asked
        assert phone.streams[key].frames == [asked]
        await phone.decide(asked["id"], approved)
        ended = end_frame(await session.ended(key))
        for client in (session, phone):
            await client.decide(asked["id"], not approved)
            await client.until(lambda client=client: client.errors != [])  # type: ignore[misc]
            assert (client.errors[0]["code"], client.errors[0]["ref"]) == ("approval_over", asked["id"])
    assert rows.count("delete") == len(ended["mutations"]) == int(approved)


async def test_an_open_question_is_asked_again_of_who_resumes_elsewhere(
    chat_web: str, other_web: str, provider: Provider, person: Person
) -> None:
    provider.script(Call("delete_task", {"task_id": TASK["id"]}), "Gone.")
    rows = DeviceRows(tasks=[dict(TASK)])
    async with connect(chat_web, person, rows, capabilities=APPROVES) as session:
        key = await session.ask("delete it")
        asked = await session.asked_for(key)
        seen = session.streams[key].seq
        session.socket.ws.transport.abort()
    lost = [{"request_id": key, "after": seen}]
    async with connect(other_web, person, rows, capabilities=APPROVES, streams=lost) as session:
        assert await session.asked_for(key) == asked
        await session.decide(asked["id"], True)
        assert (await session.ended(key)).text == "Gone."
    assert rows.count("delete") == 1


# ── What crosses on the way ─────────────────────────────────────────────────────────────────────────────


async def test_a_request_and_its_cancel_may_be_sent_back_to_back(
    chat_web: str, provider: Provider, person: Person
) -> None:
    provider.default = Hold()
    async with connect(chat_web, person) as client:
        for _ in range(10):
            key = await client.ask("tell me a lot")
            await client.cancel(key)
            assert end_frame(await client.ended(key))["finish"] == "cancelled"
    assert client.errors == []
    assert {turn.state for turn in await turns_of(person)} == {"cancelled"}


async def test_a_request_sent_again_at_once_from_everywhere_is_carried_out_once(
    chat_web: str, other_web: str, provider: Provider, person: Person
) -> None:
    tap = FrameTap(PIECES)
    provider.script(tap)
    async with (
        connect(chat_web, person) as session,
        connect(other_web, person, device_id="phone") as phone,
        connect(other_web, person, device_id="tablet") as tablet,
    ):
        clients = (session, phone, tablet)
        await asyncio.gather(*(client.ask("tell me a lot", "the request") for client in clients * 2))
        await wait_for(tap.reached)
        for client in clients:
            await client.until(lambda client=client: "the request" in client.streams)  # type: ignore[misc]
        tap.open()
        for client in clients:
            assert (await client.ended("the request")).text.endswith("word 39, ")
            assert client.errors == []
    assert len(provider.chats) == len(await turns_of(person)) == 1


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_device_may_resume_a_stream_and_make_its_request_again_in_one_breath(
    chat_web: str, other_web: str, provider: Provider, person: Person, elsewhere: bool
) -> None:
    """It does not know whether its request had arrived."""
    base = other_web if elsewhere else chat_web
    for number in range(5):
        provider.script("An answer.")
        key = f"request {number}"
        if number % 2:
            async with connect(chat_web, person) as client:
                await client.ask("hello", key)
                client.socket.ws.transport.abort()
        async with connect(base, person, streams=[{"request_id": key, "after": -1}]) as client:
            await client.ask("hello", key)
            stream = await client.ended(key)
            await client.settled()
            ends = [frame for frame in stream.frames if frame["type"] == "stream_end"]
            # Asked twice it may be told twice, but there is one end and one answer.
            assert {end["finish"] for end in ends} == {"stop"}, ends
            told = {frame["seq"]: frame["chunk"] for frame in stream.frames if frame["type"] == "stream_text"}
            assert "".join(told[seq] for seq in sorted(told)) == "An answer."
    assert len(provider.chats) == len(await turns_of(person)) == 5


async def test_a_request_whose_socket_drops_while_it_begins_is_carried_out_or_was_never_made(
    chat_web: str, provider: Provider, person: Person
) -> None:
    keys = [f"request {number}" for number in range(20)]
    for number, key in enumerate(keys):
        async with connect(chat_web, person) as client:
            await client.ask("hello", key)
            for _ in range(number % 5):
                await asyncio.sleep(0)
            client.socket.ws.transport.abort()
    async with connect(chat_web, person) as client:
        for key in keys:
            await resume(client, key)
            await client.until(
                lambda key=key: client.streams[key].end or any(e["ref"] == key for e in client.errors)  # type: ignore[misc]
            )
    refused = {error["ref"] for error in client.errors}
    assert {error["code"] for error in client.errors} <= {"not_running"}
    made = {turn.request_id: turn for turn in await turns_of(person)}
    assert made.keys() == set(keys) - refused
    assert {(turn.state, turn.code) for turn in made.values()} <= {("stop", "")}


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_stream_is_resumed_between_its_end_and_its_log(
    chat_web: str, other_web: str, provider: Provider, person: Person, elsewhere: bool
) -> None:
    base = other_web if elsewhere else chat_web
    async with (
        connect(chat_web, person, capabilities=APPROVES) as session,
        connect(base, person, device_id="phone") as phone,
        Redis.from_url(settings.REDIS_URL) as redis,
    ):
        await session.say("hello")  # what a process needs of Redis it has by now
        await redis.execute_command("CLIENT", "PAUSE", 10_000, "WRITE")
        try:
            stream = await session.say("hello")
            key = stream.frames[0]["request_id"]
            await resume(phone, key)
            if elsewhere:  # it waits for the log
                await phone.settled()
                assert phone.streams[key].frames == []
            else:
                await phone.ended(key)
        finally:
            await redis.execute_command("CLIENT", "UNPAUSE")
        assert (await phone.ended(key)).frames == stream.frames
        assert phone.errors == []


# ── In one process ──────────────────────────────────────────────────────────────────────────────────────


class Ear:
    channel = ""

    def __init__(self) -> None:
        self.heard: list[StreamFrame] = []

    def push(self, text: bytes) -> bool:
        return False

    async def send_frames(self, request_id: str, entries: Sequence[StreamFrame]) -> bool:
        self.heard += entries
        return True


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, provider: Provider) -> Provider:
    """The scripted model, for turns of the test's own process."""
    monkeypatch.setattr(settings, "MODEL", {**settings.MODEL, **provider.settings()})
    return provider


def asked(person: Person, **fields: Any) -> ChatRequest:
    return ChatRequest(
        user_id=person.id, request_id=uuid.uuid4().hex, kind=AssistantKind.HOME, message="hello", **fields
    )


@pytest.fixture
def without_garbage_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_garbage_collection")
async def test_nothing_of_a_turn_stays_in_memory_once_it_is_saved(model: Provider, person: Person) -> None:
    parts: list[weakref.ref[Any]] = []
    for _ in range(12):  # more than a user may have at once: those that ended do not count
        turn = await registry().start(asked(person))
        turn.stream.follow(Ear())
        await turn.ended.wait()
        parts += map(weakref.ref, (turn, turn.stream, turn.output))
        del turn
    async with asyncio.timeout(60):
        while any(part() for part in parts):
            await asyncio.sleep(0.02)
    names = {task.get_name() for task in asyncio.all_tasks()}
    assert not names & {"turn", "turn keeper", "start turn", "stream follower", "stream log"}


async def test_an_asker_who_goes_while_the_turn_begins_leaves_a_turn_that_runs(
    model: Provider, person: Person
) -> None:
    request = asked(person)
    asking = asyncio.create_task(registry().open(request, Ear()))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    turn = await registry().find(request.key)
    assert turn is not None
    await turn.ended.wait()
    assert (turn.finish, turn.output.text) == ("stop", "ok")


async def test_a_users_concurrent_turns_are_limited(model: Provider, person: Person) -> None:
    model.default = hold = Hold()
    turns = [await registry().start(asked(person)) for _ in range(8)]
    with pytest.raises(TooManyTurns):
        await registry().start(asked(person))
    ear = Ear()
    await registry().open(asked(person), ear)
    hold.release()
    for turn in turns:
        await turn.ended.wait()
    assert [getattr(entry.frame, "code", None) for entry in ear.heard] == [None, "too_many_requests"]


async def test_a_turn_that_begins_to_wait_during_a_look_at_the_others_is_not_taken_for_deleted(
    model: Provider, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, is_looking, may_see = turn_queue.rows_of, threading.Event(), threading.Event()

    def look_slowly(turn_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, Turn]:
        rows = looks(turn_ids)
        is_looking.set()
        may_see.wait(PATIENCE_S)
        return rows

    model.default = hold = Hold()
    first = await registry().start(asked(person, starts_conversation=True))
    place = str(first.claimed.conversation_id)
    monkeypatch.setattr(turn_queue, "rows_of", look_slowly)
    second = await registry().start(asked(person, conversation_id=place))
    await asyncio.to_thread(is_looking.wait, PATIENCE_S)
    third = await registry().start(asked(person, conversation_id=place))
    may_see.set()
    hold.release()
    for turn in (first, second, third):
        await turn.ended.wait()
    assert [turn.finish for turn in (first, second, third)] == ["stop"] * 3
