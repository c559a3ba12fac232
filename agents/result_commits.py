"""Commit documents' records and devices' answers: all or nothing, and never for a worker that lost its lease.

A transaction costs much the same for one document as for twenty, so several results are written together
(`agents.group_commit`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Final
from uuid import UUID, uuid4

from django.db import transaction
from django.db.models import F

from adiuva.core.crypto import UserCipher
from adiuva.core.db import prepared_cursor
from adiuva.core.errors import AdiuvaError, Text
from adiuva.core.leases import LeaseLost
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
from agents.models import RunEvent, Source
from agents.reconciliation import Change, KnownRecord, Reconciled, Repeat, reconcile
from agents.record_validation import Record, Verdict
from billing import usage

# Records of a document are numbered from a multiple of this, so that they keep their order within the run.
_POSITIONS_PER_DOCUMENT: Final = 1_000
# The most characters kept of a device's reason for refusing a record.
_REASON_CHARS: Final = 1_000
# The longest title in the journal, and in entries about repeats in one document.
_TITLE_CHARS: Final = 200
_MAX_REPEATS: Final = 50


@dataclass(frozen=True)
class Extracted:
    """The result of reading a document. `entries` tell of records that could not be used.

    `identity` is None if it is not known yet. `verdicts`: the model's verdicts on records that were found in it before.
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
    """The answers of a device, by record. `path`: that of the document in which they were found; `tables`: those of the
    records, if they are at hand.
    """

    outcomes: Mapping[UUID, ToolResultBody | AdiuvaError]
    path: str = ""
    tables: Mapping[UUID, str] = field(default_factory=dict)


Result = Extracted | ExtractionFailed | DeviceAnswered


# Locks the run and then, until the end of the transaction, the records found in documents of its user.
_HOLD: Final = """
WITH held AS MATERIALIZED (
    SELECT agent_id, files_done FROM agents_run WHERE id = %(run)s::uuid AND fence = %(fence)s FOR NO KEY UPDATE
)
SELECT agent_id, files_done, CASE WHEN %(locks)s THEN pg_advisory_xact_lock(hashtextextended(%(lock)s, 0))::text END
FROM held
"""
_USED_SQL: Final = """
    input_tokens = input_tokens + %(input_tokens)s, cached_tokens = cached_tokens + %(cached_tokens)s,
    output_tokens = output_tokens + %(output_tokens)s, cost_micro = cost_micro + %(cost_micro)s
"""


@cache
def _commit_sql(settling: str) -> str:
    """Return the statement that writes everything of results, except the outbox, which is written with its answer.

    `settling`: the part that pays for them.
    """
    return f"""
WITH found AS ({found_records.INSERT_SQL}),
read AS ({ledger.RECORD_SQL}),
cleared AS ({ledger.CLEAR_IN_FLIGHT_SQL}),
written AS ({journal.INSERT_SQL}),
counted AS (
    UPDATE agents_run SET files_done = files_done + %(done)s, files_failed = files_failed + %(failed)s,
        model_calls = model_calls + %(model_calls)s, items_created = items_created + %(created)s,
        problems = problems + (
            SELECT COALESCE(sum(COALESCE(NULLIF(count, 0), 1)), 0) FROM written WHERE kind = ANY(%(problems)s::text[])
        ), {_USED_SQL}
    WHERE id = %(run)s::uuid
){"," if settling else ""} {settling}
SELECT nonce FROM written
"""  # noqa: S608  # of our own texts


# Writes the rows that a device created, in one statement, which is a transaction of its own.
_CREATED: Final = f"""
WITH held AS MATERIALIZED (
    SELECT id FROM agents_run WHERE id = %(run)s::uuid AND fence = %(fence)s FOR NO KEY UPDATE
),
settled AS ({outbox.SETTLE_SQL} AND EXISTS (SELECT FROM held) RETURNING record.id),
counted AS (
    UPDATE agents_run SET items_created = items_created + (SELECT count(*) FROM settled)
    FROM held WHERE agents_run.id = held.id
)
SELECT FROM held
"""  # noqa: S608  # of our own texts


def commit_results(
    claimed: ClaimedRun,
    results: Sequence[Result],
    uses: Sequence[ModelUse] = (),
    meter: Meter | None = None,
) -> list[list[PendingRecord]]:
    """Write results to outbox, ledger, journal and counts, and settle the `meter`. Returns for each result the new
    records to deliver.

    After this, nothing is lost if the worker dies. A dry run adds its records to the preview instead. Raises LeaseLost,
    and AgentGone, which still commits the device's answers.
    """
    if not uses and (created := _only_created(results)) is not None:
        _commit_created(claimed, created)
        return [[] for _ in results]
    read = [result for result in results if isinstance(result, Extracted)]
    unread = [result for result in results if isinstance(result, ExtractionFailed)]
    with transaction.atomic():
        agent_id, files_done = _hold(
            claimed, records=any(result.records or result.verdicts for result in read)
        )
        is_gone = agent_id is None
        if is_gone:
            read = []
        kept = _show(claimed, read) if claimed.dry_run else _keep(files_done, claimed, read)
        entries = kept.entries
        entries += [result.entry for result in unread if result.entry is not None]
        answered = [result for result in results if isinstance(result, DeviceAnswered)]
        created_here, answer_entries = settle_answers(claimed.cipher, answered)
        entries += answer_entries
        done: list[Extracted | ExtractionFailed] = [*read, *unread]
        failed = sum(result.entry is not None for result in unread)
        settling, paid = usage.settling(meter, uses) if meter is not None else ("", {})
        prepared = journal.prepare(claimed.run_id, claimed.cipher, entries)
        with prepared_cursor() as cursor:
            cursor.execute(
                _commit_sql(settling),
                {
                    "run": claimed.run_id,
                    "done": len(read) + failed,
                    "failed": failed,
                    "model_calls": sum(result.model_calls for result in done),
                    "created": created_here,
                    "problems": [str(kind) for kind in RunEvent.PROBLEMS],
                    "keys_read": [result.document.key for result in done],
                    **used_columns(uses),
                    **found_records.insert_values(claimed, kept.remembered),
                    **ledger.record_values(claimed, kept.sources),
                    **prepared.values(),
                    **paid,
                },
            )
            inserted = {nonce for (nonce,) in cursor.fetchall()}
        counted = [prepared.wanted[nonce] for nonce in inserted]
        new_entries = journal.settle(prepared, inserted)
        if len(new_entries) > len(counted):  # events that exist with another count are written twice
            problems = claimed_runs.count_problems(new_entries) - claimed_runs.count_problems(counted)
            claimed.lease.write(problems=F("problems") + problems)
    if is_gone and any(isinstance(result, Extracted) for result in results):
        raise AgentGone
    each = iter(kept.new)
    return [next(each) if isinstance(result, Extracted) else [] for result in results]


def _hold(claimed: ClaimedRun, *, records: bool) -> tuple[UUID | None, int]:
    """Lock the run, and its user's found records if there are `records`. Returns its agent, None if that was deleted,
    and how many files are done. Raises LeaseLost.
    """
    with prepared_cursor() as cursor:
        cursor.execute(
            _HOLD,
            {
                "run": claimed.run_id,
                "fence": claimed.lease.fence,
                "locks": records and not claimed.dry_run,
                "lock": found_records.lock_name(claimed.user_id),
            },
        )
        row = cursor.fetchone()
    if row is None:
        raise LeaseLost
    return row[0], row[1]


def _only_created(results: Sequence[Result]) -> list[DeviceAnswered] | None:
    """Return the results, if all of them are rows that a device has created: these need nothing else."""
    answered = [result for result in results if isinstance(result, DeviceAnswered) and result.tables]
    if len(answered) < len(results):
        return None
    for result in answered:
        for outcome in result.outcomes.values():
            if not isinstance(outcome, ToolResultBody) or outcome.error is not None or outcome.row is None:
                return None
    return answered


def _commit_created(claimed: ClaimedRun, answered: Sequence[DeviceAnswered]) -> None:
    outcomes = {key: outcome for result in answered for key, outcome in result.outcomes.items()}
    tables = {key: table for result in answered for key, table in result.tables.items()}
    values = outbox.settle_values(claimed.cipher, outcomes, tables)
    with prepared_cursor() as cursor:
        cursor.execute(_CREATED, {"run": claimed.run_id, "fence": claimed.lease.fence, **values})
        if cursor.fetchone() is None:
            raise LeaseLost


@dataclass
class _Kept:
    """The rows to write for documents: `remembered` and `sources` are arguments for found_records and ledger, `new` the
    records of each that are in the outbox by now.
    """

    new: list[list[PendingRecord]] = field(default_factory=list)
    entries: list[JournalEntry] = field(default_factory=list)
    remembered: list[tuple[UUID, UUID, Record]] = field(default_factory=list)
    sources: list[tuple[bytes, bytes, Identity, Source.Outcome]] = field(default_factory=list)


def _keep(files_done: int, claimed: ClaimedRun, read: Sequence[Extracted]) -> _Kept:
    """Add the new records to the outbox, and note what became of known records."""
    if not read:
        return _Kept()
    assert (
        claimed.device is not None or claimed.account is not None
    )  # records of cloud agents get a device when they are sent
    identities = _identities(claimed, read)
    known: dict[UUID, list[KnownRecord]] = {}
    if any(result.records or result.verdicts for result in read):
        known = found_records.known_records(claimed, identities)
    found: list[NewRecord] = []
    remembered: list[tuple[UUID, UUID, Record]] = []
    changes: list[tuple[Change, str]] = []
    repeats: list[list[Repeat]] = []
    of_result: dict[UUID, int] = {}
    for place, (result, identity) in enumerate(zip(read, identities, strict=True)):
        document, start = result.document, (files_done + place) * _POSITIONS_PER_DOCUMENT
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
    found_records.change(claimed, changes)
    outcomes = {True: Source.Outcome.QUARANTINED, False: Source.Outcome.DONE}
    sources = [
        (result.document.key, result.document.content_hash, identity, outcomes[_has_problems(result)])
        for result, identity in zip(read, identities, strict=True)
    ]
    counted = zip(read, map(len, new), repeats, strict=True)
    entries = [entry for result, count, again in counted for entry in _about(result, count, again)]
    return _Kept(new, entries, remembered, sources)


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


def _show(claimed: ClaimedRun, read: Sequence[Extracted]) -> _Kept:
    """Add a dry run's records to its preview. No record counts as new, because none is delivered."""
    run = claimed_runs.held(claimed)
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
    return _Kept([[] for _ in read], entries)


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
    """Write the device's answers for records. Returns how many it created, and the journal entries to write."""
    tables = {key: table for result in answered for key, table in result.tables.items()}
    settled = outbox.settle(
        cipher=cipher,
        outcomes={key: o for result in answered for key, o in result.outcomes.items()},
        tables=tables if all(result.tables for result in answered) else None,
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
