"""The verbs of a run from outside: start, cancel, wake, sweep. What its worker may do is in agents.lease.

A nudge through Celery only makes things quick; the row decides. Locks are taken in one order, runs before their agent,
save by what only inserts runs.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from uuid import UUID

import structlog
from django.db import transaction
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone
from kombu.exceptions import OperationalError as BrokerAway
from redis.exceptions import RedisError

from adiuva.celery import app
from adiuva.devices.models import Device
from adiuva.errors import Conflict, NotFound
from agents import journal
from agents.journal import Entry, Kind
from agents.models import Agent, Run

MOST_ATTEMPTS = 5
_AT_ONCE = 500
_NUDGE_AGAIN = dt.timedelta(seconds=30)
_WAIT_FOR_DEVICE = dt.timedelta(days=30)

log = structlog.get_logger("agents.runs")


class RunIsLive(Conflict):
    """The agent has a run under way; `run_id` in the answer names it."""

    code = "run_is_live"

    def __init__(self, run_id: UUID) -> None:
        super().__init__("this agent has a run under way", run_id=str(run_id))


def nudge(run_ids: Iterable[UUID]) -> None:
    """Tell the workers once the transaction is in. If a nudge is lost, the sweep finds the run."""
    ids = [str(run_id) for run_id in run_ids]

    def send() -> None:
        try:
            for run_id in ids:
                app.send_task("agents.execute", [run_id])
        except (BrokerAway, RedisError) as error:
            log.warning("nudge.lost", runs=len(ids), error=type(error).__name__)

    transaction.on_commit(send)


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


@transaction.atomic
def start(*, agent: Agent) -> Run:
    """A new run by hand, queued. Raise RunIsLive when the agent has one already, NotFound when it is gone."""
    locked = Agent.objects.select_for_update(no_key=True).filter(pk=agent.pk).first()
    if locked is None:
        raise NotFound("there is no such agent")
    live = Run.objects.live().filter(agent=locked)
    if (other := live.values_list("pk", flat=True).first()) is not None:
        raise RunIsLive(other)
    run = new(locked, Run.Trigger.MANUAL)
    run.save(force_insert=True)
    nudge([run.pk])
    return run


@transaction.atomic
def cancel(*, run: Run) -> Run:
    """Ask a run to end. One that no worker holds ends at once, one that ended already stays as it is."""
    locked = Run.objects.select_for_update().filter(pk=run.pk).first()
    if locked is None:
        raise NotFound("there is no such run")
    if locked.state in (Run.State.QUEUED, Run.State.WAITING_DEVICE):
        end(locked, Run.State.CANCELLED, "cancelled")
    elif locked.state == Run.State.RUNNING and locked.cancel_requested_at is None:
        locked.cancel_requested_at = timezone.now()
        locked.save(update_fields=["cancel_requested_at"])
    return locked


@transaction.atomic
def wake(*, user_id: UUID, device_id: str) -> int:
    """A device is here: its waiting runs are due. Returns how many."""
    waiting = Run.objects.of(user_id).filter(state=Run.State.WAITING_DEVICE, device_id=device_id)
    ids = list(waiting.select_for_update(skip_locked=True).values_list("pk", flat=True))
    if ids:
        Run.objects.filter(pk__in=ids).update(state=Run.State.QUEUED, nudged_at=Now())
        nudge(ids)
    return len(ids)


def sweep() -> dict[str, int]:
    """Find what a lost nudge or a dead worker left behind. Safe to run any number of times at once."""
    waiting = Run.objects.filter(state=Run.State.WAITING_DEVICE)
    here = Device.objects.online().filter(
        user_id__in=waiting.values("user_id"), device_id__in=waiting.values("device_id")
    )
    return {
        "lost": _take_from_the_dead(),
        "nudged": _nudge_again(),
        "woken": sum(
            wake(user_id=user_id, device_id=device_id)
            for user_id, device_id in here.values_list("user_id", "device_id")[:_AT_ONCE]
        ),
        "expired": _expire(),
    }


@transaction.atomic
def _take_from_the_dead() -> int:
    now = timezone.now()
    lost = Run.objects.filter(state=Run.State.RUNNING, lease_until__lt=now)
    found = list(lost.select_for_update(skip_locked=True)[:_AT_ONCE])
    for run in found:
        if run.cancel_requested_at:
            end(run, Run.State.CANCELLED, "cancelled")
        elif run.attempt >= MOST_ATTEMPTS:
            end(run, Run.State.ERROR, "workers_lost")
        else:
            run.state, run.nudged_at = Run.State.QUEUED, now
            run.fence += 1  # whoever held it may not write any more
            run.save(update_fields=["state", "nudged_at", "fence"])
            nudge([run.pk])
    return len(found)


@transaction.atomic
def _nudge_again() -> int:
    queued = Q(state=Run.State.QUEUED, nudged_at__lt=timezone.now() - _NUDGE_AGAIN)
    rows = Run.objects.select_for_update(skip_locked=True).filter(queued)[:_AT_ONCE]
    ids = list(rows.values_list("pk", flat=True))
    if ids:
        Run.objects.filter(pk__in=ids).update(nudged_at=Now())
        nudge(ids)
    return len(ids)


@transaction.atomic
def _expire() -> int:
    old = Q(state=Run.State.WAITING_DEVICE, created_at__lt=timezone.now() - _WAIT_FOR_DEVICE)
    found = list(Run.objects.select_for_update(skip_locked=True).filter(old)[:_AT_ONCE])
    for run in found:
        end(run, Run.State.TIMEOUT, "device_never_came")
    return len(found)


def end(run: Run, state: Run.State, code: str, message: str = "") -> None:
    """Bring a run, whose row is locked, to its end. Whoever held it can write it no more."""
    run.state, run.completed_at, run.lease_until, run.phase = state, timezone.now(), None, ""
    run.fence += 1
    run.save(update_fields=["state", "completed_at", "lease_until", "phase", "fence"])
    journal.write(run, [Entry(Kind.FINISHED, code, message=message)])
    log.info("run.finished", run_id=str(run.pk), user_id=str(run.user_id), state=str(state), code=code)
