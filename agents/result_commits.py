"""Commit what documents gave and what devices answered: all or nothing, and never for a worker that lost its lease.

A transaction costs much the same for one document as for twenty. Results that arrive while one runs are committed
together in the next one. There is no timer: a result that arrives while none runs starts one at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from django.db import transaction

from adiuva.core import db
from adiuva.core.crypto import UserCipher
from adiuva.core.errors import AdiuvaError
from adiuva.devices import outbox
from adiuva.devices.models import OutboxRecord
from adiuva.devices.outbox import NewRecord, PendingRecord
from adiuva.devices.protocol import ToolResultBody
from agents import claimed_runs, journal, ledger, preview
from agents.claimed_runs import AgentGone, ClaimedRun
from agents.extraction import SourceDocument
from agents.journal import EventKind, JournalEntry
from agents.models import Run, Source
from agents.records import Record

# Records of a document are numbered from a multiple of this, so that they keep their order within the run.
_POSITIONS_PER_DOCUMENT: Final = 1_000
# Of a device's reason for refusing a record.
_REASON_CHARS: Final = 1_000


@dataclass(frozen=True)
class Extracted:
    """What a document gave. `entries` tell of records that could not be used."""

    document: SourceDocument
    records: Sequence[Record]
    entries: Sequence[JournalEntry] = ()
    model_calls: int = 1


@dataclass(frozen=True)
class ExtractionFailed:
    """A document that the model could not read. Without an entry, the failure is transient and it is read again."""

    document: SourceDocument
    entry: JournalEntry | None
    model_calls: int


@dataclass(frozen=True)
class DeviceAnswered:
    """What a device answered, by record. `path` is that of the document in which they were found."""

    outcomes: Mapping[UUID, ToolResultBody | AdiuvaError]
    path: str = ""


Result = Extracted | ExtractionFailed | DeviceAnswered


def commit_results(claimed: ClaimedRun, results: Sequence[Result]) -> list[list[PendingRecord]]:
    """Write results to outbox, ledger, journal and counts. Returns for each result the new records to deliver.

    After this, nothing is lost if the worker dies. A dry run adds its records to the preview instead. Raises LeaseLost,
    and AgentGone, which still commits what the device answered.
    """
    read = [result for result in results if isinstance(result, Extracted)]
    unread = [result for result in results if isinstance(result, ExtractionFailed)]
    with transaction.atomic():
        run = claimed_runs.held(claimed)
        is_gone = run.agent_id is None
        if is_gone:
            read = []
        new, entries = (_show if claimed.dry_run else _keep)(run, claimed, read)
        entries += [result.entry for result in unread if result.entry is not None]
        answered = [result for result in results if isinstance(result, DeviceAnswered)]
        created, answer_entries = settle_answers(claimed.cipher, answered)
        entries += answer_entries
        done: list[Extracted | ExtractionFailed] = [*read, *unread]
        ledger.clear_in_flight(claimed, [result.document.key for result in done])
        failed = sum(result.entry is not None for result in unread)
        run.set(
            files_done=run.files_done + len(read) + failed,
            files_failed=run.files_failed + failed,
            model_calls=run.model_calls + sum(result.model_calls for result in done),
            items_created=run.items_created + created,
            problems=run.problems + claimed_runs.count_problems(journal.write(run, entries)),
        )
    if is_gone and any(isinstance(result, Extracted) for result in results):
        raise AgentGone
    each = iter(new)
    return [next(each) if isinstance(result, Extracted) else [] for result in results]


def _keep(
    run: Run, claimed: ClaimedRun, read: Sequence[Extracted]
) -> tuple[list[list[PendingRecord]], list[JournalEntry]]:
    """Add the records to the outbox and the documents to the ledger."""
    if not read:
        return [], []
    assert (
        claimed.device is not None or claimed.account is not None
    )  # records of cloud agents get a device when they are sent
    found: list[NewRecord] = []
    # Which result gets a record: a device may send a document twice.
    first_result: dict[UUID | None, int] = {}
    for place, result in enumerate(read):
        document, start = result.document, (run.files_done + place) * _POSITIONS_PER_DOCUMENT
        for number, record in enumerate(result.records, start):
            key = record.key(claimed.cipher, claimed.agent_id, document.key)
            first_result.setdefault(key, place)
            found.append(NewRecord(key, document.key, number, record.table, record.data))
    new: list[list[PendingRecord]] = [[] for _ in read]
    added = outbox.add(
        cipher=claimed.cipher,
        user_id=claimed.user_id,
        device=claimed.device,
        run_id=claimed.run_id,
        records=found,
    )
    for pending in added:
        new[first_result[pending.key]].append(pending)
    outcomes = {True: Source.Outcome.QUARANTINED, False: Source.Outcome.DONE}
    ledger.record_outcomes(claimed, [(result.document, outcomes[bool(result.entries)]) for result in read])
    counted = zip(read, map(len, new), strict=True)
    return new, [entry for result, count in counted for entry in _about(result, count)]


def _show(
    run: Run, claimed: ClaimedRun, read: Sequence[Extracted]
) -> tuple[list[list[PendingRecord]], list[JournalEntry]]:
    """Add a dry run's records to its preview. None counts as new, because none is delivered."""
    entries: list[JournalEntry] = []
    for result in read:
        keyed = {
            record.key(claimed.cipher, claimed.agent_id, result.document.key): record
            for record in result.records
        }
        count, room = preview.append_records(run, claimed.cipher, result.document.path, keyed)
        entries += _about(result, count)
        if not room:
            entries.append(JournalEntry(EventKind.NOTE, "preview_full", key="once"))
    return [[] for _ in read], entries


def _about(result: Extracted, found: int) -> list[JournalEntry]:
    # With the content as key, reading a source again after it has changed is another event.
    key = result.document.content_hash.hex()
    return [
        *result.entries,
        JournalEntry(EventKind.SOURCE_DONE, count=found, source=result.document.path, key=key),
    ]


def settle_answers(cipher: UserCipher, answered: Sequence[DeviceAnswered]) -> tuple[int, list[JournalEntry]]:
    """Write what the device answered for records. Returns how many it created, and the journal entries to write."""
    settled = outbox.settle(
        cipher=cipher, outcomes={key: o for result in answered for key, o in result.outcomes.items()}
    )
    created = sum(state == OutboxRecord.State.DELIVERED for state in settled.values())
    entries = []
    for result in answered:
        states = [settled.get(key) for key in result.outcomes]
        if refused := states.count(OutboxRecord.State.REFUSED):
            said = (o.error for o in result.outcomes.values() if isinstance(o, ToolResultBody) and o.error)
            words = next(said, "")[:_REASON_CHARS]
            entries.append(
                JournalEntry(EventKind.RECORD_REFUSED, "device_refused", refused, result.path, words)
            )
        if uncertain := states.count(OutboxRecord.State.UNCERTAIN):
            entries.append(
                JournalEntry(EventKind.RECORD_UNCERTAIN, "outcome_unknown", uncertain, result.path)
            )
    return created, entries


class _PendingResult:
    def __init__(self, result: Result) -> None:
        self.result = result
        self.new: list[PendingRecord] | None = None
        self.error: BaseException | None = None


class GroupCommit:
    """Commits the results of a run's lanes, together if they arrive together."""

    def __init__(self, claimed: ClaimedRun) -> None:
        self._claimed = claimed
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
        try:
            new = await db.run(commit_results, self._claimed, [place.result for place in places])
        except BaseException as error:
            for place in places:
                place.error = error
            return
        for place, found in zip(places, new, strict=True):
            place.new = found
