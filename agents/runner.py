"""Executes one run on one event loop: documents in, records out, several at a time while files still arrive."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
import traceback
from collections import Counter
from collections.abc import Coroutine
from typing import Any, Final
from uuid import UUID

import structlog
from django.conf import settings
from django.db import InterfaceError, OperationalError
from django.utils import timezone
from redis.exceptions import RedisError

from adiuva import db, llm
from adiuva.accounts.keys import NoSuchUser
from adiuva.devices import outbox
from adiuva.devices.link import DeviceLink, DeviceOffline, DeviceRefused, OutcomeUnknown
from adiuva.devices.outbox import Pending
from adiuva.devices.protocol import AgentCancel, AgentProgress
from adiuva.errors import AdiuvaError
from agents import lease
from agents.extraction import Document, Extraction, Extractor
from agents.journal import Entry, Kind
from agents.lease import AgentGone, Job, LeaseLost
from agents.models import Run
from agents.records import Rules
from agents.sources import DeviceSilent, LocalFolders

_WATCH_S: Final = 2.0
_PROGRESS_S: Final = 0.2
_MODEL_FAILURES: Final = 5  # in a row, after which the rest would fail as well
_MOST_CHARS: Final = 16 * 1024 * 1024  # of documents that are held at once; a longer one is held alone
# What we stand on is away: the lease ends, and who claims the run next goes on.
_AWAY: Final = (OperationalError, InterfaceError, RedisError, OSError)

log = structlog.get_logger("agents.runner")


class _Cancelled(Exception):
    pass


class _Late(Exception):
    """The run's deadline has come."""


class _ModelGone(Exception):
    """The model failed several times in a row. It carries the last failure."""

    def __init__(self, error: llm.ModelError) -> None:
        super().__init__(error.code)
        self.error = error


async def execute(run_id: UUID) -> None:
    """Claim a run and bring it to an end, or to the point where it has to wait for its device."""
    job = await db.run(lease.claim, run_id)
    if job is None:
        return
    with structlog.contextvars.bound_contextvars(run_id=str(run_id), user_id=str(job.user_id)):
        try:
            await _Execution(job).run()
        except (LeaseLost, NoSuchUser):
            log.info("run.let_go")
        except _AWAY as error:
            log.warning("run.interrupted", error=type(error).__name__)
        finally:
            await llm.aclose()


class _Room:
    """How many characters of documents may be held at once."""

    def __init__(self) -> None:
        self._held = 0
        self._freed = asyncio.Condition()

    async def enter(self, size: int) -> None:
        async with self._freed:
            await self._freed.wait_for(lambda: not self._held or self._held + size <= _MOST_CHARS)
            self._held += size

    async def leave(self, size: int) -> None:
        async with self._freed:
            self._held -= size
            self._freed.notify_all()


class _Execution:
    def __init__(self, job: Job) -> None:
        self.job = job
        self.link = DeviceLink(job.user_id, job.device)
        self.epoch: int | None = None
        self.dedupes = False
        self.failures = 0
        self.room = _Room()
        self._shown_at = 0.0
        self._started = time.monotonic()

    async def run(self) -> None:
        async with self.link:
            try:
                await self._first(self._work(), self._watch())
            except DeviceOffline:
                await db.run(lease.wait_for_device, self.job, epoch=self.epoch)
            except (_Cancelled, AgentGone):
                await self._stop(Run.State.CANCELLED, "cancelled")
            except _Late:
                await self._stop(Run.State.TIMEOUT, "deadline")
            except DeviceSilent:
                await self._stop(Run.State.TIMEOUT, "device_silent")
            except _ModelGone as gone:
                await self._stop(Run.State.ERROR, gone.error.code, gone.error.message)
            except AdiuvaError as error:
                await self._stop(Run.State.ERROR, error.code, error.message)
            except (LeaseLost, *_AWAY):
                raise
            except Exception as error:
                # Without its words: they may quote a document.
                trace = "".join(traceback.format_tb(error.__traceback__))
                log.error("run.failed", error=type(error).__name__, trace=trace)
                await self._stop(Run.State.ERROR, "internal_error")
            else:
                await self._end()

    async def _first(self, work: Coroutine[Any, Any, None], watch: Coroutine[Any, Any, None]) -> None:
        """Do the work until it ends or the watch raises. Whichever is left is cancelled and waited for."""
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
                raise _worst(group) from None

    async def _watch(self) -> None:
        """Cancel, deadline, lease and a connection that ended unheard, beside the work and not after it."""
        renew_at = time.monotonic() + lease.RENEW_S
        late_at = time.monotonic() + (self.job.deadline_at - timezone.now()) / dt.timedelta(seconds=1)
        while True:
            left = late_at - time.monotonic()
            if left <= 0:
                raise _Late
            await asyncio.sleep(min(_WATCH_S, left))
            renew = time.monotonic() >= renew_at
            if renew:
                renew_at = time.monotonic() + lease.RENEW_S
            if not await db.run(lease.pulse, self.job, renew=renew):
                raise _Cancelled
            if not await self.link.still_there():
                raise DeviceOffline

    # The work

    async def _work(self) -> None:
        if self.job.device is None:
            raise DeviceOffline  # never seen; a link that names no device would take any
        target = await self.link.target()
        self.epoch, self.dedupes = target.epoch, target.can("dedupe")
        await self._deliver_what_waits()
        rules = Rules(self.job.data_types, await self._projects(), self.job.zone)
        extractor = Extractor(llm.chat_model(), self.job.prompt_template, rules)
        lanes = settings.MODEL_CONCURRENCY
        # Bounded: the source acknowledges no batch before its documents found room here.
        documents: asyncio.Queue[Document | None] = asyncio.Queue(lanes)
        async with asyncio.TaskGroup() as group:
            for lane in range(lanes):
                group.create_task(self._lane(documents, extractor), name=f"lane {lane}")
            async for document in LocalFolders(self.link, self.job).documents():
                await self.room.enter(len(document.content))
                await documents.put(document)
                await self._progress()
            await db.run(lease.count, self.job, phase=Run.Phase.EXTRACTING)
            for _ in range(lanes):
                await documents.put(None)
        await db.run(lease.count, self.job, phase=Run.Phase.DELIVERING)
        await self._deliver_what_waits()

    async def _projects(self) -> dict[str, str]:
        """The user's projects, so that what is found can name a real one."""
        try:
            result = await self.link.call("select", "projects", filters={})
        except OutcomeUnknown:
            raise DeviceSilent from None  # nothing was written, so nothing is unknown
        if result.error is not None or result.rows is None:
            raise DeviceRefused("the device could not list its projects")
        return {
            str(row["id"]): str(row.get("name") or "")
            for row in result.rows
            if row.get("id") and row.get("status") != "archived"
        }

    async def _lane(self, documents: asyncio.Queue[Document | None], extractor: Extractor) -> None:
        while (document := await documents.get()) is not None:
            await self._one(document, extractor)
            await self.room.leave(len(document.content))
            await self._progress()

    async def _one(self, document: Document, extractor: Extractor) -> None:
        found = Extraction()
        try:
            await extractor.extract(document, found)
        except llm.ModelError as error:
            entry = Entry(Kind.SOURCE_FAILED, error.code, source=document.path, message=error.message)
            await db.run(
                lease.count, self.job, done=1, failed=1, model_calls=found.model_calls, entries=[entry]
            )
            self.failures += 1
            if self.failures >= _MODEL_FAILURES and not isinstance(error, llm.BadOutput):
                raise _ModelGone(error) from None
            return
        self.failures = 0
        # However many a model gets wrong in the same way, it is one line of the journal.
        rejected = Counter((item.code, item.reason) for item in found.rejected)
        entries = [
            Entry(Kind.RECORD_QUARANTINED, code, times, document.path, reason)
            for (code, reason), times in rejected.items()
        ]
        assert self.job.device is not None
        new = await db.run(
            lease.keep,
            self.job,
            document,
            found.records,
            entries,
            device=self.job.device,
            model_calls=found.model_calls,
        )
        if new:
            await self._deliver(new, document.path)

    async def _deliver_what_waits(self) -> None:
        """Records that an interruption, of this run or of one before it, left in line."""
        while waiting := await db.run(
            outbox.waiting, cipher=self.job.cipher, user_id=self.job.user_id, run_id=self.job.run_id
        ):
            await self._deliver(waiting, "")

    async def _deliver(self, records: list[Pending], path: str) -> None:
        async def mark_sent(ids: list[UUID]) -> None:
            await db.run(outbox.mark_sent, ids)

        outcomes = await outbox.deliver(self.link, records, mark_sent=mark_sent)
        unknown = {key for key, outcome in outcomes.items() if isinstance(outcome, OutcomeUnknown)}
        if not self.dedupes:
            unknown.clear()  # it must not get them twice: they are settled as uncertain
        settled = {key: outcome for key, outcome in outcomes.items() if key not in unknown}
        await db.run(lease.settle, self.job, settled, path)
        if unknown:  # they stay in line, and come again as the same calls
            raise DeviceSilent if await self.link.still_there() else DeviceOffline
        if any(isinstance(outcome, DeviceOffline) for outcome in outcomes.values()):
            raise DeviceOffline  # the rest stays in line

    # What others see of it

    async def _progress(self, *, last: Run | None = None) -> None:
        now = time.monotonic()
        if last is None and now - self._shown_at < _PROGRESS_S:
            return
        self._shown_at = now
        run = last if last is not None else await db.run(lease.see, self.job)
        left = None
        if last is None and run.files_seen > run.files_done > run.files_unchanged:
            each = (now - self._started) / (run.files_done - run.files_unchanged)
            left = round(each * (run.files_seen - run.files_done), 1)
        await self._tell(
            AgentProgress(
                run_id=str(run.pk),
                agent_id=str(self.job.agent_id),
                state=run.phase or run.state,
                files_seen=run.files_seen,
                files_done=run.files_done,
                records_created=run.items_created,
                eta_s=left,
            )
        )

    async def _tell(self, frame: AgentProgress | AgentCancel) -> None:
        try:
            await self.link.tell(frame)
        except (OSError, RedisError):
            log.info("run.device_not_told", frame=frame.type)  # the channel layer is away; the row has it all

    async def _stop(self, state: Run.State, code: str, message: str = "") -> None:
        """End a run before its work is done; the device need not go on."""
        await self._tell(AgentCancel(run_id=str(self.job.run_id)))
        await self._end(state, code, message)

    async def _end(self, state: Run.State | None = None, code: str = "", message: str = "") -> None:
        run = await db.run(lease.finish, self.job, state, code, message)
        await self._progress(last=run)


def _worst(group: ExceptionGroup[Exception]) -> Exception:
    """The one failure of a task group that decides how the run ends: losing the run, then the device, then others."""
    flat: list[Exception] = []
    for error in group.exceptions:
        flat.append(_worst(error) if isinstance(error, ExceptionGroup) else error)
    for kind in (LeaseLost, DeviceOffline):
        for error in flat:
            if isinstance(error, kind):
                return error
    return flat[0]
