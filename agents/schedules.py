"""When agents are due. One tick claims all of them; a slot that was missed becomes part of the run that is made."""

from __future__ import annotations

import datetime as dt
from itertools import islice
from zoneinfo import ZoneInfo

import structlog
from django.db import transaction
from django.utils import timezone

from agents import runs
from agents.cron import Cron
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
    """Start what is due. Any number of beats may call it at once: each agent is claimed by one."""
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
        .select_for_update(skip_locked=True, of=("self",))[:_AT_ONCE]
    )
    started = 0
    for agent in due:
        missed = agent.next_run_at
        assert missed is not None
        agent.next_run_at = next_run_at(agent, now)
        cron, zone = Cron.parse(agent.schedule_cron), ZoneInfo(agent.zone)
        slots = [missed]
        for slot in islice(cron.after(missed, zone), _MOST_SLOTS):
            if slot > now:
                break
            slots.append(slot)
        try:
            runs.start(agent=agent, trigger=Run.Trigger.SCHEDULE, slot=slots[-1], slots=len(slots))
            started += 1
        except runs.RunIsLive:
            # Its run is still under way, so this slot is covered by it.
            log.info("schedule.run_is_live", agent_id=str(agent.pk))
    Agent.objects.bulk_update(due, ["next_run_at"])
    return (len(due), started) if due else None
