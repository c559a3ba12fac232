"""Users take turns at the workers, and none has more runs than the bound, whoever claims and whatever dies."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import close_old_connections
from django.utils import timezone
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pytest_django import Settings

from agents import run_queue, run_release, runs
from agents.claimed_runs import ClaimedRun
from agents.models import Agent, Run
from agents.run_loop import RunLoop
from tests.agents.factories import create_agent, create_run, lose_worker
from tests.factories import somebody
from tests.sampling import fewer

State = Run.State
SECOND = dt.timedelta(seconds=1)


@pytest.fixture(autouse=True)
def _two_slots(settings: Settings) -> None:
    settings.RUNS = settings.RUNS | {"slots_per_user": 2}


def queue(user: uuid.UUID, count: int, *, age_s: float = 0) -> list[Run]:
    queued_at = timezone.now() - dt.timedelta(seconds=age_s)
    return [
        create_run(
            create_agent(user, name=f"Agent {number}"),
            enqueued_at=queued_at + number * dt.timedelta(microseconds=1),
        )
        for number in range(count)
    ]


def claim_all() -> list[ClaimedRun]:
    found = []
    while (claimed := run_queue.claim_next()) is not None:
        found.append(claimed)
    return found


def test_users_take_turns_and_none_gets_more_than_the_bound(db: None) -> None:
    busy, other, third = (somebody().id for _ in range(3))
    queue(busy, 5, age_s=60)
    queue(other, 1)
    queue(third, 3, age_s=30)
    assert [claimed.user_id for claimed in claim_all()] == [busy, third, other, busy, third]
    assert run_queue.has_waiting()


def test_who_was_served_longest_ago_is_next_however_many_others_wait(db: None) -> None:
    busy, other = somebody().id, somebody().id
    queue(busy, 6, age_s=600)
    queue(other, 3)
    order = []
    while (claimed := run_queue.claim_next()) is not None:  # one slot: each run ends before the next begins
        order.append(claimed.user_id)
        run_release.finish(claimed)
    assert order == [busy, other] * 3 + [busy] * 3


def test_a_users_runs_begin_in_the_order_in_which_they_were_queued(db: None) -> None:
    ada = somebody().id
    first, second, third = queue(ada, 3)
    Run.objects.filter(pk=first.pk).update(
        not_before=timezone.now() - SECOND, enqueued_at=timezone.now() - 60 * SECOND
    )
    Run.objects.filter(pk=second.pk).update(enqueued_at=timezone.now() - 30 * SECOND)
    Run.objects.filter(pk=third.pk).update(not_before=timezone.now() + 60 * SECOND)
    # What was put off counts from when it was due; what is put off is not there.
    assert [claimed.run_id for claimed in claim_all()] == [second.pk, first.pk]


def test_a_run_whose_worker_died_takes_no_slot(db: None) -> None:
    ada = somebody().id
    queue(ada, 3)
    dying, living = claim_all()
    assert run_queue.claim_next() is None
    lose_worker(Run.objects.get(pk=dying.run_id))
    assert run_queue.claim_next() is not None  # before any sweep has found the dead
    assert runs.sweep()["lost"] == 1
    assert run_queue.claim_next() is None  # the lost run is queued again, behind the bound
    run_release.finish(living)
    again = run_queue.claim_next()
    assert again is not None and (again.run_id, again.attempt) == (dying.run_id, 2)


def test_runs_that_cannot_begin_do_not_hold_up_those_behind_them(db: None) -> None:
    ada = somebody().id
    gone, good = queue(ada, 2)
    Agent.objects.filter(pk=gone.agent_id).update(device_id="another")
    claimed = run_queue.claim_next()
    assert claimed is not None and claimed.run_id == good.pk
    assert Run.objects.get(pk=gone.pk).state == State.CANCELLED


def test_only_runs_that_waited_long_enough_are_claimed_where_that_is_asked(db: None) -> None:
    queue(somebody().id, 1, age_s=5)
    assert run_queue.claim_next(queued_for=10 * SECOND) is None
    assert run_queue.claim_next(queued_for=4 * SECOND) is not None


def test_a_claim_costs_few_queries_however_many_wait(db: None, django_assert_max_num_queries: Any) -> None:
    for _ in range(3):
        queue(somebody().id, 10)
    with django_assert_max_num_queries(10):  # of the claim, a savepoint, and the user's key
        assert run_queue.claim_next() is not None


@hypothesis_settings(max_examples=fewer(15))
@given(
    queued=st.lists(st.integers(0, 6), min_size=2, max_size=4),
    steps=st.lists(st.sampled_from(["claim", "claim", "end", "die", "sweep"]), max_size=25),
    seed=st.integers(0, 1000),
)
@pytest.mark.django_db(transaction=False)
def test_turns_and_bound_hold_through_every_history(queued: list[int], steps: list[str], seed: int) -> None:
    choose = random.Random(seed)
    Run.objects.live().update(state=State.CANCELLED)
    users = [somebody().id for _ in queued]
    for user, count in zip(users, queued, strict=True):
        queue(user, count)
    held: dict[uuid.UUID, ClaimedRun] = {}
    last_turn: dict[uuid.UUID, int] = defaultdict(lambda: -1)
    for number, step in enumerate(steps):
        under_way = Counter(claimed.user_id for claimed in held.values())
        if step == "claim":
            waiting = set(
                Run.objects.filter(state=State.QUEUED, user_id__in=users).values_list("user_id", flat=True)
            )
            eligible = {user for user in waiting if under_way[user] < 2}
            claimed = run_queue.claim_next()
            assert (claimed is not None) == bool(eligible)
            if claimed is not None:
                assert claimed.user_id in eligible
                assert last_turn[claimed.user_id] == min(last_turn[user] for user in eligible)
                last_turn[claimed.user_id] = number
                held[claimed.run_id] = claimed
        elif step == "end" and held:
            run_release.finish(held.pop(choose.choice(sorted(held))))
        elif step == "die" and held:
            lose_worker(Run.objects.get(pk=held.pop(choose.choice(sorted(held))).run_id))
        elif step == "sweep":
            runs.sweep()
    # Nobody starves: with room for each, all are claimed.
    runs.sweep()
    for claimed in held.values():
        run_release.finish(claimed)
    while (claimed := run_queue.claim_next()) is not None:
        run_release.finish(claimed)
    assert not Run.objects.filter(user_id__in=users, state__in=Run.LIVE).exists()


def test_many_workers_at_once_keep_the_bound_and_claim_each_run_once(committed_db: str) -> None:
    users = [somebody().id for _ in range(3)]
    # In the far past, so that they come before what other tests have left.
    made = {run.pk for user in users for run in queue(user, 6, age_s=10**8)}

    def worker() -> list[ClaimedRun]:
        try:
            found = []
            for _ in range(12):
                claimed = run_queue.claim_next()
                if claimed is not None:
                    found.append(claimed)
            return found
        finally:
            close_old_connections()

    got = _at_once(6, worker)
    mine = [claimed for claimed in got if claimed.run_id in made]
    assert len({claimed.run_id for claimed in mine}) == len(mine)
    assert Counter(claimed.user_id for claimed in mine) == dict.fromkeys(users, 2)
    Run.objects.filter(pk__in=made).update(state=State.CANCELLED)


def _at_once(count: int, work: Callable[[], list[ClaimedRun]]) -> list[ClaimedRun]:
    with ThreadPoolExecutor(count) as pool:
        done = [pool.submit(work) for _ in range(count)]
        return [claimed for each in done for claimed in each.result()]


async def test_a_message_that_comes_while_the_loop_looks_for_more_is_not_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, here = RunLoop(), asyncio.get_running_loop()
    loop._woken = asyncio.Event()

    def none_waits() -> bool:
        """Look, and return once a message has come."""
        if not loop._woken.is_set():
            asyncio.run_coroutine_threadsafe(wake(), here).result(5)
        return False

    async def wake() -> None:
        loop._wake()

    monkeypatch.setattr(run_queue, "claim_next", lambda queued_for: None)
    monkeypatch.setattr(run_queue, "has_waiting", none_waits)
    loop._wake()
    loop._woken.clear()
    await loop._claim_all()
    assert loop._backlog
    await loop._claim_all()
    assert not loop._backlog
