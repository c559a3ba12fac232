"""Commit the results of a run's lanes together.

Results that arrive while a transaction runs are committed together in the next one. There is no timer: a result that
arrives while none runs starts one at once.
"""

from __future__ import annotations

import asyncio

from adiuva.core import db
from adiuva.devices.outbox import PendingRecord
from adiuva.llm import Meter
from agents import result_commits
from agents.claimed_runs import AgentGone, ClaimedRun
from agents.result_commits import DeviceAnswered, Result
from billing.models import Purpose


class _PendingResult:
    def __init__(self, result: Result) -> None:
        self.result = result
        self.new: list[PendingRecord] | None = None
        self.error: BaseException | None = None


class GroupCommit:
    """Commits the results of a run's lanes, together if they arrive together."""

    def __init__(self, claimed: ClaimedRun, meter: Meter | None = None) -> None:
        self._claimed, self._meter = claimed, meter or Meter(claimed.user_id, Purpose.AGENTS)
        self._waiting: list[_PendingResult] = []
        self._writing = asyncio.Lock()

    async def commit(self, result: Result) -> list[PendingRecord]:
        """As `commit_results`, for one result. The lane that gets the lock writes for all that wait for it."""
        place = _PendingResult(result)
        self._waiting.append(place)
        async with self._writing:
            if place.new is None and place.error is None:
                await self._write()
        if place.error is not None:
            raise place.error
        assert place.new is not None
        return place.new

    async def _write(self) -> None:
        places, self._waiting = self._waiting, []
        # What requests have cost waits for what they gave: answers of a device alone are a shorter statement.
        is_answers = all(isinstance(place.result, DeviceAnswered) for place in places)
        uses = [] if is_answers else self._meter.take()
        try:
            new = await db.run(
                result_commits.commit_results,
                self._claimed,
                [place.result for place in places],
                uses,
                self._meter,
            )
        except BaseException as error:
            if not isinstance(error, AgentGone):  # which has written them
                self._meter.give_back(uses)
            for place in places:
                place.error = error
            return
        for place, found in zip(places, new, strict=True):
            place.new = found
