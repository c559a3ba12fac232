"""What a worker may do with a run while it holds it.

Who claims a run gets a new fence and a lease, and every later write names that fence, so that a worker that was thought
dead cannot write over its successor.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import random
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.db.models.functions import Now

from adiuva.accounts.keys import cipher_for
from adiuva.core import db
from adiuva.core.crypto import UserCipher
from adiuva.devices import outbox
from adiuva.devices.models import Device, OutboxRecord
from agents import journal, runs
from agents.extraction import PROMPT_VERSION, Document
from agents.journal import Entry, Kind
from agents.models import RUN_DEADLINE, Agent, AgentCursor, Run, RunEvent, Source, SourceInFlight
from integrations.models import Connection, Health, Provider

LEASE = runs.LEASE
RENEW_S = LEASE.total_seconds() / 4
DEADLY: int = settings.RUNS["deadly"]
_ASIDE = dt.timedelta(seconds=settings.RUNS["deadly_s"])
_CURSORS = "agents_agentcursor"
_BREATH_S = 5.0  # before a run goes on whose worker lost what it stands on


class LeaseLost(Exception):
    """Another worker has the run, or it ended: stop, and write nothing."""


class AgentGone(Exception):
    """The agent was deleted during the run."""


@dataclass(frozen=True)
class MailAccount:
    """What a cloud agent reads, and from where on."""

    provider: Provider
    connection: UUID
    address: str = field(repr=False)
    filter_config: Mapping[str, Any] = field(repr=False)
    cursor: str | None = field(repr=False)


@dataclass(frozen=True)
class Job:
    """A claimed run with all that a worker needs, read once: what is changed meanwhile counts from the next run."""

    run_id: UUID
    fence: int
    attempt: int
    user_id: UUID
    agent_id: UUID
    device_id: str
    device: UUID | None  # None: the device was never seen, or it is a cloud agent, which has none
    paths: tuple[str, ...]
    file_extensions: tuple[str, ...]
    prompt_template: str
    data_types: tuple[str, ...]
    dry_run: bool  # what is found is shown, and neither kept nor sent
    max_sources: int | None  # of a dry run
    zone: ZoneInfo
    config_version: bytes
    seconds_left: float  # to the run's deadline, when it was claimed
    begun: bool  # before: a worker had reached its device
    suspects: Mapping[bytes, int]  # keys of sources that workers died over → how many
    account: MailAccount | None  # of a cloud agent
    # Held for as long as the run: to fetch it anew asks the database, which an event loop must not.
    cipher: UserCipher = field(repr=False)

    def source_key(self, name: str) -> bytes:
        return self.cipher.fingerprint(name, f"source of {self.agent_id}")


@transaction.atomic
def claim(run_id: UUID) -> Job | None:
    """Take a queued run. None: somebody else has it, it ended, or its time has not come."""
    run = (
        Run.objects.select_for_update(skip_locked=True, of=("self",))
        .select_related("agent__connection", "user")
        .filter(runs.due(), pk=run_id, state=Run.State.QUEUED)
        .first()
    )
    if run is None:
        return None
    agent = run.agent
    if agent is None or agent.device_id != run.device_id:
        runs.end(run, Run.State.CANCELLED, "agent_deleted" if agent is None else "device_changed")
        return None
    if run.is_cloud and agent.connection is None:
        runs.end(run, Run.State.ERROR, "no_connection", "its account is not connected any more")
        return None
    now, begun = db.clock(), run.started_at is not None
    if run.deadline_at and run.deadline_at <= now:
        runs.end(run, Run.State.TIMEOUT, "deadline")
        return None
    run.state, run.phase, run.not_before = Run.State.RUNNING, Run.Phase.COLLECTING, None
    run.started_at = run.started_at or now
    run.deadline_at = run.deadline_at or now + RUN_DEADLINE
    run.lease_until = now + LEASE
    run.fence += 1
    run.attempt += 1
    # A run counts its files anew each time; what it created before it was interrupted stays counted.
    run.files_seen = run.files_done = run.files_unchanged = run.files_failed = 0
    run.problems = max(0, run.problems - journal.begin_anew(run))
    run.preview = None
    run.save()
    # After the commit: a deleter of the agent holds its row and waits for the run's.
    if not run.dry_run:
        transaction.on_commit(lambda: Agent.objects.filter(pk=agent.pk).update(last_run_at=now))
    own = Device.objects.of(run.user_id).filter(device_id=run.device_id)
    device = None if run.is_cloud else own.values_list("pk", flat=True).first()
    entries = [Entry(Kind.STARTED, count=run.attempt)]
    if run.slots > 1 and not begun:
        entries.append(Entry(Kind.NOTE, "slots_missed", count=run.slots))
    if device and not run.dry_run and (found := _take_over(run, device)):
        entries.append(Entry(Kind.NOTE, "records_taken_over", count=found))
    journal.write(run, entries)
    cipher, version = cipher_for(run.user_id), config_version(agent)
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
        dry_run=run.dry_run,
        max_sources=run.max_sources,
        zone=ZoneInfo(agent.timezone or run.user.timezone),
        config_version=version,
        seconds_left=(run.deadline_at - now).total_seconds(),
        begun=begun,
        suspects=_suspects(agent),
        account=_account(agent, cipher, version),
        cipher=cipher,
    )


def _account(agent: Agent, cipher: UserCipher, version: bytes) -> MailAccount | None:
    connection = agent.connection
    if connection is None:
        return None
    kept = AgentCursor.objects.filter(agent=agent, config_version=version).first()
    cursor = cipher.unseal(bytes(kept.sealed), _CURSORS, agent.pk, "cursor") if kept else None
    provider = Provider(connection.provider)
    return MailAccount(provider, connection.pk, connection.address, agent.filter_config, cursor)


@transaction.atomic
def move_cursor(job: Job, cursor: str) -> None:
    """Where the agent goes on reading, now that all before it is settled. Raise AgentGone, LeaseLost."""
    if held(job).agent_id is None:
        raise AgentGone
    AgentCursor.objects.update_or_create(
        agent_id=job.agent_id,
        defaults={
            "config_version": job.config_version,
            "sealed": job.cipher.seal(cursor, _CURSORS, job.agent_id, "cursor"),
            "updated_at": Now(),
        },
    )


def _suspects(agent: Agent) -> dict[bytes, int]:
    """What the last attempt left in hand is in nobody's any more. Where no worker died over it, it is forgotten."""
    left = list(SourceInFlight.objects.filter(agent=agent))
    if any(not source.deaths for source in left):
        SourceInFlight.objects.filter(agent=agent, deaths=0).delete()
    if any(source.deaths and source.in_hand for source in left):
        SourceInFlight.objects.filter(agent=agent, in_hand=True).update(in_hand=False)
    return {bytes(source.key): source.deaths for source in left if source.deaths}


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


def held(job: Job) -> Run:
    """The run's row, locked, if this worker still holds it. Raise LeaseLost otherwise.

    In each transaction, first: so a worker that was thought dead writes nothing."""
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
    if renew and not mine.update(lease_until=Now() + LEASE):
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
    """For (source key, content hash) pairs: which were not read before in this form with this configuration, or were
    set aside long ago: what killed the workers may have been something else."""
    ours = Source.objects.filter(
        agent_id=job.agent_id, key__in=[key for key, _ in files], config_version=job.config_version
    ).exclude(outcome=Source.Outcome.POISON, updated_at__lt=Now() - _ASIDE)
    known = {(bytes(key), bytes(content)) for key, content in ours.values_list("key", "content_hash")}
    return [pair not in known for pair in files]


@transaction.atomic
def take(job: Job, keys: Collection[bytes]) -> None:
    """Enter sources as in hand: should the worker die, it may be over one of them. Raise AgentGone, LeaseLost."""
    if not keys:
        return
    if held(job).agent_id is None:
        raise AgentGone
    SourceInFlight.objects.bulk_create(
        [SourceInFlight(agent_id=job.agent_id, key=key) for key in keys],
        update_conflicts=True,
        unique_fields=["agent", "key"],
        update_fields=["in_hand"],
    )


def let_go(job: Job, keys: Collection[bytes]) -> None:
    """The worker has come through sources alive."""
    if keys:
        SourceInFlight.objects.filter(agent_id=job.agent_id, key__in=keys).delete()


def enter(job: Job, read: Iterable[tuple[Document, Source.Outcome]]) -> None:
    """The ledger's rows of sources, in the transaction of what they gave."""
    rows = {
        document.key: Source(
            agent_id=job.agent_id,
            key=document.key,
            content_hash=document.content_hash,
            config_version=job.config_version,
            outcome=outcome,
            updated_at=Now(),
        )
        for document, outcome in read
    }
    Source.objects.bulk_create(
        rows.values(),
        update_conflicts=True,
        unique_fields=["agent", "key"],
        update_fields=["content_hash", "config_version", "outcome", "updated_at"],
    )


@transaction.atomic
def set_aside(job: Job, document: Document) -> None:
    """Read a source no more for a while, in this form and with this configuration: it killed too many workers. The next
    time it is read alone, and one more death sets it aside again."""
    run = held(job)
    if run.agent_id is None:
        raise AgentGone
    enter(job, [(document, Source.Outcome.POISON)])
    SourceInFlight.objects.filter(agent_id=job.agent_id, key=document.key).update(
        in_hand=False, deaths=DEADLY - 1
    )
    run.files_done += 1
    run.files_failed += 1
    run.problems += 1
    run.save(update_fields=["files_done", "files_failed", "problems"])
    journal.write(run, [Entry(Kind.SOURCE_FAILED, journal.KILLED_WORKERS, source=document.path)])


@transaction.atomic
def count(
    job: Job,
    *,
    seen: int = 0,
    done: int = 0,
    unchanged: int = 0,
    failed: int = 0,
    entries: Iterable[Entry] = (),
    phase: Run.Phase | None = None,
) -> None:
    """Add to a run's counts and journal."""
    run = held(job)
    run.files_seen += seen
    run.files_done += done
    run.files_unchanged += unchanged
    run.files_failed += failed
    run.problems += problems(journal.write(run, entries))
    run.phase = phase or run.phase
    run.save(
        update_fields=[
            "files_seen",
            "files_done",
            "files_unchanged",
            "files_failed",
            "problems",
            "phase",
        ]
    )


def problems(entries: Iterable[Entry]) -> int:
    """How much went wrong, of what the journal says."""
    return sum(entry.count or 1 for entry in entries if entry.kind in RunEvent.PROBLEMS)


@transaction.atomic
def wait_for_device(job: Job, *, epoch: int | None) -> None:
    """Let go of a run until its device is here. The attempt does not count: nothing went wrong.

    `epoch` is that of the connection that was lost. A device that is back already has woken its waiting runs before
    this one was among them.
    """
    run = held(job)
    if run.cancel_requested_at:
        runs.end(run, Run.State.CANCELLED, "cancelled")
        return
    run.state, run.phase, run.lease_until = Run.State.WAITING_DEVICE, "", None
    run.deadline_at = None
    run.attempt -= 1
    if epoch is None and not job.begun:
        run.started_at = None  # so it may stand for more slots, or come too late for its own
    run.save(update_fields=["state", "phase", "lease_until", "deadline_at", "attempt", "started_at"])
    journal.write(run, [Entry(Kind.WAITING, "device_offline")])
    transaction.on_commit(lambda: _wake_if_back(job, epoch))


def _wake_if_back(job: Job, epoch: int | None) -> None:
    here = Device.objects.of(job.user_id).online().filter(device_id=job.device_id)
    if epoch is not None:
        here = here.exclude(epoch=epoch)
    if here.exists():
        runs.wake(user_id=job.user_id, device_id=job.device_id)


@transaction.atomic
def await_reauth(job: Job) -> bool:
    """Let go of a run until its user has connected the account again. The attempt does not count. False: the account
    is as it should be, for all we know."""
    run = held(job)
    if run.cancel_requested_at:
        runs.end(run, Run.State.CANCELLED, "cancelled")
        return True
    assert job.account is not None
    # Locked: who connects again while we write this finds the run.
    found = Connection.objects.select_for_update(no_key=True).filter(pk=job.account.connection).first()
    if found is None:
        runs.end(run, Run.State.ERROR, "no_connection", "its account is not connected any more")
        return True
    if found.health == Health.OK:
        return False
    run.state, run.phase, run.lease_until = Run.State.AWAITING_REAUTH, "", None
    run.deadline_at = None
    run.attempt -= 1
    run.save(update_fields=["state", "phase", "lease_until", "deadline_at", "attempt"])
    words = f"connect {found.get_provider_display()} again: {found.get_reason_display()}"
    journal.write(run, [Entry(Kind.WAITING, "needs_reauth", message=words)])
    return True


@transaction.atomic
def retry(job: Job, code: str, message: str = "", *, retry_after: float | None = None) -> bool:
    """Put a run back in line that a passing fault has stopped, for a moment that chance picks (full jitter), and not
    before the provider wants it. What was done stays done. False: its retries or its time are used up."""
    run = held(job)
    if run.cancel_requested_at:
        runs.end(run, Run.State.CANCELLED, "cancelled")
        return True
    rules = settings.RUNS
    if run.retries >= rules["retries"]:
        return False
    pause = random.uniform(0, min(rules["longest_retry_s"], rules["retry_s"] * 2**run.retries))
    if retry_after is not None:
        pause = max(pause, retry_after * random.uniform(1, 1.1))
    until = db.clock() + dt.timedelta(seconds=pause)
    if run.deadline_at and until >= run.deadline_at:
        return False
    run.retries += 1
    runs.requeue(run, not_before=until)
    when = until.isoformat(timespec="seconds")
    words = f"{message}; to be tried again at {when}" if message else f"to be tried again at {when}"
    journal.write(run, [Entry(Kind.WAITING, code, count=run.retries, message=words)])
    return True


@transaction.atomic
def interrupt(job: Job) -> None:
    """Put a run back in line whose worker lives and lost what it stands on. Raise LeaseLost."""
    run = held(job)
    if run.cancel_requested_at:
        runs.end(run, Run.State.CANCELLED, "cancelled")
        return
    pause = dt.timedelta(seconds=random.uniform(0, _BREATH_S))
    runs.requeue(run, not_before=db.clock() + pause)
    journal.write(run, [Entry(Kind.NOTE, "interrupted")])


@transaction.atomic
def finish(job: Job, state: Run.State | None = None, code: str = "", message: str = "") -> Run:
    """End a run. Without a state it is what the counts say: success, partial, or error when nothing went well."""
    run = held(job)
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
        run.verdict = code if state != Run.State.ERROR else ""
    elif left := outbox.count_waiting(run.pk):
        journal.write(run, [Entry(Kind.NOTE, "records_left_over", count=left)])
    runs.end(run, state, code, message)
    return run
