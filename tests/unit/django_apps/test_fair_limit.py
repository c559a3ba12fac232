"""Callers take turns at a limit, none takes it up alone, and no place is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from adiuva.core.fair_limit import FairLimit


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Holder:
    def __init__(self, limit: FairLimit, caller: str | None, order: list[str | None]) -> None:
        self._limit, self.caller, self._order = limit, caller, order
        self.has_place, self._over = False, asyncio.Event()
        self.task = asyncio.create_task(self._hold())

    async def _hold(self) -> None:
        async with self._limit.slot(self.caller):
            self.has_place = True
            self._order.append(self.caller)
            await self._over.wait()

    async def end(self) -> None:
        self._over.set()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


async def test_one_caller_leaves_room_for_the_others() -> None:
    limit, order = FairLimit(6, per_caller=4), list[str | None]()
    hanging = [Holder(limit, "hanging", order) for _ in range(20)]
    await settle()
    assert order == ["hanging"] * 4 and limit.free == 2
    other = Holder(limit, "other", order)
    await settle()
    assert other.has_place
    for each in [other, *hanging]:
        await each.end()
    assert limit.free == 6


async def test_of_few_places_one_caller_keeps_nobody_waiting() -> None:
    limit, order = FairLimit(3, lends=True), list[str | None]()
    hanging = [Holder(limit, "hanging", order) for _ in range(6)]
    waiting = [Holder(limit, caller, order) for caller in ("b", "b", "c")]
    await settle()
    assert order == ["hanging"] * 3 + ["b"]  # one place beyond them, and no more
    limit.resize(1)
    await settle()
    assert len(order) == 4
    await waiting[0].end()
    await settle()
    assert order[4:] == ["b"] or order[4:] == ["c"]
    for each in [*waiting, *hanging]:
        await each.end()
    assert limit.free == 1


async def test_callers_who_wait_take_turns() -> None:
    limit, order = FairLimit(1), list[str | None]()
    holders = [Holder(limit, caller, order) for caller in ("a", "a", "a", "b", "b", "c")]
    await settle()
    for _ in holders:
        await next(holder for holder in holders if holder.has_place and not holder.task.done()).end()
        await settle()
    assert order == ["a", "a", "b", "c", "a", "b"]


async def test_nobody_in_particular_has_no_bound_of_its_own() -> None:
    limit, order = FairLimit(3, per_caller=1), list[str | None]()
    holders = [Holder(limit, None, order) for _ in range(3)]
    await settle()
    assert len(order) == 3
    for each in holders:
        await each.end()


async def test_a_limit_that_changes_gives_its_new_places_away_and_takes_none_back() -> None:
    limit, order = FairLimit(1), list[str | None]()
    holders = [Holder(limit, caller, order) for caller in ("a", "b", "c", "d")]
    await settle()
    limit.resize(3)
    await settle()
    assert order == ["a", "b", "c"] and limit.free == 0
    limit.resize(1)
    assert limit.free == -2
    for each in holders[:2]:
        await each.end()
    await settle()
    assert not holders[3].has_place
    await holders[2].end()
    await settle()
    assert holders[3].has_place
    await holders[3].end()
    assert limit.free == 1


@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.lists(st.tuples(st.sampled_from(["ask", "ask", "end", "cancel"]), st.integers(0, 30)), max_size=60),
)
def test_no_place_is_lost_and_nobody_waits_beside_a_free_one(
    most: int, per_caller: int, steps: list[tuple[str, int]]
) -> None:
    async def play() -> None:
        limit, order = FairLimit(most, per_caller=per_caller), list[str | None]()
        holders: list[Holder] = []
        for step, number in steps:
            live = [holder for holder in holders if not holder.task.done()]
            if step == "ask":
                holders.append(Holder(limit, "abc"[number % 3], order))
            elif live and step == "end":
                holding = [holder for holder in live if holder.has_place]
                if holding:
                    await holding[number % len(holding)].end()
            elif live:
                live[number % len(live)].task.cancel()  # without a pause: it may be given a place meanwhile
            if number % 2:
                await settle()
                check(limit, [holder for holder in holders if not holder.task.done()])
        await settle()
        while left := [holder for holder in holders if not holder.task.done()]:
            check(limit, left)
            await next(holder for holder in left if holder.has_place).end()
            await settle()
        assert limit.free == most

    def check(limit: FairLimit, live: list[Holder]) -> None:
        held = Counter(holder.caller for holder in live if holder.has_place)
        assert limit.free == most - held.total() >= 0
        assert all(count <= per_caller for count in held.values())
        waiting = {holder.caller for holder in live if not holder.has_place}
        assert not limit.free or all(held[caller] == per_caller for caller in waiting)

    asyncio.run(play())
