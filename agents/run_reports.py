"""A run as facts for people: how it stands or ended, what it found, and what went wrong. No words of a model.

Records are the outbox's rows: the device's id of each, and its title as it was found.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal
from uuid import UUID

from django.db.models import Count

from adiuva.accounts.keys import cipher_for
from adiuva.core.crypto import SealBroken, UserCipher
from adiuva.devices import outbox
from adiuva.devices.models import Device, OutboxRecord
from adiuva.devices.tables import TABLES
from agents import journal, preview
from agents.models import Agent, FoundRecord, Run
from integrations.models import Connection

MOST_RECORDS: Final = 50
_MOST_PROBLEMS: Final = 5
_GONE: Final = (OutboxRecord.State.UNDONE, OutboxRecord.State.WITHDRAWN)

Now = Literal["to review", "approved", "changed", "gone"]


@dataclass(frozen=True)
class ReportedRecord:
    """A record that a run created. `row_id`: None until its device has it; `device`: that device's row id."""

    table: str
    title: str
    state: str
    row_id: str | None = None
    row_hash: bytes | None = None
    device: UUID | None = None

    def now(self, cipher: UserCipher, row: Mapping[str, Any] | None) -> Now:
        """Return what has become of the record. `row`: its row on the device now; None if it has none."""
        if row is None:
            return "gone"
        if row.get("isApproved") in (1, True):
            return "approved"
        if self.row_hash is None or outbox.row_hash(cipher, self.table, row) != self.row_hash:
            return "changed"
        return "to review"


@dataclass(frozen=True)
class RunReport:
    """A run's report. `found`: by table, the number of new records, delivered or not; for a dry run, of those that
    there would be.

    `records`: the first of them, at most MOST_RECORDS. `waiting`: how many wait for their device. `problems`: the first
    of `problem_count`, as sentences. `waits_for`: the device or account whose return a run waits for.
    """

    run: Run
    agent_name: str
    found: Mapping[str, int] = field(default_factory=dict)
    records: Sequence[ReportedRecord] = ()
    waiting: int = 0
    problems: Sequence[str] = ()
    waits_for: str = ""

    @property
    def problem_count(self) -> int:
        return max(self.run.problems, len(self.problems))

    @property
    def read(self) -> int:
        return self.run.items_processed

    @property
    def would_cost_micro(self) -> int | None:
        return would_cost_micro(self.run)


def read(user_id: UUID, run_id: UUID) -> RunReport | None:
    """Return one of a user's runs; None if there is no such run."""
    run = Run.objects.of(user_id).filter(pk=run_id).first()
    return None if run is None else report_of(run)


def report_of(run: Run) -> RunReport:
    cipher = cipher_for(run.user_id)
    problems = journal.problems_of([run], most=_MOST_PROBLEMS)[run.pk]
    report = RunReport(
        run,
        run.agent_name,
        problems=[journal.problem_text(event) for event in problems],
        waits_for=_waits_for(run),
    )
    if run.dry_run:
        shown = [each for each in preview.read_records(run) if not each["known"]]
        records = [
            ReportedRecord(each["table"], _title(each["table"], each["data"]), "shown")
            for each in shown[:MOST_RECORDS]
        ]
        return replace(report, found=Counter(each["table"] for each in shown), records=records)
    rows = list(
        OutboxRecord.objects.filter(source_run=run.pk)
        .exclude(state__in=_GONE)
        .order_by("position")
        .only("table", "state", "row_id_sealed", "row_hash", "device_id")
    )
    first = rows[:MOST_RECORDS]
    titles = {
        each.pk: _title(each.table, FoundRecord.found.unseal_from(cipher, each))
        for each in FoundRecord.objects.filter(pk__in=[row.pk for row in first])
    }
    waiting = (OutboxRecord.State.WAITING, OutboxRecord.State.SENT)
    return replace(
        report,
        found=Counter(row.table for row in rows),
        records=[_record(cipher, row, titles.get(row.pk, "")) for row in first],
        waiting=sum(row.state in waiting for row in rows),
    )


def would_cost_micro(run: Run) -> int | None:
    """Estimate from a dry run's cost what a real run over all due sources would cost, in millionths of the currency.

    Returns None if it has read nothing, or its model has no price.
    """
    read = run.files_done - run.files_unchanged - run.files_failed
    if not run.dry_run or read <= 0 or not run.cost_micro:
        return None
    return -(-run.cost_micro * run.sources_due // read)


def count_found(run: Run) -> dict[str, int]:
    """Return, by table, the number of a run's new records; for a dry run, of those that there would be."""
    if run.dry_run:
        return dict(Counter(each["table"] for each in preview.read_records(run) if not each["known"]))
    rows = OutboxRecord.objects.filter(source_run=run.pk).exclude(state__in=_GONE).order_by("table")
    return dict(rows.values_list("table").annotate(count=Count("pk")))


def _record(cipher: UserCipher, row: OutboxRecord, title: str) -> ReportedRecord:
    row_id = OutboxRecord.row_id_sealed.unseal_from(cipher, row) if row.row_id_sealed is not None else None
    hashed = bytes(row.row_hash) if row.row_hash is not None else None
    return ReportedRecord(row.table, title, row.state, row_id, hashed, row.device_id)


def _title(table: str, data: Mapping[str, Any]) -> str:
    column = TABLES[table].title if table in TABLES else "title"
    found = data.get(column)
    return found if isinstance(found, str) else ""


def _waits_for(run: Run) -> str:
    if run.state == Run.State.WAITING_DEVICE:
        return device_name(run.user_id, run.device_id)
    if run.state == Run.State.AWAITING_REAUTH:
        mine = Connection.objects.filter(agents=run.agent_id).first() if run.agent_id else None
        return mine.get_provider_display() if mine else run.get_agent_type_display()
    return ""


def device_name(user_id: UUID, device_id: str) -> str:
    """Return the owner's name for a device; else its own id."""
    device = Device.objects.of(user_id).filter(device_id=device_id).first()
    try:
        return (device.name if device else "") or device_id
    except SealBroken:
        return device_id


def latest(
    user_id: UUID,
    *,
    agent_id: UUID | None = None,
    since: dt.datetime | None = None,
    until: dt.datetime | None = None,
    most: int = 5,
) -> list[Run]:
    """Return a user's runs, the newest first: those of one agent, begun within a time."""
    runs = Run.objects.of(user_id)
    if agent_id is not None:
        runs = runs.filter(agent_ref=agent_id)
    if since is not None:
        runs = runs.filter(created_at__gte=since)
    if until is not None:
        runs = runs.filter(created_at__lt=until)
    return list(runs[:most])


@dataclass(frozen=True)
class OpenedAgent:
    """An agent with its words unsealed, so that it can be shown where the database cannot be reached."""

    agent: Agent
    name: str

    @property
    def id(self) -> UUID:
        return self.agent.pk


def open_agent(agent: Agent) -> OpenedAgent:
    agent.opened_configuration()  # this caches the opened configuration
    return OpenedAgent(agent, agent.name)


def agents_of(user_id: UUID) -> list[OpenedAgent]:
    """Return a user's agents, the newest first. Raises SealBroken."""
    return [open_agent(each) for each in Agent.objects.of(user_id).select_related("user", "connection")]
