"""The plans' prices at Stripe. A price never changes there: a plan whose price changes gets another one."""

from __future__ import annotations

from collections.abc import Iterator

from billing.models import Plan
from billing.payments import stripe_api


def make_missing() -> Iterator[tuple[str, str]]:
    """Give each paid plan a price at Stripe that matches. Yields plans and prices.

    Raises StripeAway, Refused, StripeOff.
    """
    for plan in Plan.objects.filter(price_cents__gt=0):
        price = stripe_api.price_of(
            tier=plan.tier, name=f"Adiuva {plan}", cents=plan.price_cents, currency=plan.currency
        )
        Plan.objects.filter(pk=plan.pk).update(stripe_price_id=price)
        yield plan.tier, price
