"""Execute a claimed run on an event loop: watch over it while its pipeline works, and bring it to an end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from functools import partial
from typing import Any, Final
from uuid import UUID

import structlog
from django.db import Error as DatabaseError
from redis.exceptions import RedisError

from adiuva import llm
from adiuva.accounts.keys import NoSuchUser
from adiuva.core import db, tracing
from adiuva.core.errors import AdiuvaError
from adiuva.core.leases import LeaseLost
from adiuva.core.logging import log_failure
from adiuva.core.outages import store_of
from adiuva.devices import presence
from adiuva.devices.link import DeviceLink, DeviceOffline
from adiuva.devices.protocol import AgentCancel, Error
from adiuva.devices.run_frame_buffer import FlowExceeded
from agents import claimed_runs, run_release, run_reports
from agents.claimed_runs import AgentGone, ClaimedRun
from agents.local_folders import DeviceSilent
from agents.models import Run
from agents.pipeline import ModelKeepsFailing, Pipeline
from agents.progress import ProgressReporter
from billing import usage
from billing.models import Purpose
from integrations.errors import NeedsReauth, ProviderUnavailable
from memory import episodes

# The interval at which a run checks for a cancel, its deadline and a lost device.
_WATCH_EVERY_S: Final = 2.0
# The number of requests to the model that a run reserves money for at once.
_CALLS_RESERVED: Final = 16
_RETRY_REQUEUE_S: Final = 1.0
# A run in which nothing has happened for this long waits, and takes no slot of its process.
_WAITS_AFTER_S: Final = 1.0

log = structlog.get_logger(__name__)


class _Cancelled(Exception):
    """The user has cancelled the run."""


class _DeadlineReached(Exception):
    """The run's deadline has come."""


async def execute(run_id: UUID) -> None:
    """Claim a certain run, and execute it on an event loop that ends with it."""
    claimed = await db.run(claimed_runs.claim, run_id)
    if claimed is not None:
        try:
            await Execution(claimed).run()
        finally:
            await llm.aclose()


async def _requeue(claimed: ClaimedRun) -> None:
    """Queue an interrupted run again as soon as the database accepts it, so that nobody has to wait for its lease."""
    until = time.monotonic() + claimed_runs.lease_duration().total_seconds()
    while time.monotonic() < until:
        try:
            await db.run(run_release.requeue_interrupted, claimed)
            return
        except LeaseLost:
            return
        except DatabaseError as error:
            log.info("run.requeue_delayed", error=type(error).__name__)
            await asyncio.sleep(_RETRY_REQUEUE_S)


# More than 15 methods: the steps of a run, and one for each way in which it stops.
class Execution:
    """A claimed run in the hands of this process."""

    meter: llm.Meter
    progress: ProgressReporter
    pipeline: Pipeline
    _span: tracing.Span

    def __init__(self, claimed: ClaimedRun) -> None:
        self.claimed = claimed
        self._started = time.monotonic()

    def is_waiting(self) -> bool:
        """True if nothing has happened in the run for a moment: it waits for its device or for the model."""
        pipeline = getattr(self, "pipeline", None)
        return pipeline is not None and time.monotonic() - pipeline.progressed_at > _WAITS_AFTER_S

    async def run(self) -> None:
        """Bring the run to its end, or put it aside. If it is cancelled, or an outage stops it, queue it again."""
        run_id = str(self.claimed.run_id)
        with (
            structlog.contextvars.bound_contextvars(run_id=run_id, user_id=str(self.claimed.user_id)),
            tracing.span("run", adiuva__run_id=run_id) as self._span,
        ):
            llm.on_behalf_of(self.claimed.user_id)
            try:
                await self._run_metered()
            except (LeaseLost, NoSuchUser):
                log.info("run.lease_lost")
            except asyncio.CancelledError:
                log.info("run.interrupted", error="CancelledError")
                await _requeue(self.claimed)
                raise
            except Exception as error:
                if not _is_outage(error):
                    raise
                log.warning("run.interrupted", error=type(error).__name__)
                await _requeue(self.claimed)

    async def _run_metered(self) -> None:
        claimed = self.claimed
        also = partial(claimed_runs.add_used, claimed.run_id)
        async with usage.metered(
            claimed.user_id,
            Purpose.AGENTS,
            claimed.agent_id,
            also,
            agent_cap=claimed.budget_micro,
            spent_before=claimed.cost_micro,
            ahead=_CALLS_RESERVED,
        ) as self.meter:
            await self._run()

    async def _run(self) -> None:
        device = self.claimed.device
        if self.claimed.account is not None:
            found = await db.run(presence.find, user_id=self.claimed.user_id)
            device = found.pk if found else None
        async with DeviceLink(self.claimed.user_id, device) as link:
            self.link = link
            self.progress = ProgressReporter(self.claimed, link)
            self.pipeline = Pipeline(self.claimed, link, device, self.progress, self.meter)
            await self._run_to_outcome()

    async def _run_to_outcome(self) -> None:
        try:
            await self._first(self.pipeline.run(), self._watch())
        except DeviceOffline:
            await db.run(run_release.wait_for_device, self.claimed, epoch=self.pipeline.epoch)
        except (_Cancelled, AgentGone):
            await self._stop(Run.State.CANCELLED, "cancelled")
        except _DeadlineReached:
            await self._stop(Run.State.TIMEOUT, "deadline")
        except DeviceSilent as silent:
            if not await self._retry_later(silent.code):
                await self._stop(Run.State.TIMEOUT, silent.code)
        except ModelKeepsFailing as failure:
            await self._model_unavailable(failure)
        except llm.WorkBudgetSpent as error:
            await self._stop_with_what_is_read(error)
        except llm.BudgetSpent:
            await self._wait_for_budget()
        except NeedsReauth as error:
            waits = await db.run(run_release.wait_for_reauth, self.claimed)
            if not waits and not await self._retry_later(error.code):
                await self._stop(Run.State.ERROR, error.code, error.message)
        except ProviderUnavailable as error:
            if not await self._retry_later(error.code, error.message, error.retry_after_s):
                await self._stop(Run.State.ERROR, error.code, error.message)
        except FlowExceeded as error:
            run_id = str(self.claimed.run_id)
            await self.progress.send(Error(code=error.code, message=error.message, ref=run_id))
            await self._stop_with_what_is_read(error)
        except AdiuvaError as error:
            await self._stop(Run.State.ERROR, error.code, error.message)
        except LeaseLost:
            raise
        except Exception as error:
            if _is_outage(error):
                raise
            log_failure("run.failed", error)
            await self._stop(Run.State.ERROR, "internal_error")
        else:
            await self._end()

    async def _first(self, work: Coroutine[Any, Any, None], watch: Coroutine[Any, Any, None]) -> None:
        """Work until that ends or the watch raises; then cancel the other task and wait for it."""
        tasks = [asyncio.create_task(work, name="work"), asyncio.create_task(watch, name="watch")]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            try:
                task.result()
            except ExceptionGroup as group:
                raise _deciding_failure(group) from None

    async def _watch(self) -> None:
        """Renew the lease, and check for a cancel, the deadline and a lost device, beside the work."""
        renew_every_s = claimed_runs.lease_duration().total_seconds() / 4
        renew_at = time.monotonic() + renew_every_s
        deadline = self._started + self.claimed.seconds_to_deadline
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise _DeadlineReached
            await asyncio.sleep(min(_WATCH_EVERY_S, left))
            renew = time.monotonic() >= renew_at
            if renew:
                renew_at = time.monotonic() + renew_every_s
            if not await db.run(claimed_runs.heartbeat, self.claimed, renew=renew):
                raise _Cancelled
            if self.pipeline.device is not None and not await self.link.is_current():
                self.pipeline.device_lost()

    async def _model_unavailable(self, failure: ModelKeepsFailing) -> None:
        error = failure.error
        if error.transient and await self._retry_later(error.code, error.message, error.retry_after):
            return
        if failure.is_over:
            await self._end()
        else:
            await self._stop(Run.State.ERROR, error.code, error.message)

    async def _wait_for_budget(self) -> None:
        await db.run(run_release.wait_for_budget, self.claimed)
        await self._cancel_on_device()
        await self.progress.report(last=await db.run(claimed_runs.current_run, self.claimed))

    async def _retry_later(self, code: str, message: str = "", retry_after: float | None = None) -> bool:
        """Queue the run for a later attempt. Returns False if its retries or its time are used up."""
        if not await db.run(run_release.retry_later, self.claimed, code, message, retry_after=retry_after):
            return False
        await self._cancel_on_device()
        await self.progress.report(last=await db.run(claimed_runs.current_run, self.claimed))
        return True

    async def _stop_with_what_is_read(self, error: AdiuvaError) -> None:
        """End at a limit of the run. The rest is for the next one: the ledger knows which sources were read."""
        run = await db.run(claimed_runs.current_run, self.claimed)
        state = Run.State.PARTIAL if run.items_processed else Run.State.ERROR
        await self._stop(state, error.code, error.message)

    async def _cancel_on_device(self) -> None:
        await self.progress.send(AgentCancel(run_id=str(self.claimed.run_id)))

    async def _stop(self, state: Run.State, code: str, message: str = "") -> None:
        """End a run before its work is done; its device stops as well."""
        if state == Run.State.PARTIAL:
            await self._remember()
        run = await self._finish(state, code, message)
        await self._cancel_on_device()
        await self.progress.report(last=run)

    async def _end(self) -> None:
        await self._remember()
        await self.progress.report(last=await self._finish())

    async def _remember(self) -> None:
        """Store an episode of the run's findings, before the run can be undone. A failure does not fail the run."""
        if self.claimed.dry_run or not (self.pipeline.has_found or self.claimed.started_before):
            return
        run = await db.run(claimed_runs.current_run, self.claimed)
        now = await db.run(db.clock)
        try:
            await db.run(
                episodes.remember_run,
                user_id=run.user_id,
                run_id=run.pk,
                agent=await db.run(lambda: run.agent_name),
                found=await db.run(run_reports.count_found, run),  # in all its attempts
                began_at=run.started_at or now,
                ended_at=now,
            )
        except AdiuvaError as error:
            log.warning("run.episode_not_stored", code=error.code)

    async def _finish(self, state: Run.State | None = None, code: str = "", message: str = "") -> Run:
        unread = self.pipeline.unread
        if failed := len(unread):
            await db.run(claimed_runs.add_counts, self.claimed, done=failed, failed=failed, entries=unread)
        counts = self.pipeline.counts.take()
        run = await db.run(run_release.finish, self.claimed, state, code, message, counts)
        self._span.set(adiuva__state=str(run.state))
        if code:
            self._span.set(adiuva__code=code)
        return run


def _is_outage(error: Exception) -> bool:
    """Return whether the database, Redis, a disk or the network is unavailable: the next worker to claim the run
    resumes it, at the latest when its lease has run out."""
    return store_of(error) is not None or isinstance(error, RedisError | OSError)


def _deciding_failure(group: ExceptionGroup[Exception]) -> Exception:
    """Return the failure of a task group that decides how the run ends: a lost lease, a lost device, any other."""
    flat: list[Exception] = []
    for error in group.exceptions:
        flat.append(_deciding_failure(error) if isinstance(error, ExceptionGroup) else error)
    for kind in (LeaseLost, DeviceOffline):
        for error in flat:
            if isinstance(error, kind):
                return error
    return flat[0]
