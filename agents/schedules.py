"""Start agents at their slots (scheduled times), and decide what happens to missed slots.

The tick claims all agents that are due; a device that connects claims those that are due for it, with the same code. A
slot is missed if no run could start within `ON_TIME_WINDOW`, because the server or the agent's device was away.
`Agent.catch_up` says what happens then:

- once: all missed slots get one run, which says how many it covers (`Run.slots`);
- skip: they get none;
- within: they get one run if the last of them is not older than `catch_up_hours`.

An agent has one live run. While its device is away the run waits, and absorbs later slots; whether it is still wanted
is decided when the device connects (`runs.resume_waiting`). With `skip`, no run is made before the device connects.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import structlog
from django.db import connection, transaction
from django.db.models import DateTimeField, Exists, OuterRef, Prefetch, Q, QuerySet, Value
from django.db.models.functions import Now
from django.utils import timezone

from adiuva.accounts.models import User
from adiuva.core.db import prepared_cursor
from adiuva.core.enqueue import enqueue_on_commit
from adiuva.devices.models import Device
from agents import runs
from agents.cron import BadCron, Cron
from agents.models import ON_TIME_WINDOW, Agent, CatchUp, Run

_BATCH_SIZE = 500
# The most slots that one run can cover.
_MAX_SLOTS = 10_000

_PENDING_WORK = """
SELECT
    EXISTS (SELECT FROM agents_agent
            WHERE user_id = %(user)s AND device_id = %(device)s AND enabled AND next_run_at <= statement_timestamp()),
    EXISTS (SELECT FROM agents_run
            WHERE user_id = %(user)s AND device_id = %(device)s AND state = 'waiting_device'),
    EXISTS (SELECT FROM agents_run WHERE user_id = %(user)s AND undelivered),
    ARRAY(SELECT id FROM integrations_connection
          WHERE user_id = %(user)s AND health = 'needs_reauth' AND told_at IS NULL),
    EXISTS (SELECT FROM agents_watch
            WHERE user_id = %(user)s AND state = 'due' AND conversation_id IS NOT NULL
                AND (not_before IS NULL OR not_before <= statement_timestamp()))
"""

log = structlog.get_logger(__name__)

_parsed = lru_cache(10_000)(Cron.parse)  # many agents share a schedule


def next_run_at(agent: Agent, after: dt.datetime | None = None) -> dt.datetime | None:
    """Return the agent's first slot after a moment (default: now); None if it has no schedule or is disabled."""
    if not agent.schedule_cron or not agent.enabled:
        return None
    return _parsed(agent.schedule_cron).next(after or timezone.now(), ZoneInfo(agent.zone))


def upcoming_slots(agent: Agent, count: int = 5) -> list[dt.datetime]:
    """Return the next slots of an agent's schedule, in its zone, even while it is disabled; none without one."""
    if not agent.schedule_cron:
        return []
    zone = ZoneInfo(agent.zone)
    slots = _parsed(agent.schedule_cron).after(timezone.now(), zone)
    return [slot.astimezone(zone) for slot in islice(slots, count)]


def tick(now: dt.datetime | None = None) -> int:
    """Start the agents that are due. Returns how many runs. Ticks may overlap: each agent is claimed by one."""
    return _start_due(Q(), now)


def device_connected(*, user_id: uuid.UUID, device_id: str) -> int:
    """Start the due agents of a device that has connected, and resume the runs that wait for it. Returns how many."""
    # After a restart thousands connect at once, and most find nothing: that must cost one statement.
    with prepared_cursor() as cursor:
        cursor.execute(_PENDING_WORK, {"user": user_id, "device": device_id})
        is_due, waits, undelivered, untold, ends_are_due = cursor.fetchone()
    if ends_are_due:  # of runs that were started from chats: the turn that tells them may need a device
        enqueue_on_commit("chat.follow_up")
    for connection_id in untold:
        runs.enqueue_reauth_notice(connection_id)
    if undelivered:
        runs.enqueue_delivery([user_id])
    started = _start_due(Q(user_id=user_id, device_id=device_id), None) if is_due else 0
    return started + (runs.resume_waiting(user_id=user_id, device_id=device_id) if waits or started else 0)


def connection_restored(*, connection_id: uuid.UUID) -> int:
    """Resume waiting runs of an account that is connected again, and catch up on missed slots. Returns how many."""
    resumed = runs.resume_after_reauth(Run.objects.filter(agent__connection=connection_id))
    return resumed + _start_due(Q(connection=connection_id), None)


def _start_due(whose: Q, now: dt.datetime | None) -> int:
    started = 0
    while claimed := _claim(whose, now):
        started += claimed[1]
        if claimed[0] < _BATCH_SIZE:
            break
    return started


@transaction.atomic
def _claim(whose: Q, moment: dt.datetime | None) -> tuple[int, int] | None:
    due = list(_due(whose, Now() if moment is None else Value(moment, DateTimeField())))
    if not due:
        return None
    now = due[0].now  # type: ignore[attr-defined]  # annotated: the database's clock
    held = [agent.pk for agent in due if agent.held_by_plan]
    wanted = [run for agent in due if (run := _advance(agent, now)) is not None]
    with connection.cursor() as cursor:
        cursor.execute(_SET_NEXT_RUNS, [[agent.pk for agent in due], [agent.next_run_at for agent in due]])
    started: set[uuid.UUID] = set()
    if wanted:
        # The unique constraints refuse runs for slots that a live run covers, or that had their own.
        Run.objects.bulk_create(wanted, ignore_conflicts=True)
        started = set(Run.objects.filter(pk__in=[run.pk for run in wanted]).values_list("pk", flat=True))
        _absorb_slots([run for run in wanted if run.pk not in started])
        for run in wanted:
            if run.pk in started and run.agent_id in held:
                runs.end(run, Run.State.CANCELLED, "held_by_plan")
        if any(run.pk in started and run.state == Run.State.QUEUED for run in wanted):
            runs.wake_workers()
    return len(due), len(started)


def _due(whose: Q, now: Now | Value) -> QuerySet[Agent]:
    """Lock and return the agents whose slot has come.

    An agent that skips missed slots and whose device is away is left alone while it is on time, because the device may
    connect any moment.
    """
    here = Device.objects.online().filter(user_id=OuterRef("user_id"), device_id=OuterRef("device_id"))
    return (
        Agent.objects.with_usable_account()
        .filter(whose, enabled=True, next_run_at__lte=now)
        .annotate(now=now, is_here=Q(device_id="") | Exists(here))
        .exclude(catch_up=CatchUp.SKIP, next_run_at__gte=now - ON_TIME_WINDOW, is_here=False)
        # A dry run covers no slot: the agent stays due until that run has ended.
        .exclude(Exists(Run.objects.live().filter(agent=OuterRef("pk"), dry_run=True)))
        # Not joined: with statistics from a time when few were due, the planner would sort all that are due now.
        .prefetch_related(Prefetch("user", User.objects.only("timezone")))
        .only(
            "user",
            "type",
            "name_sealed",
            "device_id",
            "schedule_cron",
            "timezone",
            "catch_up",
            "catch_up_hours",
            "enabled",
            "held_by_plan",
            "next_run_at",
        )
        .order_by("next_run_at")
        .select_for_update(skip_locked=True, no_key=True)[:_BATCH_SIZE]
    )


def _advance(agent: Agent, now: dt.datetime) -> Run | None:
    """Set the agent's next slot, and return the run for the slots that have come, if it deserves one. Saves nothing."""
    first = agent.next_run_at
    assert first is not None
    try:
        cron, zone = _parsed(agent.schedule_cron), ZoneInfo(agent.zone)
    except (BadCron, ZoneInfoNotFoundError) as error:
        # It was valid when it was saved. An agent with an invalid schedule must not stop the others.
        log.error("schedule.unusable", agent_id=str(agent.pk), error=type(error).__name__)
        agent.next_run_at = None
        return None
    if agent.held_by_plan:
        # The first slot gets a run that ends at once, so that the journal says why there are none. When the plan has
        # room again, the next slot is computed anew.
        agent.next_run_at = None
        return runs.build_run(agent, Run.Trigger.SCHEDULE, slot=first, slots=1)
    is_here: bool = agent.is_here  # type: ignore[attr-defined]  # annotated
    if agent.catch_up == CatchUp.SKIP:
        in_time = cron.next(now - ON_TIME_WINDOW - dt.timedelta.resolution, zone)
        if not is_here or in_time is None or in_time > now:
            agent.next_run_at = in_time
            return None
        first = max(first, in_time)
    agent.next_run_at = cron.next(now, zone)
    slot, slots = _elapsed_slots(cron, zone, first, now)
    if not agent.accepts_slot(slot, now):
        log.info("schedule.missed", agent_id=str(agent.pk), slots=slots)
        return None
    run = runs.build_run(agent, Run.Trigger.SCHEDULE, slot=slot, slots=slots)
    if not is_here:
        # This saves a worker from finding out. If the device connects before our commit, the sweep resumes the run.
        run.state = Run.State.WAITING_DEVICE
    return run


def _elapsed_slots(
    cron: Cron, zone: ZoneInfo, first: dt.datetime, now: dt.datetime
) -> tuple[dt.datetime, int]:
    """Return the last slot from `first` until now, and how many there are, counted up to _MAX_SLOTS."""
    last, count = first, 1
    for slot in cron.after(first, zone):
        if slot > now:
            return last, count
        if count == _MAX_SLOTS:
            break
        last, count = slot, count + 1
    back = dt.timedelta(days=1)
    while not (near := [slot for slot in islice(cron.after(now - back, zone), _MAX_SLOTS) if slot <= now]):
        back *= 2
    return near[-1], count


def _absorb_slots(covered: Sequence[Run]) -> None:
    """Let a run that has not begun yet cover slots for which no run could be made."""
    if not covered:
        return
    columns = [[getattr(run, name) for run in covered] for name in ("agent_id", "slot", "slots")]
    with connection.cursor() as cursor:
        cursor.execute(_ABSORB_SLOTS, columns)
    for run in covered:
        log.info("schedule.covered", agent_id=str(run.agent_ref))


# The ORM's bulk_update makes a CASE of a branch a row.
_SET_NEXT_RUNS = """
UPDATE agents_agent AS agent SET next_run_at = moved.next_run_at
FROM unnest(%s::uuid[], %s::timestamptz[]) AS moved (id, next_run_at) WHERE agent.id = moved.id
"""

# Other code locks runs before their agent. This holds agents, so it must not wait for runs, and skips locked ones: they
# are about to begin or to end.
_ABSORB_SLOTS = """
WITH waiting AS (
    SELECT run.id, later.slot, later.slots
    FROM unnest(%s::uuid[], %s::timestamptz[], %s::int[]) AS later (agent_id, slot, slots)
    JOIN agents_run AS run USING (agent_id)
    WHERE run.state IN ('queued', 'waiting_device') AND run.started_at IS NULL AND run.slot < later.slot
        AND NOT EXISTS (
            SELECT FROM agents_run AS other WHERE other.agent_id = later.agent_id AND other.slot = later.slot
        )
    FOR UPDATE OF run SKIP LOCKED
)
UPDATE agents_run AS run SET slot = waiting.slot, slots = run.slots + waiting.slots
FROM waiting WHERE run.id = waiting.id
"""


@transaction.atomic
def reschedule_for_user(*, user_id: uuid.UUID) -> None:
    """Compute next slots anew after a change of the user's zone, for agents without a zone of their own.

    Agents that are due already stay due; the next tick uses the new zone.
    """
    agents = list(
        Agent.objects.filter(user_id=user_id, timezone="", enabled=True, next_run_at__gt=timezone.now())
        .select_related("user")
        .order_by("created_at", "id")  # in the order in which `plan_limits` locks them
        .select_for_update(of=("self",), no_key=True)
    )
    for agent in agents:
        agent.next_run_at = next_run_at(agent)
    Agent.objects.bulk_update(agents, ["next_run_at"])
