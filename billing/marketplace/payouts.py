"""Sends developers their shares, and takes back money that is no longer theirs.

Each sale has a due and a settled amount; `settle` makes the two equal, under the developer's lock: by a transfer once
the hold is over, by a reversal when the buyer got money back after it. If an account no longer has the money, it is a
debt, which the developer's next sales repay. Each step is a row first, and a job that calls Stripe.
"""

from __future__ import annotations

import datetime as dt
from typing import Final
from uuid import UUID

import structlog
from django.db import transaction
from django.db.models import F, Q, Sum
from django.db.models.functions import Now
from django.utils import timezone

from adiuva.core import db
from adiuva.core.enqueue import enqueue_on_commit
from billing.marketplace import connected_accounts
from billing.marketplace.models import Developer
from billing.marketplace.money_models import DeveloperPayment, PluginPurchase
from billing.payments import connect_api, stripe_api, stripe_jobs
from billing.payments.models import StripeJob
from billing.payments.stripe_api import Refused, StripeAway
from billing.payments.stripe_jobs import NotPossible

_RETRY: Final = dt.timedelta(days=1)
# From this age on, staff are told of a debt each day.
OLD_DEBT: Final = dt.timedelta(days=90)
Kind = DeveloperPayment.Kind
State = DeveloperPayment.State

log = structlog.get_logger(__name__)


def sweep() -> int:
    """Settle all developers who have something to settle. Returns how many there were."""
    sales = PluginPurchase.objects
    due: set[UUID] = set(sales.to_take_back().values_list("developer_id", flat=True))
    may_get = Q(developer__payouts_enabled=True) | Q(developer__in=sales.in_debt().values("developer"))
    due |= set(sales.to_send().filter(may_get).values_list("developer_id", flat=True))
    for developer_id in sorted(due):
        with db.conflicts_put_off("developer.not_settled", developer_id=str(developer_id)):
            settle(developer_id)
    return len(due)


@transaction.atomic
def settle(developer_id: UUID) -> None:
    """Make a developer's settled amounts equal the due ones: order transfers and reversals, sent after the commit."""
    developer = Developer.objects.select_for_update(no_key=True).get(pk=developer_id)
    # All at once and by their keys, as code that requests new copies of them locks them.
    locked = developer.sales.to_settle().order_by("pk").select_for_update(no_key=True)
    sales = developer.sales.filter(pk__in=list(locked.values_list("pk", flat=True))).order_by("paid_at", "pk")
    for sale in sales.to_take_back():
        _take_back(developer, sale)
    debts = list(sales.in_debt())
    for sale in sales.to_send():
        _repay(sale, debts)
        if sale.settled_cents < sale.due_cents and developer.payouts_enabled:
            _pay(sale, Kind.TRANSFER, sale.due_cents - sale.settled_cents)
    sales.filter(settled_cents__lte=F("due_cents")).exclude(debt_since=None).update(debt_since=None)
    enqueue_on_commit("billing.sync")


def _pay(
    sale: PluginPurchase, kind: DeveloperPayment.Kind, cents: int, transfer: DeveloperPayment | None = None
) -> None:
    """Record a payment, add it to the sale, and order the job if Stripe has something to do."""
    at_stripe = kind in (Kind.TRANSFER, Kind.REVERSAL)
    payment = DeveloperPayment.objects.create(
        developer_id=sale.developer_id,
        purchase=sale,
        kind=kind,
        cents=cents,
        currency=sale.currency,
        transfer=transfer,
        state=State.OPEN if at_stripe else State.DONE,
        done_at=None if at_stripe else timezone.now(),
    )
    sale.settled_cents += DeveloperPayment.SIGNS[kind] * cents
    sale.save(update_fields=["settled_cents"])
    if at_stripe:
        stripe_jobs.want(StripeJob.Kind(kind.value), str(payment.pk), None)


def _repay(sale: PluginPurchase, debts: list[PluginPurchase]) -> None:
    """Keep of a sale's due amount the debts of other sales."""
    for debt in debts:
        room = min(sale.due_cents - sale.settled_cents, debt.settled_cents - debt.due_cents)
        if room > 0 and debt.currency == sale.currency:
            _pay(sale, Kind.KEPT, room)
            _pay(debt, Kind.REPAID, room)


def _take_back(developer: Developer, sale: PluginPurchase) -> None:
    sent = sale.payments.filter(kind=Kind.TRANSFER)
    for unsent in sent.filter(state=State.OPEN):
        if stripe_jobs.drop_unsent(StripeJob.Kind.TRANSFER, str(unsent.pk)):
            _end(unsent, sale, State.DROPPED)
    if sent.filter(state=State.OPEN).exists():
        return  # its outcome is known soon, and then this is done again
    own_first = (*sent, *developer.payments.filter(kind=Kind.TRANSFER).exclude(purchase=sale))
    for transfer in own_first:
        excess = sale.settled_cents - sale.due_cents
        if excess <= 0:
            return
        if transfer.state != State.DONE or transfer.currency != sale.currency:
            continue
        back = transfer.reversals.counted().aggregate(sum=Sum("cents"))["sum"] or 0
        if (cents := min(excess, transfer.cents - back)) > 0:
            _pay(sale, Kind.REVERSAL, cents, transfer)
    if sale.settled_cents > sale.due_cents:
        _owe(sale)


def _owe(sale: PluginPurchase) -> None:
    sale.debt_since = sale.debt_since or timezone.now()
    sale.save(update_fields=["debt_since"])
    log.warning("developer.in_debt", developer_id=str(sale.developer_id), purchase_id=str(sale.pk))


def _end(payment: DeveloperPayment, sale: PluginPurchase, state: DeveloperPayment.State) -> None:
    """Note that a payment was not done, and subtract it from the sale again."""
    payment.state = state
    payment.save(update_fields=["state", "error"])
    sale.settled_cents -= DeveloperPayment.SIGNS[Kind(payment.kind)] * payment.cents
    sale.save(update_fields=["settled_cents"])


# ── Jobs for Stripe ─────────────────────────────────────────────────────────────────────────────────────


def _payment_of(job: StripeJob) -> DeveloperPayment:
    """Return the payment of a job. Raises NotPossible if it is no longer wanted."""
    of_job = DeveloperPayment.objects.select_related("purchase", "developer", "transfer")
    payment = of_job.filter(pk=job.subject, state=State.OPEN).first()
    if payment is None or payment.developer.stripe_account is None:
        raise NotPossible
    return payment


def _send_transfer(job: StripeJob) -> str:
    payment = _payment_of(job)
    sale = payment.purchase
    if sale.state != PluginPurchase.State.PAID or sale.settled_cents > sale.due_cents:
        # Disputed or refunded since it was ordered. If an earlier call, whose answer was lost, has made it, that one
        # counts.
        made = _look_for_transfer(job) if job.first_sent_at is not None else None
        if made is None:
            raise NotPossible
        return made
    return connect_api.transfer(
        account=payment.developer.stripe_account or "",
        cents=payment.cents,
        currency=payment.currency,
        charge=sale.charge,
        group=str(sale.pk),
        row=str(job.pk),
        key=job.key,
    )


def _look_for_transfer(job: StripeJob) -> str | None:
    return connect_api.find_transfer(group=str(_payment_of(job).purchase_id), row=str(job.pk))


def _send_reversal(job: StripeJob) -> str:
    payment = _payment_of(job)
    assert payment.transfer is not None
    return connect_api.reverse(
        transfer_id=payment.transfer.stripe_id, cents=payment.cents, row=str(job.pk), key=job.key
    )


def _look_for_reversal(job: StripeJob) -> str | None:
    payment = _payment_of(job)
    assert payment.transfer is not None
    return connect_api.find_reversal(transfer_id=payment.transfer.stripe_id, row=str(job.pk))


def _locked_payment(job: StripeJob) -> tuple[DeveloperPayment, PluginPurchase]:
    """Lock the developer, then the sale, then the payment. Returns the latter two."""
    found = DeveloperPayment.objects.get(pk=job.subject)
    Developer.objects.select_for_update(no_key=True).get(pk=found.developer_id)
    sale = PluginPurchase.objects.select_for_update(no_key=True).get(pk=found.purchase_id)
    return DeveloperPayment.objects.select_for_update(no_key=True).get(pk=found.pk), sale


def _done(job: StripeJob) -> None:
    payment, sale = _locked_payment(job)
    if payment.state == State.OPEN:
        payment.state, payment.stripe_id, payment.done_at = State.DONE, job.stripe_id, timezone.now()
        payment.save(update_fields=["state", "stripe_id", "done_at"])
    if sale.settled_cents != sale.due_cents:
        enqueue_on_commit("billing.settle_developers")
    enqueue_on_commit("billing.copy_ledger")


def _given_up(job: StripeJob) -> None:
    payment, sale = _locked_payment(job)
    if payment.state != State.OPEN:
        return
    payment.error = job.error
    _end(payment, sale, State.FAILED if job.state == StripeJob.State.FAILED else State.DROPPED)
    if payment.kind == Kind.REVERSAL:
        if sale.settled_cents > sale.due_cents:
            _owe(sale)
    elif job.state == StripeJob.State.FAILED:
        log.error("developer.transfer_failed", payment_id=str(payment.pk), reason=job.error)
        PluginPurchase.objects.filter(pk=sale.pk).update(transfer_after=Now() + _RETRY)
        connected_accounts.want(Q(pk=payment.developer_id))  # it may have been restricted
    enqueue_on_commit("billing.settle_developers")


stripe_jobs.register(
    StripeJob.Kind.TRANSFER, stripe_jobs.Kind(_send_transfer, _look_for_transfer, _done, _given_up)
)
stripe_jobs.register(
    StripeJob.Kind.REVERSAL, stripe_jobs.Kind(_send_reversal, _look_for_reversal, _done, _given_up)
)


# ── Invariants ──────────────────────────────────────────────────────────────────────────────────────────


def check() -> list[UUID]:
    """Return the developers for whom our rows and Stripe differ; none should. Also tells staff of old debts."""
    if not stripe_api.is_on():
        return []
    wrong = []
    for developer in Developer.objects.exclude(stripe_account=None):
        if developer.payments.filter(state=State.OPEN).exists():
            continue  # Stripe may be a step ahead of us
        try:
            theirs = connect_api.sent(developer.stripe_account or "")
        except (StripeAway, Refused) as error:
            log.warning("developer.not_compared", developer_id=str(developer.pk), reason=error.reason)
            continue
        if theirs != sent_to(developer):
            wrong.append(developer.pk)
            log.error("developer.differs", developer_id=str(developer.pk))
    old = PluginPurchase.objects.in_debt().filter(debt_since__lte=Now() - OLD_DEBT)
    for developer_id in set(old.values_list("developer_id", flat=True)):
        log.error("developer.debt_is_old", developer_id=str(developer_id))
    return wrong


def sent_to(developer: Developer) -> int:
    """Return the cents that went to a developer's account, less those that came back."""
    done = developer.payments.filter(state=State.DONE).values_list("kind").annotate(sum=Sum("cents"))
    sums = dict(done)
    return int(sums.get(Kind.TRANSFER, 0) - sums.get(Kind.REVERSAL, 0))
