"""What is due starts once, whoever ticks; what was missed becomes one run that says so."""

from __future__ import annotations

import datetime as dt
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from django.db import connections
from django.utils import timezone

from adiuva.accounts.models import User
from agents import journal, lease, schedules, verbs
from agents.models import Agent, Run
from tests.agents.build import a_device, a_run, an_agent
from tests.people import somebody

HOUR = dt.timedelta(hours=1)


def set_due(agent: Agent, ago: dt.timedelta = dt.timedelta(0)) -> dt.datetime:
    when: dt.datetime = timezone.now().replace(minute=0, second=0, microsecond=0) - ago
    Agent.objects.filter(pk=agent.pk).update(next_run_at=when)
    return when


def local(agent: Agent, zone: str) -> str:
    from zoneinfo import ZoneInfo

    agent.refresh_from_db()
    assert agent.next_run_at is not None
    return agent.next_run_at.astimezone(ZoneInfo(zone)).strftime("%H:%M")


def test_two_ticks_at_once_start_each_agent_once(committed_db: str) -> None:
    person = somebody()
    agents = [an_agent(person.id, schedule_cron="@hourly", timezone="UTC") for _ in range(30)]
    for agent in agents:
        set_due(agent)
    together = Barrier(4)

    def tick(_: int) -> None:
        try:
            together.wait(10)
            schedules.tick()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(tick, range(4)))
    schedules.tick()  # what one tick had locked, the other passed over
    made = Run.objects.of(person.id)
    assert sorted(run.agent_ref for run in made) == sorted(agent.pk for agent in agents)
    assert {run.trigger for run in made} == {"schedule"}
    now = timezone.now()
    assert all(agent.next_run_at > now for agent in Agent.objects.of(person.id) if agent.next_run_at)


def test_missed_slots_become_one_run_that_says_how_many(db: None) -> None:
    agent = an_agent(schedule_cron="0 * * * *", timezone="UTC")
    a_device(agent)
    first = set_due(agent, 5 * HOUR)
    assert schedules.tick(first + 5 * HOUR) == 1
    run = Run.objects.get(agent=agent)
    assert (run.slots, run.slot) == (6, first + 5 * HOUR)
    lease.claim(run.pk)
    notes = [(event["code"], event["count"]) for event in journal.read(run) if event["kind"] == "note"]
    assert notes == [("slots_missed", 6)]


def test_a_run_under_way_covers_the_slot(db: None) -> None:
    agent = an_agent(schedule_cron="@hourly", timezone="UTC")
    live = a_run(agent)
    set_due(agent)
    assert schedules.tick() == 0
    assert list(Run.objects.filter(agent=agent)) == [live]
    agent.refresh_from_db()
    assert agent.next_run_at is not None and agent.next_run_at > timezone.now()


def test_a_slot_that_had_its_run_gets_no_other(db: None) -> None:
    agent = an_agent(schedule_cron="@hourly", timezone="UTC")
    slot = set_due(agent)
    a_run(agent, slot=slot, state=Run.State.SUCCESS)
    assert schedules.tick(slot) == 0
    assert Run.objects.filter(agent=agent).count() == 1


def test_what_is_switched_off_or_has_no_schedule_never_starts(db: None) -> None:
    off = an_agent(schedule_cron="@hourly", enabled=False)
    by_hand = an_agent()
    assert off.next_run_at is by_hand.next_run_at is None
    Agent.objects.filter(pk=off.pk).update(next_run_at=timezone.now() - HOUR)
    schedules.tick()
    assert not Run.objects.filter(agent__in=[off, by_hand]).exists()


def test_a_schedule_that_cannot_be_used_does_not_stop_the_others(db: None) -> None:
    broken, good = an_agent(schedule_cron="@hourly"), an_agent(schedule_cron="@hourly")
    set_due(broken), set_due(good)
    Agent.objects.filter(pk=broken.pk).update(schedule_cron="no schedule at all")
    assert schedules.tick() == 1
    assert Run.objects.filter(agent=good).exists()
    broken.refresh_from_db()
    assert broken.next_run_at is None


def test_a_tick_costs_the_same_queries_for_more_agents(db: None) -> None:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    counts = []
    for number in (1, 20):
        for _ in range(number):
            set_due(an_agent(schedule_cron="@hourly"))
        with CaptureQueriesContext(connection) as queries:
            assert schedules.tick() == number
        counts.append(len(queries))
    assert counts[0] == counts[1] <= 6


@pytest.mark.parametrize(
    ("change", "at"),
    [
        ({"schedule_cron": "30 9 * * *"}, "09:30"),
        ({"timezone": "Asia/Tokyo"}, "23:00"),
        ({"name": "New"}, "08:00"),
    ],
)
def test_a_changed_schedule_or_zone_moves_the_next_run(db: None, change: dict[str, str], at: str) -> None:
    agent = an_agent(schedule_cron="0 8 * * *", timezone="Asia/Tokyo" if "name" in change else "UTC")
    if "timezone" in change:
        assert local(agent, "UTC") == "08:00"
        assert local(verbs.change(agent=agent, values=change), "UTC") == at
    else:
        zone = agent.timezone
        assert local(verbs.change(agent=agent, values=change), zone) == at


def test_switching_an_agent_off_and_on_takes_and_gives_its_next_run(db: None) -> None:
    agent = an_agent(schedule_cron="@daily")
    assert verbs.change(agent=agent, values={"enabled": False}).next_run_at is None
    assert verbs.change(agent=agent, values={"enabled": True}).next_run_at is not None


def test_a_change_of_something_else_does_not_lose_a_slot_that_is_due(db: None) -> None:
    agent = an_agent(schedule_cron="@hourly")
    slot = set_due(agent)
    assert verbs.change(agent=agent, values={"name": "New"}).next_run_at == slot


def test_agents_without_a_zone_of_their_own_follow_their_user(db: None) -> None:
    person = somebody(timezone="Europe/Rome")
    follows = an_agent(person.id, schedule_cron="0 8 * * *")
    stays = an_agent(person.id, schedule_cron="0 8 * * *", timezone="Europe/Rome")
    due = an_agent(person.id, schedule_cron="0 8 * * *")
    slot = set_due(due)
    user = User.objects.get(pk=person.id)
    user.timezone = "Asia/Tokyo"
    user.save()
    assert local(follows, "Asia/Tokyo") == "08:00"
    assert local(stays, "Europe/Rome") == "08:00"
    due.refresh_from_db()
    assert due.next_run_at == slot
