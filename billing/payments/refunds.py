"""Refunds by staff, of a whole charge or of a part. The ledger shows them; the plan stays."""

from __future__ import annotations

from django.db import transaction
from django.db.models import Sum

from adiuva.core.errors import Conflict, Invalid
from billing.payments import stripe_jobs
from billing.payments.ledger import REFUNDS
from billing.payments.models import LedgerEntry, StripeJob


def left_of(charge: LedgerEntry) -> int:
    """Return how many cents of a charge are not refunded."""
    back = LedgerEntry.objects.filter(charge_id=charge.charge_id, kind__in=REFUNDS).aggregate(
        sum=Sum("cents")
    )
    return charge.cents + (back["sum"] or 0)


@transaction.atomic
def want(*, charge: LedgerEntry, cents: int | None = None, ends: bool = False) -> StripeJob:
    """Have a charge refunded, by default all that is left of it, and with `ends` its subscription ended at once.

    Raises Invalid, and Conflict while another refund of the charge is on its way.
    """
    left = left_of(charge)
    wanted = left if cents is None else cents
    if charge.kind not in ("charge", "payment") or not 0 < wanted <= left:
        raise Invalid("there is not so much left to refund")
    under_way = StripeJob.objects.filter(
        kind=StripeJob.Kind.REFUND, subject=charge.charge_id, state__in=StripeJob.OPEN
    ).exists()
    if under_way:
        raise Conflict("a refund of this charge is on its way")
    if ends and charge.subscription_id:
        stripe_jobs.want(StripeJob.Kind.END, charge.subscription_id, None)
    return stripe_jobs.want(StripeJob.Kind.REFUND, charge.charge_id, None, cents=wanted)
