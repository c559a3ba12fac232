"""The fake Stripe, and users who pay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.billing.payers import Payer
    from tests.fakes.stripe import Stripe


@pytest.fixture(autouse=True)
def _plans_as_the_rows_say() -> Iterator[None]:
    """Plans are read once in a while and kept in the process: a change by a test must not reach the next."""
    from billing import plans

    plans.forget()
    yield
    plans.forget()


@pytest.fixture
def stripe(committed_db: str, settings: Any) -> Iterator[Stripe]:
    """A Stripe of this test's own, with the plans' prices."""
    from billing import plans
    from billing.models import Plan
    from billing.payments import prices
    from tests.billing.payers import SECRET
    from tests.fakes.stripe import Stripe

    with Stripe() as fake:
        settings.STRIPE = {
            "secret_key": "sk_test_x",
            "webhook_secrets": [SECRET],
            "api": fake.url,
            "portal_configuration": "",
            "automatic_tax": False,
        }
        before = dict(Plan.objects.values_list("tier", "stripe_price_id"))
        dict(prices.make_missing())
        plans.forget()
        fake.calls.clear()
        yield fake
        for tier, price in before.items():
            Plan.objects.filter(tier=tier).update(stripe_price_id=price)


@pytest.fixture
def payer(stripe: Stripe) -> Payer:
    from tests.billing.payers import Payer

    return Payer(stripe)
