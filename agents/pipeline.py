"""The pipeline of a run: documents are read from the source, records extracted from them, committed and delivered.

Several documents are processed at a time while others still arrive.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing, nullcontext
from typing import Final
from uuid import UUID

from django.conf import settings

from adiuva import llm
from adiuva.core import db, tracing
from adiuva.core.per_loop import PerLoop
from adiuva.devices import outbox
from adiuva.devices.link import DeviceLink, DeviceOffline
from agents import delivery, found_records, ledger, source_changes
from agents.claimed_runs import ClaimedRun, HeldCounts
from agents.extraction import Extraction, Extractor, SourceDocument
from agents.group_commit import FoundRecords, GroupCommit, GroupDelivery
from agents.journal import EventKind, JournalEntry
from agents.ledger import Identity
from agents.local_folders import DeviceSilent, LocalFolders, list_projects
from agents.mailbox import Mailbox
from agents.models import Run
from agents.progress import ProgressReporter
from agents.reconciliation import KnownRecord
from agents.record_validation import RecordRules
from agents.result_commits import DeviceAnswered, Extracted, ExtractionFailed
from memory.profile import read_profile

# After this many failures of the model in a row, it counts as unavailable.
_MAX_MODEL_FAILURES: Final = 5
# After this many documents unread because of transient failures, it is better to retry the run later.
_MAX_UNREAD: Final = 1_000
# The most characters of documents held at once; a longer document is held alone.
_MAX_HELD_CHARS: Final = 16 * 1024 * 1024
# The most places of one mistake that the journal names.
_MAX_PLACES: Final = 5


class ModelKeepsFailing(Exception):
    """The model failed several times in a row; `error` is the last failure. `is_over`: whether all else was read."""

    def __init__(self, error: llm.ModelError, *, is_over: bool = False) -> None:
        super().__init__(error.code)
        self.error, self.is_over = error, is_over


# More than 250 lines: one place bounds and counts all that is read, extracted, committed and delivered at once.
class Pipeline:
    """Reads, extracts, commits and delivers everything of one run.

    `counts`: the part of its counts that is not written yet. `progressed_at`: when a document last arrived or was read,
    by the monotonic clock. `has_found`: whether this attempt found a new record. `unread` holds the sources that failed
    for a transient reason.
    """

    source: LocalFolders | Mailbox

    def __init__(
        self,
        claimed: ClaimedRun,
        link: DeviceLink,
        device: UUID | None,
        progress: ProgressReporter,
        meter: llm.Meter,
    ) -> None:
        self._claimed, self._link, self._progress = claimed, link, progress
        self.device = device
        self.epoch: int | None = None
        self.counts = HeldCounts(claimed)
        self.progressed_at = time.monotonic()
        self.unread: list[JournalEntry] = []
        self.has_found = False
        self._failures = 0
        self._last_failure: llm.ModelError | None = None
        self._spent: llm.BudgetSpent | None = None  # why there is no money for further requests
        self._budget = _CharBudget()
        self._results = GroupCommit(claimed, meter)
        self._deliveries = GroupDelivery(self._deliver)
        self._identities: dict[bytes, Identity] = {}  # identities of documents that are being processed
        self._read_before: set[UUID] = set()  # documents with records
        self._may_wait = claimed.records_wait  # whether records may wait to be delivered
        self._may_follow = claimed.changes_wait  # whether changes may wait for their rows

    @property
    def needs_device(self) -> bool:
        """True if nothing can be read without the device. Records from a mailbox can wait for one."""
        return self._claimed.account is None

    def device_lost(self) -> None:
        """Continue without the device, or raise DeviceOffline if the run needs it."""
        if self.needs_device:
            raise DeviceOffline
        self.device = None

    async def run(self) -> None:
        """Run to the end.

        Raises ModelKeepsFailing, DeviceOffline, DeviceSilent, AgentGone, LeaseLost, BudgetSpent, and errors of the
        source.
        """
        if self.device is not None:
            try:
                self.epoch = (await self._link.target()).epoch
            except DeviceOffline:
                self.device_lost()
        elif self.needs_device:
            raise DeviceOffline  # it never connected; a link that names no device would take any
        await self._deliver_waiting()
        projects = await self._projects()
        extractor: Extractor | None = None  # made when there is something to read
        at_once = settings.MODEL_CONCURRENCY_PER_USER
        # The model's client limits its calls. There are twice as many lanes, because those that commit or deliver make
        # none.
        lanes = 2 * at_once
        # Bounded: the source acknowledges no batch before its documents have found a place here.
        documents: asyncio.Queue[SourceDocument | None] = asyncio.Queue(at_once)
        self.source = (
            LocalFolders(self._link, self._claimed, self.counts)
            if self.needs_device
            else Mailbox(self._claimed)
        )
        async with asyncio.TaskGroup() as group:
            async with aclosing(self.source.batches()) as batches:
                async for batch in batches:
                    if self._spent:
                        break
                    self.progressed_at = time.monotonic()
                    if extractor is None:
                        extractor = await self._new_extractor(projects)
                        for lane in range(lanes):
                            group.create_task(self._lane(documents, extractor), name=f"lane {lane}")
                    for start in range(0, len(batch), at_once):
                        await self._hand_out(batch[start : start + at_once], documents, extractor)
                        await self._progress.report()
            await self.counts.add(hold=extractor is None, phase=Run.Phase.EXTRACTING)
            for _ in range(lanes if extractor else 0):
                await documents.put(None)
        if self._spent:  # everything under way is done and delivered
            raise self._spent
        await self.source.finish()
        await self.counts.add(hold=extractor is None, phase=Run.Phase.DELIVERING)
        await self._deliver_waiting()
        await self._follow_sources()
        if self.unread and self._last_failure is not None:
            raise ModelKeepsFailing(self._last_failure, is_over=True)

    async def _deliver_waiting(self) -> None:
        """Deliver records that wait since an interruption of this run, or of one before it."""
        while (
            self._may_wait
            and self.device is not None
            and (
                waiting := await db.run(
                    outbox.waiting,
                    cipher=self._claimed.cipher,
                    user_id=self._claimed.user_id,
                    run_id=self._claimed.run_id,
                    device=None if self.needs_device else self.device,
                )
            )
        ):
            await self._deliver([FoundRecords(waiting, "")])
        self._may_wait = self.device is None

    async def _follow_sources(self) -> None:
        """Bring the changes of sources to the rows that were found in them."""
        if self.device is None or self._claimed.dry_run or not self._may_follow:
            return
        try:
            await source_changes.follow_sources(self._claimed, self._link, self.device)
        except (DeviceOffline, DeviceSilent):
            if self.needs_device:
                raise
            self.device_lost()

    async def _known(self, identity: Identity | None) -> list[KnownRecord]:
        """Return the records found in a document before, for the model."""
        if identity is None or identity.document not in self._read_before:
            return []
        found = await db.run(found_records.known_records, self._claimed, [identity])
        return found.get(identity.document, [])

    async def _deliver(self, found: Sequence[FoundRecords]) -> None:
        """Deliver the records of documents together, and commit the device's answers."""
        records = [record for each in found for record in each.records]

        async def settle(outcomes: delivery.Outcomes) -> None:
            answered = []
            for of_document, path in found:
                tables: dict[UUID, str] = {record.id: record.table for record in of_document}
                said = {key: outcomes[key] for key in tables if key in outcomes}
                answered.append(DeviceAnswered(said, path, tables))
            await self._results.commit_all(answered)

        if self.needs_device:
            await delivery.deliver_records(self._link, records, settle)
        elif self.device is not None:
            try:
                await delivery.deliver_unassigned(self._link, self.device, records, settle)
            except (DeviceOffline, DeviceSilent):
                self.device_lost()

    async def _new_extractor(self, projects: dict[str, str]) -> Extractor:
        model = llm.chat_model(purpose="extraction")
        profile = await db.run(read_profile, self._claimed.user_id, model)
        rules = RecordRules(self._claimed.data_types, projects, self._claimed.zone)
        return Extractor(model, self._claimed.prompt_template, rules, profile)

    async def _projects(self) -> dict[str, str]:
        """Return the user's projects, so that records can refer to real ones; none without a device."""
        if self.device is None:
            return {}
        try:
            return await list_projects(self._link)
        except (DeviceOffline, DeviceSilent):
            if self.needs_device:
                raise
            self.device = None
            return {}

    async def _hand_out(
        self,
        batch: list[SourceDocument],
        documents: asyncio.Queue[SourceDocument | None],
        extractor: Extractor,
    ) -> None:
        """Pass documents to the lanes.

        A document over which one worker crashed is read while no other of this run is; one over which two crashed,
        while no other such document is in this process. So the next crash shows which document caused it.
        """
        crashes = self._claimed.crash_counts
        others = [document for document in batch if document.key not in crashes]
        is_plain = len(others) == len(batch)
        identities, read_before = await db.run(_identify, self._claimed, batch, marked=is_plain)
        self._identities |= identities
        self._read_before |= read_before
        for document in [document for document in batch if document.key in crashes]:
            if crashes[document.key] >= settings.RUNS["max_worker_crashes"]:
                await db.run(ledger.quarantine, self._claimed, document)
                await self.source.settled(document)
                continue
            await documents.join()
            async with _suspect_locks.get() if crashes[document.key] > 1 else nullcontext():
                await db.run(ledger.mark_in_flight, self._claimed, [document.key])
                await self._process(document, extractor)
        if not is_plain:
            await db.run(ledger.mark_in_flight, self._claimed, [document.key for document in others])
        for document in others:
            await self._budget.acquire(len(document.content))
            await documents.put(document)

    async def _lane(self, documents: asyncio.Queue[SourceDocument | None], extractor: Extractor) -> None:
        while (document := await documents.get()) is not None:
            await self._process(document, extractor)
            self._budget.release(len(document.content))
            documents.task_done()
            await self._progress.report()

    async def _process(self, document: SourceDocument, extractor: Extractor) -> None:
        extraction = Extraction()
        with tracing.span("document") as span:
            try:
                await self._extract_and_deliver(document, extractor, extraction)
            finally:
                span.set(adiuva__model_calls=extraction.model_calls, adiuva__records=len(extraction.records))

    async def _extract_and_deliver(
        self, document: SourceDocument, extractor: Extractor, extraction: Extraction
    ) -> None:
        identity = self._identities.pop(document.key, None)
        if self._spent:
            return  # read when there is money again
        try:
            await extractor.extract(document, extraction, await self._known(identity))
        except llm.BudgetSpent as spent:
            self._spent = spent
            await self._results.commit(ExtractionFailed(document, None, extraction.model_calls))
            return
        except llm.ModelError as error:
            await self._extraction_failed(document, error, extraction.model_calls)
            return
        self.progressed_at = time.monotonic()
        self._failures = 0
        extracted = Extracted(
            document,
            extraction.records,
            _entries(document, extraction),
            extraction.model_calls,
            identity,
            extraction.verdicts,
        )
        self._may_follow = True
        new = await self._results.commit(extracted)
        await self.source.settled(document)
        if new:
            self.has_found = self._may_wait = True
            await self._deliveries.deliver(FoundRecords(new, document.path))

    async def _extraction_failed(
        self, document: SourceDocument, error: llm.ModelError, model_calls: int
    ) -> None:
        entry = JournalEntry(EventKind.SOURCE_FAILED, error.code, source=document.path, message=error.message)
        final = None if error.transient else entry
        await self._results.commit(ExtractionFailed(document, final, model_calls))
        self._failures += 1
        if final is None:
            self.unread.append(entry)
            self._last_failure = error
        is_unavailable = self._failures >= _MAX_MODEL_FAILURES or len(self.unread) >= _MAX_UNREAD
        if is_unavailable and not isinstance(error, llm.BadOutput):
            raise ModelKeepsFailing(error) from None


def _identify(
    claimed: ClaimedRun, batch: list[SourceDocument], *, marked: bool
) -> tuple[dict[bytes, Identity], set[UUID]]:
    """Return these documents' identities, by key, and those with records. `marked`: their reading begins at once."""
    identities = ledger.identify(claimed, batch)
    read_before = found_records.with_records(claimed, identities.values())
    if marked:
        ledger.mark_in_flight(claimed, [document.key for document in batch])
    return identities, read_before


def _entries(document: SourceDocument, extraction: Extraction) -> list[JournalEntry]:
    """Return journal entries about unusable records: one for each kind of mistake, with its places."""
    rejected: dict[tuple[str, str], list[str]] = {}
    left_out: dict[str, list[str]] = {}
    for item in extraction.rejected:
        rejected.setdefault((item.code, item.reason), []).append(item.place)
    for record in extraction.records:
        for problem in record.problems:
            left_out.setdefault(problem.reason, []).append(record.place)
    return [
        JournalEntry(EventKind.RECORD_QUARANTINED, code, len(places), document.path, _at(reason, places))
        for (code, reason), places in rejected.items()
    ] + [
        JournalEntry(
            EventKind.NOTE,
            "field_left_out",
            len(places),
            document.path,
            f"{_at(reason, places)}; the record was kept without it",
            key=document.content_hash.hex() + reason,
        )
        for reason, places in left_out.items()
    ]


def _at(reason: str, places: list[str]) -> str:
    said = [place for place in dict.fromkeys(places) if place]
    more = ", …" if len(said) > _MAX_PLACES else ""
    return f"{reason} ({', '.join(said[:_MAX_PLACES])}{more})" if said else reason


class _CharBudget:
    """Limits how many characters of documents are held at once. One task acquires, others release."""

    def __init__(self) -> None:
        self._held = 0
        self._freed = asyncio.Event()

    async def acquire(self, size: int) -> None:
        while self._held and self._held + size > _MAX_HELD_CHARS:
            self._freed.clear()
            await self._freed.wait()
        self._held += size

    def release(self, size: int) -> None:
        self._held -= size
        self._freed.set()


# The runs of a worker share one event loop: only one suspect at a time may crash it.
_suspect_locks: Final = PerLoop(asyncio.Lock)
