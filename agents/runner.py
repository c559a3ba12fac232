"""Executes one run on one event loop: documents in, records out, several at a time while files still arrive."""

from __future__ import annotations

import asyncio
import threading
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager, nullcontext
from typing import Any, Final
from uuid import UUID

import structlog
from django.conf import settings
from django.db import InterfaceError, OperationalError
from redis.exceptions import RedisError

from adiuva import llm
from adiuva.accounts.keys import NoSuchUser
from adiuva.core import db
from adiuva.core.errors import AdiuvaError
from adiuva.core.leases import LeaseLost
from adiuva.devices import outbox, presence
from adiuva.devices.calls import new_call
from adiuva.devices.link import DeviceLink, DeviceOffline, DeviceRefused, OutcomeUnknown
from adiuva.devices.outbox import PendingRecord
from adiuva.devices.protocol import AgentCancel, AgentProgress, Error
from adiuva.devices.run_frame_buffer import FlowExceeded
from adiuva.devices.tables import TABLES
from agents import claimed_runs, delivery, ledger, outcomes
from agents.claimed_runs import AgentGone, ClaimedRun
from agents.extraction import Extraction, Extractor, SourceDocument
from agents.journal import EventKind, JournalEntry
from agents.local_folders import DeviceSilent, LocalFolders
from agents.mailbox import Mailbox
from agents.models import Run
from agents.records import RecordRules
from agents.result_commits import DeviceAnswered, Extracted, ExtractionFailed, GroupCommit
from integrations.errors import NeedsReauth, ProviderUnavailable
from memory import episodes

_WATCH_EVERY_S: Final = 2.0
_PROGRESS_EVERY_S: Final = 0.2
_MAX_MODEL_FAILURES: Final = 5  # in a row, after which the rest would fail as well
_MAX_UNREAD: Final = 1_000  # for reasons that pass, after which it is better to try again later
_RETRY_REQUEUE_S: Final = 1.0
_EPISODE_TITLES: Final = 10  # titles of what was found, in the episode that tells of the run
_POLL_S: Final = 0.05
_MAX_HELD_CHARS: Final = 16 * 1024 * 1024  # of documents that are held at once; a longer one is held alone
# What we stand on is away: the lease ends, and who claims the run next goes on.
_INFRASTRUCTURE_ERRORS: Final = (OperationalError, InterfaceError, RedisError, OSError)

log = structlog.get_logger("agents.runner")


class _Cancelled(Exception):
    pass


class _DeadlineReached(Exception):
    """The run's deadline has come."""


class _ModelUnavailable(Exception):
    """The model failed several times in a row. It carries the last failure. `is_over`: all else was read."""

    def __init__(self, error: llm.ModelError, *, is_over: bool = False) -> None:
        super().__init__(error.code)
        self.error, self.is_over = error, is_over


async def execute(run_id: UUID) -> None:
    """Claim a run and bring it to an end, or to the point where it has to wait for its device."""
    claimed = await db.run(claimed_runs.claim, run_id)
    if claimed is None:
        return
    with structlog.contextvars.bound_contextvars(run_id=str(run_id), user_id=str(claimed.user_id)):
        try:
            await _Execution(claimed).run()
        except (LeaseLost, NoSuchUser):
            log.info("run.let_go")
        except _INFRASTRUCTURE_ERRORS as error:
            log.warning("run.interrupted", error=type(error).__name__)
            await _interrupt(claimed)
        finally:
            await llm.aclose()


_suspect = threading.Lock()


@asynccontextmanager
async def _one_suspect_at_a_time() -> AsyncIterator[None]:
    """One at a time of all the runs in this process; each has a thread and an event loop of its own."""
    # A thread that waited for the lock could not be cancelled, and asyncio's own are for one loop.
    while not _suspect.acquire(blocking=False):  # noqa: ASYNC110
        await asyncio.sleep(_POLL_S)
    try:
        yield
    finally:
        _suspect.release()


async def _interrupt(claimed: ClaimedRun) -> None:
    """Give a run back as soon as that can be written: nobody died over it, and nobody need wait for its lease."""
    until = time.monotonic() + claimed_runs.lease_duration().total_seconds()
    while time.monotonic() < until:
        try:
            await db.run(outcomes.requeue_interrupted, claimed)
            return
        except LeaseLost:
            return
        except _INFRASTRUCTURE_ERRORS:
            await asyncio.sleep(_RETRY_REQUEUE_S)


def _renew_every_s() -> float:
    return claimed_runs.lease_duration().total_seconds() / 4


class _CharBudget:
    """How many characters of documents may be held at once."""

    def __init__(self) -> None:
        self._held = 0
        self._freed = asyncio.Condition()

    async def enter(self, size: int) -> None:
        async with self._freed:
            await self._freed.wait_for(lambda: not self._held or self._held + size <= _MAX_HELD_CHARS)
            self._held += size

    async def leave(self, size: int) -> None:
        async with self._freed:
            self._held -= size
            self._freed.notify_all()


class _Execution:
    link: DeviceLink
    source: LocalFolders | Mailbox

    def __init__(self, claimed: ClaimedRun) -> None:
        self.claimed = claimed
        self.device = claimed.device
        self.epoch: int | None = None
        self.failures = 0
        self.unread: list[JournalEntry] = []  # sources that failed for a reason that passes
        self.last_failure: llm.ModelError | None = None
        self.room = _CharBudget()
        self.results = GroupCommit(claimed)
        self.found: Counter[str] = Counter()  # records by table, of this attempt
        self.titles: list[str] = []
        self._shown_at = 0.0
        self._started = time.monotonic()

    @property
    def needs_device(self) -> bool:
        """Whether nothing can be read without the device. What a mailbox gave waits for one."""
        return self.claimed.account is None

    async def run(self) -> None:
        if not self.needs_device:
            found = await db.run(presence.find, user_id=self.claimed.user_id)
            self.device = found.pk if found else None
        async with DeviceLink(self.claimed.user_id, self.device) as self.link:
            try:
                await self._first(self._work(), self._watch())
            except DeviceOffline:
                await db.run(outcomes.wait_for_device, self.claimed, epoch=self.epoch)
            except (_Cancelled, AgentGone):
                await self._stop(Run.State.CANCELLED, "cancelled")
            except _DeadlineReached:
                await self._stop(Run.State.TIMEOUT, "deadline")
            except DeviceSilent:
                if not await self._later("device_silent"):
                    await self._stop(Run.State.TIMEOUT, "device_silent")
            except _ModelUnavailable as gone:
                await self._without_model(gone)
            except NeedsReauth as error:
                if not await db.run(outcomes.wait_for_reauth, self.claimed) and not await self._later(
                    error.code
                ):
                    await self._stop(Run.State.ERROR, error.code, error.message)
            except ProviderUnavailable as error:
                if not await self._later(error.code, error.message, error.retry_after_s):
                    await self._stop(Run.State.ERROR, error.code, error.message)
            except FlowExceeded as exceeded:
                await self._tell(
                    Error(code=exceeded.code, message=exceeded.message, ref=str(self.claimed.run_id))
                )
                run = await db.run(claimed_runs.current_run, self.claimed)
                state = Run.State.PARTIAL if run.items_processed else Run.State.ERROR
                await self._stop(state, exceeded.code, exceeded.message)
            except AdiuvaError as error:
                await self._stop(Run.State.ERROR, error.code, error.message)
            except (LeaseLost, *_INFRASTRUCTURE_ERRORS):
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
                raise _deciding_failure(group) from None

    async def _watch(self) -> None:
        """Cancel, deadline, lease and a connection that ended unheard, beside the work and not after it."""
        renew_at = time.monotonic() + _renew_every_s()
        late_at = self._started + self.claimed.seconds_to_deadline
        while True:
            left = late_at - time.monotonic()
            if left <= 0:
                raise _DeadlineReached
            await asyncio.sleep(min(_WATCH_EVERY_S, left))
            renew = time.monotonic() >= renew_at
            if renew:
                renew_at = time.monotonic() + _renew_every_s()
            if not await db.run(claimed_runs.heartbeat, self.claimed, renew=renew):
                raise _Cancelled
            if self.device is not None and not await self.link.is_current():
                self._without_device()

    def _without_device(self) -> None:
        """The device went. A run that does not need it goes on, and what it finds waits. Raise DeviceOffline."""
        if self.needs_device:
            raise DeviceOffline
        self.device = None

    # The work

    async def _work(self) -> None:
        if self.device is not None:
            try:
                self.epoch = (await self.link.target()).epoch
            except DeviceOffline:
                self._without_device()
        elif self.needs_device:
            raise DeviceOffline  # never seen; a link that names no device would take any
        await self._deliver_what_waits()
        rules = RecordRules(self.claimed.data_types, await self._projects(), self.claimed.zone)
        extractor = Extractor(llm.chat_model(), self.claimed.prompt_template, rules)
        at_once = settings.MODEL_CONCURRENCY
        # The client keeps to the limit of calls. As many lanes again commit and deliver, so that none waits for that.
        lanes = 2 * at_once
        # Bounded: the source acknowledges no batch before its documents found room here.
        documents: asyncio.Queue[SourceDocument | None] = asyncio.Queue(at_once)
        self.source = LocalFolders(self.link, self.claimed) if self.needs_device else Mailbox(self.claimed)
        async with asyncio.TaskGroup() as group:
            for lane in range(lanes):
                group.create_task(self._lane(documents, extractor), name=f"lane {lane}")
            async with aclosing(self.source.batches()) as batches:
                async for batch in batches:
                    for start in range(0, len(batch), at_once):
                        await self._hand_out(batch[start : start + at_once], documents, extractor)
                        await self._progress()
            await db.run(claimed_runs.add_counts, self.claimed, phase=Run.Phase.EXTRACTING)
            for _ in range(lanes):
                await documents.put(None)
        await self.source.finish()
        await db.run(claimed_runs.add_counts, self.claimed, phase=Run.Phase.DELIVERING)
        await self._deliver_what_waits()
        if self.unread and self.last_failure is not None:
            raise _ModelUnavailable(self.last_failure, is_over=True)

    async def _hand_out(
        self,
        batch: list[SourceDocument],
        documents: asyncio.Queue[SourceDocument | None],
        extractor: Extractor,
    ) -> None:
        """Give documents to the lanes. One over which a worker died is read with no other of its run beside it, and one
        over which two did with no other such in this process, so that it shows which one it was."""
        crashes = self.claimed.crash_counts
        for document in [document for document in batch if document.key in crashes]:
            if crashes[document.key] >= settings.RUNS["max_worker_crashes"]:
                await db.run(ledger.quarantine, self.claimed, document)
                await self.source.settled(document)
                continue
            await documents.join()
            async with _one_suspect_at_a_time() if crashes[document.key] > 1 else nullcontext():
                await db.run(ledger.mark_in_flight, self.claimed, [document.key])
                await self._one(document, extractor)
        others = [document for document in batch if document.key not in crashes]
        await db.run(ledger.mark_in_flight, self.claimed, [document.key for document in others])
        for document in others:
            await self.room.enter(len(document.content))
            await documents.put(document)

    async def _projects(self) -> dict[str, str]:
        """The user's projects, so that what is found can name a real one. Without a device, none are known."""
        if self.device is None:
            return {}
        try:
            result = await self.link.call(new_call("select", "projects", filters={}))
        except (DeviceOffline, OutcomeUnknown) as error:
            if not self.needs_device:
                self.device = None
                return {}
            if isinstance(error, DeviceOffline):
                raise
            raise DeviceSilent from None  # nothing was written, so nothing is unknown
        if result.error is not None or result.rows is None:
            raise DeviceRefused("the device could not list its projects")
        return {
            str(row["id"]): str(row.get("name") or "")
            for row in result.rows
            if row.get("id") and row.get("status") != "archived"
        }

    async def _lane(self, documents: asyncio.Queue[SourceDocument | None], extractor: Extractor) -> None:
        while (document := await documents.get()) is not None:
            await self._one(document, extractor)
            await self.room.leave(len(document.content))
            documents.task_done()
            await self._progress()

    async def _one(self, document: SourceDocument, extractor: Extractor) -> None:
        found = Extraction()
        try:
            await extractor.extract(document, found)
        except llm.ModelError as error:
            entry = JournalEntry(
                EventKind.SOURCE_FAILED, error.code, source=document.path, message=error.message
            )
            final = None if error.transient else entry
            await self.results.commit(ExtractionFailed(document, final, found.model_calls))
            self.failures += 1
            if final is None:
                self.unread.append(entry)
                self.last_failure = error
            is_gone = self.failures >= _MAX_MODEL_FAILURES or len(self.unread) >= _MAX_UNREAD
            if is_gone and not isinstance(error, llm.BadOutput):
                raise _ModelUnavailable(error) from None
            return
        self.failures = 0
        # However many a model gets wrong in the same way, it is one line of the journal.
        rejected = Counter((item.code, item.reason) for item in found.rejected)
        entries = [
            JournalEntry(EventKind.RECORD_QUARANTINED, code, times, document.path, reason)
            for (code, reason), times in rejected.items()
        ]
        new = await self.results.commit(Extracted(document, found.records, entries, found.model_calls))
        await self.source.settled(document)
        self.found.update(record.table for record in new)
        self.titles += [
            str(record.data.get(TABLES[record.table].title) or "") for record in new[:_EPISODE_TITLES]
        ]
        del self.titles[_EPISODE_TITLES:]
        if new:
            await self._deliver(new, document.path)

    async def _deliver_what_waits(self) -> None:
        """Records that an interruption, of this run or of one before it, left in line."""
        while self.device is not None and (
            waiting := await db.run(
                outbox.waiting,
                cipher=self.claimed.cipher,
                user_id=self.claimed.user_id,
                run_id=self.claimed.run_id,
                device=None if self.needs_device else self.device,
            )
        ):
            await self._deliver(waiting, "")

    async def _deliver(self, records: list[PendingRecord], path: str) -> None:
        async def settle(outcomes: delivery.Outcomes) -> None:
            await self.results.commit(DeviceAnswered(outcomes, path))

        if self.needs_device:
            await delivery.deliver_records(self.link, records, settle)
        elif self.device is not None:
            try:
                await delivery.deliver_unassigned(self.link, self.device, records, settle)
            except (DeviceOffline, DeviceSilent):
                self._without_device()

    # What others see of it

    async def _progress(self, *, last: Run | None = None) -> None:
        now = time.monotonic()
        if last is None and now - self._shown_at < _PROGRESS_EVERY_S:
            return
        self._shown_at = now
        run = last if last is not None else await db.run(claimed_runs.current_run, self.claimed)
        left = None
        if last is None and run.files_seen > run.files_done > run.files_unchanged:
            each = (now - self._started) / (run.files_done - run.files_unchanged)
            left = round(each * (run.files_seen - run.files_done), 1)
        await self._tell(
            AgentProgress(
                run_id=str(run.pk),
                agent_id=str(self.claimed.agent_id),
                state=run.phase or run.state,
                files_seen=run.files_seen,
                files_done=run.files_done,
                records_created=run.items_created,
                eta_s=left,
            )
        )

    async def _tell(self, frame: AgentProgress | AgentCancel | Error) -> None:
        try:
            await self.link.notify(frame)
        except (OSError, RedisError):
            log.info("run.device_not_told", frame=frame.type)  # the channel layer is away; the row has it all

    async def _without_model(self, gone: _ModelUnavailable) -> None:
        error = gone.error
        if error.transient and await self._later(error.code, error.message, error.retry_after):
            return
        if gone.is_over:
            await self._end()
        else:
            await self._stop(Run.State.ERROR, error.code, error.message)

    async def _later(self, code: str, message: str = "", retry_after: float | None = None) -> bool:
        """Put the run off, if it may be tried again."""
        if not await db.run(outcomes.retry_later, self.claimed, code, message, retry_after=retry_after):
            return False
        await self._tell(AgentCancel(run_id=str(self.claimed.run_id)))
        await self._progress(last=await db.run(claimed_runs.current_run, self.claimed))
        return True

    async def _stop(self, state: Run.State, code: str, message: str = "") -> None:
        """End a run before its work is done; the device need not go on."""
        run = await self._finish(state, code, message)
        await self._tell(AgentCancel(run_id=str(self.claimed.run_id)))
        await self._progress(last=run)

    async def _end(self) -> None:
        await self._remember()
        await self._progress(last=await self._finish())

    async def _remember(self) -> None:
        """What a run found is an episode of its user's, there before the run can be undone. No run fails over it."""
        if self.claimed.dry_run or not self.found:
            return
        run = await db.run(claimed_runs.current_run, self.claimed)
        now = await db.run(db.clock)
        try:
            await db.run(
                episodes.remember_run,
                user_id=run.user_id,
                run_id=run.pk,
                agent=run.agent_name,
                found=self.found,
                titles=self.titles,
                began_at=run.started_at or now,
                ended_at=now,
            )
        except AdiuvaError as error:
            log.warning("run.not_remembered", code=error.code)

    async def _finish(self, state: Run.State | None = None, code: str = "", message: str = "") -> Run:
        if failed := len(self.unread):
            await db.run(
                claimed_runs.add_counts, self.claimed, done=failed, failed=failed, entries=self.unread
            )
        return await db.run(outcomes.finish, self.claimed, state, code, message)


def _deciding_failure(group: ExceptionGroup[Exception]) -> Exception:
    """The one failure of a task group that decides how the run ends: losing the run, then the device, then others."""
    flat: list[Exception] = []
    for error in group.exceptions:
        flat.append(_deciding_failure(error) if isinstance(error, ExceptionGroup) else error)
    for kind in (LeaseLost, DeviceOffline):
        for error in flat:
            if isinstance(error, kind):
                return error
    return flat[0]
