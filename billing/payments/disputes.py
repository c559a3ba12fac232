"""Disputes of payments: those that staff have to answer at Stripe, and their effect on the plan.

The rules of copying are in copies.py. A dispute goes through its states in one direction, so a copy never goes back
from an end to an earlier state.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final
from uuid import UUID

import structlog
from django.db import transaction

from adiuva.accounts.models import User
from adiuva.core.leases import Lease
from billing import tiers
from billing.payments import copies, money_api, stripe_jobs
from billing.payments.copies import Copies
from billing.payments.models import Customer, Dispute, Event, StripeJob, Subscription
from billing.payments.money_api import DisputeState, Paid
from billing.payments.stripe_api import Refused
from billing.teams import seats

log = structlog.get_logger(__name__)


@transaction.atomic
def want(stripe_ids: Collection[str]) -> None:
    """Request new copies of these disputes, known or not."""
    ids = sorted(set(stripe_ids))
    Dispute.objects.bulk_create((Dispute(stripe_id=each) for each in ids), ignore_conflicts=True)
    _COPIES.want(Dispute.objects.filter(pk__in=ids))


def run(most: int = 100) -> int:
    """Fetch wanted copies that are due. Returns how many were tried."""
    return _COPIES.run(most)


def _get(row: Dispute) -> tuple[DisputeState, Paid] | None:
    """Return a dispute and what was paid; None if Stripe has no such dispute."""
    try:
        state = money_api.get_dispute(row.stripe_id)
    except Refused as error:
        if error.reason != "resource_missing" or row.synced:
            raise
        return None
    return state, money_api.paid_for(state.payment_id) if state.payment_id else Paid()


def _write(lease: Lease[Dispute], answer: tuple[DisputeState, Paid] | None, wanted: int) -> None:
    """Write the copy. Locks the account before the dispute. Raises LeaseLost."""
    if answer is None:
        row = lease.held()
        _mark_events(row, "resource_missing")
        row.delete()  # an event named a dispute that does not exist
        return
    state, paid = answer
    user_id = _lock_payer(paid.customer_id)
    row = lease.held()
    was_lost = row.status == "lost"
    if _is_later(state.status, row.status):
        row.status = state.status
    row.charge_id, row.cents, row.currency = state.charge_id, state.cents, state.currency
    row.reason, row.opened_at, row.evidence_due_by = state.reason[:60], state.opened_at, state.evidence_due_by
    row.subscription_id, row.customer_id = paid.subscription_id, paid.customer_id
    if not row.is_closed:
        log.error("dispute.open", dispute_id=row.stripe_id, status=row.status)
    copies.finish(lease, row, wanted)
    if row.status == "lost" and not was_lost:
        log.error("dispute.lost", dispute_id=row.stripe_id)
        if Subscription.objects.filter(stripe_id=row.subscription_id, status__in=Subscription.LIVE).exists():
            # A user who takes money back through their bank is not charged again.
            stripe_jobs.want(StripeJob.Kind.END, row.subscription_id, user_id)
    _follow(user_id)


def _mark_events(row: Dispute, reason: str) -> None:
    told = Event.objects.filter(object_id=row.stripe_id, state=Event.State.DONE)
    told.update(state=Event.State.REFUSED, error=reason)


_COPIES: Final = Copies(Dispute, _get, _write, _mark_events)


def _is_later(new: str, known: str) -> bool:
    return not (known in Dispute.STATES[1] and new in Dispute.STATES[0])


@transaction.atomic
def release(*, dispute: Dispute) -> None:
    """Give back the plan that a lost dispute took, if the subscription still gives one."""
    user_id = _lock_payer(dispute.customer_id)
    Dispute.objects.filter(pk=dispute.pk).update(released=True)
    stripe_jobs.drop(StripeJob.Kind.END, dispute.subscription_id)
    _follow(user_id)


def _lock_payer(customer_id: str) -> UUID | None:
    found = Customer.objects.filter(stripe_id=customer_id).values_list("user_id", flat=True).first()
    if found is None or not User.objects.select_for_update(no_key=True).filter(pk=found).values_list("pk"):
        return None
    return found


def _follow(user_id: UUID | None) -> None:
    if user_id is not None:
        tiers.recompute(user_id)
        seats.settle(user_id)
