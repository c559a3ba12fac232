"""The end of a run that was started from a chat: told once in its conversation, by a turn or a notice of ours."""

from __future__ import annotations

import asyncio
import random
import uuid
from datetime import timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.db.models import F
from django.db.models.functions import Now
from django.utils import timezone
from pytest_django import Settings

from adiuva.accounts import services as accounts
from adiuva.accounts.models import User
from adiuva.core import db
from adiuva.devices.models import Device
from agents import run_watches, runs
from agents.models import Run, Watch
from agents.run_watches import ChatPlace
from billing.models import Allowance, Plan, Use
from billing.months import month_of
from chat import conversations, device_notices, lost_turns, run_followups, run_notes, turn_ends, turn_queue
from chat.claimed_turn import TurnOutcome
from chat.models import Conversation, Turn
from chat.turn_claims import begin_turn
from tests.agents.factories import create_agent, create_run
from tests.chat.chat_client import (
    CAPABILITIES,
    Frame,
    connect,
    conversation_of,
    conversation_words,
    end_frame,
    stored_messages,
    wait_for,
)
from tests.chat.factories import claim, finish_turn, make_conversation, make_request, no_device_connected
from tests.chat.followup_breaks import Way
from tests.factories import Person, a_process, somebody
from tests.fakes.provider import Call, Fail, Hold, Provider, Say
from tests.server_processes import Stack

State = Watch.State


def ended_run(
    user_id: uuid.UUID, place: str | uuid.UUID | None, name: str = "Clients", **fields: Any
) -> Watch:
    """A run that was started from a conversation, and has ended."""
    run = create_run(create_agent(user_id, name=name))
    conversation = uuid.UUID(str(place)) if place is not None else None
    here = ChatPlace(user_id, uuid.uuid4(), conversation, asked=f"run {name} and tell me")
    watch = run_watches.add(run, here, started=True)
    Watch.objects.filter(pk=watch.pk).update(device_id=fields.pop("device_id", ""))
    runs.end(run, Run.State.SUCCESS, "completed")
    Watch.objects.filter(pk=watch.pk).update(**fields)
    watch.refresh_from_db()
    return watch


def state(watch: Watch) -> str:
    watch.refresh_from_db()
    return str(watch.state)


def messages(place: Conversation) -> list[dict[str, Any]]:
    return conversations.read_messages(place)


# ── Notices ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("why", ["tries", "a day"])
def test_what_no_turn_could_tell_is_told_in_a_notice_once(committed_db: str, why: str) -> None:
    person = somebody()
    place = make_conversation(person.id)
    fields = {"attempts": 8} if why == "tries" else {"due_at": Now() - timedelta(hours=25)}
    watch = ended_run(person.id, place.pk, **fields)
    frames = dict(run_followups.follow_up_due()).get(person.id)
    if frames:  # unless a server of another test was quicker
        assert [frame.type for frame in frames] == [
            *(["run_ended"] if why == "a day" else []),
            "conversation_changed",
        ]
    assert not dict(run_followups.follow_up_due()).get(person.id)
    assert state(watch) == State.DEAD
    place.refresh_from_db()
    notice = messages(place)[-1]
    assert not place.has_private
    assert len(messages(place)) == 3 and notice["role"] == "assistant"
    assert notice["text"] == (
        "The agent “Clients” has ended and found nothing new. I could not go on with it by myself."
    )
    assert notice["origin"] == {
        "type": "agent_run",
        "run_ids": [str(watch.run_id)],
        "agent_names": ["Clients"],
    }


def test_a_notice_waits_for_the_turn_that_runs(committed_db: str) -> None:
    person = somebody()
    request = make_request(person.id, "One")
    running = claim(request)
    watch = ended_run(person.id, running.conversation_id, attempts=8)
    run_followups.follow_up_due()
    assert state(watch) == State.DUE
    finish_turn(request, running, "1")
    run_followups.follow_up_due()
    assert state(watch) == State.DEAD
    texts = [message["text"] for message in messages(Conversation.objects.get(pk=running.conversation_id))]
    assert texts[:2] == ["One", "1"] and len(texts) == 3


def test_beyond_six_turns_an_hour_notices_tell_all_that_is_due_together(committed_db: str) -> None:
    person = somebody()
    Device.objects.create(user_id=person.id, device_id="desk", process=a_process())
    place = make_conversation(person.id)
    for number in range(6):
        Turn.objects.create(
            user_id=person.id,
            request_id=f"{run_followups.REQUEST_PREFIX}{number}",
            kind="home",
            conversation=place,
            state="stop",
            ended_at=Now(),
        )
    due = [ended_run(person.id, place.pk, name) for name in ("Clients", "Mail")]
    run_followups.follow_up_due()
    assert {state(watch) for watch in due} == {State.DONE}
    assert messages(place)[-1]["origin"]["agent_names"] == ["Clients", "Mail"]
    assert len(messages(place)) == 3


@pytest.mark.parametrize("scope", ["followups", "user"])
def test_where_the_money_for_it_is_used_up_a_notice_tells(db: None, settings: Settings, scope: str) -> None:
    settings.PLANS = True
    person = somebody()
    Device.objects.create(user_id=person.id, device_id="desk", process=a_process())
    place = make_conversation(person.id)
    month = month_of(timezone.now(), ZoneInfo("UTC"))
    budget = Plan.objects.get(tier="free").budget_micro
    assert budget is not None
    allowance = Allowance.objects.create(scope=scope, user_id=person.id, month=month.first_day)
    allowance.spent = budget if scope == "user" else budget // 5
    allowance.save()
    watch = ended_run(person.id, place.pk)
    run_followups.follow_up_in(person.id, place.pk)
    assert state(watch) == State.DONE and not Turn.objects.of(person.id).filter(ended_at=None).exists()
    assert messages(place)[-1]["text"] == "The agent “Clients” has ended and found nothing new."
    allowance.spent //= 2
    allowance.save()
    later = ended_run(person.id, place.pk, "Mail")
    run_followups.follow_up_in(person.id, place.pk)
    assert state(later) == State.HELD and Turn.objects.of(person.id).filter(ended_at=None).exists()


def test_nothing_is_spent_while_no_device_is_there(committed_db: str) -> None:
    person = somebody()
    watch = ended_run(person.id, make_conversation(person.id).pk)
    run_followups.follow_up_due()
    assert (state(watch), watch.attempts) == (State.DUE, 0)
    assert not Turn.objects.of(person.id).filter(ended_at=None).exists()


@pytest.mark.parametrize("gone", ["the conversation", "the account", "the account is locked"])
def test_where_nobody_is_left_to_hear_it_nothing_is_told_and_nothing_is_left(db: None, gone: str) -> None:
    person = somebody()
    place = make_conversation(person.id)
    watch = ended_run(
        person.id, place.pk, due_at=Now() - timedelta(hours=25)
    )  # else it would wait for a device
    if gone == "the conversation":
        conversations.delete(conversation=place)
    elif gone == "the account":
        accounts.delete_account(user=User.objects.get(pk=person.id))
    else:
        User.objects.filter(pk=person.id).update(is_active=False)
    run_followups.follow_up_due()
    if gone == "the account is locked":
        assert (state(watch), len(messages(place))) == (State.DUE, 2)
        User.objects.filter(pk=person.id).update(is_active=True)
        run_followups.follow_up_due()
        assert (state(watch), len(messages(place))) == (State.DEAD, 3)
    else:
        assert not Watch.objects.filter(pk=watch.pk).exists()
        assert not Conversation.objects.filter(pk=place.pk).exists()
        assert not Turn.objects.of(person.id).filter(ended_at=None).exists()


def test_who_has_no_device_connected_does_not_stand_in_the_way_of_others(db: None) -> None:
    away, here = somebody(), somebody()
    Device.objects.create(user_id=here.id, device_id="desk", process=a_process())
    places = [make_conversation(person.id).pk for person in (away, here, here)]
    late, *_, newest = [
        ended_run(person.id, place, due_at=Now() - timedelta(hours=hours))
        for person, place, hours in ((away, places[0], 3), (here, places[1], 1), (here, places[2], 2))
    ]
    mine = [row for row in run_followups.due_places() if row[0] in (away.id, here.id)]
    assert mine == [(here.id, places[2]), (here.id, places[1])]  # the longest due first
    Watch.objects.filter(pk=newest.pk).update(not_before=Now() + timedelta(minutes=1))
    Watch.objects.filter(pk=late.pk).update(due_at=Now() - timedelta(hours=25))  # a notice needs no device
    mine = [row for row in run_followups.due_places() if row[0] in (away.id, here.id)]
    assert mine == [(away.id, places[0]), (here.id, places[1])]


# ── Turns ───────────────────────────────────────────────────────────────────────────────────────────────


async def tell_due() -> None:
    """What a worker does when a run has ended, and every ten seconds."""
    await run_notes.tell(await db.run(run_notes.turns_to_tell))
    for user_id, frames in await db.run(run_followups.follow_up_due):
        await device_notices.send(user_id, frames)


async def settled(watch: Watch, *states: str) -> None:
    async with asyncio.timeout(30):
        while await db.run(state, watch) not in states:
            await asyncio.sleep(0.05)


async def test_all_ends_of_a_conversation_become_one_turn_without_a_user(
    chat_web: str, provider: Provider, person: Person
) -> None:
    provider.script("The first.", "All agents are done.")
    knows = [*CAPABILITIES, "followups"]
    names = ["Clients", "Mail", *(f"Agent {number}" for number in range(6))]
    async with connect(chat_web, person) as session:
        place = conversation_of(await session.say("run Clients and Mail"))
    due = [await db.run(ended_run, person.id, place, name) for name in names]
    await no_device_connected(person.id)
    await db.run(run_followups.follow_up_due)
    async with (
        connect(chat_web, person) as session,
        connect(chat_web, person, device_id="old", protocol=1) as old,
        connect(chat_web, person, device_id="phone", capabilities=knows) as phone,
        connect(chat_web, person, device_id="tablet", capabilities=knows) as tablet,
    ):
        await tell_due()  # unless the worker of other tests was quicker
        await tell_due()  # once
        for watch in due:
            await settled(watch, State.TOLD)
        for device in (phone, tablet):
            await device.until(lambda device=device: any(one.end for one in device.streams.values()))  # type: ignore[misc]
            assert [frame["agent_name"] for frame in device.others] == names  # run_ended
        (stream,), (other,) = phone.streams.values(), tablet.streams.values()
        assert stream.kinds()[0] == "turn_started" and stream.text == "All agents are done."
        assert stream.frames == other.frames
        assert stream.frames[0]["origin"]["agent_names"] == names
        await session.settled()
        for device in (session, old):  # they have not asked for these frames
            assert not device.streams and not device.others
        found: list[Frame] = await stored_messages(chat_web, person, place)
    assert [message["role"] for message in found] == ["user", "assistant", "assistant"]
    assert found[-1]["text"] == "All agents are done."
    assert found[-1]["origin"]["agent_names"] == names
    used = await db.run(lambda: dict(Use.objects.of(person.id).values_list("purpose", "calls")))
    assert (used["chat"], used["followups"]) == (1, 1)
    asked = str(provider.last["messages"][-1]["content"])
    assert "run Clients and tell me" in asked and "not from the user" in conversation_words(provider.last)[-1]
    offered = {tool["function"]["name"] for tool in provider.last["tools"]}
    assert "view_agent_output" in offered
    assert not offered & {"run_agent", "set_up_agent", "stop_run", "delete", "ask_specialist"}


async def test_what_is_said_to_a_turn_that_nobody_asked_for_is_no_private_message(
    chat_web: str, stack: Stack, provider: Provider, person: Person
) -> None:
    hold = Hold("Clients has ended.")
    provider.script("The first.", hold, "Noted.")
    other_web = stack.web("daphne")
    async with connect(chat_web, person) as session, connect(other_web, person, device_id="phone") as phone:
        place = conversation_of(await session.say("run Clients"))
        watch = await db.run(ended_run, person.id, place)
        await tell_due()
        await wait_for(hold.reached)  # in either process
        turns = Turn.objects.of(person.id)
        key = (await db.run(turns.running().get)).request_id
        await session.steer(key, "I live in Turin.")
        await phone.steer(key, "I like coffee.")
        async with asyncio.timeout(30):
            while await db.run(turns.waiting().count) < 2:
                await asyncio.sleep(0.02)
        hold.release()
        await settled(watch, State.TOLD)
    assert await db.run(turns.filter(memory=True).count) == 4
    assert not (await db.run(Conversation.objects.get, pk=place)).has_private


async def test_a_turn_that_fails_leaves_no_message_and_is_tried_again_later_or_becomes_a_notice(
    chat_web: str, provider: Provider, person: Person
) -> None:
    provider.script("The first.", Fail(400))
    async with connect(chat_web, person) as session:
        place = conversation_of(await session.say("run Clients"))
        watch = await db.run(ended_run, person.id, place)
        await db.run(run_followups.follow_up_due)
        await settled(watch, State.DUE, State.DEAD)
        not_told = Watch.objects.filter(pk=watch.pk, state=State.DUE)
        if await db.run(not_told.update, not_before=Now() + timedelta(minutes=1)):  # no server was quicker
            assert len(await stored_messages(chat_web, person, place)) == 2
            await db.run(run_followups.follow_up_due)  # it is not time yet
            assert (await db.run(state, watch), watch.attempts) == (State.DUE, 1)
            await db.run(not_told.update, not_before=Now())
        await db.run(run_followups.follow_up_due)  # the model has refused: a second try would end the same
        assert await db.run(state, watch) == State.DEAD
        found = await stored_messages(chat_web, person, place)
    assert len(found) == 3 and found[-1]["text"].startswith("The agent “Clients” has ended")


# ── Turns that run anyway ───────────────────────────────────────────────────────────────────────────────


async def test_the_turn_that_runs_tells_an_end_that_comes_meanwhile_in_its_own_answer(
    chat_web: str, provider: Provider, person: Person
) -> None:
    hold = Hold("Here is your week. ")
    provider.script("Started.", hold, "And Clients has ended.")
    knows = [*CAPABILITIES, "followups"]
    async with connect(chat_web, person, capabilities=knows) as session:
        place = conversation_of(await session.say("run Clients"))
        request = await session.ask("What is there to do?", conversation_id=place)
        await wait_for(hold.reached)
        watch = await db.run(ended_run, person.id, place)
        await tell_due()
        await db.run(run_followups.follow_up_due)
        assert await db.run(state, watch) == State.DUE  # the model has not read it yet
        hold.release()
        stream = await session.ended(request)
        assert stream.text.split() == ["Here", "is", "your", "week.", "And", "Clients", "has", "ended."]
        assert await db.run(state, watch) == State.TOLD
        await session.until(lambda: bool(session.others))
        assert [frame["type"] for frame in session.others] == ["run_ended"]
        await tell_due()
        found = await stored_messages(chat_web, person, place)
    assert [message["role"] for message in found] == ["user", "assistant", "user", "assistant"]
    told = str(provider.last["messages"][-1]["content"])
    assert "not from the user" in told and "run Clients and tell me" in told
    assert len(provider.chats) == 3


async def test_a_provider_that_names_a_time_is_not_asked_before(
    chat_web: str, provider: Provider, person: Person
) -> None:
    provider.script("The first.", Fail(429, retry_after=900))
    async with connect(chat_web, person) as session:
        place = conversation_of(await session.say("run Clients"))
        watch = await db.run(ended_run, person.id, place)
        await tell_due()
        await settled(watch, State.DUE)
    named = Watch.objects.filter(pk=watch.pk, not_before__gt=Now() + timedelta(minutes=14))
    assert await db.run(named.count) == 1


async def test_what_a_running_turn_did_not_come_to_tell_has_a_turn_of_its_own(
    chat_web: str, provider: Provider, person: Person
) -> None:
    hold = Hold("Here is your week. ")
    provider.script("Started.", hold, Fail(401), "Clients has ended.")
    async with connect(chat_web, person) as session:
        place = conversation_of(await session.say("run Clients"))
        request = await session.ask("What is there to do?", conversation_id=place)
        await wait_for(hold.reached)
        watch = await db.run(ended_run, person.id, place)
        await tell_due()
        hold.release()
        await session.ended(request)
        await tell_due()
        await settled(watch, State.TOLD)
        found = await stored_messages(chat_web, person, place)
    assert [message["role"] for message in found] == ["user", "assistant", "user", "assistant", "assistant"]
    assert found[-1]["text"] == "Clients has ended." and "origin" in found[-1]


@pytest.mark.parametrize("ended", ["cancelled", "stop"])
def test_what_a_turn_does_not_know_that_it_holds_is_due_after_it(committed_db: str, ended: str) -> None:
    """It had answered, and asked for a run's end once more, but never got what the database gave it."""
    person = somebody()
    request = make_request(person.id, "One")
    running = claim(request)
    given, unknown, heard = (
        ended_run(person.id, running.conversation_id, name) for name in ("Given", "Unknown", "Heard")
    )
    place = ChatPlace(person.id, running.turn_id, running.conversation_id)
    assert run_watches.hold(heard.run_id, place)
    notes = run_notes.RunNotes()
    notes.has_looked, notes.told = True, [given.pk]
    assert run_notes.take(place, running.fence) is not None
    turn_ends.finish_turn(
        request=request,
        claimed=running,
        result=TurnOutcome(
            ended, "1", notes=notes, heard_runs={heard.run_id}, may_hold_runs=True, has_answered=True
        ),
    )
    assert [state(watch) for watch in (given, unknown, heard)] == [State.TOLD, State.DUE, State.TOLD]


async def test_what_a_tool_was_told_and_the_model_was_not_has_a_turn_of_its_own(
    stack: Stack, provider: Provider, person: Person
) -> None:
    """The turn's time for tools is over while another tool of the same answer waits for the device."""
    web = stack.web(ADIUVA_TURN_DEADLINE_S="3")
    look = Call("view_agent_output", {"agent": "Clients"})
    provider.script(
        "Hello.", Say(calls=[look, Call("list_tasks")]), "I could not look.", "Clients has ended."
    )
    async with connect(web, person) as session:
        place = conversation_of(await session.say("Hello"))
        watch = await db.run(ended_run, person.id, place)
        await db.run(
            Watch.objects.filter(pk=watch.pk).update, attempts=1, not_before=Now() + timedelta(hours=1)
        )
        session.silent = True
        stream = await session.say("What did Clients find, and what is there to do?", conversation_id=place)
        assert (stream.text, end_frame(stream)["code"]) == ("I could not look.", "deadline")
        assert "has ended" not in str(provider.chats[2].body["messages"])
        assert await db.run(state, watch) == State.DUE
        await session.catch_up()
        await db.run(Watch.objects.filter(pk=watch.pk).update, not_before=None)
        await tell_due()
        await settled(watch, State.TOLD)
        found = await stored_messages(web, person, place)
    assert found[-1]["text"] == "Clients has ended." and "origin" in found[-1]


def test_a_turn_that_waits_no_more_is_not_taken_out_and_still_tells(committed_db: str) -> None:
    """Its time came while the cancellation was on its way."""
    person = somebody()
    running = claim(make_request(person.id, "One"))
    watch = ended_run(person.id, running.conversation_id, state=State.HELD, turn=running.turn_id)
    assert not turn_queue.cancel(turn=Turn.objects.get(pk=running.turn_id))
    assert state(watch) == State.HELD


async def test_a_client_of_protocol_1_is_told_in_its_next_request_and_only_there(
    chat_web: str, provider: Provider, person: Person
) -> None:
    provider.script("Started.", "Clients has ended. And hello.", "Hello again.")
    async with connect(chat_web, person, protocol=1) as session:
        await session.say("run Clients")
        device = await db.run(Device.objects.get, user_id=person.id)
        watch = await db.run(ended_run, person.id, None, device_id=str(device.pk))
        await tell_due()
        assert await db.run(state, watch) == State.DUE
        await session.say("hello")
        assert "run Clients and tell me" in str(provider.last["messages"][-1]["content"])
        assert await db.run(state, watch) == State.TOLD
        await session.say("hello again")
        assert "has ended: " not in str(provider.last["messages"][-1]["content"])
        assert not session.others


def test_what_a_device_does_not_come_to_hear_expires_and_what_no_turn_can_tell_is_given_up(
    committed_db: str,
) -> None:
    person = somebody()
    fresh = ended_run(person.id, None, device_id="a")
    old = ended_run(person.id, None, device_id="b", due_at=Now() - timedelta(days=8))
    tried = ended_run(person.id, None, device_id="c", attempts=run_watches.MOST_TRIES_IN_TURNS)
    run_watches.expire()
    assert [state(watch) for watch in (fresh, old, tried)] == [State.DUE, State.EXPIRED, State.DEAD]


def test_what_a_turn_held_that_is_gone_is_due_again(committed_db: str) -> None:
    person = somebody()
    request = make_request(person.id, "One")
    running = claim(request)
    under_way = ended_run(person.id, running.conversation_id, state=State.HELD, turn=running.turn_id)
    lost = ended_run(person.id, running.conversation_id, state=State.HELD)
    run_notes.release_lost()
    assert [state(watch) for watch in (under_way, lost)] == [State.HELD, State.DUE]


# ── It breaks off ───────────────────────────────────────────────────────────────────────────────────────


def test_an_end_is_told_once_wherever_its_telling_breaks_off(db: None) -> None:
    person, chance = somebody(), random.Random()
    ways = [Way(person, chance) for _ in range(5)]
    for way in ways:
        way.go()
    assert [way.tellings() for way in ways] == [1] * len(ways)
    assert sum(way.breaks for way in ways)


def test_a_models_absence_is_tried_eight_times_at_the_stated_times_and_then_told_once(
    db: None,
) -> None:
    person = somebody()
    Device.objects.create(user_id=person.id, device_id="desk", process=a_process())
    place = make_conversation(person.id)
    watch = ended_run(person.id, place.pk)
    began = Turn.objects.of(person.id).get().started_at  # all in one transaction, which has one time
    waits_s: list[float] = []
    while state(watch) == State.DUE and len(waits_s) < 20:
        run_followups.follow_up_in(person.id, place.pk)
        turn = Turn.objects.of(person.id).filter(conversation=place, ended_at=None).first()
        if turn is None:
            break
        begun = begin_turn(turn_id=turn.pk, user_id=person.id, owner="ours")
        assert begun is not None
        away = TurnOutcome(state="error", text="", code="model_unavailable")
        turn_ends.finish_turn(request=begun.request, claimed=begun.claimed, result=away)
        watch.refresh_from_db()
        assert watch.not_before is not None
        waits_s.append((watch.not_before - began).total_seconds())
        passed = timedelta(seconds=waits_s[-1])  # so much later
        Watch.objects.filter(pk=watch.pk).update(not_before=Now(), due_at=F("due_at") - passed)
        Turn.objects.of(person.id).update(started_at=F("started_at") - passed)
    assert state(watch) == State.DEAD and len(messages(place)) == 3
    for waited, pause in zip(waits_s, (5, 30, 120, 600, 3_600, 14_400, 14_400, 14_400), strict=True):
        assert pause / 2 - 1 <= waited <= pause + 0.5  # of two clocks


@pytest.mark.parametrize("code", ["content_filter", "budget_spent"])
def test_what_the_model_refuses_to_tell_is_told_in_a_notice(db: None, code: str) -> None:
    person = somebody()
    Device.objects.create(user_id=person.id, device_id="desk", process=a_process())
    place = make_conversation(person.id)
    refused, other = ended_run(person.id, place.pk), ended_run(person.id, place.pk, "Mail")
    Watch.objects.filter(pk=other.pk).update(not_before=Now() + timedelta(hours=1))
    run_followups.follow_up_in(person.id, place.pk)
    turn = Turn.objects.of(person.id).get(conversation=place, ended_at=None)
    begun = begin_turn(turn_id=turn.pk, user_id=person.id, owner="ours")
    assert begun is not None
    outcome = TurnOutcome(state="limit", text="The provider refuses.", code=code)
    turn_ends.finish_turn(request=begun.request, claimed=begun.claimed, result=outcome)
    assert len(messages(place)) == 2
    Watch.objects.filter(conversation=place).update(not_before=Now())
    run_followups.follow_up_in(person.id, place.pk)
    assert (state(refused), state(other)) == (State.DEAD, State.DUE)
    assert len(messages(place)) == 3
    # Staff have mended the cause, and have it told again.
    assert run_watches.try_again(Watch.objects.filter(pk=refused.pk)) == 1
    Watch.objects.filter(pk=other.pk).update(state=State.TOLD)
    run_followups.follow_up_in(person.id, place.pk)
    again = Turn.objects.of(person.id).get(conversation=place, ended_at=None)
    assert (state(refused), refused.turn) == (State.HELD, again.pk)


def test_a_turn_that_ends_tells_what_it_heard_or_lets_go_of_it(committed_db: None) -> None:
    person = somebody()

    def heard(**outcome: Any) -> str:
        request = make_request(person.id)
        turn = claim(request)
        watch = ended_run(person.id, turn.conversation_id)
        here = ChatPlace(person.id, turn.turn_id, turn.conversation_id)
        assert run_watches.hold(watch.run_id, here)
        finish_turn(request, turn, **outcome, heard_runs={watch.run_id}, may_hold_runs=True)
        return state(watch)

    assert heard() == State.TOLD
    assert heard(state="limit", code="too_many_model_calls", has_answered=True) == State.TOLD
    assert heard(state="limit", code="deadline") == State.DUE
    assert heard(state="cancelled") == State.DUE
    assert heard(state="limit", code="content_filter", has_answered=True) == State.DUE


def test_a_turn_that_was_thought_lost_and_tells_an_end_all_the_same_is_the_only_one(
    committed_db: None,
) -> None:
    person = somebody()
    request = make_request(person.id)
    turn = claim(request)
    watch = ended_run(person.id, turn.conversation_id)
    assert run_watches.hold(watch.run_id, ChatPlace(person.id, turn.turn_id, turn.conversation_id))
    lost_turns.mark_lost(turn=Turn.objects.get(pk=turn.turn_id), code="turn_lost")
    assert state(watch) == State.DUE
    finish_turn(request, turn, "It has ended.", heard_runs={watch.run_id}, may_hold_runs=True)
    assert state(watch) == State.TOLD
    place = Conversation.objects.get(pk=turn.conversation_id)
    assert [message["text"] for message in messages(place)][1:] == ["It has ended."]


@pytest.mark.parametrize("first", ["the lost turn", "a turn of its own"])
def test_a_turn_that_was_thought_lost_and_one_that_has_begun_in_its_place_do_not_both_tell_an_end(
    db: None, first: str
) -> None:
    person = somebody()
    Device.objects.create(user_id=person.id, device_id="desk", process=a_process())
    request = make_request(person.id)
    turn = claim(request)
    assert turn.conversation_id is not None
    watch = ended_run(person.id, turn.conversation_id)
    assert run_watches.hold(watch.run_id, ChatPlace(person.id, turn.turn_id, turn.conversation_id))
    lost_turns.mark_lost(turn=Turn.objects.get(pk=turn.turn_id), code="turn_lost")
    run_followups.follow_up_in(person.id, turn.conversation_id)
    own = Turn.objects.get(conversation=turn.conversation_id, ended_at=None)
    begun = begin_turn(turn_id=own.pk, user_id=person.id, owner="ours")
    assert begun is not None and state(watch) == State.HELD
    result = TurnOutcome(state="stop", text="It has ended, and nobody has asked.", has_answered=True)

    def finish_own() -> None:
        turn_ends.finish_turn(request=begun.request, claimed=begun.claimed, result=result)

    if first == "a turn of its own":
        finish_own()
    finish_turn(request, turn, "It has ended.", heard_runs={watch.run_id}, may_hold_runs=True)
    if first == "the lost turn":
        finish_own()
    assert state(watch) == State.TOLD
    texts = [one["text"] for one in messages(Conversation.objects.get(pk=turn.conversation_id))][1:]
    assert texts == ["It has ended." if first == "the lost turn" else result.text]
    assert not Turn.objects.filter(conversation=turn.conversation_id, ended_at=None).exists()
