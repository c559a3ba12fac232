"""Devices hear of what was said in a conversation elsewhere, or while none was there."""

from __future__ import annotations

import uuid

from adiuva.core import db
from agents import run_watches, runs
from agents.models import Run, Watch
from agents.run_watches import ChatPlace
from chat import run_followups
from chat.models import Turn
from tests.agents.factories import create_agent, create_run
from tests.chat.chat_client import CAPABILITIES, connect, conversation_of, wait_for
from tests.chat.factories import no_device_connected
from tests.factories import Person
from tests.fakes.provider import Hold, Provider

KNOWS = [*CAPABILITIES, "followups"]


async def test_a_device_that_has_not_asked_is_told_that_the_conversation_has_changed(
    chat_web: str, provider: Provider, person: Person
) -> None:
    provider.script("One.", "Two.")
    async with (
        connect(chat_web, person, capabilities=KNOWS) as desk,
        connect(chat_web, person, device_id="phone", capabilities=KNOWS) as phone,
        connect(chat_web, person, device_id="old") as old,
    ):
        place = conversation_of(await desk.say("The first"))
        await phone.until(lambda: len(phone.others) == 1)
        await desk.say("The second", conversation_id=place)
        await phone.until(lambda: len(phone.others) == 2)
        for device in (desk, old):
            await device.settled()
            assert not device.others
    assert phone.others == [
        {"type": "conversation_changed", "conversation_id": place, "seq": seq} for seq in (2, 4)
    ]
    assert not phone.streams


async def test_an_answer_whose_device_is_gone_is_told_to_the_others(
    chat_web: str, provider: Provider, person: Person
) -> None:
    hold = Hold("It is ")
    provider.script(hold)
    async with connect(chat_web, person, device_id="phone", capabilities=KNOWS) as phone:
        async with connect(chat_web, person, capabilities=KNOWS) as desk:
            await desk.ask("What is it?")
            await wait_for(hold.reached)
        hold.release()
        await phone.until(lambda: bool(phone.others))
    turn = await db.run(Turn.objects.of(person.id).get)
    assert turn.state == Turn.State.STOP
    assert phone.others == [
        {"type": "conversation_changed", "conversation_id": str(turn.conversation_id), "seq": 2}
    ]


async def test_the_end_of_a_run_waits_for_a_device_and_is_told_once_one_is_back(
    chat_web: str, worker: None, provider: Provider, person: Person
) -> None:
    provider.script("Started.", "Clients has ended.")
    async with connect(chat_web, person) as desk:
        place = conversation_of(await desk.say("run Clients"))
    await no_device_connected(person.id)
    watch = await db.run(_ended_run, person.id, place)
    await db.run(run_followups.follow_up_due)
    assert (await db.run(_fresh, watch)).attempts == 0 and len(provider.chats) == 1
    async with connect(chat_web, person, capabilities=KNOWS) as desk:  # its hello starts it
        await desk.until(lambda: any(stream.end for stream in desk.streams.values()))
        assert [stream.text for stream in desk.streams.values()] == ["Clients has ended."]
    assert (await db.run(_fresh, watch)).state == Watch.State.TOLD and len(provider.chats) == 2


def _ended_run(user_id: uuid.UUID, place: str) -> Watch:
    run = create_run(create_agent(user_id, name="Clients"))
    watch = run_watches.add(
        run, ChatPlace(user_id, uuid.uuid4(), uuid.UUID(place), asked="run it"), started=True
    )
    runs.end(run, Run.State.SUCCESS, "completed")
    return watch


def _fresh(watch: Watch) -> Watch:
    watch.refresh_from_db()
    return watch
