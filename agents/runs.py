"""Start, cancel, resume and sweep runs. `agents.claimed_runs` is the worker's side of a run.

Celery messages only make things fast: the rows decide, and workers look for queued runs by themselves as well. Times
come from the database's clock, because workers' clocks differ. Locks are taken in one order, runs before their agent,
except by code that only inserts runs.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any
from uuid import UUID

import structlog
from django.db import transaction
from django.db.models import CharField, Exists, F, OuterRef, Q, QuerySet, Value
from django.db.models.functions import Coalesce, Now
from psycopg.types.json import Jsonb

from adiuva.accounts.keys import cipher_for
from adiuva.core import db, enqueue, leases, metrics
from adiuva.core.db import prepared_cursor
from adiuva.core.errors import Conflict, NotFound
from adiuva.devices import outbox
from adiuva.devices.models import Device, OutboxRecord
from agents import announcements, journal, run_watches
from agents.journal import EventKind, JournalEntry
from agents.models import Agent, Run, SourceInFlight
from agents.run_watches import ChatPlace
from billing import allowances
from billing.models import Purpose
from integrations.models import Connection, Health

# A run ends after it lost this many workers in a row without any progress.
MAX_WORKERS_LOST = 5
_BATCH_SIZE = 500
# The time that a live worker gets to honour a cancel or deadline before the sweep ends the run.
CANCEL_GRACE_S = 4.0
# The longest wait for a device to connect, an account to be connected again, or money. More than a month, since money
# may come with the next one.
_MAX_WAIT = dt.timedelta(days=32)
# The codes of runs that waited too long, by the state in which they waited.
_NEVER = {
    Run.State.WAITING_DEVICE: "device_never_came",
    Run.State.AWAITING_REAUTH: "never_connected_again",
    Run.State.AWAITING_BUDGET: "budget_never_came",
}

log = structlog.get_logger(__name__)


class RunIsLive(Conflict):
    """The agent already has a run in progress; the error body names it in `run_id`."""

    code = "run_is_live"

    def __init__(self, run_id: UUID) -> None:
        super().__init__("this agent has a run under way", run_id=str(run_id))
        self.run_id = run_id


def wake_workers() -> None:
    """Tell the workers, after the commit, that runs wait.

    They find out themselves which run is next (`agents.run_queue`), and if the message is lost, they look by
    themselves.
    """
    enqueue.enqueue_on_commit("agents.start_queued")


def build_run(agent: Agent, trigger: Run.Trigger, *, slot: dt.datetime | None = None, slots: int = 1) -> Run:
    """Build a queued run of an agent as it is configured now, without saving it."""
    return Run(
        user_id=agent.user_id,
        agent=agent,
        agent_ref=agent.pk,
        agent_name_sealed=agent.name_sealed,
        agent_type=agent.type,
        device_id=agent.device_id,
        trigger=trigger,
        slot=slot,
        slots=slots,
    )


class NoConnection(Conflict):
    """The account that the agent reads was disconnected."""

    code = "no_connection"

    def __init__(self) -> None:
        super().__init__(
            "the agent's account is not connected any more: connect it again, and give the agent the new connection"
        )


class HeldByPlan(Conflict):
    """The user's plan has no room for this agent."""

    code = "held_by_plan"

    def __init__(self) -> None:
        super().__init__(
            "your plan has no room for this agent: choose which of your agents run, or take a larger plan"
        )


@transaction.atomic
def start(
    *, agent: Agent, dry_run: bool = False, max_sources: int | None = None, place: ChatPlace | None = None
) -> Run:
    """Queue a run by hand. A dry run reads at most `max_sources`, and shows what it would create without creating it.

    `place`: the chat that it is started from, where its end is told.

    Raises RunIsLive if the agent already has a run in progress, HeldByPlan, NoConnection, NotFound if it was deleted,
    and, from a chat, TooManyStarts.
    """
    if place is not None:
        run_watches.check_starts(place)
    locked = Agent.objects.select_for_update(no_key=True).filter(pk=agent.pk).first()
    if locked is None:
        raise NotFound("there is no such agent")
    live = Run.objects.live().filter(agent=locked)
    if (other := live.values_list("pk", flat=True).first()) is not None:
        raise RunIsLive(other)
    if locked.held_by_plan:
        raise HeldByPlan
    if not locked.is_local and locked.connection_id is None:
        raise NoConnection
    run = build_run(locked, Run.Trigger.MANUAL)
    run.dry_run, run.max_sources = dry_run, max_sources
    run.save(force_insert=True)
    if place is not None:
        run_watches.add(run, place, started=True)
    wake_workers()
    return run


@transaction.atomic
def cancel(*, run: Run) -> Run:
    """Ask a run to end. A run that no worker holds ends at once; one that has ended stays as it is.

    A live worker ends its run within seconds and tells the device. In case it is dead, a sweep is scheduled, which then
    ends the run. Raises NotFound.
    """
    locked = Run.objects.select_for_update().filter(pk=run.pk).first()
    if locked is None:
        raise NotFound("there is no such run")
    if locked.state in Run.PUT_ASIDE or locked.state == Run.State.QUEUED:
        end(locked, Run.State.CANCELLED, "cancelled")
    elif locked.state == Run.State.RUNNING and locked.cancel_requested_at is None:
        locked.set(cancel_requested_at=db.clock())
        enqueue.enqueue_on_commit("agents.sweep", after_s=CANCEL_GRACE_S)
    return locked


@transaction.atomic
def resume_waiting(*, user_id: UUID, device_id: str) -> int:
    """Queue the runs that waited for a device, which has connected, and cancel scheduled ones that are too late.

    Returns how many were queued.
    """
    waiting = Run.objects.of(user_id).filter(state=Run.State.WAITING_DEVICE, device_id=device_id)
    found = list(waiting.select_related("agent").select_for_update(skip_locked=True, of=("self",)))
    if not found:
        return 0
    now, ids = db.clock(), []
    for run in found:
        begun = run.started_at is not None
        if begun or run.slot is None or run.agent is None or run.agent.accepts_slot(run.slot, now):
            ids.append(run.pk)
        else:
            end(run, Run.State.CANCELLED, "slot_missed")
    if ids:
        Run.objects.filter(pk__in=ids).update(state=Run.State.QUEUED, enqueued_at=Now())
        wake_workers()
    return len(ids)


@transaction.atomic
def resume_after_reauth(candidates: QuerySet[Run]) -> int:
    """Queue those of the given runs that waited for an account, which is connected again. Returns how many."""
    found = (
        candidates.filter(state=Run.State.AWAITING_REAUTH).order_by("pk").select_for_update(skip_locked=True)
    )
    if ids := list(found.values_list("pk", flat=True)[:_BATCH_SIZE]):
        Run.objects.filter(pk__in=ids).update(state=Run.State.QUEUED, enqueued_at=Now())
        wake_workers()
    return len(ids)


def resume_with_budget() -> int:
    """Queue the runs that waited for money and whose allowances have room again. Returns how many."""
    waiting = Run.objects.filter(state=Run.State.AWAITING_BUDGET).order_by("enqueued_at", "pk")
    seen = list(waiting.select_related("agent")[:_BATCH_SIZE])
    found = [
        run.pk
        for run in seen
        if allowances.has_room(
            run.user_id, Purpose.AGENTS, run.agent_ref, run.agent.budget_micro if run.agent else None
        )
    ]
    # A run that still has to wait goes to the end of the line, so that each gets its look. Runs that others have locked
    # are left to the next sweep: they are being cancelled, or deleted with their account.
    with transaction.atomic():
        free = waiting.select_for_update(of=("self",), no_key=True, skip_locked=True).filter(
            pk__in=[run.pk for run in seen]
        )
        ids = set(free.values_list("pk", flat=True))
        Run.objects.filter(pk__in=ids.difference(found)).update(enqueued_at=Now())
        queued = Run.objects.filter(pk__in=ids.intersection(found))
        if count := queued.update(state=Run.State.QUEUED, enqueued_at=Now()):
            wake_workers()
    return count


def enqueue_delivery(user_ids: Iterable[UUID]) -> None:
    """Have a worker deliver users' waiting records to their devices. If the message is lost, the sweep repeats it."""
    for user_id in user_ids:
        enqueue.enqueue_on_commit("agents.deliver", user_id)


def enqueue_reauth_notice(connection_id: UUID) -> None:
    """Have a worker tell a user that an account must be connected again."""
    enqueue.enqueue_on_commit("agents.tell_needs_reauth", connection_id)


def sweep() -> dict[str, int]:
    """Repair the effects of lost messages and dead workers. Any number of sweeps may run at once.

    Mostly there is nothing to repair: one statement finds the steps with work, and only these run.
    """
    steps: dict[str, tuple[QuerySet[Any], Callable[[], int]]] = {
        "overdue": (_overdue(), _end_overdue),
        "lost": (_lost(), _reclaim_lost),
        "resumed": (_whose_device_is_here(), _resume_those_whose_device_is_here),
        "reauthenticated": (_reauthenticated(), lambda: resume_after_reauth(_reauthenticated())),
        "deliveries": (_undelivered(), _enqueue_deliveries),
        "expired": (_never_continued(), _expire_waiting),
        "records_expired": (outbox.overdue(), _expire_records),
    }
    first, *others = [
        rows.order_by().values_list(Value(name, CharField()))[:1] for name, (rows, _) in steps.items()
    ]
    due = {name for (name,) in first.union(*others, all=True)}
    return {name: repair() if name in due else 0 for name, (_, repair) in steps.items()}


def _whose_device_is_here() -> QuerySet[Run]:
    """Return runs that wait for a device which is online."""
    here = Device.objects.online().filter(user_id=OuterRef("user_id"), device_id=OuterRef("device_id"))
    return Run.objects.filter(Exists(here), state=Run.State.WAITING_DEVICE)


def _resume_those_whose_device_is_here() -> int:
    places = _whose_device_is_here().order_by().values_list("user_id", "device_id").distinct()
    return sum(
        resume_waiting(user_id=user_id, device_id=device_id) for user_id, device_id in places[:_BATCH_SIZE]
    )


def _reauthenticated() -> QuerySet[Run]:
    """Return runs that waited for an account which is connected again."""
    lost = Connection.objects.filter(health=Health.NEEDS_REAUTH)
    without_account = Agent.objects.filter(connection__in=lost)
    waiting = Run.objects.filter(state=Run.State.AWAITING_REAUTH)
    return waiting.filter(Q(agent=None) | ~Q(agent__in=without_account))


def _undelivered() -> QuerySet[Run]:
    """Return runs whose records wait for a device that is online: a certain one, or any."""
    here = Device.objects.online()
    theirs = OutboxRecord.objects.waiting().filter(source_run=OuterRef("pk"))
    return Run.objects.filter(
        leases.is_free(),
        Exists(here.filter(user_id=OuterRef("user_id"))),
        # Or no record waits any more, because the delivery was interrupted before it could note that.
        Exists(theirs.filter(Q(device=None) | Q(device__in=here))) | ~Exists(theirs),
        undelivered=True,
    )


def _enqueue_deliveries() -> int:
    users = set(_undelivered().order_by().values_list("user_id", flat=True)[:_BATCH_SIZE])
    enqueue_delivery(users)
    return len(users)


def _overdue() -> QuerySet[Run]:
    """Return runs past their deadline or cancelled that no worker ends: it is dead, hangs, or has not begun."""
    grace_over = Now() - dt.timedelta(seconds=CANCEL_GRACE_S - 0.5)
    cancelled = Q(state=Run.State.RUNNING, cancel_requested_at__lt=grace_over)
    late = Q(state=Run.State.RUNNING, deadline_at__lt=grace_over) | Q(
        state=Run.State.QUEUED, deadline_at__lt=Now()
    )
    return Run.objects.filter(cancelled | late)


@transaction.atomic
def _end_overdue() -> int:
    found = list(_overdue().select_for_update(skip_locked=True)[:_BATCH_SIZE])
    for run in found:
        if run.cancel_requested_at:
            end(run, Run.State.CANCELLED, "cancelled")
        else:
            end(run, Run.State.TIMEOUT, "deadline")
    return len(found)


def _lost() -> QuerySet[Run]:
    """Return runs whose worker stopped renewing its lease."""
    return Run.objects.filter(leases.is_over(), state=Run.State.RUNNING)


@transaction.atomic
def _reclaim_lost() -> int:
    """Queue lost runs again. Returns how many."""
    lost = leases.reclaim(_lost(), most=_BATCH_SIZE)
    for run in lost:
        in_flight = SourceInFlight.objects.filter(agent=run.agent_id, in_flight=True)
        suspects = in_flight.update(crashes=F("crashes") + 1, in_flight=False)
        # A source that keeps crashing workers gets quarantined; a worker that crashes over nothing will do so again.
        workers_lost = 0 if suspects or run.items_processed else run.workers_lost + 1
        journal.write(run, [JournalEntry(EventKind.NOTE, "worker_lost", count=suspects)])
        if run.cancel_requested_at:
            end(run, Run.State.CANCELLED, "cancelled")
        elif workers_lost >= MAX_WORKERS_LOST:
            end(run, Run.State.ERROR, "workers_lost")
        else:
            requeue(run, workers_lost=workers_lost)
            wake_workers()
    return len(lost)


def requeue(run: Run, *, not_before: dt.datetime | None = None, **changes: Any) -> None:
    """Queue a run, whose row is locked, again, and save `changes` to it. Its holder can no longer write it."""
    run.revoke(state=Run.State.QUEUED, phase="", not_before=not_before, enqueued_at=db.clock(), **changes)


def retry_is_due() -> Q:
    """Return a condition on queued runs: they do not wait for the time of a retry."""
    return Q(not_before=None) | Q(not_before__lte=Now())


def _never_continued() -> QuerySet[Run]:
    """Return runs that have waited for too long, since a worker last had them or since they were made."""
    waiting = Run.objects.alias(since=Coalesce("attempted_at", "created_at")).filter(state__in=Run.PUT_ASIDE)
    return waiting.filter(since__lt=Now() - _MAX_WAIT)


@transaction.atomic
def _expire_waiting() -> int:
    found = list(_never_continued().select_for_update(skip_locked=True)[:_BATCH_SIZE])
    for run in found:
        end(run, Run.State.TIMEOUT, _NEVER[Run.State(run.state)])
    return len(found)


@transaction.atomic
def _expire_records() -> int:
    """Expire records whose device did not connect in time, and note in their runs' journals how many.

    Leaves out runs in progress, which deliver theirs.
    """
    overdue = Run.objects.filter(pk__in=outbox.overdue_runs(_BATCH_SIZE)).exclude(state=Run.State.RUNNING)
    expired = 0
    for run in overdue.select_for_update(skip_locked=True):
        gone, unknown = outbox.expire(run.pk, _BATCH_SIZE)
        entries = [JournalEntry(EventKind.NOTE, "records_expired", count=gone)] if gone else []
        if unknown:
            entries.append(JournalEntry(EventKind.RECORD_UNCERTAIN, "outcome_unknown", count=unknown))
            run.set(problems=run.problems + unknown)
        journal.write(run, entries)
        expired += gone + unknown
    return expired


# Writes a run's whole end, since every run has one: its row with the last counts, the watches to tell, and its last
# line.
_END = f"""
WITH ended AS (
    UPDATE agents_run SET state = %(state)s, verdict = %(verdict)s, phase = '', not_before = NULL,
        completed_at = statement_timestamp(), undelivered = %(undelivered)s, announcement = %(announcement)s,
        problems = %(problems)s, files_seen = %(seen)s, files_done = %(done)s, files_unchanged = %(unchanged)s,
        files_failed = %(failed)s, passed_over = %(passed_over)s, {leases.REVOKE_SQL}
    WHERE id = %(run)s::uuid RETURNING completed_at
),
{run_watches.RUN_ENDED_SQL},
written AS ({journal.INSERT_SQL})
SELECT completed_at, (SELECT count(*) FROM watches_due) FROM ended
"""  # noqa: S608  # of our own texts


def end(run: Run, state: Run.State, code: str, message: str = "") -> None:
    """End a run, whose row is locked. Its holder can no longer write it. One statement for most runs."""
    run.state, run.phase, run.not_before = state, "", None
    # Records that a local agent's run could not deliver are delivered by the agent's next run.
    run.undelivered = run.is_cloud and outbox.count_waiting(run.pk) > 0
    run.announcement = Run.Announcement.DUE if announcements.wanted(run, state, code) else ""
    run.revoke_lease()
    line = JournalEntry(EventKind.FINISHED, code, message=message)
    values: dict[str, Any] = {
        "run": run.pk,
        "state": str(state),
        "verdict": str(run.verdict),
        "undelivered": run.undelivered,
        "announcement": str(run.announcement),
        "problems": run.problems,
        "seen": run.files_seen,
        "done": run.files_done,
        "unchanged": run.files_unchanged,
        "failed": run.files_failed,
        "passed_over": Jsonb(run.passed_over),
        **run_watches.run_ended_values(by_user=code == "cancelled"),
        **journal.prepare(run.pk, cipher_for(run.user_id), [line]).values(),
    }
    with prepared_cursor() as cursor:
        cursor.execute(_END, values)
        run.completed_at, due = cursor.fetchone()
    if run.undelivered:
        enqueue_delivery([run.user_id])
    if run.announcement or due:
        enqueue.enqueue_on_commit("chat.follow_up")
    transaction.on_commit(partial(_count, str(state), code))
    log.info("run.finished", run_id=str(run.pk), user_id=str(run.user_id), state=str(state), code=code)


def _count(state: str, code: str) -> None:
    metrics.RUNS.labels(state).inc()
    if state != Run.State.SUCCESS and code:
        metrics.count_error("run", code)
