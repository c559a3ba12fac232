"""A run in a worker's hands: claim it, keep its lease, and write to it.

A claim gives the worker a lease with a new fence (`adiuva.core.leases`). Every later write goes through that lease, so
a worker that was thought dead cannot overwrite its successor. `agents.run_release` lets go of a run.
"""

from __future__ import annotations

import datetime as dt
import json
import time
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet, Subquery
from django.db.models.functions import Now

from adiuva.accounts.keys import cipher_for
from adiuva.core import db, leases
from adiuva.core.crypto import UserCipher
from adiuva.core.leases import Lease, LeaseLost
from adiuva.core.prepared import PreparedQuery
from adiuva.devices.models import Device, OutboxRecord
from adiuva.llm import ModelUse
from agents import journal, runs
from agents.extraction import PROMPT_VERSION
from agents.journal import EventKind, JournalEntry
from agents.models import RUN_DEADLINE, Agent, AgentCursor, FoundRecord, Run, RunEvent, SourceInFlight
from billing import usage
from integrations.models import Provider


class AgentGone(Exception):
    """The agent was deleted during the run."""


@dataclass(frozen=True)
class MailAccount:
    """The account that a cloud agent reads. `cursor`: where reading continues; None reads from the beginning."""

    provider: Provider
    connection: UUID
    address: str = field(repr=False)
    filter_config: Mapping[str, Any] = field(repr=False)
    cursor: str | None = field(repr=False)


@dataclass(frozen=True)
class ClaimedRun:
    """A claimed run with all that its worker needs, read once: later changes of the agent count from the next run.

    `budget_micro`: the most that the agent's runs may cost a month; None for as much as its user's plan allows.
    `cost_micro`: the cost of earlier attempts of the run. `device` is None for a cloud agent, and for a device that
    never connected. `started_before`: whether an earlier attempt got as far as reading. `crash_counts`: how many
    workers crashed while they read a source, by source key.
    """

    lease: Lease[Run]
    run_id: UUID
    attempt: int
    user_id: UUID
    agent_id: UUID
    device_id: str
    device: UUID | None
    paths: tuple[str, ...]
    file_extensions: tuple[str, ...]
    prompt_template: str
    data_types: tuple[str, ...]
    dry_run: bool
    max_sources: int | None
    zone: ZoneInfo
    config_version: bytes
    seconds_to_deadline: float
    started_before: bool
    records_wait: bool
    changes_wait: bool
    others_wait: bool
    crash_counts: Mapping[bytes, int]
    account: MailAccount | None
    budget_micro: int | None
    cost_micro: int
    # Kept for the whole run: fetching it again asks the database, which an event loop must not.
    cipher: UserCipher = field(repr=False)

    def source_key(self, name: str) -> bytes:
        """Return the ledger's keyed hash of a path on the device or of a provider's message id, in any Unicode
        composition.

        It is the same for all agents of a user, so that they share what they have found in a source.
        """
        place = self.device_id if self.account is None else str(self.account.connection)
        return self.cipher.fingerprint(unicodedata.normalize("NFC", name), f"source in {place}")

    def content_key(self, content_hash: bytes) -> bytes:
        """Return the ledger's keyed hash of a content: a dump must not confirm that somebody has a certain file. It is
        the same for all agents of a user, so that a copy is recognised.
        """
        return self.cipher.fingerprint(content_hash, "content of a source")


def lease_duration() -> dt.timedelta:
    """Return how long a run stays with a worker that does not renew its lease."""
    return dt.timedelta(seconds=settings.RUNS["lease_s"])


@transaction.atomic(savepoint=False)
def claim(run_id: UUID) -> ClaimedRun | None:
    """Take a queued run. Returns None if another worker has it, it ended, or its retry is not due yet."""
    queued = Run.objects.filter(runs.retry_is_due(), state=Run.State.QUEUED)
    run = lock_queued(queued.filter(pk=run_id), others=queued)
    return begin(run) if run is not None else None


def lock_queued(queued: QuerySet[Run], *, others: QuerySet[Run]) -> Run | None:
    """Lock and return the first of these runs that nobody has, with all that `begin` needs, in one statement.

    `others`: the runs that the worker is told about: whether more of them wait.
    """
    of_agent = Run.objects.filter(agent_ref=OuterRef(OuterRef("agent_ref"))).order_by().values("pk")
    waiting = OutboxRecord.objects.waiting().filter(user_id=OuterRef("user_id"), source_run__in=of_agent)
    same_device = Device.objects.filter(user_id=OuterRef("user_id"), device_id=OuterRef("device_id"))
    changes = FoundRecord.objects.filter(agent_id=OuterRef("agent_id"), pending__isnull=False)
    found = leases.lock_free(
        queued.select_related("agent__connection", "user").annotate(
            device_row=Subquery(same_device.values("pk")[:1]),
            records_wait=Exists(waiting),
            changes_wait=Exists(changes),
            sources_in_flight=Exists(SourceInFlight.objects.filter(agent_id=OuterRef("agent_id"))),
            others_wait=Exists(others.exclude(pk=OuterRef("pk"))),
        )
    )
    return found[0] if found else None


def begin(run: Run) -> ClaimedRun | None:
    """Give a run that `lock_queued` has found to the caller. Returns None if it could not begin and has ended."""
    known: Any = run  # has the annotations of `lock_queued`
    now, agent = run.claimed_at, run.agent
    started_before = run.started_at is not None
    if agent is None or agent.device_id != run.device_id:
        runs.end(run, Run.State.CANCELLED, "agent_deleted" if agent is None else "device_changed")
        return None
    if agent.held_by_plan:
        runs.end(run, Run.State.CANCELLED, "held_by_plan")
        return None
    if run.is_cloud and agent.connection is None:
        runs.end(run, Run.State.ERROR, "no_connection", "its account is not connected any more")
        return None
    if run.deadline_at and run.deadline_at <= now:
        runs.end(run, Run.State.TIMEOUT, "deadline")
        return None
    deadline = run.deadline_at or now + RUN_DEADLINE
    leases.hand_over(
        [run],
        lease_duration(),
        state=Run.State.RUNNING,
        phase=Run.Phase.COLLECTING,
        not_before=None,
        started_at=run.started_at or now,
        attempted_at=now,
        deadline_at=deadline,
        attempt=run.attempt + 1,
        # Each attempt counts its files anew; the count of records created before an interruption stays.
        files_seen=0,
        files_done=0,
        files_unchanged=0,
        files_failed=0,
        sources_due=0,
        problems=max(0, run.problems - journal.resolve_failures(run)),
        preview=None,
    )
    # After the commit: a transaction that deletes the agent holds its row and waits for the run's.
    if not run.dry_run:
        transaction.on_commit(lambda: Agent.objects.filter(pk=agent.pk).update(last_run_at=now))
    device = None if run.is_cloud else known.device_row
    entries = [JournalEntry(EventKind.STARTED, count=run.attempt)]
    if run.slots > 1 and not started_before:
        entries.append(JournalEntry(EventKind.NOTE, "slots_missed", count=run.slots))
    if known.records_wait and device and not run.dry_run and (adopted := _adopt_records(run, device)):
        entries.append(JournalEntry(EventKind.NOTE, "records_taken_over", count=adopted))
    journal.write(run, entries)
    cipher = cipher_for(run.user_id)
    version = config_version(agent, cipher)
    return ClaimedRun(
        lease=run.lease(lease_duration()),
        run_id=run.pk,
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
        seconds_to_deadline=(deadline - now).total_seconds(),
        started_before=started_before,
        records_wait=known.records_wait,
        changes_wait=known.changes_wait,
        others_wait=known.others_wait,
        crash_counts=_clear_previous_attempt(agent) if known.sources_in_flight else {},
        account=_account(agent, cipher, version),
        budget_micro=agent.budget_micro,
        cost_micro=run.cost_micro,
        cipher=cipher,
    )


def _adopt_records(run: Run, device: UUID) -> int:
    """Take over records that an earlier run of the agent, cancelled or lost, found and did not deliver: their sources
    are in the ledger and will not be read again."""
    others = Run.objects.filter(agent_ref=run.agent_ref).exclude(pk=run.pk).values("pk")
    left = OutboxRecord.objects.waiting().filter(user_id=run.user_id, source_run__in=others)
    return left.filter(Q(device=device) | Q(device=None)).update(source_run=run.pk, device=device)


def config_version(agent: Agent, cipher: UserCipher) -> bytes:
    """Return a keyed hash of everything that could make an unchanged source give other records."""
    what = [agent.prompt_template, sorted(agent.data_types), settings.MODEL["model"], PROMPT_VERSION]
    return cipher.fingerprint(json.dumps(what), "configuration of an agent")


def _clear_previous_attempt(agent: Agent) -> dict[bytes, int]:
    """Clear the previous attempt's in-flight marks, and return the sources with recorded crashes."""
    left = list(SourceInFlight.objects.filter(agent=agent))
    if any(not source.crashes for source in left):
        SourceInFlight.objects.filter(agent=agent, crashes=0).delete()
    if any(source.crashes and source.in_flight for source in left):
        SourceInFlight.objects.filter(agent=agent, in_flight=True).update(in_flight=False)
    return {bytes(source.key): source.crashes for source in left if source.crashes}


def _account(agent: Agent, cipher: UserCipher, version: bytes) -> MailAccount | None:
    connection = agent.connection
    if connection is None:
        return None
    stored = AgentCursor.objects.filter(agent=agent, config_version=version).first()
    cursor = AgentCursor.cursor.unseal_from(cipher, stored) if stored else None
    provider = Provider(connection.provider)
    return MailAccount(provider, connection.pk, connection.address, agent.filter_config, cursor)


def held(claimed: ClaimedRun) -> Run:
    """Lock the run's row. Raises LeaseLost if this worker no longer holds it.

    Comes first in each transaction that writes, so that a worker that was thought dead writes nothing.
    """
    return claimed.lease.held()


def held_with_agent(claimed: ClaimedRun) -> Run:
    """Lock the run's row. Raises LeaseLost as `held` does, and AgentGone if the agent was deleted."""
    run = claimed.lease.held()
    if run.agent_id is None:
        raise AgentGone
    return run


def heartbeat(claimed: ClaimedRun, *, renew: bool) -> bool:
    """Return whether the run may continue: its user has not asked to cancel it. Raises LeaseLost."""
    if renew:
        claimed.lease.renew()
    requested = list(claimed.lease.row.values_list("cancel_requested_at", flat=True))
    if not requested:
        raise LeaseLost
    return requested[0] is None


def current_run(claimed: ClaimedRun) -> Run:
    """Return the run as it is now, whoever holds it. Raises LeaseLost if it was deleted with its user."""
    found = _by_id(claimed.run_id)
    if not found:
        raise LeaseLost
    return found[0]


# Prepared, because each report of progress reads it.
_by_id: Final = PreparedQuery(lambda run_id: Run.objects.filter(pk=run_id))

# The columns of a run's counts, by their parameter names.
_COUNTS: Final = {
    "seen": "files_seen",
    "done": "files_done",
    "unchanged": "files_unchanged",
    "failed": "files_failed",
    "due": "sources_due",
}
# The longest time that unwritten counts wait if nobody needs them at once.
_HOLD_COUNTS_S: Final = 1.0


def add_counts(
    claimed: ClaimedRun,
    *,
    entries: Iterable[JournalEntry] = (),
    phase: Run.Phase | None = None,
    passed_over: Mapping[str, int] | None = None,
    **counts: int,
) -> None:
    """Add to a run's counts (`_COUNTS`) and journal, in one statement if there are no entries. Raises LeaseLost.

    `passed_over` replaces the former counts of it. `due`: in a dry run, the number of sources that a real one would
    read.
    """
    changes: dict[str, Any] = {
        column: F(column) + counts[name] for name, column in _COUNTS.items() if counts.get(name)
    }
    if phase is not None:
        changes["phase"] = phase
    if passed_over is not None:
        changes["passed_over"] = dict(passed_over)
    if entries := list(entries):
        _write_with_entries(claimed, changes, entries)
    elif changes:
        claimed.lease.write(**changes)


def add_counts_to(run: Run, *, passed_over: Mapping[str, int] | None = None, **counts: Any) -> None:
    """Add counts to a locked row that is about to be saved. This ends its phase."""
    for name, column in _COUNTS.items():
        setattr(run, column, getattr(run, column) + counts.get(name, 0))
    if passed_over is not None:
        run.passed_over = dict(passed_over)


class HeldCounts:
    """Counts of a run that nobody needs at once: they are written with the next ones that somebody needs, or at the
    run's end.

    If the worker dies, nothing is lost with them, because each attempt counts its files anew.
    """

    def __init__(self, claimed: ClaimedRun) -> None:
        self._claimed = claimed
        self._held: dict[str, Any] = {}
        self._since = time.monotonic()

    async def add(self, *, hold: bool, entries: Sequence[JournalEntry] = (), **counts: Any) -> None:
        """Add counts as `add_counts` does. With `hold` they are written within a second or so, unless there are
        entries.
        """
        for name, value in counts.items():
            self._held[name] = self._held.get(name, 0) + value if name in _COUNTS else value
        if entries or not hold or time.monotonic() - self._since > _HOLD_COUNTS_S:
            await db.run(add_counts, self._claimed, entries=entries, **self.take())

    def take(self) -> dict[str, Any]:
        """Return and clear the held counts, for the caller to write."""
        held, self._held, self._since = self._held, {}, time.monotonic()
        return held


@transaction.atomic
def _write_with_entries(claimed: ClaimedRun, changes: dict[str, Any], entries: list[JournalEntry]) -> None:
    run = held(claimed)
    problems = count_problems(journal.write(run, entries))
    claimed.lease.write(**changes, problems=F("problems") + problems)


def add_used(run_id: UUID, uses: Sequence[ModelUse]) -> None:
    """Add to the run's use of models, even if another worker holds it."""
    Run.objects.filter(pk=run_id).update(
        **{name: F(name) + value for name, value in used_columns(uses).items()}
    )


def used_columns(uses: Sequence[ModelUse]) -> dict[str, int]:
    """Return the use of models by requests, by the columns of a run."""
    used = usage.total(uses)
    names = ("input_tokens", "cached_tokens", "output_tokens", "cost_micro")
    return {name: getattr(used, name) for name in names}


def count_problems(entries: Iterable[JournalEntry]) -> int:
    """Return how many problems these journal entries stand for."""
    return sum(entry.count or 1 for entry in entries if entry.kind in RunEvent.PROBLEMS)


@transaction.atomic
def save_cursor(claimed: ClaimedRun, cursor: str) -> None:
    """Store where the agent continues reading; everything before it is settled. Raises AgentGone, LeaseLost."""
    held_with_agent(claimed)
    AgentCursor.objects.update_or_create(
        agent_id=claimed.agent_id,
        defaults={
            "config_version": claimed.config_version,
            "cursor": AgentCursor.cursor.seal(claimed.cipher, cursor, claimed.agent_id),
            "updated_at": Now(),
        },
    )
