"""Tell a run's device how far the run is."""

from __future__ import annotations

import time
from typing import Final

import structlog
from redis.exceptions import RedisError

from adiuva.core import db
from adiuva.devices.link import DeviceLink
from adiuva.devices.protocol import AgentCancel, AgentProgress, Error
from agents import claimed_runs
from agents.claimed_runs import ClaimedRun
from agents.models import Run

_REPORT_EVERY_S: Final = 0.2

log = structlog.get_logger(__name__)


class ProgressReporter:
    def __init__(self, claimed: ClaimedRun, link: DeviceLink) -> None:
        self._claimed, self._link = claimed, link
        self._started = time.monotonic()
        self._reported_at = 0.0

    async def report(self, *, last: Run | None = None) -> None:
        """Send the run's counts, at most every _REPORT_EVERY_S. `last` is the run at its end, which is always sent."""
        now = time.monotonic()
        if last is None and now - self._reported_at < _REPORT_EVERY_S:
            return
        self._reported_at = now
        run = last if last is not None else await db.run(claimed_runs.current_run, self._claimed)
        eta_s = None
        if last is None and run.files_seen > run.files_done > run.files_unchanged:
            each_s = (now - self._started) / (run.files_done - run.files_unchanged)
            eta_s = round(each_s * (run.files_seen - run.files_done), 1)
        await self.send(
            AgentProgress(
                run_id=str(run.pk),
                agent_id=str(self._claimed.agent_id),
                state=run.phase or run.state,
                files_seen=run.files_seen,
                files_done=run.files_done,
                records_created=run.items_created,
                eta_s=eta_s,
                passed_over=run.passed_over or None,
            )
        )

    async def send(self, frame: AgentProgress | AgentCancel | Error) -> None:
        """Send a frame if possible. If not, nothing is lost: the run's row has it all."""
        try:
            await self._link.notify(frame)
        except (OSError, RedisError):
            log.info("run.progress_dropped", frame=frame.type)
