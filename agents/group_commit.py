"""Commit the results of a run's lanes together, and deliver the records of such a group together.

Results that arrive while a transaction runs are committed together in the next one. There is no timer: a result that
arrives while none runs starts one at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from adiuva.core import db
from adiuva.devices.outbox import PendingRecord
from adiuva.llm import Meter
from agents import result_commits
from agents.claimed_runs import AgentGone, ClaimedRun
from agents.result_commits import DeviceAnswered, Result
from billing.models import Purpose


class _PendingResults:
    """The results that one lane hands in. It is `woken` when they are written, or when it is its turn to write."""

    def __init__(self, results: Sequence[Result]) -> None:
        self.results = results
        self.new: list[list[PendingRecord]] | None = None
        self.error: BaseException | None = None
        self.woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def is_open(self) -> bool:
        return self.new is None and self.error is None

    def wake(self) -> bool:
        """Wake the lane. Returns False if there is none to wake, because it was cancelled."""
        if self.woken.done():
            return False
        self.woken.set_result(None)
        return True


class GroupCommit:
    """Commits the results of a run's lanes, together if they arrive together."""

    def __init__(self, claimed: ClaimedRun, meter: Meter | None = None) -> None:
        self._claimed, self._meter = claimed, meter or Meter(claimed.user_id, Purpose.AGENTS)
        self._waiting: list[_PendingResults] = []
        self._is_writing = False

    async def commit(self, result: Result) -> list[PendingRecord]:
        """Commit one result, as `commit_results` does."""
        return (await self.commit_all([result]))[0]

    async def commit_all(self, results: Sequence[Result]) -> list[list[PendingRecord]]:
        """Commit results, as `commit_results` does.

        One lane writes for all that wait; all of them go on in the same turn of the loop.
        """
        place = _PendingResults(results)
        self._waiting.append(place)
        if self._is_writing:
            try:
                await place.woken
            except asyncio.CancelledError:
                if place.is_open and not place.woken.cancelled():
                    self._hand_over()  # it was this lane's turn
                raise
        if place.is_open:
            self._is_writing = True
            try:
                await self._write()
            finally:
                self._hand_over()
        if place.error is not None:
            raise place.error
        assert place.new is not None
        return place.new

    def _hand_over(self) -> None:
        self._is_writing = any(place.wake() for place in self._waiting)

    async def _write(self) -> None:
        places, self._waiting = self._waiting, []
        results = [result for place in places for result in place.results]
        # The cost of requests is written with their results, so a device's answers alone take a shorter statement.
        is_answers = all(isinstance(result, DeviceAnswered) for result in results)
        uses = [] if is_answers else self._meter.take()
        commit = asyncio.ensure_future(
            db.run(result_commits.commit_results, self._claimed, results, uses, self._meter)
        )
        cancelled = await _ended(commit)
        try:
            new = commit.result()
        except BaseException as error:
            if not isinstance(error, AgentGone):  # AgentGone: commit_results has written them
                self._meter.give_back(uses)
            for place in places:
                place.error = error
        else:
            each = iter(new)
            for place in places:
                place.new = [next(each) for _ in place.results]
        for place in places:
            place.wake()
        if cancelled is not None:
            raise cancelled


async def _ended(commit: asyncio.Future[Any]) -> asyncio.CancelledError | None:
    """Wait for the end of a commit, whose transaction goes on even if this task is cancelled. Returns the cancellation:
    the caller raises it once it has noted what became of the commit."""
    cancelled = None
    while not commit.done():
        try:
            await asyncio.wait([commit])
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled


class FoundRecords(NamedTuple):
    """New records, and the path of the document that they were found in."""

    records: Sequence[PendingRecord]
    path: str


class GroupDelivery:
    """Delivers the records of several documents as one. Documents that are committed together bring their records in
    the same turn of the loop, so a device gets them in one frame, and its answers are committed together, too.
    """

    def __init__(self, deliver: Callable[[Sequence[FoundRecords]], Awaitable[None]]) -> None:
        self._deliver = deliver
        self._waiting: list[FoundRecords] = []
        self._delivered: asyncio.Future[None] | None = None

    async def deliver(self, found: FoundRecords) -> None:
        """Return when the records are settled. Raises any error of those that were delivered with them."""
        self._waiting.append(found)
        if self._delivered is not None:
            await asyncio.shield(self._delivered)
            return
        # The first lane of a group delivers for all of it.
        self._delivered = delivered = asyncio.get_running_loop().create_future()
        try:
            try:
                await asyncio.sleep(0)  # the other lanes bring their records
            finally:
                group, self._waiting, self._delivered = self._waiting, [], None
            await self._deliver(group)
        except asyncio.CancelledError:
            delivered.cancel()
            raise
        except Exception as error:
            delivered.set_exception(error)
            delivered.exception()  # this lane raises it, whether others wait or not
            raise
        delivered.set_result(None)
