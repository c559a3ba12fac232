"""The limits and features of a user's plan, and the one way to claim them.

Everything that makes something which a plan limits calls `claim` in the transaction that makes it. The claim locks the
account, so that concurrent claims count one after the other, and counts the existing rows. Locks are taken in the order
account, subscription, usage, agent: claim before you lock anything of the user's.

An app whose rows a plan limits registers a function that counts them (`count_with`); for stored bytes and rows by the
thousands, `billing.storage_quota` keeps sums and reserves room. With ADIUVA_PLANS=0 nothing is limited.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal
from uuid import UUID

from django.conf import settings
from django.utils.translation import gettext_noop

from adiuva.accounts.keys import NoSuchUser
from adiuva.accounts.models import User
from adiuva.core.db import prepared_cursor
from adiuva.core.errors import AdiuvaError, Text
from billing import plans
from billing.models import Plan

Feature = Literal["agents", "agents_enabled", "providers", "storage_bytes", "backup_bytes", "vectors"]
Extra = Literal["plugins", "sso"]
# Seats belong to a team, not to an account: `billing.teams` counts them.
Limited = Feature | Literal["seats"]

FEATURES: Final[tuple[Feature, ...]] = (
    "agents",
    "agents_enabled",
    "providers",
    "storage_bytes",
    "backup_bytes",
    "vectors",
)

_MESSAGES: Final[Mapping[Limited, str]] = {
    "agents": gettext_noop("your plan has room for {limit} agents in all, and you have {used}"),
    "agents_enabled": gettext_noop("your plan has room for {limit} enabled agents, and you have {used}"),
    "providers": gettext_noop("your plan connects at most {limit} of the providers, and you have {used}"),
    "storage_bytes": gettext_noop("your plan has room for {limit} bytes of records, and you have {used}"),
    "backup_bytes": gettext_noop("your plan has room for {limit} bytes of backups, and you have {used}"),
    "vectors": gettext_noop("your plan has room for {limit} vectors, and you have {used}"),
    "seats": gettext_noop("the team has {limit} seats, and {used} of them are taken"),
}
_NOT_IN_PLAN: Final[Mapping[str, str]] = {
    "plugins": gettext_noop("plugins are not part of your plan"),
    "sso": gettext_noop("single sign-on is not part of your plan"),
    "storage_bytes": gettext_noop("storing records is not part of your plan"),
    "backup_bytes": gettext_noop("backups are not part of your plan"),
}

_counts: dict[Feature, Callable[[UUID], int]] = {}


class QuotaExceeded(AdiuvaError):
    """The plan has no room for it. `upgrade_to` in the answer: the smallest plan that has room, if there is one."""

    code, status = "quota_exceeded", 402

    def __init__(self, feature: Limited, *, limit: int, used: int, tier: str, upgrade_to: str | None) -> None:
        message = Text(_MESSAGES[feature], limit=limit, used=used)
        super().__init__(message, feature=feature, limit=limit, used=used, tier=tier, upgrade_to=upgrade_to)


class NotInPlan(AdiuvaError):
    """The plan does not include it at all. `upgrade_to` in the answer: the smallest plan that does."""

    code, status = "not_in_plan", 403

    def __init__(self, feature: Extra | Feature, *, upgrade_to: str | None) -> None:
        super().__init__(_NOT_IN_PLAN[feature], feature=feature, upgrade_to=upgrade_to)


@dataclass(frozen=True, slots=True)
class Account:
    """A user's plan, when it was read. None: nothing is limited."""

    user_id: UUID
    plan: Plan | None

    def limit(self, feature: Feature) -> int | None:
        """Return the plan's limit of a feature; None: no limit."""
        found: int | None = getattr(self.plan, feature) if self.plan is not None else None
        return found

    def require_any(self, feature: Feature, *, used: int) -> None:
        """Raise NotInPlan if the plan excludes the feature. Users who have some from before learn the limit instead."""
        if self.plan is not None and self.limit(feature) == 0 and not used and feature in _NOT_IN_PLAN:
            larger = _larger_plans(self.plan)
            upgrade = next((plan.tier for plan in larger if getattr(plan, feature) != 0), None)
            raise NotInPlan(feature, upgrade_to=upgrade)

    def require_room(self, feature: Feature, n: int, *, used: int) -> None:
        """Raise QuotaExceeded unless the plan has room for `n` more than are used."""
        limit = self.limit(feature)
        if self.plan is None or limit is None or used + n <= limit:
            return
        larger = _larger_plans(self.plan)
        upgrade = next((plan.tier for plan in larger if _allows(getattr(plan, feature), used + n)), None)
        raise QuotaExceeded(feature, limit=limit, used=used, tier=self.plan.tier, upgrade_to=upgrade)


def _larger_plans(plan: Plan) -> list[Plan]:
    return [other for other in plans.by_tier().values() if other.position > plan.position]


def _allows(limit: int | None, amount: int) -> bool:
    return limit is None or amount <= limit


def count_with(feature: Feature, count: Callable[[UUID], int]) -> None:
    """Register how to count a user's use of a feature. The app that owns the rows calls this when it is ready."""
    _counts[feature] = count


def lock(user_id: UUID) -> Account:
    """Return the user's plan, and lock the account until the transaction ends. Raises NoSuchUser.

    Where nothing is limited, nothing is locked.
    """
    if not settings.PLANS:
        return Account(user_id, None)
    return _account(user_id, User.objects.select_for_update(no_key=True))


def look(user_id: UUID) -> Account:
    """Return the user's plan as it is now, to show it or to refuse early. Raises NoSuchUser."""
    return _account(user_id, User.objects.all()) if settings.PLANS else Account(user_id, None)


def _account(user_id: UUID, users: object) -> Account:
    tier = users.filter(pk=user_id).values_list("tier", flat=True).first()  # type: ignore[attr-defined]
    if tier is None:
        raise NoSuchUser("this account no longer exists")
    return Account(user_id, plans.plan_of(tier))


def claim(user_id: UUID, feature: Feature, n: int = 1) -> None:
    """Ensure room in the plan for `n` more until the transaction ends; the caller makes them in it.

    Raises QuotaExceeded or NoSuchUser.
    """
    account = lock(user_id)
    if account.limit(feature) is not None:
        account.require_room(feature, n, used=_counts[feature](user_id))


def check(user_id: UUID, feature: Feature, n: int = 1) -> None:
    """Refuse early what `claim` would refuse now, before somebody answers five questions. Raises what `claim` does."""
    account = look(user_id)
    if account.limit(feature) is not None:
        account.require_room(feature, n, used=_counts[feature](user_id))


def require(user_id: UUID, feature: Extra, *, locked: bool = False) -> None:
    """Raise NotInPlan unless the user's plan has it, or NoSuchUser. `locked`: it holds until the transaction ends."""
    plan = (lock if locked else look)(user_id).plan
    if plan is not None and not getattr(plan, feature):
        upgrade = next((other.tier for other in _larger_plans(plan) if getattr(other, feature)), None)
        raise NotInPlan(feature, upgrade_to=upgrade)


def limits_of(tier: str) -> dict[str, int | bool | None]:
    """Return a tier's limits and features for display; None is no limit."""
    if not settings.PLANS:
        return {**dict.fromkeys(FEATURES), "plugins": True, "sso": True, "requests_per_minute": None}
    return plan_limits(plans.plan_of(tier))


def plan_limits(plan: Plan) -> dict[str, int | bool | None]:
    return {name: getattr(plan, name) for name in (*FEATURES, "plugins", "sso", "requests_per_minute")}


def usage_of(user_id: UUID) -> dict[Feature, int]:
    """Return how much of each feature the user has."""
    with prepared_cursor() as cursor:
        cursor.execute("SELECT kind, used FROM billing_storedamount WHERE user_id = %s", [user_id])
        stored: dict[str, int] = dict(cursor.fetchall())
    counted = {feature: count(user_id) for feature, count in _counts.items()}
    return {feature: counted.get(feature, stored.get(feature, 0)) for feature in FEATURES}


def over(tier: str, usage: Mapping[Feature, int]) -> list[str]:
    """Return the features whose use exceeds the tier's limits. Nothing is deleted for it."""
    limits = limits_of(tier)
    return [feature for feature, used in usage.items() if not _allows(limits[feature], used)]
