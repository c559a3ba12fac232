"""Users with a subscription each, made at the fake Stripe and here without a checkout."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from tests.fakes.stripe import Stripe
from tests.fakes.stripe.checkout import new_customer
from tests.fakes.stripe.subscriptions import subscribe


def subscribers(stripe: Stripe, count: int, tier: str = "pro") -> dict[str, UUID]:
    """Returns the users by their subscriptions' ids at Stripe. The plans must have their prices."""
    from adiuva.accounts.models import User
    from billing.models import Plan
    from billing.payments import stripe_api, sync
    from billing.payments.models import Customer

    users = User.objects.bulk_create(
        User(email=f"{uuid4().hex}@example.com", password="!") for _ in range(count)
    )
    price, environment = Plan.objects.get(tier=tier).stripe_price_id, stripe_api.environment()

    def act(world: Any) -> list[tuple[UUID, str, str]]:
        made = []
        for user in users:
            note = {"adiuva_user": str(user.pk), "env": environment}
            customer = world.make("customer", "cus", **new_customer({"metadata": note}))
            row = subscribe(world, customer["id"], [{"price": price, "quantity": 1}], note)
            made.append((user.pk, customer["id"], row["id"]))
        return made

    made = stripe.do(act)
    Customer.objects.bulk_create(Customer(user_id=user, stripe_id=customer) for user, customer, _ in made)
    sync.want([subscription for _, _, subscription in made])
    sync.run()
    return {subscription: user for user, _, subscription in made}
