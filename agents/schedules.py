"""When agents are due. One tick claims all of them; a slot that was missed becomes part of the run that is made."""

from __future__ import annotations

import datetime as dt
import uuid
from itertools import islice
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import structlog
from django.db import transaction
from django.utils import timezone

from agents import runs
from agents.cron import BadCron, Cron
from agents.models import Agent, Run

_AT_ONCE = 500
_MOST_SLOTS = 10_000

log = structlog.get_logger("agents.schedules")


def next_run_at(agent: Agent, after: dt.datetime | None = None) -> dt.datetime | None:
    """The agent's first slot after a moment (now); None when it has no schedule or is switched off."""
    if not agent.schedule_cron or not agent.enabled:
        return None
    return Cron.parse(agent.schedule_cron).next(after or timezone.now(), ZoneInfo(agent.zone))


def tick(now: dt.datetime | None = None) -> int:
    """Start what is due; how many that is. Any number of beats may call it at once: each agent is claimed by one."""
    now = now or timezone.now()
    started = 0
    while claimed := _claim(now):
        started += claimed[1]
        if claimed[0] < _AT_ONCE:
            break
    return started


@transaction.atomic
def _claim(now: dt.datetime) -> tuple[int, int] | None:
    due = list(
        Agent.objects.filter(enabled=True, next_run_at__lte=now)
        .select_related("user")
        .order_by("next_run_at")
        .select_for_update(skip_locked=True, no_key=True, of=("self",))[:_AT_ONCE]
    )
    if not due:
        return None
    wanted = [run for agent in due if (run := _advance(agent, now)) is not None]
    Agent.objects.bulk_update(due, ["next_run_at"])
    # What the unique constraints refuse is covered already: by a run that is under way, or by the slot's own.
    Run.objects.bulk_create(wanted, ignore_conflicts=True)
    started = set(Run.objects.filter(pk__in=[run.pk for run in wanted]).values_list("pk", flat=True))
    for run in wanted:
        if run.pk not in started:
            log.info("schedule.covered", agent_id=str(run.agent_ref))
    runs.nudge(started)
    return len(due), len(started)


def _advance(agent: Agent, now: dt.datetime) -> Run | None:
    """Move an agent to its next slot; the run for those that have come. Not saved."""
    missed = agent.next_run_at
    assert missed is not None
    try:
        agent.next_run_at = next_run_at(agent, now)
        cron, zone = Cron.parse(agent.schedule_cron), ZoneInfo(agent.zone)
    except (BadCron, ZoneInfoNotFoundError) as error:
        # It was right when it was saved. One that no longer is must not stop the others.
        log.error("schedule.unusable", agent_id=str(agent.pk), error=type(error).__name__)
        agent.next_run_at = None
        return None
    slots = [missed]
    for slot in islice(cron.after(missed, zone), _MOST_SLOTS - 1):
        if slot > now:
            break
        slots.append(slot)
    return runs.new(agent, Run.Trigger.SCHEDULE, slot=slots[-1], slots=len(slots))


@transaction.atomic
def follow_user(*, user_id: uuid.UUID) -> None:
    """The user may have moved: agents without a zone of their own keep their local times.

    What is due already stays so; the next tick reads the new zone.
    """
    agents = list(
        Agent.objects.filter(user_id=user_id, timezone="", enabled=True, next_run_at__gt=timezone.now())
        .select_related("user")
        .select_for_update(of=("self",), no_key=True)
    )
    for agent in agents:
        agent.next_run_at = next_run_at(agent)
    Agent.objects.bulk_update(agents, ["next_run_at"])
