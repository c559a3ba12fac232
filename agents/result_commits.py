"""Commit what documents gave and what devices answered: all or nothing, and never for a worker that lost its lease.

A transaction costs much the same for one document as for twenty. Results that arrive while one runs are committed
together in the next one. There is no timer: a result that arrives while none runs starts one at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Final
from uuid import UUID, uuid4

from django.db import transaction

from adiuva.core import db
from adiuva.core.crypto import UserCipher
from adiuva.core.errors import AdiuvaError, Text
from adiuva.devices import outbox
from adiuva.devices.models import OutboxRecord
from adiuva.devices.outbox import NewRecord, PendingRecord
from adiuva.devices.protocol import ToolResultBody
from adiuva.llm import Meter, ModelUse
from agents import claimed_runs, found_records, journal, ledger, preview
from agents.claimed_runs import AgentGone, ClaimedRun, used_columns
from agents.extraction import SourceDocument
from agents.journal import EventKind, JournalEntry
from agents.ledger import Identity
from agents.models import Run, RunEvent, Source
from agents.reconciliation import Change, KnownRecord, Reconciled, Repeat, reconcile
from agents.record_rules import Record, Verdict
from billing import usage
from billing.models import Purpose

# Records of a document are numbered from a multiple of this, so that they keep their order within the run.
_POSITIONS_PER_DOCUMENT: Final = 1_000
# Of a device's reason for refusing a record.
_REASON_CHARS: Final = 1_000
# Of a title in the journal, and entries about repeats in one document.
_TITLE_CHARS: Final = 200
_MAX_REPEATS: Final = 50


@dataclass(frozen=True)
class Extracted:
    """What a document gave. `entries` tell of records that could not be used.

    `identity` is None if it is not known yet. `verdicts`: what the model says of records that were found in it before.
    """

    document: SourceDocument
    records: Sequence[Record]
    entries: Sequence[JournalEntry] = ()
    model_calls: int = 1
    identity: Identity | None = None
    verdicts: Mapping[UUID, Verdict] = field(default_factory=dict)


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


def commit_results(
    claimed: ClaimedRun,
    results: Sequence[Result],
    uses: Sequence[ModelUse] = (),
    meter: Meter | None = None,
) -> list[list[PendingRecord]]:
    """Write results to outbox, ledger, journal and counts, with what was taken of the `meter`. Returns for each
    result the new records to deliver.

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
            **{name: getattr(run, name) + value for name, value in used_columns(uses).items()},
            problems=run.problems + claimed_runs.count_problems(journal.write(run, entries)),
        )
        if meter is not None:
            usage.settle(meter, uses, is_over=False)
    if is_gone and any(isinstance(result, Extracted) for result in results):
        raise AgentGone
    each = iter(new)
    return [next(each) if isinstance(result, Extracted) else [] for result in results]


def _keep(
    run: Run, claimed: ClaimedRun, read: Sequence[Extracted]
) -> tuple[list[list[PendingRecord]], list[JournalEntry]]:
    """Add the new records to the outbox and the documents to the ledger, and note what became of known records."""
    if not read:
        return [], []
    assert (
        claimed.device is not None or claimed.account is not None
    )  # records of cloud agents get a device when they are sent
    identities = _identities(claimed, read)
    known: dict[UUID, list[KnownRecord]] = {}
    if any(result.records or result.verdicts for result in read):
        found_records.lock(claimed.user_id)
        known = found_records.known_records(claimed, identities)
    found: list[NewRecord] = []
    remembered: list[tuple[UUID, UUID, Record]] = []
    changes: list[tuple[Change, str]] = []
    repeats: list[list[Repeat]] = []
    of_result: dict[UUID, int] = {}
    for place, (result, identity) in enumerate(zip(read, identities, strict=True)):
        document, start = result.document, (run.files_done + place) * _POSITIONS_PER_DOCUMENT
        there = known.setdefault(identity.document, [])
        gave = _reconcile(result, there)
        for number, (record, lost) in enumerate(gave.new, start):
            key = lost or uuid4()
            of_result[key] = place
            found.append(NewRecord(key, document.key, document.path, number, record.table, record.data))
            remembered.append((key, identity.document, record))
            there.append(KnownRecord(key, record))
        changes += [(change, document.path) for change in gave.changes]
        repeats.append(gave.repeats)
    new: list[list[PendingRecord]] = [[] for _ in read]
    added = outbox.add(
        cipher=claimed.cipher,
        user_id=claimed.user_id,
        device=claimed.device,
        run_id=claimed.run_id,
        records=found,
    )
    for pending in added:
        new[of_result[pending.id]].append(pending)
    found_records.add(claimed, remembered)
    found_records.change(claimed, changes)
    outcomes = {True: Source.Outcome.QUARANTINED, False: Source.Outcome.DONE}
    ledger.record_outcomes(
        claimed,
        [
            (result.document, identity, outcomes[_has_problems(result)])
            for result, identity in zip(read, identities, strict=True)
        ],
    )
    counted = zip(read, map(len, new), repeats, strict=True)
    return new, [entry for result, count, again in counted for entry in _about(result, count, again)]


def _has_problems(result: Extracted) -> bool:
    return any(entry.kind in RunEvent.PROBLEMS for entry in result.entries)


def _identities(claimed: ClaimedRun, read: Sequence[Extracted]) -> list[Identity]:
    unknown = [result.document for result in read if result.identity is None]
    found = ledger.identify(claimed, unknown) if unknown else {}
    return [result.identity or found[result.document.key] for result in read]


def _reconcile(result: Extracted, known: Sequence[KnownRecord]) -> Reconciled:
    @cache
    def text() -> str:
        return " ".join(result.document.content.casefold().split())

    def occurrences(title: str) -> int:
        return text().count(" ".join(title.casefold().split()))

    return reconcile(result.records, result.verdicts, known, occurrences)


def _show(
    run: Run, claimed: ClaimedRun, read: Sequence[Extracted]
) -> tuple[list[list[PendingRecord]], list[JournalEntry]]:
    """Add a dry run's records to its preview. None counts as new, because none is delivered."""
    entries: list[JournalEntry] = []
    identities = _identities(claimed, read)
    known = found_records.known_records(claimed, identities) if read else {}
    for result, identity in zip(read, identities, strict=True):
        gave = _reconcile(result, known.get(identity.document, []))
        shown = [(record, False) for record, _ in gave.new] + [(each.record, True) for each in gave.repeats]
        room = preview.append_records(run, claimed.cipher, result.document.path, shown)
        entries += _about(result, len(gave.new))
        if not room:
            entries.append(JournalEntry(EventKind.NOTE, "preview_full", key="once"))
    return [[] for _ in read], entries


def _about(result: Extracted, found: int, repeats: Sequence[Repeat] = ()) -> list[JournalEntry]:
    # With the content as key, reading a source again after it has changed is another event.
    key = result.document.content_hash.hex()
    path = result.document.path
    left_out = [
        JournalEntry(
            EventKind.NOTE,
            "repeat_left_out",
            source=path,
            message=Text(
                "“{title}” is known already ({place})",
                title=each.record.title[:_TITLE_CHARS],
                place=each.record.place or Text("once more"),
            ),
            key=f"{key} {number}",
        )
        for number, each in enumerate(repeats[:_MAX_REPEATS])
    ]
    if (more := len(repeats) - _MAX_REPEATS) > 0:
        left_out.append(JournalEntry(EventKind.NOTE, "repeat_left_out", more, path, key=f"{key} more"))
    return [
        *result.entries,
        *left_out,
        JournalEntry(EventKind.SOURCE_DONE, count=found, source=path, key=key),
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
        uses = self._meter.take()
        try:
            new = await db.run(
                commit_results, self._claimed, [place.result for place in places], uses, self._meter
            )
        except BaseException as error:
            if not isinstance(error, AgentGone):  # which has written them
                self._meter.give_back(uses)
            for place in places:
                place.error = error
            return
        for place, found in zip(places, new, strict=True):
            place.new = found
