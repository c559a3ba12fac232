"""Copies the payments of plugins from Stripe. The rules of copying are in billing/payments/copies.py."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection
from typing import Final
from uuid import UUID

import structlog
from django.db.models import Q
from django.utils import timezone

from adiuva.core.enqueue import enqueue_on_commit
from adiuva.core.leases import Lease
from billing.marketplace.models import Developer
from billing.marketplace.money_models import PluginPurchase
from billing.payments import connect_api, copies, shares, stripe_api, stripe_jobs
from billing.payments.connect_api import PurchaseState
from billing.payments.copies import Copies
from billing.payments.models import StripeJob
from billing.payments.stripe_api import Refused, StripeAway

# While a buyer may still ask for their money back, the share waits: most refunds need no transfer back then.
HOLD: Final = dt.timedelta(days=14)
_COMPARED: Final = dt.timedelta(days=130)  # a bank takes a payment back within 120
_OPEN_FOR: Final = dt.timedelta(days=3)  # a session is paid within one
State = PluginPurchase.State

log = structlog.get_logger(__name__)


def want(purchases: Q) -> None:
    """Request new copies of these purchases; they are fetched after the commit."""
    _COPIES.want(PluginPurchase.objects.filter(purchases).exclude(session=None))


def want_told(*, payment_intents: Collection[str], sessions: Collection[str]) -> None:
    """Request copies of the purchases that events name by Stripe's ids. Ids of anything else are unknown here."""
    named = Q(payment_intent__in=payment_intents) | Q(session__in=sessions)
    if PluginPurchase.objects.filter(named).exists():
        want(named)


def run(most: int = 200) -> int:
    """Fetch wanted copies that are due. Returns how many were tried."""
    return _COPIES.run(most)


def fetch_now(purchase_id: UUID) -> None:
    """Fetch a purchase now, unless another process is about to. Raises StripeAway, Refused."""
    want(Q(pk=purchase_id))
    _COPIES.fetch_free(PluginPurchase.objects.filter(pk=purchase_id))


_Answer = tuple[UUID, str, PurchaseState]


def _get(row: PluginPurchase) -> _Answer:
    """Return the developer, the session, and Stripe's state of it."""
    session = row.session or ""
    return row.developer_id, session, connect_api.get_purchase(session)


def _write(lease: Lease[PluginPurchase], answer: _Answer, wanted: int) -> None:
    """Write the copy. Locks the developer before the purchase, as `payouts` does. Raises LeaseLost."""
    developer_id, session, state = answer
    Developer.objects.select_for_update(no_key=True).get(pk=developer_id)
    row = lease.held()
    was = row.state
    if state.is_paid and row.session == session:
        _copy(row, state)
    copies.finish(lease, row, wanted)
    if row.state != was:
        log.info("purchase.changed", purchase_id=str(row.pk), state=row.state)
        if row.state == State.PAID and _owns_another(row):
            log.error("purchase.doubled", purchase_id=str(row.pk))  # staff refund one of them
    if was == State.OPEN and row.state == State.PAID and row.user_id is None:
        # The account was deleted between the checkout and its payment: nobody would have the plugin.
        stripe_jobs.want(StripeJob.Kind.REFUND, row.charge, None, cents=row.total_cents)
    if row.due_cents != row.settled_cents:
        enqueue_on_commit("billing.settle_developers")


def _owns_another(row: PluginPurchase) -> bool:
    if row.user_id is None:
        return False
    others = PluginPurchase.objects.of(row.user_id).filter(plugin_id=row.plugin_id).exclude(pk=row.pk)
    return others.owning().exists()


_COPIES: Final = Copies(PluginPurchase, _get, _write)


def _copy(row: PluginPurchase, state: PurchaseState) -> None:
    row.payment_intent, row.charge, row.currency = state.payment_intent, state.charge, state.currency
    row.total_cents, row.tax_cents = state.total_cents, state.tax_cents
    row.refunded_cents, row.lost_cents = state.refunded_cents, state.lost_cents
    if row.paid_at is None:
        row.paid_at = state.paid_at
        row.transfer_after = timezone.now() + HOLD
    gone = min(row.gone_cents, row.total_cents)
    row.due_cents = shares.due_of(total=row.total_cents, tax=row.tax_cents, gone=gone)
    if gone == row.total_cents:
        row.state = State.LOST if row.lost_cents else State.REFUNDED
    else:
        row.state = State.DISPUTED if state.is_disputed else State.PAID


def compare() -> int:
    """Request a copy of each purchase that differs from Stripe's charge, and of those that have been open for a while.

    Returns how many differ; 0 is right. This finds events that never came.
    """
    if not stripe_api.is_on():
        return 0
    since = timezone.now() - _COMPARED
    rows = PluginPurchase.objects.filter(created_at__gte=since).exclude(payment_intent=None)
    known = dict(rows.values_list("payment_intent", "refunded_cents"))
    different, disputed = [], []
    try:
        for charge in connect_api.charges_since(since) if known else ():
            refunded = known.get(charge.payment_intent, charge.refunded_cents)
            if refunded != charge.refunded_cents:
                different.append(charge.payment_intent)
            elif charge.is_disputed:  # this stays true when the dispute was won
                disputed.append(charge.payment_intent)
    except (StripeAway, Refused) as error:
        log.warning("purchase.not_compared", reason=error.reason)
        return 0
    not_paid = Q(state=State.OPEN, created_at__gte=timezone.now() - _OPEN_FOR)
    want(Q(payment_intent__in=[*different, *disputed]) | not_paid)
    if different:
        log.warning("purchase.differs", count=len(different))
    return len(different)
