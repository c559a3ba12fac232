"""The agents' part of an account's archive: agents, runs, journals and records found in documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final
from uuid import UUID

from adiuva.accounts.keys import cipher_for
from adiuva.core.crypto import UserCipher
from adiuva.core.export_archive import ROWS_PER_BATCH, ArchivePart, exported_columns, readable, register
from agents import journal, preview, run_changes
from agents.models import Agent, FoundRecord, Run, RunEvent, Watch

# Columns that only coordinate workers.
_INTERNAL: Final = ("user", "agent", "fence", "lease_until", "enqueued_at", "attempted_at")


def _agents(user_id: UUID) -> Iterator[dict[str, Any]]:
    rows = Agent.objects.of(user_id).order_by("created_at", "id")
    names = exported_columns(Agent, but=["user"])
    for agent in rows.iterator(ROWS_PER_BATCH):
        row = {name: getattr(agent, name) for name in names}
        yield {**row, **readable(partial(_words, agent))}


def _words(agent: Agent) -> Mapping[str, Any]:
    return {"name": agent.name, **agent.opened_configuration()}


def _runs(user_id: UUID) -> Iterator[dict[str, Any]]:
    names = exported_columns(Run, but=_INTERNAL)
    for run in Run.objects.of(user_id).order_by("created_at", "id").iterator(ROWS_PER_BATCH):
        row = {name: getattr(run, name) for name in names}
        yield {**row, **readable(partial(_run_words, run))}


def _run_words(run: Run) -> Mapping[str, Any]:
    found: dict[str, Any] = {"records": preview.read_records(run)} if run.dry_run else {}
    if (changes := run_changes.of(run.pk, cipher_for(run.user_id))) is not None:
        found["changes"] = [each.change.body() for each in changes[1]]
    return {"agent_name": run.agent_name, **found}


def _events(user_id: UUID) -> Iterator[dict[str, Any]]:
    cipher, names = cipher_for(user_id), exported_columns(RunEvent, but=["nonce"])
    rows = RunEvent.objects.filter(run__user_id=user_id).order_by("run_id", "seq")
    for event in rows.iterator(ROWS_PER_BATCH):
        row = {name: getattr(event, name) for name in names}
        yield {**row, **readable(partial(journal.event_body, event, cipher))}


def _found_records(user_id: UUID) -> Iterator[dict[str, Any]]:
    cipher, names = cipher_for(user_id), exported_columns(FoundRecord, but=["user"])
    rows = FoundRecord.objects.filter(user_id=user_id).order_by("updated_at", "id")
    for record in rows.iterator(ROWS_PER_BATCH):
        row = {name: getattr(record, name) for name in names}
        yield {**row, **readable(partial(_found_words, record, cipher))}


def _found_words(record: FoundRecord, cipher: UserCipher) -> Mapping[str, Any]:
    pending = FoundRecord.pending.unseal_from(cipher, record) if record.pending is not None else None
    return {"found": FoundRecord.found.unseal_from(cipher, record), "pending": pending}


def _watches(user_id: UUID) -> Iterator[dict[str, Any]]:
    cipher, names = cipher_for(user_id), exported_columns(Watch, but=["user", "fence", "lease_until"])
    for watch in Watch.objects.of(user_id).iterator(ROWS_PER_BATCH):
        row = {name: getattr(watch, name) for name in names}
        yield {**row, **readable(partial(_asked, watch, cipher))}


def _asked(watch: Watch, cipher: UserCipher) -> Mapping[str, Any]:
    return {"asked": Watch.asked.unseal_from(cipher, watch)}


register(
    ArchivePart("agents.jsonl", "The agents, as they are configured.", _agents),
    ArchivePart("runs.jsonl", "What they did, with what dry runs found.", _runs),
    ArchivePart("found_records.jsonl", "What stood in documents when they were last read.", _found_records),
    ArchivePart("watches.jsonl", "Which runs you wanted to hear of, and in which conversation.", _watches),
    ArchivePart("run_events.jsonl", "The journals of the runs.", _events),
)
