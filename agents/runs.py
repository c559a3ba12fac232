"""The verbs of a run: start, claim, advance, finish, cancel, wake, sweep.

A nudge through Celery only makes things quick. The row decides: who claims a run gets a new fence and a lease, and
every later write names that fence, so that a worker that was thought dead cannot write over its successor.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID
from zoneinfo import ZoneInfo

import structlog
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone

from adiuva.accounts.keys import cipher_for
from adiuva.celery import app
from adiuva.crypto import UserCipher
from adiuva.devices import outbox
from adiuva.devices.models import Device
from adiuva.devices.outbox import Pending
from adiuva.errors import Conflict, NotFound
from agents import journal
from agents.extraction import PROMPT_VERSION, Document
from agents.journal import Entry, Kind
from agents.models import RUN_DEADLINE, Agent, Run, Source
from agents.records import Record

LEASE = dt.timedelta(seconds=60)
RENEW_S = 15.0
MOST_ATTEMPTS = 5
_NUDGE_AGAIN = dt.timedelta(seconds=30)
_WAIT_FOR_DEVICE = dt.timedelta(days=30)

log = structlog.get_logger("agents.runs")


class RunIsLive(Conflict):
    """The agent has a run under way; `run_id` in the answer names it."""

    code = "run_is_live"

    def __init__(self, run_id: UUID) -> None:
        super().__init__("this agent has a run under way", run_id=str(run_id))


class LeaseLost(Exception):
    """Another worker has the run, or it ended: stop, and write nothing."""


@dataclass(frozen=True)
class Job:
    """A claimed run with all that a worker needs, read once."""

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
    files_seen: int
    items_created: int
    deadline_at: dt.datetime

    @property
    def cipher(self) -> UserCipher:
        return cipher_for(self.user_id)

    def source_key(self, name: str) -> bytes:
        return self.cipher.fingerprint(name, f"source of {self.agent_id}")


def nudge(run_id: UUID) -> None:
    """Tell a worker once the transaction is in. If the nudge is lost, the sweep finds the run."""
    transaction.on_commit(lambda: app.send_task("agents.execute", [str(run_id)]))


# ── From outside ────────────────────────────────────────────────────────────────────────────────────────


@transaction.atomic
def start(
    *,
    agent: Agent,
    trigger: Run.Trigger = Run.Trigger.MANUAL,
    slot: dt.datetime | None = None,
    slots: int = 1,
) -> Run:
    """A new run, queued. Raise RunIsLive when the agent has one already."""
    try:
        with transaction.atomic():
            run = Run.objects.create(
                user_id=agent.user_id,
                agent=agent,
                agent_ref=agent.pk,
                agent_name=agent.name,
                agent_type=agent.type,
                device_id=agent.device_id,
                trigger=trigger,
                slot=slot,
                slots=slots,
            )
    except IntegrityError:
        live = Run.objects.live().filter(agent=agent).values_list("pk", flat=True).first()
        if live is None:
            raise
        raise RunIsLive(live) from None
    nudge(run.pk)
    return run


@transaction.atomic
def cancel(*, run: Run) -> Run:
    """Ask a run to end. One that no worker holds ends at once, one that ended already stays as it is."""
    locked = Run.objects.select_for_update().get(pk=run.pk)
    if locked.state in (Run.State.QUEUED, Run.State.WAITING_DEVICE):
        _end(locked, Run.State.CANCELLED, "cancelled")
    elif locked.state == Run.State.RUNNING and locked.cancel_requested_at is None:
        locked.cancel_requested_at = timezone.now()
        locked.save(update_fields=["cancel_requested_at"])
    return locked


def wake(*, user_id: UUID, device_id: str) -> int:
    """A device is here: its waiting runs are due. Returns how many."""
    with transaction.atomic():
        waiting = Run.objects.of(user_id).filter(state=Run.State.WAITING_DEVICE, device_id=device_id)
        ids = list(waiting.select_for_update(skip_locked=True).values_list("pk", flat=True))
        Run.objects.filter(pk__in=ids).update(state=Run.State.QUEUED, nudged_at=Now())
        for run_id in ids:
            nudge(run_id)
    return len(ids)


def sweep() -> dict[str, int]:
    """Find what a lost nudge or a dead worker left behind. Safe to run any number of times at once."""
    now = timezone.now()
    found = {"lost": 0, "nudged": 0, "expired": 0}
    with transaction.atomic():
        for run in Run.objects.select_for_update(skip_locked=True).filter(
            state=Run.State.RUNNING, lease_until__lt=now
        )[:500]:
            found["lost"] += 1
            if run.cancel_requested_at:
                _end(run, Run.State.CANCELLED, "cancelled")
            elif run.attempt >= MOST_ATTEMPTS:
                _end(run, Run.State.ERROR, "workers_lost")
            else:
                run.state, run.nudged_at = Run.State.QUEUED, now
                run.fence += 1  # whoever held it may not write any more
                run.save(update_fields=["state", "nudged_at", "fence"])
                nudge(run.pk)
    with transaction.atomic():
        queued = Q(state=Run.State.QUEUED, nudged_at__lt=now - _NUDGE_AGAIN)
        for run in Run.objects.select_for_update(skip_locked=True).filter(queued)[:500]:
            found["nudged"] += 1
            Run.objects.filter(pk=run.pk).update(nudged_at=now)
            nudge(run.pk)
    waiting = Run.objects.filter(state=Run.State.WAITING_DEVICE)
    here = Device.objects.online().filter(
        user_id__in=waiting.values("user_id"), device_id__in=waiting.values("device_id")
    )
    for user_id, device_id in here.values_list("user_id", "device_id")[:500]:
        found["nudged"] += wake(user_id=user_id, device_id=device_id)
    with transaction.atomic():
        for run in waiting.select_for_update(skip_locked=True).filter(created_at__lt=now - _WAIT_FOR_DEVICE)[
            :500
        ]:
            found["expired"] += 1
            _end(run, Run.State.TIMEOUT, "device_never_came")
    return found


def _end(run: Run, state: Run.State, code: str) -> None:
    run.state, run.completed_at, run.lease_until, run.phase = state, timezone.now(), None, ""
    run.fence += 1
    run.save(update_fields=["state", "completed_at", "lease_until", "phase", "fence"])
    journal.write(run.pk, cipher_for(run.user_id), [Entry(Kind.FINISHED, code)])


# ── By the worker that holds it ─────────────────────────────────────────────────────────────────────────


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
    if agent is None:
        _end(run, Run.State.CANCELLED, "agent_deleted")
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
    Agent.objects.filter(pk=agent.pk).update(last_run_at=now)
    journal.write(run.pk, cipher_for(run.user_id), [Entry(Kind.STARTED, count=run.attempt)])
    device = (
        Device.objects.of(run.user_id).filter(device_id=agent.device_id).values_list("pk", flat=True).first()
    )
    return Job(
        run_id=run.pk,
        fence=run.fence,
        attempt=run.attempt,
        user_id=run.user_id,
        agent_id=agent.pk,
        device_id=agent.device_id,
        device=device,
        paths=tuple(agent.directory_paths),
        file_extensions=tuple(agent.file_extensions),
        prompt_template=agent.prompt_template,
        data_types=tuple(agent.data_types),
        zone=ZoneInfo(agent.timezone or run.user.timezone),
        config_version=config_version(agent),
        files_seen=run.files_seen,
        items_created=run.items_created,
        deadline_at=run.deadline_at,
    )


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


def due(job: Job, files: Iterable[tuple[bytes, bytes]]) -> list[bool]:
    """For (source key, content hash) pairs: which were not read before in this form with this configuration."""
    wanted = list(files)
    known = {
        (bytes(key), bytes(content))
        for key, content in Source.objects.filter(
            agent_id=job.agent_id, key__in=[key for key, _ in wanted], config_version=job.config_version
        ).values_list("key", "content_hash")
    }
    return [pair not in known for pair in wanted]


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
    run.problems += sum(entry.kind in _PROBLEMS for entry in entries)
    run.phase = phase or run.phase
    run.save(update_fields=[*_COUNTS, "phase"])
    journal.write(run.pk, job.cipher, entries)


_COUNTS = ("files_seen", "files_done", "files_unchanged", "files_failed", "model_calls", "problems")
_PROBLEMS = frozenset(
    (Kind.SOURCE_FAILED, Kind.RECORD_QUARANTINED, Kind.RECORD_REFUSED, Kind.RECORD_UNCERTAIN)
)


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

    Returns the records that are new. From here on nothing is lost if the worker dies.
    """
    run = _mine(job)
    new = outbox.add(
        cipher=job.cipher,
        user_id=job.user_id,
        device=device,
        run_id=job.run_id,
        source=document.key,
        position=run.files_done * 1000,
        records={record.key(job.agent_id, document.key): (record.table, record.data) for record in records},
    )
    Source.objects.update_or_create(
        agent_id=job.agent_id,
        key=document.key,
        defaults={
            "content_hash": document.content_hash,
            "config_version": job.config_version,
            "outcome": Source.Outcome.QUARANTINED if entries else Source.Outcome.DONE,
            "updated_at": timezone.now(),
        },
    )
    run.files_done += 1
    run.model_calls += model_calls
    run.problems += len(entries)
    run.save(update_fields=["files_done", "model_calls", "problems"])
    done = Entry(Kind.SOURCE_DONE, count=len(new), source=document.path)
    journal.write(run.pk, job.cipher, [*entries, done])
    return new


@transaction.atomic
def settle(job: Job, outcomes: dict[UUID, object], path: str) -> int:
    """Write what the device answered for records. Returns how many it has now."""
    run = _mine(job)
    counts = outbox.settle(cipher=job.cipher, outcomes=outcomes)  # type: ignore[arg-type]
    refused, uncertain = counts["refused"], counts["uncertain"]
    entries = []
    if refused:
        words = next((str(error) for o in outcomes.values() if (error := getattr(o, "error", None))), "")
        entries.append(Entry(Kind.RECORD_REFUSED, "device_refused", refused, path, words))
    if uncertain:
        entries.append(Entry(Kind.RECORD_UNCERTAIN, "outcome_unknown", uncertain, path))
    run.items_created += counts["delivered"]
    run.problems += refused + uncertain
    run.save(update_fields=["items_created", "problems"])
    journal.write(run.pk, job.cipher, entries)
    return counts["delivered"]


@transaction.atomic
def wait_for_device(job: Job) -> None:
    """Let go of a run until its device is here. The attempt does not count: nothing went wrong."""
    run = _mine(job)
    run.state, run.phase, run.lease_until = Run.State.WAITING_DEVICE, "", None
    run.deadline_at = None
    run.attempt -= 1
    run.save(update_fields=["state", "phase", "lease_until", "deadline_at", "attempt"])
    journal.write(run.pk, job.cipher, [Entry(Kind.WAITING, "device_offline")])


@transaction.atomic
def finish(job: Job, state: Run.State | None = None, code: str = "", message: str = "") -> Run:
    """End a run. Without a state it is what the counts say: success, partial, or error when nothing went well."""
    run = _mine(job)
    if state is None:
        if not run.problems:
            state, code = Run.State.SUCCESS, "completed" if run.files_seen else "empty"
        elif run.files_done > run.files_failed or run.items_created:
            state, code = Run.State.PARTIAL, "completed_with_failures"
        else:
            state, code = Run.State.ERROR, "nothing_could_be_read"
    run.state, run.phase, run.lease_until = state, "", None
    run.completed_at = timezone.now()
    run.save(update_fields=["state", "phase", "lease_until", "completed_at"])
    journal.write(run.pk, job.cipher, [Entry(Kind.FINISHED, code, message=message)])
    log.info("run.finished", run_id=str(run.pk), user_id=str(run.user_id), state=str(state), code=code)
    return run


def of_user(user_id: UUID, run_id: UUID) -> Run:
    """One of a user's runs. Raise NotFound, for another's as for none."""
    run = Run.objects.of(user_id).filter(pk=run_id).first()
    if run is None:
        raise NotFound("there is no such run")
    return run
