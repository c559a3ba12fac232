"""The ledger: each movement of the money that Stripe keeps for us, once, as lines that sum to zero.

A movement is a fact that never changes, so it needs neither a lease nor an order: any process that reads it first
writes it. Events only hint that there are new ones; they are listed from the newest known one on, and a whole month
once a day.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Final

import structlog
from django.db import IntegrityError, connection, transaction
from django.db.models import Max, Sum
from django.utils import timezone

from billing.payments import money_api, shares, stripe_api
from billing.payments.models import LedgerEntry, LedgerLine
from billing.payments.money_api import Movement, Paid
from billing.payments.stripe_api import Refused, StripeAway

Account = LedgerLine.Account
# Movements of the last hour are listed again, since some are listed late.
_OVERLAP: Final = dt.timedelta(hours=1)
_COMPARED: Final = dt.timedelta(days=30)
_WORTH_A_LIST: Final = 3  # charges
_CHARGES: Final = ("charge", "payment")
# Money of a charge that goes back, or comes again because that failed.
REFUNDS: Final = ("refund", "payment_refund", "refund_failure", "payment_failure_refund")
# The account that the money of a movement came from or went to.
_ACCOUNTS: Final[Mapping[str, str]] = {
    "charge": Account.SALES,
    "payment": Account.SALES,
    "refund": Account.REFUNDS,
    "payment_refund": Account.REFUNDS,
    "refund_failure": Account.REFUNDS,
    "payment_failure_refund": Account.REFUNDS,
    "payout": Account.PAYOUTS,
    "payout_cancel": Account.PAYOUTS,
    "payout_failure": Account.PAYOUTS,
    "stripe_fee": Account.FEES,
    "stripe_fx_fee": Account.FEES,
    "tax_fee": Account.FEES,
    "transfer": Account.TRANSFERS,
    "transfer_refund": Account.TRANSFERS,
    "transfer_cancel": Account.TRANSFERS,
    "transfer_failure": Account.TRANSFERS,
}

log = structlog.get_logger(__name__)


def copy(since: dt.datetime | None = None) -> int:
    """Write the movements since a time, by default since the newest known one. Returns how many were new."""
    if not stripe_api.is_on():
        return 0
    if since is None:
        newest = LedgerEntry.objects.aggregate(at=Max("happened_at"))["at"]
        since = newest - _OVERLAP if newest else None
    try:
        found = list(money_api.movements(since))
        ids = [movement.stripe_id for movement in found]
        known = set(LedgerEntry.objects.filter(source__in=ids).values_list("source", flat=True))
        # In the order in which they happened: the tax in a refund depends on earlier refunds.
        new = [movement for movement in reversed(found) if movement.stripe_id not in known]
        paid = _listed(new)
        for movement in new:
            payment = movement.payment_id
            _write(movement, (paid.get(payment) or money_api.paid_for(payment)) if payment else Paid())
    except (StripeAway, Refused) as error:
        log.warning("ledger.not_copied", reason=error.reason)
        return 0
    return len(new)


def _listed(new: Sequence[Movement]) -> dict[str, Paid]:
    """Return what charges paid for, by their payments, if a list takes fewer calls than one call each."""
    charges = [movement for movement in new if movement.payment_id and movement.kind in _CHARGES]
    if len(charges) < _WORTH_A_LIST:
        return {}
    return money_api.paid_by_invoices(min(movement.happened_at for movement in charges) - _OVERLAP)


@transaction.atomic
def _write(movement: Movement, paid: Paid) -> None:
    entry = LedgerEntry(
        source=movement.stripe_id,
        kind=movement.kind,
        cents=movement.cents,
        currency=movement.currency,
        charge_id=movement.charge_id,
        invoice_id=paid.invoice_id,
        subscription_id=paid.subscription_id,
        customer_id=paid.customer_id,
        happened_at=movement.happened_at,
    )
    try:
        with transaction.atomic():
            entry.save(force_insert=True)
    except IntegrityError:
        return  # another process was faster
    found = lines_of(movement, paid, refunded_before=_gone_before(movement, paid))
    LedgerLine.objects.bulk_create(
        LedgerLine(entry=entry, account=account, cents=cents, currency=movement.currency)
        for account, cents in found.items()
        if cents
    )


def _gone_before(movement: Movement, paid: Paid) -> int:
    """Return how much of this charge had gone back already: by refunds, and for a plugin by disputes as well."""
    if not movement.charge_id or movement.kind in _CHARGES:
        return 0
    with connection.cursor() as cursor:  # two processes must not both take theirs for the next
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [movement.charge_id])
    earlier = LedgerEntry.objects.filter(charge_id=movement.charge_id).exclude(pk=movement.stripe_id)
    earlier = earlier.exclude(kind__in=_CHARGES) if paid.purchase else earlier.filter(kind__in=REFUNDS)
    return -(earlier.aggregate(sum=Sum("cents"))["sum"] or 0)


def lines_of(movement: Movement, paid: Paid, *, refunded_before: int = 0) -> dict[str, int]:
    """Return the lines of a movement, by account. They sum to zero, whatever the movement says.

    Money that goes back of a charge takes its part of the tax and of the developer's share with it, as the difference
    of two sums, so that the parts of a charge give both back to the cent.
    """
    tax = share = 0
    before, after = refunded_before, refunded_before - movement.cents
    is_dispute = movement.source_kind == "dispute"
    if movement.kind in _CHARGES:
        tax, share = _tax_of(movement.cents, paid), _share_of(0, paid)
    elif movement.kind in REFUNDS or (paid.purchase and movement.charge_id):
        tax = _tax_of(before, paid) - _tax_of(after, paid)
        share = _share_of(after, paid) - _share_of(before, paid)
    other = Account.DISPUTES if is_dispute else _ACCOUNTS.get(movement.kind, Account.OTHER)
    lines = dict.fromkeys((Account.STRIPE, Account.FEES, Account.TAX, Account.SHARES, other), 0)
    lines[Account.STRIPE] += movement.cents - movement.fee_cents
    lines[Account.FEES] += movement.fee_cents
    lines[Account.TAX] -= tax
    lines[Account.SHARES] -= share
    lines[other] -= movement.cents - tax - share
    return {str(account): cents for account, cents in lines.items()}


def _share_of(gone: int, paid: Paid) -> int:
    """Return the developer's share of a plugin's sale when `gone` cents of it went back; 0 for anything else."""
    return shares.due_of(total=paid.cents, tax=paid.tax_cents, gone=gone) if paid.purchase else 0


def _tax_of(cents: int, paid: Paid) -> int:
    return shares.tax_of(cents, total=paid.cents, tax=paid.tax_cents)


def sums() -> dict[str, dict[str, int]]:
    """Return the balance of each account, by currency."""
    found: dict[str, dict[str, int]] = {}
    rows = LedgerLine.objects.values_list("currency", "account").annotate(sum=Sum("cents"))
    for currency, account, cents in rows.order_by("currency", "account"):
        found.setdefault(currency, {})[account] = cents
    return found


def check() -> dict[str, int]:
    """List a month of movements again, and compare our account at Stripe with Stripe's balance.

    Returns the differences in cents, by currency; there should be none.
    """
    if not stripe_api.is_on():
        return {}
    missed = copy(timezone.now() - _COMPARED) if LedgerEntry.objects.exists() else copy()
    if missed:
        log.warning("ledger.missed", count=missed)
    try:
        theirs = money_api.balance()
    except (StripeAway, Refused) as error:
        log.warning("ledger.not_compared", reason=error.reason)
        return {}
    ours = {currency: accounts.get(Account.STRIPE, 0) for currency, accounts in sums().items()}
    wrong = {
        currency: ours.get(currency, 0) - theirs.get(currency, 0)
        for currency in {*ours, *theirs}
        if ours.get(currency, 0) != theirs.get(currency, 0)
    }
    if wrong:
        log.error("ledger.differs", currencies=sorted(wrong))
    return wrong
