"""The plans, as each process knows them: read from their rows at most every few seconds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID

import structlog
from django.db import transaction

from adiuva.accounts.models import PlanName
from billing.models import Plan, PlanChange
from billing.signals import plans_edited

log = structlog.get_logger(__name__)

# A change by staff holds everywhere after this time.
MAX_AGE_S: Final = 5.0
_GB: Final = 10**9
# The plans of a new installation. Staff edit the rows; a deleted one comes back with the next `migrate`.
_FIRST: Final[Mapping[PlanName, Mapping[str, Any]]] = {
    PlanName.FREE: {
        "price_cents": 0, "requests_per_minute": 20, "burst": 20,
        "agents": 3, "agents_enabled": 2, "providers": 1, "storage_bytes": 0, "backup_bytes": 0, "vectors": 0,
        "budget_micro": 300_000, "turn_micro": 20_000, "run_micro": 100_000,
    },
    PlanName.PRO: {
        "price_cents": 1500, "requests_per_minute": 60, "burst": 60,
        "agents_enabled": 10, "storage_bytes": 5 * _GB, "backup_bytes": 5 * _GB, "vectors": 100_000,
        "budget_micro": 4_000_000, "turn_micro": 100_000, "run_micro": 1_000_000,
    },
    PlanName.POWER: {
        "price_cents": 2900, "requests_per_minute": 120, "burst": 120,
        "storage_bytes": 25 * _GB, "backup_bytes": 25 * _GB, "vectors": 1_000_000, "plugins": True,
        "budget_micro": 10_000_000, "turn_micro": 250_000, "run_micro": 3_000_000,
    },
    PlanName.TEAM: {
        "price_cents": 4900, "per_seat": True, "requests_per_minute": 200, "burst": 200,
        "plugins": True, "sso": True, "budget_micro": 15_000_000, "turn_micro": 250_000,
        "run_micro": 3_000_000,
    },
}  # fmt: skip

_known: tuple[float, Mapping[str, Plan]] = (0.0, {})


def create_missing() -> None:
    """Make missing rows. Existing rows stay as staff edited them."""
    Plan.objects.bulk_create(
        (
            Plan(tier=tier, position=position, **values)
            for position, (tier, values) in enumerate(_FIRST.items())
        ),
        ignore_conflicts=True,
    )


@transaction.atomic
def edit(*, tier: str, values: Mapping[str, Any], by: UUID) -> None:
    """Change columns of a plan, and keep who changed what. Raises django.core.exceptions.ValidationError."""
    plan = Plan.objects.select_for_update().get(pk=tier)
    changes = {}
    for name, value in values.items():
        before = getattr(plan, name)
        if before != value:
            changes[name] = [before, value]
            setattr(plan, name, value)
    if not changes:
        return
    plan.full_clean()
    plan.save()
    PlanChange.objects.create(plan=plan, by=by, changes=changes)
    transaction.on_commit(_edited)
    log.info("plan.edited", tier=tier, staff_id=str(by), changed=sorted(changes))


def _edited() -> None:
    forget()
    plans_edited.send(Plan)


def is_fresh() -> bool:
    """Return whether `by_tier` can answer without a query."""
    return bool(_known[1]) and time.monotonic() - _known[0] < MAX_AGE_S


def by_tier() -> Mapping[str, Plan]:
    """Return all plans by their tier, smallest first; a query if they were not read lately."""
    global _known
    if not is_fresh():
        found = {plan.tier: plan for plan in Plan.objects.order_by("position")}
        _known = time.monotonic(), MappingProxyType(found)
    return _known[1]


def forget() -> None:
    """Read the rows again at the next use: this process has changed them."""
    global _known
    _known = 0.0, {}


def plan_of(tier: str) -> Plan:
    """Return the plan of a tier. Raises KeyError if its row is missing, which `migrate` makes."""
    return by_tier()[tier]
