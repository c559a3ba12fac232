"""What a worker may do with a run while it holds it.

Who claims a run gets a new fence and a lease, and every later write names that fence, so that a worker that was thought
dead cannot write over its successor.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from uuid import UUID
from zoneinfo import ZoneInfo

from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from adiuva.accounts.keys import cipher_for
from adiuva.crypto import UserCipher
from adiuva.devices import outbox
from adiuva.devices.models import Device, OutboxRecord
from adiuva.devices.outbox import Pending
from adiuva.devices.protocol import ToolResultBody
from adiuva.errors import AdiuvaError
from agents import journal, runs
from agents.extraction import PROMPT_VERSION, Document
from agents.journal import Entry, Kind
from agents.models import RUN_DEADLINE, Agent, Run, RunEvent, Source
from agents.records import Record

LEASE = dt.timedelta(seconds=60)
RENEW_S = 15.0
_MOST_WORDS = 1_000  # of a device, on why it refused


class LeaseLost(Exception):
    """Another worker has the run, or it ended: stop, and write nothing."""


class AgentGone(Exception):
    """The agent was deleted during the run."""


@dataclass(frozen=True)
class Job:
    """A claimed run with all that a worker needs, read once: what is changed meanwhile counts from the next run."""

    run_id: UUID
    fence: int
    attempt: int
    user_id: UUID
    agent_id: UUID
    device_id: str
    device: UUID | None  # None: the device was never seen
    paths: tuple[str, ...]
    file_extensions: tuple[str, ...]
    prompt_template: str
    data_types: tuple[str, ...]
    zone: ZoneInfo
    config_version: bytes
    deadline_at: dt.datetime
    # Held for as long as the run: to fetch it anew asks the database, which an event loop must not.
    cipher: UserCipher = field(repr=False)

    def source_key(self, name: str) -> bytes:
        return self.cipher.fingerprint(name, f"source of {self.agent_id}")


@transaction.atomic
def claim(run_id: UUID) -> Job | None:
    """Take a queued run. None: somebody else has it, or it ended."""
    run = (
        Run.objects.select_for_update(skip_locked=True, of=("self",))
        .select_related("agent", "user")
        .filter(pk=run_id, state=Run.State.QUEUED)
        .first()
    )
    if run is None:
        return None
    agent = run.agent
    if agent is None or agent.device_id != run.device_id:
        runs.end(run, Run.State.CANCELLED, "agent_deleted" if agent is None else "device_changed")
        return None
    now = timezone.now()
    run.state, run.phase = Run.State.RUNNING, Run.Phase.COLLECTING
    run.started_at = run.started_at or now
    run.deadline_at = run.deadline_at or now + RUN_DEADLINE
    run.lease_until = now + LEASE
    run.fence += 1
    run.attempt += 1
    # A run counts its files anew each time; what it created before it was interrupted stays counted.
    run.files_seen = run.files_done = run.files_unchanged = run.files_failed = 0
    run.save()
    # After the commit: a deleter of the agent holds its row and waits for the run's.
    transaction.on_commit(lambda: Agent.objects.filter(pk=agent.pk).update(last_run_at=now))
    device = (
        Device.objects.of(run.user_id).filter(device_id=run.device_id).values_list("pk", flat=True).first()
    )
    entries = [Entry(Kind.STARTED, count=run.attempt)]
    if run.slots > 1 and run.fence == 1:
        entries.append(Entry(Kind.NOTE, "slots_missed", count=run.slots))
    if device and (found := _take_over(run, device)):
        entries.append(Entry(Kind.NOTE, "records_taken_over", count=found))
    journal.write(run, entries)
    return Job(
        run_id=run.pk,
        fence=run.fence,
        attempt=run.attempt,
        user_id=run.user_id,
        agent_id=agent.pk,
        device_id=run.device_id,
        device=device,
        paths=tuple(agent.directory_paths),
        file_extensions=tuple(agent.file_extensions),
        prompt_template=agent.prompt_template,
        data_types=tuple(agent.data_types),
        zone=ZoneInfo(agent.timezone or run.user.timezone),
        config_version=config_version(agent),
        deadline_at=run.deadline_at,
        cipher=cipher_for(run.user_id),
    )


def _take_over(run: Run, device: UUID) -> int:
    """Records that an earlier run of the agent found and, cancelled or lost, did not bring to the device: their
    sources are in the ledger and will not be read again."""
    others = Run.objects.filter(agent_ref=run.agent_ref).exclude(pk=run.pk).values("pk")
    left = OutboxRecord.objects.waiting().filter(user_id=run.user_id, source_run__in=others)
    return left.filter(Q(device=device) | Q(device=None)).update(source_run=run.pk, device=device)


def config_version(agent: Agent) -> bytes:
    """Changes with whatever would make an unchanged source give other records."""
    what = [agent.prompt_template, sorted(agent.data_types), settings.MODEL["model"], PROMPT_VERSION]
    return hashlib.sha256(json.dumps(what).encode()).digest()


def _mine(job: Job) -> Run:
    """The run's row, locked, if this worker still holds it. Raise LeaseLost otherwise."""
    run = (
        Run.objects.select_for_update()
        .filter(pk=job.run_id, fence=job.fence, state=Run.State.RUNNING)
        .first()
    )
    if run is None:
        raise LeaseLost
    return run


def pulse(job: Job, *, renew: bool) -> bool:
    """Whether the run may go on (False: a cancel was asked for). Raise LeaseLost."""
    mine = Run.objects.filter(pk=job.run_id, fence=job.fence, state=Run.State.RUNNING)
    if renew and not mine.update(lease_until=timezone.now() + LEASE):
        raise LeaseLost
    asked = mine.values_list("cancel_requested_at", flat=True)
    if not (found := list(asked)):
        raise LeaseLost
    return found[0] is None


def see(job: Job) -> Run:
    """The run as it is now. Raise LeaseLost when it is gone, with its user."""
    run = Run.objects.filter(pk=job.run_id).first()
    if run is None:
        raise LeaseLost
    return run


def due(job: Job, files: Collection[tuple[bytes, bytes]]) -> list[bool]:
    """For (source key, content hash) pairs: which were not read before in this form with this configuration."""
    known = {
        (bytes(key), bytes(content))
        for key, content in Source.objects.filter(
            agent_id=job.agent_id, key__in=[key for key, _ in files], config_version=job.config_version
        ).values_list("key", "content_hash")
    }
    return [pair not in known for pair in files]


@transaction.atomic
def count(
    job: Job,
    *,
    seen: int = 0,
    done: int = 0,
    unchanged: int = 0,
    failed: int = 0,
    model_calls: int = 0,
    entries: Iterable[Entry] = (),
    phase: Run.Phase | None = None,
) -> None:
    """Add to a run's counts and journal."""
    run = _mine(job)
    entries = list(entries)
    run.files_seen += seen
    run.files_done += done
    run.files_unchanged += unchanged
    run.files_failed += failed
    run.model_calls += model_calls
    run.problems += _problems(entries)
    run.phase = phase or run.phase
    run.save(
        update_fields=[
            "files_seen",
            "files_done",
            "files_unchanged",
            "files_failed",
            "model_calls",
            "problems",
            "phase",
        ]
    )
    journal.write(run, entries)


def _problems(entries: Iterable[Entry]) -> int:
    return sum(entry.count or 1 for entry in entries if entry.kind in RunEvent.PROBLEMS)


@transaction.atomic
def keep(
    job: Job,
    document: Document,
    records: list[Record],
    entries: list[Entry],
    *,
    device: UUID,
    model_calls: int,
) -> list[Pending]:
    """Commit what a document gave: its records to the outbox, its entry to the ledger, both or neither.

    Returns the records that are new. From here on nothing is lost if the worker dies. Raise AgentGone, LeaseLost.
    """
    run = _mine(job)
    if run.agent_id is None:
        raise AgentGone
    new = outbox.add(
        cipher=job.cipher,
        user_id=job.user_id,
        device=device,
        run_id=job.run_id,
        source=document.key,
        position=run.files_done * 1000,
        records={record.key(job.agent_id, document.key): (record.table, record.data) for record in records},
    )
    Source.objects.bulk_create(
        [
            Source(
                agent_id=job.agent_id,
                key=document.key,
                content_hash=document.content_hash,
                config_version=job.config_version,
                outcome=Source.Outcome.QUARANTINED if entries else Source.Outcome.DONE,
                updated_at=timezone.now(),
            )
        ],
        update_conflicts=True,
        unique_fields=["agent", "key"],
        update_fields=["content_hash", "config_version", "outcome", "updated_at"],
    )
    run.files_done += 1
    run.model_calls += model_calls
    run.problems += _problems(entries)
    run.save(update_fields=["files_done", "model_calls", "problems"])
    journal.write(run, [*entries, Entry(Kind.SOURCE_DONE, count=len(new), source=document.path)])
    return new


@transaction.atomic
def settle(job: Job, outcomes: Mapping[UUID, ToolResultBody | AdiuvaError], path: str) -> int:
    """Write what the device answered for records. Returns how many it has now."""
    run = _mine(job)
    counts = outbox.settle(cipher=job.cipher, outcomes=outcomes)
    refused, uncertain = counts["refused"], counts["uncertain"]
    entries = []
    if refused:
        words = next((o.error for o in outcomes.values() if isinstance(o, ToolResultBody) and o.error), "")
        entries.append(Entry(Kind.RECORD_REFUSED, "device_refused", refused, path, words[:_MOST_WORDS]))
    if uncertain:
        entries.append(Entry(Kind.RECORD_UNCERTAIN, "outcome_unknown", uncertain, path))
    run.items_created += counts["delivered"]
    run.problems += refused + uncertain
    run.save(update_fields=["items_created", "problems"])
    journal.write(run, entries)
    return counts["delivered"]


@transaction.atomic
def wait_for_device(job: Job, *, epoch: int | None) -> None:
    """Let go of a run until its device is here. The attempt does not count: nothing went wrong.

    `epoch` is that of the connection that was lost. A device that is back already has woken its waiting runs before
    this one was among them.
    """
    run = _mine(job)
    if run.cancel_requested_at:
        runs.end(run, Run.State.CANCELLED, "cancelled")
        return
    run.state, run.phase, run.lease_until = Run.State.WAITING_DEVICE, "", None
    run.deadline_at = None
    run.attempt -= 1
    run.save(update_fields=["state", "phase", "lease_until", "deadline_at", "attempt"])
    journal.write(run, [Entry(Kind.WAITING, "device_offline")])
    transaction.on_commit(lambda: _wake_if_back(job, epoch))


def _wake_if_back(job: Job, epoch: int | None) -> None:
    here = Device.objects.of(job.user_id).online().filter(device_id=job.device_id)
    if epoch is not None:
        here = here.exclude(epoch=epoch)
    if here.exists():
        runs.wake(user_id=job.user_id, device_id=job.device_id)


@transaction.atomic
def finish(job: Job, state: Run.State | None = None, code: str = "", message: str = "") -> Run:
    """End a run. Without a state it is what the counts say: success, partial, or error when nothing went well."""
    run = _mine(job)
    if state is None:
        if run.files_done < run.files_seen:  # it cannot be, and must not pass as a success if it is
            lost = run.files_seen - run.files_done
            run.files_done, run.files_failed = run.files_seen, run.files_failed + lost
            run.problems += lost
            run.save(update_fields=["files_done", "files_failed", "problems"])
            journal.write(run, [Entry(Kind.SOURCE_FAILED, "never_read", count=lost)])
        if not run.problems:
            state, code = Run.State.SUCCESS, "completed" if run.files_seen else "empty"
        elif run.files_done > run.files_failed or run.items_created:
            state, code = Run.State.PARTIAL, "completed_with_failures"
        else:
            state, code = Run.State.ERROR, "nothing_could_be_read"
    elif left := outbox.count_waiting(run.pk):
        journal.write(run, [Entry(Kind.NOTE, "records_left_over", count=left)])
    runs.end(run, state, code, message)
    return run
