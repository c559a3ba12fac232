"""Announcements of scheduled runs: one message without a model, in a conversation of its own."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from adiuva.accounts.models import User
from adiuva.core import db
from agents import runs
from agents.models import Agent, Run
from chat import conversations, device_notices, run_announcements
from chat.models import Conversation, Message
from tests.agents.factories import create_agent, create_run
from tests.chat.chat_client import CAPABILITIES, connect, stored_messages
from tests.chat.factories import claim, make_request
from tests.factories import Person, somebody
from tests.fakes.provider import Provider

State, Announcement = Run.State, Run.Announcement


@pytest.fixture
def ada(db: None) -> Person:
    """Nothing of hers is committed, so no worker of other tests comes first."""
    return somebody()


def ended(agent: Agent, state: Run.State = State.SUCCESS, code: str = "completed", **fields: Any) -> Run:
    run = create_run(agent, **{"trigger": Run.Trigger.SCHEDULE} | fields)
    runs.end(run, state, code)
    run.refresh_from_db()
    return run


def told(user_id: uuid.UUID) -> list[dict[str, Any]]:
    place = Conversation.objects.of(user_id).get(for_agents=True)
    return conversations.read_messages(place)


FAILED = (State.ERROR, "no_connection")


@pytest.mark.parametrize(
    ("announce", "state", "code", "is_told"),
    [
        ("never", *FAILED, False),
        ("problems", *FAILED, True),
        ("problems", State.PARTIAL, "completed_with_failures", True),
        ("problems", State.SUCCESS, "completed", False),
        ("always", State.SUCCESS, "completed", True),
        ("always", State.CANCELLED, "cancelled", False),
    ],
)
def test_an_agent_tells_of_its_scheduled_runs_as_it_says(
    ada: Person, announce: str, state: Run.State, code: str, is_told: bool
) -> None:
    agent = create_agent(ada.id, announce=announce)
    assert (ended(agent, state, code).announcement == Announcement.DUE) == is_told
    assert ended(agent, state, code, trigger=Run.Trigger.MANUAL).announcement == ""


def test_the_same_problem_is_told_once_a_day_unless_a_run_succeeded_in_between(ada: Person) -> None:
    agent = create_agent(ada.id)
    first = ended(agent, *FAILED)
    assert first.announcement == Announcement.DUE
    assert ended(agent, *FAILED).announcement == ""
    assert ended(agent, State.TIMEOUT, "deadline").announcement == Announcement.DUE  # another problem
    Run.objects.of(ada.id).update(completed_at=Now() - timedelta(hours=25))
    assert ended(agent, *FAILED).announcement == Announcement.DUE
    ended(agent)
    assert ended(agent, *FAILED).announcement == Announcement.DUE


def test_what_comes_together_is_one_message_and_what_follows_waits_a_minute(ada: Person) -> None:
    User.objects.filter(pk=ada.id).update(locale="de")
    agents = [create_agent(ada.id, name=name, announce="always") for name in ("Akten", "Post")]
    due = [ended(agents[0]), ended(agents[1], *FAILED)]
    frames = dict(run_announcements.announce_due())[ada.id]
    assert [frame.type for frame in frames] == ["run_ended", "run_ended", "conversation_changed"]
    (message,) = told(ada.id)
    assert message["text"] == (
        "Der Agent „Akten“ ist fertig und hat nichts Neues gefunden.\n"
        "Der Agent „Post“ ist fehlgeschlagen: sein Konto ist nicht mehr verbunden."
    )
    assert message["role"] == "assistant"
    assert message["origin"]["run_ids"] == [str(run.pk) for run in due]
    ended(agents[0])
    assert not dict(run_announcements.announce_due())[ada.id]
    Message.objects.filter(conversation__user=ada.id).update(created_at=Now() - timedelta(minutes=2))
    assert dict(run_announcements.announce_due())[ada.id]
    assert ada.id not in dict(run_announcements.announce_due())
    assert len(told(ada.id)) == 2
    assert not Conversation.objects.get(user=ada.id, for_agents=True).has_private


def test_a_conversation_that_was_deleted_is_made_anew_and_no_turn_is_parted(ada: Person) -> None:
    agent = create_agent(ada.id, announce="always")
    ended(agent)
    run_announcements.announce_due()
    conversations.delete(conversation=Conversation.objects.of(ada.id).get(for_agents=True))
    ended(agent)
    run_announcements.announce_due()
    assert len(told(ada.id)) == 1
    place = Conversation.objects.of(ada.id).get(for_agents=True)
    Message.objects.filter(conversation=place).update(created_at=Now() - timedelta(minutes=2))
    claim(make_request(ada.id, "What was it?", conversation_id=str(place.pk)))
    Message.objects.filter(conversation=place).update(created_at=Now() - timedelta(minutes=2))
    ended(agent)
    assert not dict(run_announcements.announce_due())[ada.id]


async def test_devices_hear_of_it_and_the_conversation_goes_on_like_any(
    chat_web: str, provider: Provider, person: Person
) -> None:
    agent = await db.run(lambda: create_agent(person.id, name="Mail", announce="always"))
    provider.script("It found nothing.")
    async with connect(chat_web, person, capabilities=[*CAPABILITIES, "followups"]) as session:
        await db.run(ended, agent)
        for user_id, frames in await db.run(run_announcements.announce_due):  # unless a worker was quicker
            await device_notices.send(user_id, frames)
        await session.until(lambda: len(session.others) == 2)
        ran, changed = session.others
        assert (ran["type"], ran["agent_name"]) == ("run_ended", "Mail")
        assert changed == {
            "type": "conversation_changed",
            "conversation_id": ran["conversation_id"],
            "seq": 1,
        }
        await session.say("What did it find?", conversation_id=ran["conversation_id"])
        found = await stored_messages(chat_web, person, ran["conversation_id"])
    assert [message["role"] for message in found] == ["assistant", "user", "assistant"]
    assert "The agent “Mail” has ended and found nothing new." in str(provider.last["messages"])
