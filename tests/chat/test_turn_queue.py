"""Requests of one conversation that come at once: answered one after the other, in the order in which they came."""

from __future__ import annotations

import asyncio
import random
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connections, transaction
from django.db.models.functions import Now

from adiuva.core import db
from chat import conversations, lost_turns, turn_queue
from chat.claimed_turn import Steered
from chat.conversations import ConversationNotFound
from chat.models import Conversation, Turn
from chat.steering import SteerQueue
from chat.turn_claims import AlreadyClaimed, BegunTurn, begin_turn
from chat.turn_queue import ConversationBusy, QueueFull, TooManySteers
from tests.chat.chat_client import (
    ChatClient,
    ClientStream,
    DeviceRows,
    Frame,
    FrameTap,
    connect,
    conversation_of,
    conversation_words,
    end_frame,
    stored_messages,
    told_from,
    wait_for,
)
from tests.chat.factories import claim, finish_turn, make_conversation, make_request
from tests.factories import Person, somebody
from tests.fakes.provider import Call, Hold, Provider
from tests.server_processes import Stack

PIECES = [f"word {number}, " for number in range(4)]


@pytest.fixture
def other_web(stack: Stack, provider: Provider) -> str:
    """Another web process of the same installation."""
    return stack.web(ADIUVA_PING_S="29")


def said(place: uuid.UUID | None) -> list[tuple[str, str]]:
    found = conversations.read_messages(Conversation.objects.get(pk=place))
    return [(message["role"], message["text"]) for message in found]


# ── Rows ────────────────────────────────────────────────────────────────────────────────────────────────


def begin(turn_id: uuid.UUID, user_id: uuid.UUID) -> BegunTurn | None:
    return begin_turn(turn_id=turn_id, user_id=user_id, owner="another-process")


def test_thirty_requests_at_once_are_stored_as_question_and_answer_by_turns(committed_db: str) -> None:
    person, numbers = somebody(), iter(range(30))
    place = make_conversation(person.id, ("One", "1"))
    tell = threading.Lock()

    def ask_in_turn(_: int) -> None:
        try:
            for _ in range(5):
                with tell:
                    number = next(numbers)
                request = make_request(person.id, f"q{number}", conversation_id=str(place.pk))
                turn = claim(request)
                until = time.monotonic() + 60
                while turn.queued:
                    assert time.monotonic() < until
                    if (begun := begin(turn.turn_id, person.id)) is not None:
                        assert begun.request == request
                        turn = begun.claimed
                        break
                assert turn.history[-1].role == "assistant"
                finish_turn(request, turn, f"a{number}")
        finally:
            connections.close_all()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ask_in_turn, range(6)))
    found = said(place.pk)[2:]
    assert sorted(found[::2]) == sorted(("user", f"q{number}") for number in range(30))
    assert found[1::2] == [("assistant", text.replace("q", "a")) for _, text in found[::2]]
    assert [message["seq"] for message in conversations.read_messages(place)] == list(range(1, 63))


def test_those_that_wait_follow_each_other_as_they_came(committed_db: str) -> None:
    person = somebody()
    first = make_request(person.id, "First")
    running = claim(first)
    here = {"conversation_id": str(running.conversation_id)}
    requests = [make_request(person.id, f"q{number}", **here) for number in range(8)]
    waiting = [claim(request) for request in requests]
    with pytest.raises(QueueFull):
        claim(make_request(person.id, "a ninth", **here))
    with pytest.raises(ConversationBusy):
        claim(make_request(person.id, "refused", busy="reject", **here))
    with pytest.raises(AlreadyClaimed):
        claim(requests[3])
    assert turn_queue.cancel(turn=Turn.objects.get(pk=waiting[2].turn_id))
    assert not turn_queue.cancel(turn=Turn.objects.get(pk=waiting[2].turn_id))
    assert begin(waiting[0].turn_id, person.id) is None  # not yet
    finish_turn(first, running, "1")
    for request, turn in zip(requests, waiting, strict=True):
        if turn is not waiting[2]:
            begun = begin(turn.turn_id, person.id)
            assert begun is not None and begun.request == request
            assert begin(turn.turn_id, person.id) is None  # once
            finish_turn(request, begun.claimed, request.message.upper())
    texts = [text for _, text in said(running.conversation_id)]
    assert texts == ["First", "1", *(f"{letter}{n}" for n in (0, 1, 3, 4, 5, 6, 7) for letter in "qQ")]
    assert not Turn.objects.of(person.id).filter(ended_at=None).exists()
    assert not Turn.objects.of(person.id).exclude(waiting_request=None).exists()


@pytest.mark.parametrize("how", ["marked", "swept", "deleted"])
def test_who_waits_follows_a_turn_that_was_lost(committed_db: str, how: str) -> None:
    person = somebody()
    running = claim(make_request(person.id, "First"))
    following = make_request(person.id, "Second", conversation_id=str(running.conversation_id))
    turn = claim(following)
    row = Turn.objects.get(pk=running.turn_id)
    if how == "marked":
        assert lost_turns.mark_lost(turn=row, code="turn_lost").next is not None
    elif how == "swept":
        Turn.objects.filter(pk=row.pk).update(lease_until=Now() - timedelta(seconds=1))
        assert lost_turns.end_lost_turns() >= 1  # others may have left theirs
    else:
        row.delete()
        assert turn.turn_id in {each.turn_id for each in turn_queue.hand_over_stuck()}
    begun = begin(turn.turn_id, person.id)
    assert begun is not None
    finish_turn(following, begun.claimed, "2")
    assert said(running.conversation_id) == [
        ("user", "First"),
        ("assistant", ""),
        ("user", "Second"),
        ("assistant", "2"),
    ]
    assert turn.turn_id not in {each.turn_id for each in turn_queue.hand_over_stuck()}


def test_a_turn_that_nobody_begins_is_found_and_at_last_given_up(committed_db: str) -> None:
    person = somebody()
    first = make_request(person.id, "First")
    running = claim(first)
    turn = claim(make_request(person.id, "Second", conversation_id=str(running.conversation_id)))
    finish_turn(first, running, "1")

    def found() -> bool:
        return turn.turn_id in {each.turn_id for each in turn_queue.find_abandoned(100)}

    assert not found()
    row = Turn.objects.filter(pk=turn.turn_id)
    with transaction.atomic():  # else a web process of another test finds it, and begins it
        row.update(lease_until=Now() - timedelta(seconds=1))
        assert found()
        lost_turns.end_lost_turns()
        assert row.get().state == "running"  # somebody may still begin it
        row.update(lease_until=Now() - timedelta(minutes=11))
        lost_turns.end_lost_turns()
    assert (row.get().state, row.get().code, row.get().waiting_request) == ("error", "turn_lost", None)


def test_a_conversation_that_is_deleted_takes_those_that_wait_with_it(committed_db: str) -> None:
    person = somebody()
    first = make_request(person.id, "First")
    running = claim(first)
    place = Conversation.objects.get(pk=running.conversation_id)
    waiting = [claim(make_request(person.id, "Next", conversation_id=str(place.pk))) for _ in range(2)]
    finish_turn(first, running, "1")  # the first of them is to begin now
    conversations.delete(conversation=place)
    assert begin(waiting[0].turn_id, person.id) is None
    rows = Turn.objects.filter(pk__in=[turn.turn_id for turn in waiting])
    ends = {(row.state, row.code, row.waiting_request) for row in rows}
    assert ends == {("error", ConversationNotFound.code, None)}


def test_what_a_lost_turn_had_heard_is_stored_with_the_next_message(committed_db: str) -> None:
    person = somebody()
    first = make_request(person.id, "First")
    running = claim(first)
    here = {"conversation_id": str(running.conversation_id)}
    joining, waiting = (
        claim(make_request(person.id, "And more", busy="steer", **here)),
        claim(make_request(person.id, **here)),
    )
    (told,) = turn_queue.said_to(claimed=running)
    assert (told.text, told.turn_id) == ("And more", joining.turn_id)
    heard = told._replace(call=3, at=datetime(2026, 11, 29, 8, tzinfo=UTC))
    assert [row.pk for row in turn_queue.join(steered=[heard])] == [joining.turn_id]
    assert turn_queue.join(steered=[heard]) == turn_queue.said_to(claimed=running) == []
    assert lost_turns.mark_lost(turn=Turn.objects.get(pk=running.turn_id), code="turn_lost").ended
    begun = begin(waiting.turn_id, person.id)
    assert begun is not None
    assert said(running.conversation_id) == [
        ("user", "First"),
        ("user", "And more"),
        ("assistant", ""),
        ("user", "Which tasks are open?"),
    ]
    found = conversations.read_messages(Conversation.objects.get(pk=running.conversation_id))
    assert found[1]["steered"] == {"at": "2026-11-29T08:00:00+00:00", "call": 3}
    assert Turn.objects.get(pk=joining.turn_id).waiting_request is None
    finish_turn(begun.request, begun.claimed)


def test_what_is_said_to_a_turn_is_read_by_that_turn_alone_and_else_has_its_own_answer(
    committed_db: str,
) -> None:
    person = somebody()
    first = make_request(person.id, "First")
    running = claim(first)
    here = {"conversation_id": str(running.conversation_id)}
    second = claim(make_request(person.id, "Second", **here))
    to_second, to_first, to_whom = (
        claim(make_request(person.id, text, busy="steer", joins=joins, **here))
        for text, joins in (("To second", second.turn_id), ("To first", running.turn_id), ("To whom", None))
    )
    assert [said.text for said in turn_queue.said_to(claimed=running)] == ["To first", "To whom"]
    for number in range(13):
        claim(make_request(person.id, f"more {number}", busy="steer", **here))
    with pytest.raises(TooManySteers):
        claim(make_request(person.id, "a seventeenth", busy="steer", **here))
    claim(make_request(person.id, "Third", **here))  # which is another limit
    Turn.objects.filter(joins=running.turn_id).exclude(pk=to_first.turn_id).exclude(
        pk=to_whom.turn_id
    ).delete()
    finish_turn(first, running, "1")
    begun = begin(second.turn_id, person.id)
    assert begun is not None
    assert [said.text for said in turn_queue.said_to(claimed=begun.claimed)] == ["To second"]
    finish_turn(begun.request, begun.claimed, "2", steered=turn_queue.said_to(claimed=begun.claimed))
    assert begin(to_second.turn_id, person.id) is None
    assert begin(to_first.turn_id, person.id) is not None


def test_what_joined_a_turn_is_stored_once_with_the_time_and_the_call_that_read_it(committed_db: str) -> None:
    person = somebody()
    first = make_request(person.id, "First")
    running = claim(first)
    joining = claim(make_request(person.id, "And more", conversation_id=str(running.conversation_id)))
    heard = Turn.objects.get(pk=joining.turn_id).started_at
    finish_turn(first, running, "1", steered=[Steered("And more", 2, heard, joining.turn_id)])
    row = Turn.objects.get(pk=joining.turn_id)
    assert (row.state, row.code, row.waiting_request) == ("stop", "joined", None)
    found = conversations.read_messages(Conversation.objects.get(pk=running.conversation_id))
    assert [message["text"] for message in found] == ["First", "And more", "1"]
    assert found[1]["steered"] == {"at": heard.isoformat(), "call": 2}


async def test_messages_beyond_what_a_call_takes_go_on_ending_waits_until_they_are_read(
    person: Person,
) -> None:
    running = await db.run(claim, make_request(person.id, "First"))
    here = {"conversation_id": str(running.conversation_id), "busy": "steer"}
    for letter in "ab":
        await db.run(claim, make_request(person.id, letter * 60_000, **here))
    steers = SteerQueue(lambda read: None)
    steers.look_again()
    await steers.look(running)
    assert [text[0] for text in steers.take()] == ["a"] and steers.spoken.is_set()
    steers.mark_read(1)
    await steers.look(running)
    assert [text[0] for text in steers.take()] == ["b"] and not steers.spoken.is_set()


# ── Through the socket ──────────────────────────────────────────────────────────────────────────────────


async def busy(session: ChatClient, provider: Provider, *answers: Any) -> tuple[str, Hold, str]:
    """A conversation whose turn waits for its model; the other answers come after it. Returns its request as well."""
    hold = Hold("The first.")
    provider.script(hold, *answers)
    key = await session.ask("One")
    await wait_for(hold.reached)
    await session.until(lambda: key in session.streams)
    return conversation_of(session.streams[key]), hold, key


async def waits(session: ChatClient, key: str) -> ClientStream:
    await session.until(lambda: key in session.streams and "stream_status" in session.streams[key].kinds())
    return session.streams[key]


async def test_a_second_request_says_that_it_waits_and_is_answered_after_the_first(
    chat_web: str, provider: Provider, person: Person
) -> None:
    async with connect(chat_web, person) as session:
        place, hold, first = await busy(session, provider, "The second.")
        second = await session.ask("Two", conversation_id=place)
        stream = await waits(session, second)
        assert stream.kinds() == ["stream_start", "stream_status"]
        assert stream.frames[1]["label"] == "After the answer before this one"
        hold.release()
        end_frame(await session.ended(first))
        end_frame(await session.ended(second))
        assert stream.text == "The second."
        assert conversation_words(provider.last) == ["One", "The first.", "Two"]
        texts = [message["text"] for message in await stored_messages(chat_web, person, place)]
    assert texts == ["One", "The first.", "Two", "The second."]


async def test_one_that_waits_is_cancelled_and_one_that_must_not_wait_is_refused(
    chat_web: str, other_web: str, provider: Provider, person: Person
) -> None:
    async with connect(chat_web, person) as session, connect(other_web, person, device_id="phone") as phone:
        place, hold, _ = await busy(session, provider, "The third.")
        second = await session.ask("Two", conversation_id=place)
        await waits(session, second)
        third = await phone.ask("Three", conversation_id=place)
        await waits(phone, third)
        refused = await phone.ended(await phone.ask("Four", conversation_id=place, busy="reject"))
        assert (end_frame(refused)["finish"], end_frame(refused)["code"]) == ("error", "conversation_busy")
        await phone.cancel(second)  # it waits in the other process
        assert end_frame(await session.ended(second))["finish"] == "cancelled"
        hold.release()
        assert (await phone.ended(third)).text == "The third."
        texts = [message["text"] for message in await stored_messages(chat_web, person, place)]
    assert texts == ["One", "The first.", "Three", "The third."]


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_one_that_steers_joins_the_running_turn_at_its_next_call(
    chat_web: str, other_web: str, provider: Provider, person: Person, elsewhere: bool
) -> None:
    rows = DeviceRows(tasks=[])
    async with (
        connect(chat_web, person, rows) as session,
        connect(other_web if elsewhere else chat_web, person, device_id="phone") as phone,
    ):
        hold = Hold(Call("list_tasks"))
        provider.script(hold, "Both answered.")
        first = await session.ask("One")
        await wait_for(hold.reached)
        await session.until(lambda: first in session.streams)
        place = conversation_of(session.streams[first])
        joining = await phone.ask("Two", conversation_id=place, busy="steer")
        await waits(phone, joining)
        await phone.settled()
        await asyncio.sleep(0.3)  # its offer is on its way to the other process
        hold.release()
        joined = end_frame(await phone.ended(joining))
        assert (joined["finish"], joined["code"]) == ("stop", "joined")
        assert (await session.ended(first)).text == "Both answered."
        found = await stored_messages(chat_web, person, place)
    assert [message["text"] for message in found] == ["One", "Two", "Both answered."]
    assert found[1]["steered"]["call"] == 2


async def test_one_that_steers_is_answered_by_itself_if_the_turn_ends_before(
    chat_web: str, provider: Provider, person: Person
) -> None:
    async with connect(chat_web, person) as session:
        place, hold, first = await busy(session, provider, "The second.")
        await session.cancel(first)
        second = await session.ask("Two", conversation_id=place, busy="steer")
        hold.release()
        stream = await session.ended(second)
        found = await stored_messages(chat_web, person, place)
    assert (stream.text, end_frame(stream).get("code")) == ("The second.", None)
    assert [message["role"] for message in found] == ["user", "assistant"] * 2


async def test_one_that_cannot_begin_does_not_stop_the_others_that_wait_in_its_process(
    chat_web: str, provider: Provider, person: Person
) -> None:
    async with connect(chat_web, person) as session:
        place, hold, first = await busy(session, provider)
        broken = await session.ask("Two", conversation_id=place)
        await waits(session, broken)
        elsewhere, other_hold, _ = await busy(session, provider)
        third = await session.ask("Three", conversation_id=elsewhere)
        await waits(session, third)
        rows = Turn.objects.of(person.id)
        assert await db.run(rows.filter(request_id=broken).update, waiting_request=b"broken")
        hold.release()
        await session.ended(first)
        # It is handed over, and nobody tells the process that the other has been taken out.
        assert await db.run(turn_queue.cancel, turn=await db.run(rows.get, request_id=third))
        assert end_frame(await session.ended(third))["finish"] == "cancelled"
        ended = {"state": "error", "ended_at": Now(), "waiting_request": None}
        assert await db.run(rows.filter(request_id=broken).update, **ended)
        end_frame(await session.ended(broken))
        other_hold.release()


async def test_a_request_that_waits_can_be_resumed_through_another_process(
    chat_web: str, other_web: str, provider: Provider, person: Person
) -> None:
    async with connect(other_web, person, device_id="phone") as phone:
        async with connect(chat_web, person) as session:
            place, hold, _ = await busy(session, provider, "The second.")
            second = await session.ask("Two", conversation_id=place)
            await waits(session, second)
        await phone.socket.send({"type": "stream_resume", "request_id": second, "after": -1})
        stream = await waits(phone, second)
        hold.release()
        await phone.ended(second)
    end_frame(stream)
    assert (stream.kinds()[:2], stream.text) == (["stream_start", "stream_status"], "The second.")


async def test_two_requests_at_once_are_answered_in_order_whatever_the_delay(
    chat_web: str, other_web: str, provider: Provider, person: Person
) -> None:
    chance = random.Random(17)
    provider.script(*(f"answer {number}" for number in range(9)))
    async with connect(chat_web, person) as session, connect(other_web, person, device_id="phone") as phone:
        place = conversation_of(await session.say("Hello"))
        for number in range(4):
            early, late = chance.sample([session, phone], 2)
            first = await early.ask(f"early {number}", conversation_id=place)
            await asyncio.sleep(chance.random() * 0.03)
            second = await late.ask(f"late {number}", conversation_id=place)
            end_frame(await early.ended(first))
            end_frame(await late.ended(second))
        found = await stored_messages(chat_web, person, place)
    assert [message["role"] for message in found] == ["user", "assistant"] * 9
    assert sorted(message["text"] for message in found[1::2]) == [f"answer {number}" for number in range(9)]


# ── A process dies ──────────────────────────────────────────────────────────────────────────────────────


async def test_those_that_wait_are_answered_once_when_the_process_that_had_them_all_is_killed(
    stack: Stack, other_web: str, provider: Provider, person: Person
) -> None:
    victim = stack.web(ADIUVA_PING_S="28")
    tap = FrameTap(PIECES)
    provider.script(tap, "The second.", "The third.")
    async with connect(other_web, person, device_id="phone") as phone:
        async with connect(victim, person) as session:
            first = await session.ask("One")
            await wait_for(tap.reached)
            await session.until(lambda: first in session.streams)
            place = conversation_of(session.streams[first])
            second = await session.ask("Two", conversation_id=place)
            await waits(session, second)
            third = await session.ask("Three", conversation_id=place)
            await waits(session, third)
            stack.kill(victim)
        for key, after in ((first, -1), (second, 0), (third, 0)):
            await phone.socket.send({"type": "stream_resume", "request_id": key, "after": after})
        lost = end_frame(await phone.ended(first))
        assert (lost["finish"], lost["code"]) == ("error", "turn_lost")
        for key, text in ((second, "The second."), (third, "The third.")):
            stream = await phone.ended(key)
            assert stream.text == text, stream.frames
        found: list[Frame] = await stored_messages(other_web, person, place)
    texts = [message["text"] for message in found]
    assert texts == ["One", "", "Two", "The second.", "Three", "The third."]
    assert await db.run(Turn.objects.of(person.id).filter(ended_at=None).count) == 0


@pytest.mark.parametrize("dies", ["the turn's", "the sender's"])
async def test_what_is_said_to_a_turn_outlives_any_process(
    stack: Stack, other_web: str, provider: Provider, person: Person, dies: str
) -> None:
    victim = stack.web(ADIUVA_PING_S="26")
    hold = Hold("The first.")
    provider.script(hold, "The second.")
    turns_web, senders_web = (victim, other_web) if dies == "the turn's" else (other_web, victim)
    async with (
        connect(turns_web, person) as session,
        connect(senders_web, person, device_id="phone") as phone,
    ):
        first = await session.ask("One")
        await wait_for(hold.reached)
        await session.until(lambda: first in session.streams)
        place = conversation_of(session.streams[first])
        await told_from(phone, lambda: phone.steer(first, "and in French"))
        await session.settled()
        stack.kill(victim)
        hold.release()
        if dies == "the turn's":  # a stream that somebody asks for shows at once that it is lost
            await phone.socket.send({"type": "stream_resume", "request_id": first, "after": -1})
            assert end_frame(await phone.ended(first))["code"] == "turn_lost"
            await phone.until(lambda: len(phone.streams) == 2)
            second = next(key for key in phone.streams if key != first)
            assert (await phone.ended(second)).text == "The second."
        else:
            assert (await session.ended(first)).text == "The first.\n\nThe second."
        found = await stored_messages(other_web, person, place)
    texts = [message["text"] for message in found]
    if dies == "the turn's":
        assert texts == ["One", "", "and in French", "The second."]
    else:
        assert texts == ["One", "and in French", "The first.\n\nThe second."]
        assert found[1]["steered"]["call"] == 2


async def test_those_that_wait_are_answered_though_nobody_comes_back_for_them(
    stack: Stack, other_web: str, provider: Provider, person: Person
) -> None:
    victim = stack.web(ADIUVA_PING_S="27", ADIUVA_TURN_LEASE_S="1")
    hold = Hold("Never.")
    provider.script(hold, "The second.")
    async with connect(other_web, person, device_id="phone"):
        async with connect(victim, person) as session:
            first = await session.ask("One")
            await wait_for(hold.reached)
            await session.until(lambda: first in session.streams)
            second = await session.ask("Two", conversation_id=conversation_of(session.streams[first]))
            await waits(session, second)
            stack.kill(victim)
        ends: Callable[[], int] = Turn.objects.of(person.id).exclude(ended_at=None).count
        async with asyncio.timeout(40):
            while await db.run(ends) < 2:
                await db.run(lost_turns.end_lost_turns)  # as the sweep does
                await db.run(
                    Turn.objects.of(person.id).to_begin().update, lease_until=Now() - timedelta(seconds=1)
                )
                await asyncio.sleep(0.2)
    rows = {row.request_id: row for row in await db.run(list, Turn.objects.of(person.id))}
    assert (rows[first].state, rows[first].code) == ("error", "turn_lost")
    assert (rows[second].state, rows[second].code) == ("stop", "")
