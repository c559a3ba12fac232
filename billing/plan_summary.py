"""The plan of an account as its user sees it: its name, its end, and its use."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from adiuva.accounts.keys import NoSuchUser
from adiuva.accounts.models import User
from billing import entitlements
from billing.models import Override
from billing.payments import subscribing


def describe(user_id: UUID) -> dict[str, Any]:
    """Return the answer of GET /billing/subscription, also for users who pay nothing. Raises NoSuchUser."""
    tier = User.objects.filter(pk=user_id).values_list("tier", flat=True).first()
    if tier is None:
        raise NoSuchUser("this account no longer exists")
    usage = entitlements.usage_of(user_id)
    return {
        "tier": tier,
        "seats": None,
        "period_end": None,
        "cancel_at_period_end": False,
        "cancelling": False,
        "pending_tier": None,
        "payment_failed_at": None,
        "payment_url": None,
        **subscribing.describe(user_id),
        "given_until": _given_until(user_id, tier),
        "limits": entitlements.limits_of(tier),
        "usage": usage,
        "over": entitlements.over(tier, usage),
    }


def _given_until(user_id: UUID, tier: str) -> Any:
    """Return when the last of the overrides that give this tier ends."""
    ends = list(Override.objects.of(user_id).live().filter(tier=tier).values_list("until", flat=True))
    return max(ends) if ends and None not in ends else None  # type: ignore[type-var]
