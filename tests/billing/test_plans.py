"""The plans of a new installation, and that making them again keeps edits."""

from __future__ import annotations

import pytest

from adiuva.accounts.models import PlanName
from billing import plans
from billing.models import Plan

pytestmark = pytest.mark.django_db


def test_an_installation_begins_with_the_plans_that_clients_know() -> None:
    free, pro, power, team = plans.by_tier().values()
    assert [plan.tier for plan in (free, pro, power, team)] == PlanName.values
    assert [plan.price_cents for plan in (free, pro, power, team)] == [0, 1500, 2900, 4900]
    assert [plan.requests_per_minute for plan in (free, pro, power, team)] == [20, 60, 120, 200]
    assert (free.agents, free.agents_enabled, free.providers, free.storage_bytes) == (3, 2, 1, 0)
    assert (pro.agents, pro.agents_enabled, pro.storage_bytes, pro.backup_bytes) == (
        None,
        10,
        5 * 10**9,
        5 * 10**9,
    )
    assert power.agents_enabled is None and power.plugins and power.storage_bytes == 25 * 10**9
    assert team.storage_bytes is None and team.per_seat and team.sso


def test_making_the_plans_again_keeps_what_staff_edited() -> None:
    plans.create_missing()
    assert Plan.objects.count() == len(PlanName)
