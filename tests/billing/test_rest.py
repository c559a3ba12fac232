"""Plans and subscriptions in the REST API."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from billing import plans, tiers
from tests.agents.factories import create_agent, rest_client
from tests.factories import somebody

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def plans_on(settings: Any) -> None:
    settings.PLANS = True
    plans.forget()


def test_anybody_reads_the_plans() -> None:
    found = Client().get("/api/v1/billing/plans").json()
    assert [plan["tier"] for plan in found] == ["free", "pro", "power", "team"]
    pro = found[1]
    assert (pro["name"], pro["price_cents"], pro["currency"], pro["limits"]["agents_enabled"]) == (
        "Pro",
        1500,
        "eur",
        10,
    )
    assert pro["limits"]["agents"] is None


def test_an_account_says_what_it_may_and_what_it_has() -> None:
    mara = somebody()
    create_agent(mara.id)
    create_agent(mara.id, enabled=False)
    me = rest_client(mara).get("/api/v1/auth/me").json()
    assert me["tier"] == "free"
    assert (me["limits"]["agents"], me["limits"]["requests_per_minute"]) == (3, 20)
    assert (me["usage"]["agents"], me["usage"]["agents_enabled"], me["usage"]["providers"]) == (2, 1, 0)


def test_who_pays_nothing_has_a_subscription_that_says_so() -> None:
    mara = somebody()
    given = tiers.give(user_id=mara.id, tier="pro", until=None, reason="a trial", by=mara.id)
    for number in range(4):
        create_agent(mara.id, name=f"Desk {number}")
    tiers.end(override=given)
    found = rest_client(mara).get("/api/v1/billing/subscription").json()
    assert (found["tier"], found["status"], found["period_end"]) == ("free", "none", None)
    assert (found["usage"]["agents"], found["over"]) == (4, ["agents"])


def test_without_plans_an_account_has_no_limits(settings: Any) -> None:
    settings.PLANS = False
    me = rest_client(somebody()).get("/api/v1/auth/me").json()
    assert me["limits"]["agents"] is None and me["limits"]["plugins"] is True
