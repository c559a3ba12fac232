"""The queue of runs: users take turns, and each has at most a few runs at once.

PostgreSQL decides, so the order and the bound hold over all worker processes, and survive the death of any of them.
Among the users who have a run to start and a slot free, the one with the longest time since their last turn is next; of
that user's runs, the one that was queued first. A run takes its user's slot while its lease lasts, so the run of a dead
worker soon frees it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Count, F, IntegerField, Min, QuerySet, Subquery
from django.db.models.functions import Coalesce, Greatest, Now

from adiuva.core import leases
from adiuva.core.db import prepared_cursor
from agents import claimed_runs, runs
from agents.claimed_runs import ClaimedRun
from agents.models import Run

# The most users looked at in one search: those at its head may be busy with another worker's claim.
_CANDIDATES: Final = 32
# The class of the advisory locks by which one worker at a time claims for a user.
_LOCK_CLASS: Final = 0x41444956
# Users with a waiting run and a free slot, those with the longest time since their last turn first. Their locks are
# tried in that order, up to the first that is free: a filter on a set that is MATERIALIZED comes after its LIMIT.
_NEXT_USER: Final = """
WITH waiting AS (
    SELECT user_id, min(greatest(enqueued_at, not_before)) AS queued_at FROM agents_run
    WHERE state = 'queued' AND enqueued_at <= statement_timestamp()
        AND (not_before IS NULL OR not_before <= statement_timestamp()) AND user_id <> ALL(%(passed)s::uuid[])
    GROUP BY user_id
),
in_turn AS MATERIALIZED (
    SELECT user_id FROM waiting
    WHERE queued_at <= statement_timestamp() - %(queued_for)s::interval AND (
        SELECT count(*) FROM agents_run AS held
        WHERE held.user_id = waiting.user_id AND state = 'running' AND lease_until > statement_timestamp()
    ) < %(slots)s::int
    ORDER BY (
        SELECT max(attempted_at) FROM agents_run AS taken
        WHERE taken.user_id = waiting.user_id AND attempted_at IS NOT NULL
    ) NULLS FIRST, queued_at, user_id
    LIMIT %(most)s::int
)
SELECT user_id FROM in_turn WHERE pg_try_advisory_xact_lock(%(locks)s::int, hashtext(user_id::text)) LIMIT 1
"""
# The first moment at which a run could have been claimed.
_QUEUED_AT: Final = Greatest(F("enqueued_at"), Coalesce(F("not_before"), F("enqueued_at")))


@dataclass(frozen=True)
class Backlog:
    """The number of runs that wait for a worker, and the seconds that the first of them has waited. Runs that were put
    off do not count.
    """

    runs: int
    oldest_s: float


@transaction.atomic
def claim_next(*, queued_for: dt.timedelta = dt.timedelta()) -> ClaimedRun | None:
    """Claim the next user's run, if any has waited at least `queued_for`.

    Returns None if no user with a waiting run has a slot free, or if other workers are claiming for these users.
    """
    passed: list[UUID] = []
    while len(passed) < _CANDIDATES and (user_id := _lock_next_user(queued_for, passed)):
        claimed = _claim_for(user_id)
        if claimed is not None:
            return claimed
        passed.append(user_id)
    return None


def has_waiting() -> bool:
    """Return whether any run waits for a worker, or for a slot of its user's."""
    return _waiting().exists()


def backlog() -> Backlog:
    found = _waiting().aggregate(runs=Count("pk"), oldest=Now() - Min(_QUEUED_AT))
    oldest: dt.timedelta | None = found["oldest"]
    return Backlog(found["runs"], max(0.0, oldest.total_seconds()) if oldest else 0.0)


def _waiting() -> QuerySet[Run]:
    due = Run.objects.filter(runs.retry_is_due(), state=Run.State.QUEUED, enqueued_at__lte=Now())
    return due.order_by()


def _running() -> QuerySet[Run]:
    """Return runs that a living worker holds."""
    return Run.objects.filter(leases.is_held(), state=Run.State.RUNNING).order_by()


def _lock_next_user(queued_for: dt.timedelta, passed: Sequence[UUID]) -> UUID | None:
    """Lock and return the user whose turn it is, except those in `passed`.

    Until the end of the transaction, no other worker claims for that user.
    """
    values: dict[str, Any] = {
        "queued_for": queued_for,
        "passed": list(passed),
        "slots": settings.RUNS["slots_per_user"],
        "most": _CANDIDATES,
        "locks": _LOCK_CLASS,
    }
    with prepared_cursor() as cursor:
        cursor.execute(_NEXT_USER, values)
        row = cursor.fetchone()
    return row[0] if row else None


def _claim_for(user_id: UUID) -> ClaimedRun | None:
    """Claim a user's first run, unless the slots are taken by now."""
    # Counted again under the lock: the slots may have been taken since the user was found.
    held = _running().filter(user_id=user_id).values("user_id").annotate(held=Count("pk")).values("held")
    mine = (
        _waiting()
        .filter(user_id=user_id)
        .alias(held=Coalesce(Subquery(held, output_field=IntegerField()), 0))
        .filter(held__lt=settings.RUNS["slots_per_user"])
        .order_by(_QUEUED_AT, "pk")
    )
    for _ in range(_CANDIDATES):
        run = claimed_runs.lock_queued(mine, others=_waiting())
        if run is None:
            return None
        claimed = claimed_runs.begin(run)
        if claimed is not None:
            return claimed  # the others ended: their agent is gone, or their time is over
    return None
