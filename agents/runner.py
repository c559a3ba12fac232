"""Executes one run on one event loop: documents in, records out, several at a time while files still arrive."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import Coroutine
from typing import Any, Final
from uuid import UUID

import structlog
from django.conf import settings
from django.utils import timezone

from adiuva import db, llm
from adiuva.accounts.keys import NoSuchUser
from adiuva.devices import outbox
from adiuva.devices.link import DeviceLink, DeviceOffline, DeviceRefused
from adiuva.devices.outbox import Pending
from adiuva.devices.protocol import AgentCancel, AgentProgress
from adiuva.errors import AdiuvaError
from agents import runs
from agents.extraction import Document, Extractor
from agents.journal import Entry, Kind
from agents.models import Run
from agents.records import Rules
from agents.runs import Job, LeaseLost
from agents.sources import DeviceSilent, LocalFolders

_WATCH_S: Final = 2.0
_PROGRESS_S: Final = 0.2
_MODEL_FAILURES: Final = 5  # in a row, after which the rest would fail as well

log = structlog.get_logger("agents.runner")


class _Cancelled(Exception):
    pass


class _ModelGone(Exception):
    """The model failed several times in a row. It carries the last failure."""

    def __init__(self, error: llm.ModelError) -> None:
        super().__init__(error.code)
        self.error = error


async def execute(run_id: UUID) -> None:
    """Claim a run and bring it to an end, or to the point where it has to wait for its device."""
    job = await db.run(runs.claim, run_id)
    if job is None:
        return
    with structlog.contextvars.bound_contextvars(run_id=str(run_id), user_id=str(job.user_id)):
        try:
            await _Execution(job).run()
        except (LeaseLost, NoSuchUser):
            log.info("run.let_go")
        finally:
            await llm.aclose()


class _Execution:
    def __init__(self, job: Job) -> None:
        self.job = job
        self.link = DeviceLink(job.user_id, job.device)
        self.failures = 0
        self._shown_at = 0.0
        self._started = time.monotonic()

    async def run(self) -> None:
        job = self.job
        async with self.link:
            try:
                await self._first(self._work(), self._watch())
            except DeviceOffline:
                await db.run(runs.wait_for_device, job)
            except _Cancelled:
                await self._tell(AgentCancel(run_id=str(job.run_id)))
                await self._end(Run.State.CANCELLED, "cancelled")
            except TimeoutError:
                await self._tell(AgentCancel(run_id=str(job.run_id)))
                await self._end(Run.State.TIMEOUT, "deadline")
            except DeviceSilent:
                await self._end(Run.State.TIMEOUT, "device_silent")
            except _ModelGone as gone:
                await self._tell(AgentCancel(run_id=str(job.run_id)))
                await self._end(Run.State.ERROR, gone.error.code, gone.error.message)
            except AdiuvaError as error:
                await self._end(Run.State.ERROR, error.code, error.message)
            except LeaseLost:
                raise
            except Exception:
                log.exception("run.failed")
                await self._end(Run.State.ERROR, "internal_error")
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
        renew_at = time.monotonic() + runs.RENEW_S
        left = (self.job.deadline_at - timezone.now()) / dt.timedelta(seconds=1)
        async with asyncio.timeout(max(left, 0)):
            while True:
                await asyncio.sleep(_WATCH_S)
                renew = time.monotonic() >= renew_at
                if renew:
                    renew_at = time.monotonic() + runs.RENEW_S
                if not await db.run(runs.pulse, self.job, renew=renew):
                    raise _Cancelled
                if not await self.link.still_there():
                    raise DeviceOffline

    # The work

    async def _work(self) -> None:
        await self.link.target()
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
                await documents.put(document)
                await self._progress()
            await db.run(runs.count, self.job, phase=Run.Phase.EXTRACTING)
            for _ in range(lanes):
                await documents.put(None)
        await db.run(runs.count, self.job, phase=Run.Phase.DELIVERING)
        await self._deliver_what_waits()

    async def _projects(self) -> dict[str, str]:
        """The user's projects, so that what is found can name a real one."""
        result = await self.link.call("select", "projects", filters={})
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
            await self._progress()

    async def _one(self, document: Document, extractor: Extractor) -> None:
        try:
            found = await extractor.extract(document)
        except llm.ModelError as error:
            entry = Entry(Kind.SOURCE_FAILED, error.code, source=document.path, message=error.message)
            await db.run(runs.count, self.job, done=1, failed=1, entries=[entry])
            self.failures += 1
            if self.failures >= _MODEL_FAILURES and not isinstance(error, llm.BadOutput):
                raise _ModelGone(error) from None
            return
        self.failures = 0
        entries = [
            Entry(Kind.RECORD_QUARANTINED, item.code, source=document.path, message=item.reason)
            for item in found.rejected
        ]
        device = (await self.link.target()).pk
        new = await db.run(
            runs.keep,
            self.job,
            document,
            found.records,
            entries,
            device=device,
            model_calls=found.model_calls,
        )
        if new:
            await self._deliver(new, document.path)

    async def _deliver_what_waits(self) -> None:
        """Records of this run that an interruption left in line."""
        while waiting := await db.run(
            outbox.waiting, cipher=self.job.cipher, user_id=self.job.user_id, run_id=self.job.run_id
        ):
            await self._deliver(waiting, "")

    async def _deliver(self, records: list[Pending], path: str) -> None:
        async def mark_sent(ids: list[UUID]) -> None:
            await db.run(outbox.mark_sent, ids)

        outcomes = await outbox.deliver(self.link, records, mark_sent=mark_sent)
        await db.run(runs.settle, self.job, dict(outcomes), path)
        if any(isinstance(outcome, DeviceOffline) for outcome in outcomes.values()):
            raise DeviceOffline  # the rest stays in line

    # What others see of it

    async def _progress(self, *, last: Run | None = None) -> None:
        now = time.monotonic()
        if last is None and now - self._shown_at < _PROGRESS_S:
            return
        self._shown_at = now
        run = last if last is not None else await db.run(Run.objects.get, pk=self.job.run_id)
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
        except OSError:
            log.info("run.device_not_told", frame=frame.type)  # the channel layer is away; the row has it all

    async def _end(self, state: Run.State | None = None, code: str = "", message: str = "") -> None:
        run = await db.run(runs.finish, self.job, state, code, message)
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
