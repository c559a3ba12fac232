"""Copies of objects at Stripe. Events, actions and comparisons only request one, so their order does not matter.

One process at a time fetches an object, holding its row's lease, and it writes before the next may fetch: an older
answer cannot overwrite a newer one. A request meanwhile raises `wanted`, and the row is fetched again.

If Stripe does not answer, the object is fetched again, later each time. If Stripe refuses, the copy is given up, with
the reason in the row and a line in the log, until the next request. If PostgreSQL did not let us write
(`db.is_conflict`), it is fetched again.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import structlog
from django.db import OperationalError, models, transaction
from django.db.models import F, Q, QuerySet
from django.db.models.functions import Now

from adiuva.core import db, leases
from adiuva.core.enqueue import enqueue_on_commit
from adiuva.core.http import backoff_s
from adiuva.core.leases import LEASE_FIELDS, Lease, Leased, LeaseLost
from adiuva.core.logging import log_failure
from billing.payments import stripe_api
from billing.payments.stripe_api import Refused, StripeAway

_LEASE: Final = dt.timedelta(seconds=60)  # longer than the calls for one object may take
_LONGEST_WAIT_S: Final = 600.0
_AFTER_CONFLICT: Final = dt.timedelta(seconds=1)  # a later round fetches it
_MOST: Final = 200
# Columns that only control when a copy is fetched: an export leaves them out.
COPY_FIELDS: Final = ("wanted", "synced", "not_before", "attempts", "refused", *LEASE_FIELDS)

log = structlog.get_logger(__name__)


class Copied(Leased):
    """A row with a copy of an object at Stripe.

    `wanted` counts the requests for a new copy, and `synced` is the value of `wanted` before the latest copy was
    fetched: while they differ, the copy may be stale.
    """

    wanted = models.PositiveIntegerField(default=0, editable=False)
    synced = models.PositiveIntegerField(default=0, editable=False)
    not_before = models.DateTimeField(db_default=Now(), editable=False)
    attempts = models.PositiveSmallIntegerField(default=0, editable=False)
    refused = models.CharField(
        max_length=100, blank=True, editable=False, help_text="Why Stripe refused the latest copy: its code."
    )

    class Meta:
        abstract = True


M = TypeVar("M", bound=Copied)
S = TypeVar("S")


def is_stale() -> Q:
    """Return a condition on rows that want a newer copy."""
    return Q(wanted__gt=F("synced"))


def finish(lease: Lease[M], row: M, wanted: int) -> None:
    """Save a row of `lease.held()` as the copy requested by `wanted`, and release the lease. Raises LeaseLost."""
    row.synced, row.attempts, row.refused = wanted, 0, ""
    row.save()
    lease.release()


def _keep(row: M, reason: str) -> None:
    """Leave the earlier copy as it is."""


@dataclass(frozen=True, slots=True)
class Copies(Generic[M, S]):
    """Copies the rows of a model.

    `get` calls Stripe; it raises StripeAway, or Refused where there will never be an answer. `write` is called in a
    transaction with the lease, the answer and the `wanted` for `finish`. `refuse` changes a locked row that was
    refused.
    """

    model: type[M]
    get: Callable[[M], S]
    write: Callable[[Lease[M], S, int], None]
    refuse: Callable[[M, str], None] = _keep

    @transaction.atomic
    def want(self, rows: QuerySet[M]) -> int:
        """Request new copies; they are fetched after the commit. Returns the number of rows."""
        # In a fixed order, so that two requests for the same rows do not wait for each other.
        pks = list(rows.order_by("pk").select_for_update(no_key=True).values_list("pk", flat=True))
        if pks:
            chosen = self.model._default_manager.filter(pk__in=pks)
            chosen.update(wanted=F("wanted") + 1, not_before=Now(), attempts=0)
            enqueue_on_commit("billing.sync")
        return len(pks)

    def run(self, most: int = _MOST) -> int:
        """Fetch wanted copies that are due. Returns how many were tried."""
        tried = 0
        due = self.model._default_manager.filter(is_stale(), not_before__lte=Now()).order_by(
            "not_before", "pk"
        )
        while tried < most and stripe_api.is_on():
            found = leases.claim(due, _LEASE)
            if not found:
                break
            tried += 1
            self.fetch(found[0])
        return tried

    def fetch_free(self, rows: QuerySet[M]) -> None:
        """Fetch one of these rows now, unless another process is about to. Raises StripeAway, Refused."""
        for claimed in leases.claim(rows, _LEASE):
            if (error := self.fetch(claimed)) is not None:
                raise error

    def fetch(self, row: M) -> StripeAway | Refused | None:
        """Copy a row that was just claimed. Returns what prevented it; the row then says when it is tried again."""
        lease, wanted = row.lease(_LEASE), row.wanted
        named = {"model": self.model.__name__, "row": str(row.pk)}
        try:
            try:
                state = self.get(row)
            except StripeAway as error:
                wait_s = backoff_s(min(row.attempts + 1, 10), first_s=2.0, longest_s=_LONGEST_WAIT_S)
                log.warning("stripe.not_copied", **named, reason=error.reason)
                lease.release(attempts=F("attempts") + 1, not_before=Now() + dt.timedelta(seconds=wait_s))
                return error
            except Refused as error:
                log.error("stripe.copy_refused", **named, reason=error.reason)
                self._give_up(lease, wanted, error.reason[:100])
                return error
            try:
                with transaction.atomic():
                    self.write(lease, state, wanted)
            except OperationalError as error:
                if not db.is_conflict(error):
                    raise
                log_failure("stripe.copy_not_written", error, level="warning", **named)
                lease.release(not_before=Now() + _AFTER_CONFLICT)
                return StripeAway("conflict")
        except LeaseLost:
            log.info("stripe.copy_late", **named)
        return None

    @transaction.atomic
    def _give_up(self, lease: Lease[M], wanted: int, reason: str) -> None:
        row = lease.held()
        self.refuse(row, reason)
        row.save()
        lease.release(synced=wanted, attempts=0, refused=reason)
