"""The queue of runs: users take turns, and each has at most a few runs at once.

PostgreSQL decides, so the order and the bound hold over all worker processes, and survive the death of any of them.
Among the users who have a run to start and a slot free, the one whose last turn is longest ago is next; of that user's
runs, the one that was queued first. A run takes its user's slot while its lease lasts: one whose worker died does not.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django.db import connection, transaction
from django.db.models import Count, F, IntegerField, Max, Min, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce, Greatest, Now

from agents import claimed_runs, runs
from agents.claimed_runs import ClaimedRun
from agents.models import Run

# Users looked at in one search: those at its head may be busy with another worker's claim.
_CANDIDATES: Final = 32
# The class of the advisory locks by which one worker at a time claims for a user.
_LOCK_CLASS: Final = 0x41444956
# When a run could first have been claimed.
_QUEUED_AT: Final = Greatest(F("enqueued_at"), Coalesce(F("not_before"), F("enqueued_at")))


@dataclass(frozen=True)
class Backlog:
    """How many runs wait for a worker, and for how many seconds the first of them has. Those put off do not count."""

    runs: int
    oldest_s: float


def claim_next(*, queued_for: dt.timedelta = dt.timedelta()) -> ClaimedRun | None:
    """Claim the run whose turn it is, if any has waited at least `queued_for`.

    Returns None if no run waits whose user has a slot free, or if other workers are claiming for these users.
    """
    for user_id in _users_in_turn(queued_for):
        claimed = _claim_for(user_id)
        if claimed is not None:
            return claimed
    return None


def has_waiting() -> bool:
    """Whether any run waits for a worker, or for a slot of its user's."""
    return _waiting().exists()


def backlog() -> Backlog:
    found = _waiting().aggregate(runs=Count("pk"), oldest=Now() - Min(_QUEUED_AT))
    oldest: dt.timedelta | None = found["oldest"]
    return Backlog(found["runs"], max(0.0, oldest.total_seconds()) if oldest else 0.0)


def _waiting() -> QuerySet[Run]:
    due = Run.objects.filter(runs.retry_is_due(), state=Run.State.QUEUED, enqueued_at__lte=Now())
    return due.order_by()


def _running() -> QuerySet[Run]:
    """Runs that a living worker holds."""
    return Run.objects.filter(state=Run.State.RUNNING, lease_until__gt=Now()).order_by()


def _users_in_turn(queued_for: dt.timedelta) -> list[UUID]:
    """Users with a waiting run and a free slot, those first whose last turn is longest ago."""
    theirs = Run.objects.filter(user_id=OuterRef("user_id")).order_by()
    held = _running().filter(user_id=OuterRef("user_id")).values("user_id").annotate(held=Count("pk"))
    last_turn = theirs.filter(attempted_at__isnull=False).values("user_id").annotate(at=Max("attempted_at"))
    found = (
        _waiting()
        .values("user_id")
        .annotate(queued_at=Min(_QUEUED_AT))
        .filter(queued_at__lte=Now() - queued_for)
        .annotate(
            held=Coalesce(Subquery(held.values("held"), output_field=IntegerField()), 0),
            last_turn=Subquery(last_turn.values("at")),
        )
        .filter(held__lt=settings.RUNS["slots_per_user"])
        .order_by(F("last_turn").asc(nulls_first=True), "queued_at", "user_id")
    )
    return list(found.values_list("user_id", flat=True)[:_CANDIDATES])


@transaction.atomic
def _claim_for(user_id: UUID) -> ClaimedRun | None:
    """Claim a user's first run, unless another worker claims for that user or the slots are taken by now."""
    if not _try_lock(user_id):
        return None
    # Counted again under the lock: what was true when the users were listed may be over.
    free = settings.RUNS["slots_per_user"] - _running().filter(user_id=user_id).count()
    if free <= 0:
        return None
    mine = _waiting().filter(user_id=user_id).order_by(_QUEUED_AT, "pk")
    for run_id in mine.values_list("pk", flat=True)[:_CANDIDATES]:
        claimed = claimed_runs.claim(run_id)
        if claimed is not None:
            return claimed  # the others ended: their agent is gone, or their time is over
    return None


def _try_lock(user_id: UUID) -> bool:
    """Take the user's advisory lock until the end of the transaction, unless another transaction has it."""
    key: Any = int.from_bytes(user_id.bytes[-4:], "big", signed=True)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s, %s)", [_LOCK_CLASS, key])
        return bool(cursor.fetchone()[0])
