"""Copies subscriptions from Stripe (the rules of copying are in copies.py) and updates plans and seats."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Final
from uuid import UUID

import structlog
from django.db import transaction
from django.db.models import Q

from adiuva.accounts.models import PlanName, User
from adiuva.core import db
from adiuva.core.leases import Lease
from billing import mails, tiers
from billing.models import Plan
from billing.payments import copies, stripe_api
from billing.payments.copies import Copies
from billing.payments.models import Customer, Event, Subscription
from billing.payments.stripe_api import Refused, StripeAway, SubscriptionState
from billing.teams import seats

_PATIENCE_S: Final = 5.0

log = structlog.get_logger(__name__)


@transaction.atomic
def want(stripe_ids: Collection[str]) -> None:
    """Request new copies of these subscriptions, known or not; they are fetched after the commit."""
    ids = sorted(set(stripe_ids))
    Subscription.objects.bulk_create((Subscription(stripe_id=each) for each in ids), ignore_conflicts=True)
    _COPIES.want(Subscription.objects.filter(stripe_id__in=ids))


def run(most: int = 200) -> int:
    """Fetch wanted copies that are due. Returns how many were tried."""
    return _COPIES.run(most)


def fetch_now(stripe_id: str) -> None:
    """Fetch a subscription now, or wait a moment for the process that does. Raises StripeAway, Refused, StripeOff."""
    if not stripe_api.is_on():
        raise stripe_api.StripeOff
    want([stripe_id])
    row = Subscription.objects.filter(stripe_id=stripe_id)
    wanted = row.values_list("wanted", flat=True).get()
    give_up_at = time.monotonic() + _PATIENCE_S
    while row.filter(synced__lt=wanted).exists():
        _COPIES.fetch_free(row)
        if time.monotonic() > give_up_at:
            raise StripeAway("in_progress")
        time.sleep(0.05)


def _get(row: Subscription) -> SubscriptionState | None:
    """Return a subscription's state; None if Stripe has no such subscription."""
    try:
        return stripe_api.get_subscription(row.stripe_id)
    except Refused as error:
        if error.reason != "resource_missing":
            raise
        return None


def _write(lease: Lease[Subscription], state: SubscriptionState | None, wanted: int) -> None:
    """Write the copy. Locks the account, then its subscriptions by their keys, as everywhere. Raises LeaseLost."""
    customer = Customer.objects.filter(stripe_id=state.customer_id).first() if state else None
    user_id = customer.user_id if customer else None
    if user_id is not None and not User.objects.select_for_update(no_key=True).filter(pk=user_id).exists():
        user_id = None
    if user_id is not None:  # `_is_doubled` may write the others
        mine = Subscription.objects.filter(Q(pk=lease.pk) | Q(user_id=user_id, status__in=Subscription.LIVE))
        list(mine.order_by("pk").select_for_update(no_key=True).values_list("pk"))
    row, is_newly_late = lease.held(), False
    if state is None:
        _mark_events(row, "resource_missing")
        if row.synced_at is None:
            row.delete()  # an event named a subscription that does not exist
            return
        # Stripe forgets only test data.
        row.status, row.cancel_at_period_end = Subscription.Status.CANCELED, False
        user_id = row.user_id
    else:
        was_late = row.past_due_since is not None
        _copy(row, state, customer, user_id)
        is_newly_late = row.past_due_since is not None and not was_late
        if was_late and row.past_due_since is None:
            mails.settle_late_payment(row)
    row.synced_at, row.doubled = db.clock(), _is_doubled(row)
    copies.finish(lease, row, wanted)
    if user_id is not None:
        if row.status not in Subscription.LIVE:  # a younger one may give its plan now
            _COPIES.want(Subscription.objects.of(user_id).live().filter(doubled=True))
        if row.doubled:
            log.error("subscription.doubled", subscription_id=str(row.pk), user_id=str(user_id))
        tiers.recompute(user_id)
        if is_newly_late and not row.doubled:
            mails.order_of_failed_payment(row, User.objects.get(pk=user_id))
        seats.settle(user_id)  # the number of seats may have changed, even if the plan has not


def _mark_events(row: Subscription, reason: str) -> None:
    """Mark the events that requested this copy: Stripe refused it."""
    told = Event.objects.filter(subscription_id=row.stripe_id, state=Event.State.DONE)
    if row.synced_at is not None:
        told = told.filter(received_at__gt=row.synced_at)
    told.update(state=Event.State.REFUSED, error=reason)


_COPIES: Final = Copies(Subscription, _get, _write, _mark_events)


def _copy(
    row: Subscription, state: SubscriptionState, customer: Customer | None, user_id: UUID | None
) -> None:
    row.customer, row.user_id = customer, user_id
    row.tier = _tier_of(state.price_id, state.tier) or row.tier
    row.quantity, row.period_end, row.started_at = state.quantity, state.period_end, state.started_at
    row.cancel_at_period_end = state.cancel_at_period_end
    row.pending_tier = _tier_of(state.pending_price_id, "") if state.pending_price_id else ""
    is_late = state.status == Subscription.Status.PAST_DUE
    row.past_due_since = (row.past_due_since or db.clock()) if is_late else None
    row.status = Subscription.Status(state.status)
    row.payment_url = state.payment_url if row.status in Subscription.LIVE else ""


def _tier_of(price_id: str, said: str) -> str:
    """Return the plan of a price: by the plan's row, or for a former price by the note on it."""
    known = Plan.objects.filter(stripe_price_id=price_id).values_list("tier", flat=True).first()
    if known is None and said not in PlanName.values:
        log.error("subscription.unknown_price", price_id=price_id)
        return ""
    return known or said


def _is_doubled(row: Subscription) -> bool:
    """Return whether the user has another live subscription, which is older."""
    if row.user_id is None or row.status not in Subscription.LIVE:
        return False
    others = Subscription.objects.of(row.user_id).live().exclude(pk=row.pk).filter(doubled=False)
    older = Q(started_at__lt=row.started_at) | Q(started_at=row.started_at, pk__lt=row.pk)
    if others.filter(older).exists():
        return True
    others.update(doubled=True)  # we learnt of them earlier
    return False
