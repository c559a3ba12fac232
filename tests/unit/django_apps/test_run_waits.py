"""Waiting for runs: one look for all of them, however many, and nothing is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from uuid import UUID, uuid4

import pytest

from agents.models import Run
from agents.run_waits import MOST_OF_A_USER, Progress, RunWaits, TooManyWaits

RUNNING = Progress(Run.State.RUNNING, 40, 12)


class Rows:
    """The rows of runs, as the database would give them. `fails` fails so many looks first."""

    def __init__(self, fails: int = 0) -> None:
        self.states: dict[UUID, Progress] = {}
        self.looks: list[int] = []
        self.fails = fails

    def look(self, ids: Collection[UUID]) -> dict[UUID, Progress]:
        self.looks.append(len(ids))
        if len(self.looks) <= self.fails:
            raise OSError
        return {key: self.states[key] for key in ids if key in self.states}

    def add(self, progress: Progress = RUNNING) -> UUID:
        key = uuid4()
        self.states[key] = progress
        return key


async def test_a_hundred_waits_cost_one_look_at_a_time_and_leave_nothing() -> None:
    rows = Rows()
    waits = RunWaits(rows.look, every_s=0.01)
    runs = [rows.add() for _ in range(100)]
    tasks = [asyncio.create_task(waits.wait(uuid4(), run)) for run in runs]
    while len(rows.looks) < 5:
        await asyncio.sleep(0.001)
    assert set(rows.looks[1:]) == {100}
    rows.states = dict.fromkeys(runs, Progress(Run.State.SUCCESS, 40, 40))
    assert {progress.state for progress in await asyncio.gather(*tasks) if progress} == {"success"}
    await asyncio.sleep(0.03)
    looks = len(rows.looks)
    await asyncio.sleep(0.03)
    assert len(rows.looks) == looks and not waits.is_looking
    assert {task.get_name() for task in asyncio.all_tasks()}.isdisjoint({"look at runs"})


@pytest.mark.parametrize("state", ["waiting_device", "awaiting_reauth", "cancelled", "error", "timeout"])
async def test_it_ends_when_the_run_ends_or_waits_for_its_user(state: str) -> None:
    rows = Rows()
    run = rows.add(Progress(state))
    found = await RunWaits(rows.look, every_s=0.01).wait(uuid4(), run)
    assert found == Progress(state)


async def test_a_run_that_is_gone_ends_it_and_a_fault_does_not() -> None:
    rows, seen = Rows(fails=2), []
    waits, run = RunWaits(rows.look, every_s=0.001), rows.add()
    task = asyncio.create_task(waits.wait(uuid4(), run, seen.append))
    while not seen:
        await asyncio.sleep(0.001)
    del rows.states[run]
    assert await task is None and seen[0] == RUNNING


async def test_a_user_has_so_many_waits_and_one_that_is_cancelled_makes_room() -> None:
    rows, user = Rows(), uuid4()
    waits = RunWaits(rows.look, every_s=0.01)
    tasks = [asyncio.create_task(waits.wait(user, rows.add())) for _ in range(MOST_OF_A_USER)]
    await asyncio.sleep(0)
    with pytest.raises(TooManyWaits):
        await waits.wait(user, rows.add())
    tasks[0].cancel()
    await asyncio.gather(tasks[0], return_exceptions=True)
    ended = rows.add(Progress(Run.State.SUCCESS))
    assert await waits.wait(user, ended) == Progress(Run.State.SUCCESS)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
