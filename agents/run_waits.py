"""Wait for runs to end: one look at the rows of all runs that somebody in this process waits for, twice a second.

A wait holds no connection and no worker. There is nothing to subscribe to, so nothing to miss; and one query serves
them all, however many there are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import structlog

from adiuva.core import db
from adiuva.core.errors import AdiuvaError
from adiuva.core.logging import log_failure
from adiuva.core.per_loop import PerLoop
from agents.models import Run

LOOK_EVERY_S: Final = 0.5
MOST_OF_A_USER: Final = 4

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Progress:
    """A run's state, and how far it has come."""

    state: str
    files_seen: int = 0
    files_done: int = 0

    @property
    def is_moving(self) -> bool:
        """True if it can be expected to end by itself: it has not ended, and does not wait for its user."""
        return self.state in (Run.State.QUEUED, Run.State.RUNNING)


class TooManyWaits(AdiuvaError):
    code, status = "too_many_requests", 429

    def __init__(self) -> None:
        super().__init__(f"at most {MOST_OF_A_USER} runs are waited for at once")


def look(run_ids: Collection[UUID]) -> dict[UUID, Progress]:
    """Return how far runs have come; runs that no longer exist are left out."""
    found = Run.objects.filter(pk__in=run_ids).order_by()
    rows = found.values_list("pk", "state", "files_seen", "files_done")
    return {key: Progress(state, seen, done) for key, state, seen, done in rows}


@dataclass(eq=False)
class _Wait:
    user_id: UUID
    run_id: UUID
    over: asyncio.Future[Progress | None]
    show: Callable[[Progress], None]


class RunWaits:
    """The waits of one event loop."""

    def __init__(
        self,
        look: Callable[[Collection[UUID]], Mapping[UUID, Progress]] = look,
        every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._look, self._every_s = look, every_s
        self._waits: set[_Wait] = set()
        self._looking: asyncio.Task[None] | None = None

    @property
    def is_looking(self) -> bool:
        return self._looking is not None

    async def wait(
        self, user_id: UUID, run_id: UUID, show: Callable[[Progress], None] = lambda progress: None
    ) -> Progress | None:
        """Return once a run has ended or waits for its user; None if it is gone. The caller limits the time.

        `show` is called with each observed progress. Raises TooManyWaits.
        """
        if sum(wait.user_id == user_id for wait in self._waits) >= MOST_OF_A_USER:
            raise TooManyWaits
        loop = asyncio.get_running_loop()
        wait = _Wait(user_id, run_id, loop.create_future(), show)
        self._waits.add(wait)
        if self._looking is None:
            self._looking = loop.create_task(self._look_while_somebody_waits(), name="look at runs")
        try:
            return await wait.over
        finally:
            self._waits.discard(wait)

    async def _look_while_somebody_waits(self) -> None:
        try:
            while self._waits:
                try:
                    waits = list(self._waits)  # runs that join during the look come with the next
                    self._tell(waits, await db.run(self._look, {wait.run_id for wait in waits}))
                except Exception as error:
                    # The next look may succeed; and each wait has an end.
                    log_failure("runs.look_failed", error, logger=log, level="warning")
                if self._waits:
                    await asyncio.sleep(self._every_s)
        finally:
            self._looking = None

    def _tell(self, waits: list[_Wait], found: Mapping[UUID, Progress]) -> None:
        for wait in waits:
            progress = found.get(wait.run_id)
            if progress is not None and progress.is_moving:
                wait.show(progress)
            elif not wait.over.done():
                wait.over.set_result(progress)


_waits = PerLoop(RunWaits)


def run_waits() -> RunWaits:
    """Return the running event loop's waits."""
    return _waits.get()
