"""The verbs of a run from outside: start, cancel, wake, sweep. What its worker may do is in agents.lease.

A nudge through Celery only makes things quick; the row decides. What has to do with time goes by the database's clock:
those of workers differ. Locks are taken in one order, runs before their
agent, save by what only inserts runs.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from uuid import UUID

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet
from django.db.models.functions import Now

from adiuva.core import db, enqueue
from adiuva.core.errors import Conflict, NotFound
from adiuva.devices import outbox
from adiuva.devices.models import Device, OutboxRecord
from agents import journal
from agents.journal import Entry, Kind
from agents.models import Agent, Run, SourceInFlight
from integrations.models import Connection, Health

MOST_DEATHS = 5  # of workers in a row that got nothing done, after which a run ends
LEASE = dt.timedelta(seconds=settings.RUNS["lease_s"])
_AT_ONCE = 500
_NUDGE_AGAIN = dt.timedelta(seconds=30)
_HEED_S = 4.0  # in which a worker that lives ends a run that was cancelled, or came to its deadline
_WAIT_FOR_DEVICE = dt.timedelta(days=30)

log = structlog.get_logger("agents.runs")


class RunIsLive(Conflict):
    """The agent has a run under way; `run_id` in the answer names it."""

    code = "run_is_live"

    def __init__(self, run_id: UUID) -> None:
        super().__init__("this agent has a run under way", run_id=str(run_id))


def nudge(run_ids: Iterable[UUID]) -> None:
    """Tell the workers once the transaction is in. If a nudge is lost, the sweep finds the run."""
    for run_id in run_ids:
        enqueue.enqueue_on_commit("agents.execute", run_id)


def new(agent: Agent, trigger: Run.Trigger, *, slot: dt.datetime | None = None, slots: int = 1) -> Run:
    """A run of an agent as it is now, queued and not saved yet."""
    return Run(
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


class NoConnection(Conflict):
    """The account that the agent read was disconnected."""

    code = "no_connection"

    def __init__(self) -> None:
        super().__init__(
            "the agent's account is not connected any more: connect it again, and give the agent the new connection"
        )


@transaction.atomic
def start(*, agent: Agent, dry_run: bool = False, max_sources: int | None = None) -> Run:
    """A new run by hand, queued. A dry run reads at most `max_sources`, and shows what it would create instead of
    creating it. Raise RunIsLive when the agent has one already, NoConnection, and NotFound when it is gone."""
    locked = Agent.objects.select_for_update(no_key=True).filter(pk=agent.pk).first()
    if locked is None:
        raise NotFound("there is no such agent")
    live = Run.objects.live().filter(agent=locked)
    if (other := live.values_list("pk", flat=True).first()) is not None:
        raise RunIsLive(other)
    if not locked.is_local and locked.connection_id is None:
        raise NoConnection
    run = new(locked, Run.Trigger.MANUAL)
    run.dry_run, run.max_sources = dry_run, max_sources
    run.save(force_insert=True)
    nudge([run.pk])
    return run


@transaction.atomic
def cancel(*, run: Run) -> Run:
    """Ask a run to end. One that no worker holds ends at once, one that ended already stays as it is.

    Its worker ends it within seconds, and tells the device. If that one is dead, the sweep does, which is called for.
    """
    locked = Run.objects.select_for_update().filter(pk=run.pk).first()
    if locked is None:
        raise NotFound("there is no such run")
    if locked.state in (Run.State.QUEUED, Run.State.WAITING_DEVICE, Run.State.AWAITING_REAUTH):
        end(locked, Run.State.CANCELLED, "cancelled")
    elif locked.state == Run.State.RUNNING and locked.cancel_requested_at is None:
        locked.cancel_requested_at = db.clock()
        locked.save(update_fields=["cancel_requested_at"])
        enqueue.enqueue_on_commit("agents.sweep", after_s=_HEED_S)
    return locked


@transaction.atomic
def wake(*, user_id: UUID, device_id: str) -> int:
    """A device is here: its waiting runs are due, save scheduled ones that come too late. Returns how many."""
    waiting = Run.objects.of(user_id).filter(state=Run.State.WAITING_DEVICE, device_id=device_id)
    found = list(waiting.select_related("agent").select_for_update(skip_locked=True, of=("self",)))
    if not found:
        return 0
    now, ids = db.clock(), []
    for run in found:
        begun = run.started_at is not None
        if begun or run.slot is None or run.agent is None or run.agent.wants(run.slot, now):
            ids.append(run.pk)
        else:
            end(run, Run.State.CANCELLED, "slot_missed")
    if ids:
        Run.objects.filter(pk__in=ids).update(state=Run.State.QUEUED, nudged_at=Now())
        nudge(ids)
    return len(ids)


@transaction.atomic
def go_on(of: QuerySet[Run]) -> int:
    """An account is connected again: of these runs, those that waited for it are due. Returns how many."""
    found = of.filter(state=Run.State.AWAITING_REAUTH).order_by("pk").select_for_update(skip_locked=True)
    if ids := list(found.values_list("pk", flat=True)[:_AT_ONCE]):
        Run.objects.filter(pk__in=ids).update(state=Run.State.QUEUED, nudged_at=Now())
        nudge(ids)
    return len(ids)


def call_for_delivery(user_ids: Iterable[UUID]) -> None:
    """Have a worker bring users' waiting records to their devices. If the call is lost, the sweep calls again."""
    for user_id in user_ids:
        enqueue.enqueue_on_commit("agents.deliver", user_id)


def call_for_news(connection_id: UUID) -> None:
    """Have a worker tell a user that an account has to be connected again."""
    enqueue.enqueue_on_commit("agents.tell_needs_reauth", connection_id)


def sweep() -> dict[str, int]:
    """Find what a lost nudge or a dead worker left behind. Safe to run any number of times at once."""
    waiting = Run.objects.filter(state=Run.State.WAITING_DEVICE)
    here = Device.objects.online().filter(
        user_id__in=waiting.values("user_id"), device_id__in=waiting.values("device_id")
    )
    return {
        "unheeded": _end_unheeded(),
        "lost": _take_from_the_dead(),
        "nudged": _nudge_again(),
        "woken": sum(
            wake(user_id=user_id, device_id=device_id)
            for user_id, device_id in here.values_list("user_id", "device_id")[:_AT_ONCE]
        ),
        "connected": go_on(Run.objects.filter(Q(agent=None) | ~Q(agent__in=_paused()))),
        "undelivered": _deliver_again(),
        "expired": _expire(),
        "records_expired": _expire_records(),
    }


def _paused() -> QuerySet[Agent]:
    """Agents that wait for their users to connect an account again."""
    lost = Connection.objects.filter(health=Health.NEEDS_REAUTH)
    return Agent.objects.filter(connection__in=lost)


def _deliver_again() -> int:
    """Users with records that wait for a device which is here: the one they were given to, or any."""
    here = Device.objects.online()
    theirs = OutboxRecord.objects.waiting().filter(source_run=OuterRef("pk"))
    waiting = Run.objects.filter(
        Q(lease_until=None) | Q(lease_until__lt=Now()),
        Exists(here.filter(user_id=OuterRef("user_id"))),
        # Nothing waits any more where the last word on it was cut off.
        Exists(theirs.filter(Q(device=None) | Q(device__in=here))) | ~Exists(theirs),
        undelivered=True,
    )
    users = set(waiting.order_by().values_list("user_id", flat=True)[:_AT_ONCE])
    call_for_delivery(users)
    return len(users)


@transaction.atomic
def _end_unheeded() -> int:
    """End what was cancelled or is beyond its deadline, and nobody ends: its worker is dead or hangs, or it waits in
    line. Whoever held it can write it no more."""
    patience = Now() - dt.timedelta(seconds=_HEED_S - 0.5)
    cancelled = Q(state=Run.State.RUNNING, cancel_requested_at__lt=patience)
    late = Q(state=Run.State.RUNNING, deadline_at__lt=patience) | Q(
        state=Run.State.QUEUED, deadline_at__lt=Now()
    )
    found = list(Run.objects.select_for_update(skip_locked=True).filter(cancelled | late)[:_AT_ONCE])
    for run in found:
        if run.cancel_requested_at:
            end(run, Run.State.CANCELLED, "cancelled")
        else:
            end(run, Run.State.TIMEOUT, "deadline")
    return len(found)


@transaction.atomic
def _take_from_the_dead() -> int:
    lost = Run.objects.filter(state=Run.State.RUNNING, lease_until__lt=Now())
    found = list(lost.select_for_update(skip_locked=True)[:_AT_ONCE])
    for run in found:
        in_hand = SourceInFlight.objects.filter(agent=run.agent_id, in_hand=True)
        suspects = in_hand.update(deaths=F("deaths") + 1, in_hand=False)
        # A source that keeps killing is found and set aside; a worker that dies over nothing will do so again.
        run.deaths = 0 if suspects or run.items_processed else run.deaths + 1
        journal.write(run, [Entry(Kind.NOTE, "worker_lost", count=suspects)])
        if run.cancel_requested_at:
            end(run, Run.State.CANCELLED, "cancelled")
        elif run.deaths >= MOST_DEATHS:
            end(run, Run.State.ERROR, "workers_lost")
        else:
            requeue(run)
            nudge([run.pk])
    return len(found)


def requeue(run: Run, *, not_before: dt.datetime | None = None) -> None:
    """Put a run, whose row is locked, back in line. Whoever held it may not write it any more."""
    run.state, run.phase, run.lease_until = Run.State.QUEUED, "", None
    run.not_before, run.nudged_at = not_before, db.clock()
    run.fence += 1
    run.save(
        update_fields=[
            "state",
            "phase",
            "lease_until",
            "not_before",
            "nudged_at",
            "fence",
            "retries",
            "deaths",
        ]
    )


@transaction.atomic
def _nudge_again() -> int:
    """Runs whose nudge was lost, and those whose time to be tried again has come."""
    forgotten = Q(nudged_at__lt=Now() - _NUDGE_AGAIN) | Q(nudged_at__lt=F("not_before"))
    queued = Run.objects.filter(due(), forgotten, state=Run.State.QUEUED)
    ids = list(queued.select_for_update(skip_locked=True).values_list("pk", flat=True)[:_AT_ONCE])
    if ids:
        Run.objects.filter(pk__in=ids).update(nudged_at=Now())
        nudge(ids)
    return len(ids)


def due() -> Q:
    """Of queued runs: those that wait for no moment to come."""
    return Q(not_before=None) | Q(not_before__lte=Now())


@transaction.atomic
def _expire() -> int:
    waiting = (Run.State.WAITING_DEVICE, Run.State.AWAITING_REAUTH)
    old = Q(state__in=waiting, created_at__lt=Now() - _WAIT_FOR_DEVICE)
    found = list(Run.objects.select_for_update(skip_locked=True).filter(old)[:_AT_ONCE])
    for run in found:
        device = run.state == Run.State.WAITING_DEVICE
        end(run, Run.State.TIMEOUT, "device_never_came" if device else "never_connected_again")
    return len(found)


@transaction.atomic
def _expire_records() -> int:
    """Records that their device did not come for. Their runs' journals say how many; those under way bring theirs."""
    overdue = Run.objects.filter(pk__in=outbox.overdue_runs(_AT_ONCE)).exclude(state=Run.State.RUNNING)
    expired = 0
    for run in overdue.select_for_update(skip_locked=True):
        gone, unknown = outbox.expire(run.pk, _AT_ONCE)
        entries = [Entry(Kind.NOTE, "records_expired", count=gone)] if gone else []
        if unknown:
            entries.append(Entry(Kind.RECORD_UNCERTAIN, "outcome_unknown", count=unknown))
            run.problems += unknown
            run.save(update_fields=["problems"])
        journal.write(run, entries)
        expired += gone + unknown
    return expired


def end(run: Run, state: Run.State, code: str, message: str = "") -> None:
    """Bring a run, whose row is locked, to its end. Whoever held it can write it no more."""
    run.state, run.completed_at, run.lease_until, run.phase = state, db.clock(), None, ""
    run.not_before = None
    run.fence += 1
    # A local agent's next run brings what this one did not.
    run.undelivered = run.is_cloud and outbox.count_waiting(run.pk) > 0
    run.save(
        update_fields=[
            "state",
            "verdict",
            "completed_at",
            "lease_until",
            "phase",
            "not_before",
            "fence",
            "undelivered",
        ]
    )
    if run.undelivered:
        call_for_delivery([run.user_id])
    journal.write(run, [Entry(Kind.FINISHED, code, message=message)])
    log.info("run.finished", run_id=str(run.pk), user_id=str(run.user_id), state=str(state), code=code)
