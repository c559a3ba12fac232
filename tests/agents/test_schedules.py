"""Scheduled runs: a due one starts once, however many tick; missed slots become one run that says so."""

from __future__ import annotations

import datetime as dt
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from threading import Barrier
from zoneinfo import ZoneInfo

import pytest
from django.db import IntegrityError, connection, connections, transaction
from django.db.models import Q
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_django.plugin import DjangoDbBlocker

from adiuva.accounts.models import User
from adiuva.devices.models import Device
from agents import claimed_runs, journal, run_release, runs, schedules, services
from agents.models import ON_TIME_WINDOW, Agent, Run
from tests.agents.factories import claim_run, create_agent, create_run
from tests.factories import a_process, somebody
from tests.sampling import fewer

SECOND, HOUR, DAY = dt.timedelta(seconds=1), dt.timedelta(hours=1), dt.timedelta(days=1)


def set_due(agent: Agent, ago: dt.timedelta = dt.timedelta(0)) -> dt.datetime:
    when: dt.datetime = timezone.now().replace(minute=0, second=0, microsecond=0) - ago
    Agent.objects.filter(pk=agent.pk).update(next_run_at=when)
    return when


def online(agent: Agent, *, since: dt.timedelta = HOUR) -> Device:
    """The agent's device is connected."""
    device, _ = Device.objects.update_or_create(
        user_id=agent.user_id,
        device_id=agent.device_id,
        defaults={"process": a_process(since), "channel": "nobody"},
    )
    return device


def notes(run: Run) -> list[tuple[str, int]]:
    return [(event["code"], event["count"]) for event in journal.read(run) if event["kind"] == "note"]


def runs_of(agent: Agent) -> list[tuple[str, int, dt.datetime | None]]:
    return list(Run.objects.filter(agent=agent).order_by("created_at").values_list("state", "slots", "slot"))


def every_hour(**fields: object) -> Agent:
    return create_agent(schedule_cron="0 * * * *", timezone="UTC", **fields)


def ticked(agent: Agent, at: dt.datetime) -> int:
    """How many runs a tick at a time makes for an agent; others' may be due as well."""
    before = Run.objects.filter(agent=agent).count()
    schedules.tick(at)
    return Run.objects.filter(agent=agent).count() - before


def local(agent: Agent, zone: str) -> str:
    agent.refresh_from_db()
    assert agent.next_run_at is not None
    return agent.next_run_at.astimezone(ZoneInfo(zone)).strftime("%H:%M")


def test_ticks_at_once_make_one_run_for_each_agent_and_all_its_slots(committed_db: str) -> None:
    person = somebody()
    agents = [every_hour(user_id=person.id) for _ in range(60)]
    for agent in agents:
        online(agent)
    first = set_due(agents[0], 3 * HOUR)  # nobody ticked for three hours
    Agent.objects.of(person.id).update(next_run_at=first)
    # The clock must not come past another hour between the ticks.
    moment, together = first + 3 * HOUR, Barrier(4)

    def tick(_: int) -> None:
        try:
            together.wait(60)
            for _ in range(3):
                schedules.tick(moment)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(tick, range(4)))
    made = Run.objects.of(person.id)
    assert sorted(run.agent_ref for run in made) == sorted(agent.pk for agent in agents)
    assert {(run.trigger, run.slots, run.slot) for run in made} == {("schedule", 4, moment)}
    assert {agent.next_run_at for agent in Agent.objects.of(person.id)} == {moment + HOUR}


def test_missed_slots_become_one_run_that_says_how_many(db: None) -> None:
    agent = create_agent(schedule_cron="0 * * * *", timezone="UTC")
    online(agent)
    first = set_due(agent, 5 * HOUR)
    assert schedules.tick(first + 5 * HOUR) == 1
    run = Run.objects.get(agent=agent)
    assert (run.slots, run.slot, run.state) == (6, first + 5 * HOUR, "queued")
    claimed_runs.claim(run.pk)
    assert notes(run) == [("slots_missed", 6)]


LATE = [  # how catch_up is set, how long after the last of three slots the tick comes, and how many the run stands for
    ("once", None, 30 * SECOND, 3), ("once", None, 59 * HOUR / 60, 3),
    ("skip", None, 30 * SECOND, 1), ("skip", None, ON_TIME_WINDOW, 1), ("skip", None, ON_TIME_WINDOW + SECOND, 0),
    ("within", 1, 30 * SECOND, 3), ("within", 1, 59 * HOUR / 60, 3),
]  # fmt: skip


@pytest.mark.parametrize(("way", "hours", "late", "slots"), LATE)
def test_the_agent_decides_what_happens_to_missed_slots(
    db: None, way: str, hours: int | None, late: dt.timedelta, slots: int
) -> None:
    agent = every_hour(catch_up=way, catch_up_hours=hours)
    online(agent)
    last = set_due(agent, 2 * HOUR) + 2 * HOUR
    assert ticked(agent, last + late) == bool(slots)
    assert runs_of(agent) == ([("queued", slots, last)] if slots else [])
    assert local(agent, "UTC") == f"{last + HOUR:%H:%M}"


@pytest.mark.parametrize(("late", "made"), [(6 * HOUR, 1), (6 * HOUR + SECOND, 0)])
def test_within_hours_counts_from_the_last_missed_slot(db: None, late: dt.timedelta, made: int) -> None:
    agent = create_agent(schedule_cron="0 8 * * *", timezone="UTC", catch_up="within", catch_up_hours=6)
    online(agent)
    last = timezone.now().replace(hour=8, minute=0, second=0, microsecond=0)
    Agent.objects.filter(pk=agent.pk).update(next_run_at=last - 4 * DAY)
    assert ticked(agent, last + late) == made
    assert runs_of(agent) == [("queued", 5, last)] * made


def test_the_last_slot_is_right_even_if_there_are_more_than_are_counted(db: None) -> None:
    agent = create_agent(schedule_cron="* * * 1 *", timezone="UTC", catch_up="within", catch_up_hours=48)
    online(agent)
    last = dt.datetime(2027, 1, 31, 23, 59, tzinfo=dt.UTC)
    Agent.objects.filter(pk=agent.pk).update(next_run_at=dt.datetime(2027, 1, 1, tzinfo=dt.UTC))
    assert ticked(agent, last + 47 * HOUR) == 1
    assert runs_of(agent) == [("queued", 10_000, last)]


def test_a_run_that_waits_for_its_device_absorbs_later_slots(db: None) -> None:
    agent = every_hour()
    first = set_due(agent)
    assert [ticked(agent, first + number * HOUR) for number in range(4)] == [1, 0, 0, 0]
    assert runs_of(agent) == [("waiting_device", 4, first + 3 * HOUR)]
    online(agent)
    assert schedules.device_connected(user_id=agent.user_id, device_id=agent.device_id) == 1
    claimed = claim_run(Run.objects.get(agent=agent))
    assert notes(Run.objects.get(pk=claimed.run_id)) == [("slots_missed", 4)]


def test_a_run_whose_device_turned_out_to_be_away_absorbs_them_as_well(db: None) -> None:
    agent = every_hour()
    online(agent)
    first = set_due(agent)
    ticked(agent, first)
    claimed = claim_run(Run.objects.get(agent=agent))
    Device.objects.update(process=None)
    run_release.wait_for_device(claimed, epoch=None)  # it never got through to it
    ticked(agent, first + HOUR)
    assert runs_of(agent) == [("waiting_device", 2, first + HOUR)]


def test_a_run_that_has_begun_does_not_absorb_later_slots(db: None) -> None:
    agent = every_hour()
    online(agent)
    first = set_due(agent)
    ticked(agent, first)
    claimed = claim_run(Run.objects.get(agent=agent))
    run_release.wait_for_device(claimed, epoch=1)
    ticked(agent, first + HOUR)
    assert runs_of(agent) == [("waiting_device", 1, first)]


def test_a_manual_run_absorbs_no_slots(db: None) -> None:
    agent = every_hour()
    create_run(agent, state=Run.State.WAITING_DEVICE)
    slot = set_due(agent)
    assert ticked(agent, slot) == 0
    assert runs_of(agent) == [("waiting_device", 1, None)]


def test_a_slot_that_had_its_run_is_not_absorbed(db: None) -> None:
    agent = every_hour()
    slot = set_due(agent)
    create_run(agent, slot=slot, state=Run.State.SUCCESS)
    create_run(agent, slot=slot - HOUR, state=Run.State.WAITING_DEVICE)
    assert ticked(agent, slot) == 0
    assert runs_of(agent) == [("success", 1, slot), ("waiting_device", 1, slot - HOUR)]


@pytest.mark.parametrize(
    ("hours_ago", "begun", "state"),
    [(5, False, "queued"), (7, False, "cancelled"), (7, True, "queued")],
)
def test_a_waiting_run_that_is_too_late_ends_when_its_device_connects(
    db: None, hours_ago: int, begun: bool, state: str
) -> None:
    agent = every_hour(catch_up="within", catch_up_hours=6)
    now = timezone.now()
    slot = now - hours_ago * HOUR
    run = create_run(agent, slot=slot, state=Run.State.WAITING_DEVICE, started_at=slot if begun else None)
    woken = runs.resume_waiting(user_id=agent.user_id, device_id=agent.device_id)
    assert (runs_of(agent), woken) == ([(state, 1, slot)], int(state == "queued"))
    ends = [event["code"] for event in journal.read(run)]
    assert ends == (["slot_missed"] if state == "cancelled" else [])
    assert all(journal.problem_text(event) != event["code"] for event in journal.read(run))


def test_an_agent_that_skips_has_no_run_waiting_for_a_device(db: None) -> None:
    agent = every_hour(catch_up="skip")
    slot = set_due(agent)
    for late in (0 * SECOND, 30 * SECOND, ON_TIME_WINDOW - SECOND):
        assert ticked(agent, slot + late) == 0
        agent.refresh_from_db()
        assert agent.next_run_at == slot  # its device may say hello in time
    assert ticked(agent, slot + ON_TIME_WINDOW + SECOND) == 0
    agent.refresh_from_db()
    assert (agent.next_run_at, runs_of(agent)) == (slot + HOUR, [])


def test_an_agent_that_skips_and_runs_every_minute_stays_due(db: None) -> None:
    agent = create_agent(schedule_cron="* * * * *", timezone="UTC", catch_up="skip")
    slot = set_due(agent)
    assert ticked(agent, slot + 5 * ON_TIME_WINDOW) == 0
    agent.refresh_from_db()
    assert (agent.next_run_at, runs_of(agent)) == (slot + 4 * ON_TIME_WINDOW, [])


@pytest.mark.parametrize("way", ["once", "skip"])
def test_a_connecting_device_starts_only_what_is_due_for_it(db: None, way: str) -> None:
    person = somebody()
    here, elsewhere = (
        create_agent(person.id, schedule_cron="* * * * *", device_id=name, catch_up=way)
        for name in ("here", "elsewhere")
    )
    anothers = create_agent(schedule_cron="* * * * *", device_id="here", catch_up=way)
    for agent in (here, elsewhere, anothers):
        Agent.objects.filter(pk=agent.pk).update(next_run_at=timezone.now() - SECOND)
        online(agent)
    assert schedules.device_connected(user_id=person.id, device_id="here") == 1
    assert [state for state, _, _ in runs_of(here)] == ["queued"]
    assert runs_of(elsewhere) == runs_of(anothers) == []
    assert schedules.device_connected(user_id=person.id, device_id="here") == 0


def test_a_connecting_device_with_nothing_due_costs_one_query(db: None) -> None:
    agent = every_hour()
    with CaptureQueriesContext(connection) as queries:
        assert schedules.device_connected(user_id=agent.user_id, device_id=agent.device_id) == 0
    assert len(queries) == 1


def test_a_run_in_progress_covers_the_slot(db: None) -> None:
    agent = create_agent(schedule_cron="@hourly", timezone="UTC")
    live = create_run(agent)
    set_due(agent)
    assert schedules.tick() == 0
    assert list(Run.objects.filter(agent=agent)) == [live]
    agent.refresh_from_db()
    assert agent.next_run_at is not None and agent.next_run_at > timezone.now()


def test_a_slot_that_comes_during_a_dry_run_waits_for_its_end(db: None) -> None:
    agent = every_hour()
    dry = runs.start(agent=agent, dry_run=True)
    when = set_due(agent)
    assert ticked(agent, when + SECOND) == 0
    runs.cancel(run=dry)
    assert ticked(agent, when + 2 * SECOND) == 1


def test_a_slot_that_had_its_run_gets_no_second_one(db: None) -> None:
    agent = create_agent(schedule_cron="@hourly", timezone="UTC")
    slot = set_due(agent)
    create_run(agent, slot=slot, state=Run.State.SUCCESS)
    assert schedules.tick(slot) == 0
    assert Run.objects.filter(agent=agent).count() == 1


def test_disabled_agents_and_those_without_a_schedule_never_start(db: None) -> None:
    off = create_agent(schedule_cron="@hourly", enabled=False)
    by_hand = create_agent()
    assert off.next_run_at is by_hand.next_run_at is None
    Agent.objects.filter(pk=off.pk).update(next_run_at=timezone.now() - HOUR)
    schedules.tick()
    assert not Run.objects.filter(agent__in=[off, by_hand]).exists()


def test_an_invalid_schedule_does_not_stop_the_others(db: None) -> None:
    broken, good = create_agent(schedule_cron="@hourly"), create_agent(schedule_cron="@hourly")
    set_due(broken), set_due(good)
    Agent.objects.filter(pk=broken.pk).update(schedule_cron="no schedule at all")
    assert schedules.tick() == 1
    assert Run.objects.filter(agent=good).exists()
    broken.refresh_from_db()
    assert broken.next_run_at is None


def test_a_tick_costs_the_same_queries_for_more_agents(db: None) -> None:
    counts = []
    for number in (1, 20):
        for _ in range(number):
            set_due(create_agent(schedule_cron="@hourly"))
        with CaptureQueriesContext(connection) as queries:
            assert schedules.tick() == number
        counts.append(len(queries))
    assert counts[0] == counts[1] <= 7


def test_hours_go_with_within_alone(db: None) -> None:
    for way, hours in [("within", None), ("within", 0), ("within", 721), ("once", 5), ("skip", 5)]:
        with pytest.raises(IntegrityError), transaction.atomic():
            Agent.objects.filter(pk=create_agent().pk).update(catch_up=way, catch_up_hours=hours)


def test_a_tick_and_a_connecting_device_start_an_agent_once(committed_db: str) -> None:
    person = somebody()
    agents = [create_agent(person.id, schedule_cron="@hourly", timezone="UTC") for _ in range(10)]
    for agent in agents:
        set_due(agent)
        online(agent)
    together = Barrier(4)

    def start(number: int) -> None:
        try:
            together.wait(60)
            if number % 2:
                schedules.tick()
            else:
                schedules.device_connected(user_id=person.id, device_id="desk")
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(start, range(4)))
    schedules.tick()
    made = Run.objects.of(person.id).values_list("agent_ref", flat=True)
    assert sorted(made) == sorted(agent.pk for agent in agents)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=8), st.booleans())
@settings(max_examples=fewer(25))
def test_whenever_ticks_come_each_slot_is_counted_once(
    django_db_blocker: DjangoDbBlocker, committed_db: str, gaps: list[int], away: bool
) -> None:
    """Minutes between ticks; each run ends before the next tick, or waits for a device all the time."""
    with django_db_blocker.unblock(), transaction.atomic():
        agent = create_agent(schedule_cron="*/10 * * * *", timezone="UTC")
        if not away:
            online(agent)
        start = set_due(agent)
        now = start
        for gap in gaps:
            now += gap * 60 * SECOND
            schedules._start_due(Q(pk=agent.pk), now)
            if not away:
                Run.objects.filter(agent=agent).update(state=Run.State.SUCCESS)
        made = Run.objects.filter(agent=agent).order_by("slot")
        assert sum(run.slots for run in made) == sum(gaps) // 10 + 1
        assert len(made) == 1 or not away
        assert all(earlier.slot < later.slot for earlier, later in pairwise(made))  # type: ignore[operator]
        transaction.set_rollback(True)


@pytest.mark.parametrize(
    ("change", "at"),
    [
        ({"schedule_cron": "30 9 * * *"}, "09:30"),
        ({"timezone": "Asia/Tokyo"}, "23:00"),
        ({"name": "New"}, "08:00"),
    ],
)
def test_a_changed_schedule_or_zone_moves_the_next_run(db: None, change: dict[str, str], at: str) -> None:
    agent = create_agent(schedule_cron="0 8 * * *", timezone="Asia/Tokyo" if "name" in change else "UTC")
    if "timezone" in change:
        assert local(agent, "UTC") == "08:00"
        assert local(services.update(agent=agent, values=change), "UTC") == at
    else:
        zone = agent.timezone
        assert local(services.update(agent=agent, values=change), zone) == at


def test_disabling_and_enabling_an_agent_clears_and_sets_its_next_run(db: None) -> None:
    agent = create_agent(schedule_cron="@daily")
    assert services.update(agent=agent, values={"enabled": False}).next_run_at is None
    assert services.update(agent=agent, values={"enabled": True}).next_run_at is not None


def test_an_unrelated_change_does_not_lose_a_due_slot(db: None) -> None:
    agent = create_agent(schedule_cron="@hourly")
    slot = set_due(agent)
    assert services.update(agent=agent, values={"name": "New"}).next_run_at == slot


def test_agents_without_a_zone_of_their_own_follow_their_user(db: None) -> None:
    person = somebody(timezone="Europe/Rome")
    follows = create_agent(person.id, schedule_cron="0 8 * * *")
    stays = create_agent(person.id, schedule_cron="0 8 * * *", timezone="Europe/Rome")
    due = create_agent(person.id, schedule_cron="0 8 * * *")
    slot = set_due(due)
    user = User.objects.get(pk=person.id)
    user.timezone = "Asia/Tokyo"
    user.save()
    assert local(follows, "Asia/Tokyo") == "08:00"
    assert local(stays, "Europe/Rome") == "08:00"
    due.refresh_from_db()
    assert due.next_run_at == slot
