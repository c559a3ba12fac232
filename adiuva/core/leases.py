"""Leases on rows: one worker at a time works on a row, and a worker that was thought dead writes nothing.

A row of a `Leased` model is held until `lease_until`, by the clock of PostgreSQL. Each change of holder, also to
nobody, raises `fence`, and each write of a holder names the fence that it was given (a fencing token). A worker whose
lease ran out may go on as long as nobody has claimed the row; after that its next write raises LeaseLost.

    class Export(Leased): ...

    found = leases.claim(Export.objects.filter(pk=pk, state="queued"), LEASE, state="running")   # at most one row
    if not found:
        return                                      # another worker has it
    lease = found[0].lease(LEASE)

    lease.renew()                                   # one UPDATE, now and then while the work lasts
    lease.write(progress=3)                         # one UPDATE as well
    leases.renew_all(all_of_this_process)           # one UPDATE for all of them, however many

    with transaction.atomic():
        export = lease.held()                       # locks the row, so the holder alone writes what follows
        ExportChunk.objects.create(export=export, ...)

    lease.release(state="ready", size=size)         # the last write: whoever is late finds LeaseLost

    with transaction.atomic():                      # the sweep
        for export in leases.reclaim(Export.objects.filter(state="running")):
            ...                                     # its lease ran out: queue it again, or fail it

Code that changes the state of rows in another way (a cancel, a deadline) calls `revoke(queryset, ...)`, or, for one
row that it has locked, `row.revoke_lease()` and saves the row with LEASE_FIELDS among its `update_fields`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any, Final, Generic, Self, TypeVar

from django.db import models, transaction
from django.db.models import F, Q, QuerySet
from django.db.models.functions import Now

LEASE_FIELDS: Final = ("lease_until", "fence")

# For an SQL UPDATE of locked rows: the same changes that `revoke_lease` makes to an instance.
REVOKE_SQL: Final = "lease_until = NULL, fence = fence + 1"


class LeaseLost(Exception):
    """Error for a holder who lost its row: another holds it, or it was taken or is gone. Stop, and write nothing."""


class Leased(models.Model):
    """Row that one worker at a time may hold."""

    lease_until = models.DateTimeField(null=True, editable=False)
    fence = models.PositiveIntegerField(default=0, editable=False)

    # When `claim` or `reclaim` locked the row, by PostgreSQL's clock; only they set it.
    claimed_at: dt.datetime

    class Meta:
        abstract = True

    def lease(self, duration: dt.timedelta) -> Lease[Self]:
        """Return the lease of the worker that just claimed this row. `duration`: how long each renewal lasts."""
        return Lease(type(self), self.pk, self.fence, duration)

    def revoke_lease(self) -> None:
        """Take the row, which must be locked, from its holder, if any. The caller saves LEASE_FIELDS."""
        self.lease_until = None
        self.fence += 1


M = TypeVar("M", bound=Leased)


@dataclass(frozen=True, slots=True)
class Lease(Generic[M]):
    """Claim of a worker on the row that it holds. The worker can hand it to its other threads and tasks."""

    model: type[M]
    pk: Any
    fence: int
    duration: dt.timedelta

    @property
    def row(self) -> QuerySet[M]:
        """Return the row, if it is still ours: for reads, and for an UPDATE that needs no other row."""
        return self.model._default_manager.filter(pk=self.pk, fence=self.fence)

    def held(self, queryset: QuerySet[M] | None = None) -> M:
        """Lock the row until the end of the transaction. Raises LeaseLost.

        Call it first in each transaction that writes. `queryset` may add `select_related` or `only`.
        """
        rows = self.row if queryset is None else queryset.filter(pk=self.pk, fence=self.fence)
        row = rows.select_for_update(of=("self",), no_key=True).first()
        if row is None:
            raise LeaseLost
        return row

    def renew(self, **changes: Any) -> None:
        """Hold the row for `duration` from now on, and write `changes` into it, in one UPDATE. Raises LeaseLost."""
        self.write(lease_until=Now() + self.duration, **changes)

    def release(self, **changes: Any) -> None:
        """Let go of the row, and write `changes` into it, in one UPDATE. Raises LeaseLost."""
        self.write(lease_until=None, fence=F("fence") + 1, **changes)

    def write(self, **changes: Any) -> None:
        """Write `changes` into the row, in one UPDATE. Raises LeaseLost."""
        if not self.row.update(**changes):
            raise LeaseLost


def held_among(leases: Collection[Lease[M]]) -> list[M]:
    """Lock those rows of one model that are still held, by their keys, until the transaction ends."""
    if not leases:
        return []
    return list(_still_held(leases).order_by("pk").select_for_update(of=("self",), no_key=True))


@transaction.atomic
def renew_all(leases: Collection[Lease[M]]) -> int:
    """Hold several rows of one model for the `duration` of the first lease from now on, in one UPDATE.

    Returns how many it renewed. It leaves alone rows that others hold by now, and rows that are locked just now,
    because the renewals of a whole process must not wait for one slow transaction, nor deadlock with a deletion.
    """
    if not leases:
        return 0
    free = _still_held(leases).select_for_update(no_key=True, skip_locked=True).order_by()
    first = next(iter(leases))
    rows = first.model._default_manager.filter(pk__in=free.values("pk"))
    return rows.update(lease_until=Now() + first.duration)


def _still_held(leases: Collection[Lease[M]]) -> QuerySet[M]:
    by_fence: dict[int, list[Any]] = {}
    for lease in leases:
        by_fence.setdefault(lease.fence, []).append(lease.pk)
    mine = reduce(or_, (Q(fence=fence, pk__in=pks) for fence, pks in by_fence.items()))
    return next(iter(leases)).model._default_manager.filter(mine)


def release_all(rows: Collection[M], **changes: Any) -> None:
    """Let go of several locked rows of one model (see `held_among`), and write `changes` into them, in one UPDATE."""
    if rows:
        _update(rows, lease_until=None, **changes)


def revoke(queryset: QuerySet[M], **changes: Any) -> int:
    """Take all rows of `queryset` from their holders, if any, and write `changes`. Returns how many rows.

    It is one UPDATE, which locks rows in whatever order it finds them. If others lock several of them too, lock them
    before.
    """
    return queryset.update(lease_until=None, fence=F("fence") + 1, **changes)


def is_free() -> Q:
    """Return a condition for rows that nobody holds."""
    return Q(lease_until=None) | Q(lease_until__lt=Now())


def is_held() -> Q:
    """Return a condition for rows whose lease has not run out."""
    return Q(lease_until__gt=Now())


def is_over() -> Q:
    """Return a condition for rows whose holder did not renew its lease in time."""
    return Q(lease_until__lt=Now())


@transaction.atomic(savepoint=False)
def claim(
    queryset: QuerySet[M], duration: dt.timedelta, *, most: int = 1, skip_locked: bool = True, **changes: Any
) -> list[M]:
    """Give free rows of `queryset` to the caller, in its order, and write `changes` into them: a SELECT and an UPDATE.

    Returns at most `most` rows as they are after the claim (expressions among `changes` are not evaluated in them); it
    leaves out rows that others hold or are claiming. Without `skip_locked` it waits for those who are claiming.
    """
    rows = lock_free(queryset, most=most, skip_locked=skip_locked)
    hand_over(rows, duration, **changes)
    return rows


def lock_free(queryset: QuerySet[M], *, most: int = 1, skip_locked: bool = True) -> list[M]:
    """Lock free rows until the transaction ends, as the first half of `claim`, for callers that look at rows before
    they take them. They have `claimed_at`."""
    return _lock(queryset.filter(is_free()), most, skip_locked)


@transaction.atomic(savepoint=False)
def reclaim(queryset: QuerySet[M], *, most: int = 500, **changes: Any) -> list[M]:
    """Take rows from holders that did not renew their lease, and write `changes`: a SELECT and, if any, an UPDATE.

    Returns at most `most` rows, as `claim` does, now held by nobody. In a transaction around it they stay locked.
    """
    rows = _lock(queryset.filter(is_over()), most, skip_locked=True)
    hand_over(rows, None, **changes)
    return rows


def _lock(queryset: QuerySet[M], most: int, skip_locked: bool) -> list[M]:
    locked = queryset.select_for_update(of=("self",), no_key=True, skip_locked=skip_locked)
    return list(locked.annotate(claimed_at=Now())[:most])


def hand_over(rows: Collection[M], duration: dt.timedelta | None, **changes: Any) -> None:
    """Give locked rows to the caller for `duration`, or to nobody, and write `changes` into them, in one UPDATE. The
    instances change too (except for expressions among `changes`)."""
    if not rows:
        return
    now = next(iter(rows)).claimed_at
    until = now + duration if duration is not None else None
    _update(rows, lease_until=until, **changes)
    for row in rows:
        row.lease_until, row.fence = until, row.fence + 1
        for name, value in changes.items():
            if not hasattr(value, "resolve_expression"):
                setattr(row, name, value)


def _update(rows: Collection[M], **changes: Any) -> None:
    model = type(next(iter(rows)))
    model._default_manager.filter(pk__in=[row.pk for row in rows]).update(fence=F("fence") + 1, **changes)
