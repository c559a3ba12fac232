"""Bring changes of a source to the rows that were found in it.

Until the user approves or edits a row, it follows its source; afterwards it stays, and the journal says what changed.
Like an undo, this compares the row with the device's last report of it. A change is noted before it is sent, so that
one whose answer was lost can be told from the same change by the user. A change that the user makes in the
milliseconds between our read and our write goes unnoticed.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast
from uuid import UUID
from zoneinfo import ZoneInfo

from django.db import transaction
from django.db.models.functions import Now

from adiuva.core import db
from adiuva.core.errors import AdiuvaError, Text
from adiuva.devices import outbox, tool_results
from adiuva.devices.calls import new_call
from adiuva.devices.link import DeviceLink, DeviceOffline, OutcomeUnknown
from adiuva.devices.link_errors import DeviceCannotSave
from adiuva.devices.models import OutboxRecord
from adiuva.devices.protocol import MAX_BATCH, TableName, ToolCall, ToolResultBody
from adiuva.devices.row_undo import RowChange
from adiuva.devices.tables import TABLES
from agents import claimed_runs, found_records, journal, run_changes
from agents.claimed_runs import ClaimedRun
from agents.journal import EventKind, JournalEntry
from agents.local_folders import DeviceSilent
from agents.models import FoundRecord
from agents.run_changes import RunChange

# Rows of other tables are never deleted because a document no longer names them: others may refer to them.
_WITHDRAWN: Final = frozenset({"tasks", "timelines", "notes"})
_STAYS: Final[Mapping[str, str]] = {
    "approved": Text("you have approved it, so it stays as it is"),
    "edited": Text("you have edited it, so it stays as it is"),
    "in_use": Text("something refers to it, so it stays"),
    "refused": Text("the device refused the change"),
    "kept": Text("rows of its table are not deleted by a run"),
}


@dataclass(frozen=True)
class _Sent:
    """A change that was sent to the device. `updates` is None for a withdrawal.

    `before`: the older values of the updated columns; of a withdrawn row, all. `call`: the call's id.
    """

    updates: dict[str, Any] | None
    before: dict[str, Any]
    call: str


@dataclass(frozen=True)
class _Row:
    """A row that is to follow its source. `updates` is None if it is to be withdrawn. `sent`: the changes whose outcome
    is not known.
    """

    id: UUID
    table: TableName
    row_id: str
    hash: bytes | None
    updates: dict[str, Any] | None
    before: Mapping[str, Any]
    title: str
    source: str
    sent: Sequence[_Sent]


@dataclass(frozen=True)
class _Settled:
    """The outcome for a row. `result`: the row that the device returned after an update. `stays`: why it did not
    follow.

    `before`: the row before this run changed it; None if it did not.
    """

    row: _Row
    result: Mapping[str, Any] | None = None
    before: Mapping[str, Any] | None = None
    is_withdrawn: bool = False
    stays: str = ""
    is_gone: bool = False


async def follow_sources(claimed: ClaimedRun, link: DeviceLink, device: UUID) -> None:
    """Bring all waiting changes to the rows on this device. Raises DeviceOffline, DeviceSilent, LeaseLost."""
    while rows := await db.run(_waiting, claimed, device):
        settled, cannot_save = await _follow(claimed, link, rows)
        await db.run(_settle, claimed, device, settled)
        if cannot_save:
            raise DeviceSilent(DeviceCannotSave.code)
        if len(settled) < len(rows):
            raise DeviceSilent


def _waiting(claimed: ClaimedRun, device: UUID) -> list[_Row]:
    """Return the first waiting changes of records that this device has."""
    pending = FoundRecord.objects.filter(agent_id=claimed.agent_id, pending__isnull=False)
    if not (found := {row.pk: row for row in pending}):
        return []
    delivered = OutboxRecord.objects.filter(
        pk__in=found, device=device, state=OutboxRecord.State.DELIVERED, row_id_sealed__isnull=False
    )
    rows = []
    for record in delivered.order_by("position")[:MAX_BATCH]:
        said = FoundRecord.pending.unseal_from(claimed.cipher, found[record.pk])
        rows.append(
            _Row(
                record.pk,
                cast(TableName, record.table),
                OutboxRecord.row_id_sealed.unseal_from(claimed.cipher, record),
                bytes(record.row_hash) if record.row_hash is not None else None,
                said["updates"],
                said["before"],
                said["title"],
                said["source"],
                [_Sent(**each) for each in said.get("sends", ())],
            )
        )
    return rows


async def _follow(claimed: ClaimedRun, link: DeviceLink, rows: Sequence[_Row]) -> tuple[list[_Settled], bool]:
    """Bring changes to rows. Returns the outcomes that are known, and whether the device could not save others."""
    found = await _answers(link, [new_call("get", row.table, data={"id": row.row_id}) for row in rows])
    settled: list[_Settled] = []
    going: list[_Row] = []
    before: dict[UUID, Mapping[str, Any]] = {}
    sent_calls: dict[UUID, str] = {}
    for row, answer in zip(rows, found, strict=True):
        now = answer.row
        withdrawal = next((each for each in row.sent if each.updates is None), None)
        if answer.error is not None:
            settled.append(_Settled(row, stays="refused"))
        elif now is None and row.updates is None and withdrawal is not None:
            going.append(row)  # the delete is sent again, to learn whether it was ours
            before[row.id], sent_calls[row.id] = withdrawal.before, withdrawal.call
        elif now is None:
            settled.append(_Settled(row, is_gone=True))
        else:
            earlier = _unchanged_row(claimed, row, now)
            if row.updates is not None and all(now.get(name) == value for name, value in row.updates.items()):
                # An earlier attempt did it, or the user, whose row it then stays.
                is_ours = earlier is not None and earlier is not now
                settled.append(_Settled(row, now, earlier) if is_ours else _Settled(row))
            elif reason := _reason(row, now, earlier):
                settled.append(_Settled(row, stays=reason))
            else:
                going.append(row)
                before[row.id] = earlier or now
    used = await _in_use(link, [row for row in going if row.updates is None and row.table == "tasks"])
    settled += [_Settled(row, stays="in_use") for row in going if row.id in used]
    going = [row for row in going if row.id not in used]
    calls = [_call(row, sent_calls.get(row.id)) for row in going]
    if calls:
        sending = [(row, before[row.id], call.id) for row, call in zip(going, calls, strict=True)]
        await db.run(_note_sent, claimed, sending)
    outcomes = await link.send_calls(calls) if calls else []
    cannot_save = False
    for row, outcome in zip(going, outcomes, strict=True):
        match outcome:
            case ToolResultBody(error=None, deleted=False) if row.updates is None:
                settled.append(_Settled(row, is_gone=True))
            case ToolResultBody(error=None) if row.updates is None:
                settled.append(_Settled(row, before=before[row.id], is_withdrawn=True))
            case ToolResultBody(error=None) if outcome.row is not None:
                settled.append(_Settled(row, outcome.row, before[row.id]))
            case ToolResultBody(code=tool_results.NOT_SAVED):
                cannot_save = True  # nothing happened: the change waits
            case ToolResultBody():
                settled.append(_Settled(row, stays="refused"))
            case DeviceOffline():
                raise DeviceOffline
            case _:
                pass  # the outcome is unknown: the next attempt reads the row first
    return settled, cannot_save


def _unchanged_row(claimed: ClaimedRun, row: _Row, now: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the row as the device last reported it: `now`, or `now` without what was sent since. None if the user has
    edited it."""
    found = [now]
    for sent in row.sent:
        if sent.updates and all(now.get(name) == value for name, value in sent.updates.items()):
            found.append({**now, **sent.before})
    hashes = (outbox.row_hash(claimed.cipher, row.table, each) for each in found)
    return next((each for each, said in zip(found, hashes, strict=True) if said == row.hash), None)


def _reason(row: _Row, now: Mapping[str, Any], earlier: Mapping[str, Any] | None) -> str:
    """Return why a row does not follow its source; empty if it does."""
    if now.get("isApproved") in (1, True):
        return "approved"
    if earlier is None:
        return "edited"
    return "kept" if row.updates is None and row.table not in _WITHDRAWN else ""


@transaction.atomic
def _note_sent(claimed: ClaimedRun, sending: Sequence[tuple[_Row, Mapping[str, Any], str]]) -> None:
    """Note which changes are about to be sent, each with the row before it and the call's id."""
    claimed_runs.held(claimed)
    found = FoundRecord.objects.in_bulk([row.id for row, _, _ in sending])
    for row, before, call in sending:
        if (record := found.get(row.id)) is not None:
            names = before if row.updates is None else row.updates
            old = {name: before.get(name) for name in names}
            sent = {"updates": row.updates, "before": old, "call": call}
            said = FoundRecord.pending.unseal_from(claimed.cipher, record)
            # The row may still have an earlier update, so these stay noted. An earlier withdrawal did not happen, or it
            # is this one, which is sent again.
            earlier = [each for each in said.get("sends", ()) if each["updates"] not in (None, row.updates)]
            said |= {"sends": [*earlier, sent]}
            record.pending = FoundRecord.pending.seal(claimed.cipher, said, record.pk)
    FoundRecord.objects.bulk_update(found.values(), ["pending"])


async def _answers(link: DeviceLink, calls: Sequence[ToolCall]) -> list[ToolResultBody]:
    """Return the answers to reads, which can simply be repeated. Raises DeviceOffline, DeviceSilent."""
    found: list[ToolResultBody] = []
    for outcome in await link.send_calls(calls) if calls else []:
        if isinstance(outcome, OutcomeUnknown):
            raise DeviceSilent
        if isinstance(outcome, AdiuvaError):
            raise outcome
        if outcome.error is not None and outcome.code == tool_results.NOT_SAVED:
            raise DeviceSilent(DeviceCannotSave.code)  # a device may read and write in one transaction
        found.append(outcome)
    return found


async def _in_use(link: DeviceLink, rows: Sequence[_Row]) -> set[UUID]:
    """Return tasks that have comments, or may have some."""
    calls = [new_call("select", "taskComments", filters={"taskId": row.row_id}, limit=1) for row in rows]
    answers = await _answers(link, calls)
    return {row.id for row, answer in zip(rows, answers, strict=True) if answer.rows is None or answer.rows}


def _call(row: _Row, call_id: str | None) -> ToolCall:
    """Return the change as a call. Its id is new, unless it is sent once more: the same change may come again, and a
    device answers an id that it knows without doing anything."""
    if row.updates is None:
        return new_call("delete", row.table, data={"id": row.row_id}, call_id=call_id)
    return new_call("update", row.table, data={"id": row.row_id, "updates": row.updates})


@transaction.atomic
def _settle(claimed: ClaimedRun, device: UUID, settled: Sequence[_Settled]) -> None:
    run = claimed_runs.held(claimed)
    # Withdrawn records are kept for an undo, which makes them known again.
    forgotten = [each.row.id for each in settled if each.row.updates is None and not each.is_withdrawn]
    FoundRecord.objects.filter(pk__in=[each.row.id for each in settled]).update(pending=None)
    found_records.forget(forgotten)
    withdrawn = [each.row.id for each in settled if each.is_withdrawn]
    OutboxRecord.objects.filter(pk__in=withdrawn).update(
        state=OutboxRecord.State.WITHDRAWN, row_hash=None, settled_at=Now()
    )
    for each in settled:
        if each.result is not None and not each.stays:
            said = outbox.row_hash(claimed.cipher, each.row.table, each.result)
            OutboxRecord.objects.filter(pk=each.row.id).update(row_hash=said)
    run_changes.add(claimed, device, [change for each in settled if (change := _change(claimed, each))])
    journal.write(run, [_entry(each, claimed.zone) for each in settled if not each.is_gone])


def _change(claimed: ClaimedRun, each: _Settled) -> RunChange | None:
    """Return the change for an undo of the run; None if the run changed nothing."""
    row = each.row
    if each.before is None:
        return None
    if each.result is None:
        change = RowChange("delete", row.table, row.row_id, row.title, dict(each.before))
    else:
        said = outbox.row_hash(claimed.cipher, row.table, each.result).hex()
        values = {name: each.before.get(name) for name in row.updates or ()}
        change = RowChange("update", row.table, row.row_id, row.title, values, said)
    return RunChange(row.id, change)


def _entry(each: _Settled, zone: ZoneInfo) -> JournalEntry:
    row = each.row
    said: str
    what = Text("it is not in its source any more") if row.updates is None else _changes(row, zone)
    if each.stays:
        code, said = "record_stays", Text("{what}; {why}", what=what, why=_STAYS[each.stays])
    else:
        code, said = ("record_withdrawn" if each.is_withdrawn else "record_followed"), what
    return JournalEntry(
        EventKind.NOTE, code, source=row.source, message=Text("“{title}”: {what}", title=row.title, what=said)
    )


def _changes(row: _Row, zone: ZoneInfo) -> str:
    """Return the changes of a row in words: "dueDate 2026-12-03 → 2026-12-10"."""
    columns = TABLES[row.table].by_name

    def shown(name: str, value: Any) -> str:
        if value is None:
            return "none"
        if columns[name].kind == "time":
            when = dt.datetime.fromtimestamp(value / 1000, zone)
            return when.date().isoformat() if when.time() == dt.time() else when.isoformat(" ", "minutes")
        return ", ".join(json.loads(value)) if columns[name].kind == "names" else str(value)[:200]

    said = []
    for name, value in (row.updates or {}).items():
        before = f"{shown(name, row.before[name])} → " if name in row.before else ""
        said.append(f"{name} {before}{shown(name, value)}")
    return "; ".join(said)
