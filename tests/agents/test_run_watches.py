"""Watches on runs: rows that follow the run, and the limits of what a chat may start."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from agents import run_watches, runs, services
from agents.models import Agent, Run, Watch
from agents.run_watches import ChatPlace, TooManyStarts
from chat.models import Conversation
from tests.agents.factories import create_agent, create_device, create_run
from tests.factories import Person

State = Watch.State


@pytest.fixture
def agent(ada: Person) -> Agent:
    agent = create_agent(ada.id)
    create_device(agent)
    return agent


def place(person: Person, conversation: Conversation | None = None, **fields: Any) -> ChatPlace:
    return ChatPlace(person.id, uuid4(), conversation.pk if conversation else None, "desk", **fields)


def state(watch: Watch) -> str:
    watch.refresh_from_db()
    return str(watch.state)


@pytest.mark.parametrize(
    ("ended", "code", "then"),
    [
        (Run.State.SUCCESS, "completed", State.DUE),
        (Run.State.TIMEOUT, "deadline", State.DUE),
        (Run.State.CANCELLED, "agent_deleted", State.DUE),
        (Run.State.CANCELLED, "cancelled", State.TOLD),  # by the user, who knows
    ],
)
def test_a_runs_end_is_due_however_it_ends(
    ada: Person, agent: Agent, ended: Run.State, code: str, then: State
) -> None:
    run = create_run(agent)
    watch = run_watches.add(run, place(ada, asked="run Desk"), started=True)
    runs.end(run, ended, code)
    assert state(watch) == then and watch.due_at is not None


def test_what_a_turn_has_heard_is_told_with_its_answer_else_due_again(ada: Person, agent: Agent) -> None:
    run, here = create_run(agent), place(ada)
    watch = run_watches.add(run, here, started=True)
    runs.end(run, Run.State.SUCCESS, "completed")
    assert run_watches.hold(run.pk, here) and state(watch) == State.HELD
    assert not run_watches.hold(run.pk, here)
    run_watches.settle(here.turn_id, told=False)
    assert state(watch) == State.DUE
    assert run_watches.hold(run.pk, here)
    run_watches.settle(here.turn_id, told=True)
    assert state(watch) == State.TOLD


def test_two_conversations_may_watch_a_run_and_each_does_so_once(ada: Person, agent: Agent) -> None:
    here, there = (Conversation.objects.create(user_id=ada.id) for _ in range(2))
    run = runs.start(agent=agent, place=place(ada, here))
    run_watches.join(run.pk, place(ada, there))
    run_watches.join(run.pk, place(ada, there))
    assert [watch.started for watch in run.watches.all()] == [True, False]
    here.delete()
    assert run.watches.count() == 1
    runs.end(run, Run.State.SUCCESS, "completed")
    run_watches.join(run.pk, place(ada))  # it has ended
    assert run.watches.count() == 1


def test_who_wants_no_word_and_who_follows_up_a_run_are_not_told(ada: Person, agent: Agent) -> None:
    for fields in ({"follow_up": False}, {"depth": 1}):
        run = create_run(agent)
        assert run_watches.add(run, place(ada, **fields), started=True).state == State.TOLD
        runs.cancel(run=run)


def test_a_conversation_starts_ten_runs_an_hour(ada: Person) -> None:
    here, there = (Conversation.objects.create(user_id=ada.id) for _ in range(2))
    for number in range(run_watches.MOST_AN_HOUR):
        runs.start(agent=create_agent(ada.id, name=str(number)), place=place(ada, here))
    more = create_agent(ada.id, name="more")
    with pytest.raises(TooManyStarts):
        runs.start(agent=more, place=place(ada, here))
    assert not more.runs.exists()
    runs.start(agent=more, place=place(ada, there))
    services.delete(agent=more)
