"""Allowances, which limit the cost of a month's work, and the amounts that each may spend.

They are rows: a user's month, the parts of it that their memory and follow-ups may take, an agent's own, the
installation's.

Nothing limits anything unless plans are on (ADIUVA_PLANS), the installation has a budget, or an agent has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import F, Q
from django.utils import timezone

from adiuva.accounts.keys import NoSuchUser
from adiuva.accounts.models import User
from adiuva.llm import BudgetSpent
from billing import plans
from billing.models import AddedAllowance, Allowance, Purpose
from billing.months import Window, month_of

log = structlog.get_logger(__name__)

# The most, in percent, that some kinds of work may take of a user's month. Work that machines begin by themselves must
# leave the rest for the user.
_SHARES: Final[Mapping[str, tuple[str, int]]] = {
    Purpose.MEMORY: (Allowance.Scope.MEMORY, 10),
    Purpose.FOLLOWUPS: (Allowance.Scope.FOLLOWUPS, 20),
}
_MICRO: Final = 1_000_000
# The columns of plans that limit one piece of some work.
_EACH: Final[Mapping[str, str]] = {
    Purpose.CHAT: "turn_micro",
    Purpose.FOLLOWUPS: "turn_micro",
    Purpose.AGENTS: "run_micro",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """The allowances that pay for some work, by the ids of their rows, and what each may spend.

    `each`: once one piece of the work has cost this much, no further request is made for it, whatever is left of the
    month; it may end with a request that was reserved for it.
    """

    ids: tuple[int, ...]
    caps: tuple[int, ...]
    window: Window
    each: int | None = None


def limits_of(user_id: UUID, purpose: str, agent: UUID | None, agent_cap: int | None) -> Limits | None:
    """Return the limits of some work now; None if there are none. Makes the rows of a new month."""
    account = User.objects.filter(pk=user_id).values_list("tier", "timezone").first()
    if account is None:
        raise BudgetSpent
    tier, zone = account
    month = month_of(timezone.now(), ZoneInfo(zone))
    caps: dict[tuple[str, UUID | None, UUID | None], tuple[int, Window]] = {}
    plan = plans.plan_of(tier) if settings.PLANS else None
    budget = plan.budget_micro if plan else None
    each: int | None = getattr(plan, _EACH[purpose]) if plan and purpose in _EACH else None
    if budget is not None:
        caps["user", user_id, None] = (budget, month)
        if purpose in _SHARES:
            scope, percent = _SHARES[purpose]
            caps[scope, user_id, None] = (budget * percent // 100, month)
    if agent is not None and agent_cap is not None:
        caps["agent", user_id, agent] = (agent_cap, month)
    if settings.INSTALLATION_BUDGET:
        whole = month_of(timezone.now(), ZoneInfo("UTC"))
        caps["installation", None, None] = (int(settings.INSTALLATION_BUDGET * _MICRO), whole)
    if not caps and each is None:
        return None
    rows = _rows_of({key: window for key, (_, window) in caps.items()})
    found = sorted((rows[key], cap) for key, (cap, _) in caps.items())
    return Limits(tuple(pk for pk, _ in found), tuple(cap for _, cap in found), month, each)


def _rows_of(windows: dict[Any, Window]) -> dict[Any, int]:
    """Return the ids of the allowances of these months, whose rows are made if they are missing."""
    if not windows:
        return {}
    wanted = Q()
    for (scope, user, agent), window in windows.items():
        owner = Q(user=user) if user else Q(user=None)
        wanted |= owner & Q(scope=scope, agent=agent, month=window.first_day)

    def read() -> dict[Any, int]:
        rows = Allowance.objects.filter(wanted).values_list("scope", "user", "agent", "pk")
        return {(scope, user, agent): pk for scope, user, agent, pk in rows}

    found = read()
    if missing := windows.keys() - found.keys():
        Allowance.objects.bulk_create(
            [
                Allowance(scope=key[0], user_id=key[1], agent=key[2], month=window.first_day)
                for key, window in windows.items()
                if key in missing
            ],
            ignore_conflicts=True,
        )
        found = read()
    return found


def has_room(user_id: UUID, purpose: Purpose, agent: UUID | None, agent_cap: int | None) -> bool:
    """Return whether enough is left to make beginning worthwhile: a tenth of each allowance."""
    limits = limits_of(user_id, purpose, agent, agent_cap)
    if limits is None:
        return True
    rows = Allowance.objects.in_bulk(limits.ids)
    return all(
        pk in rows and (rows[pk].spent + rows[pk].reserved) * 10 <= (cap + rows[pk].added) * 9
        for pk, cap in zip(limits.ids, limits.caps, strict=True)
    )


@transaction.atomic
def add(*, user_id: UUID, micro: int, reason: str, by: UUID) -> AddedAllowance:
    """Give a user more to spend in the current month, on top of their plan's budget. Raises NoSuchUser."""
    account = (
        User.objects.select_for_update(no_key=True).filter(pk=user_id).values_list("timezone", flat=True)
    )
    if (zone := account.first()) is None:
        raise NoSuchUser("this account no longer exists")
    month = month_of(timezone.now(), ZoneInfo(zone))
    rows = _rows_of({("user", user_id, None): month})
    Allowance.objects.filter(pk__in=rows.values()).update(added=F("added") + micro)
    log.info("budget.added", user_id=str(user_id), staff_id=str(by), micro=micro)
    return AddedAllowance.objects.create(
        user_id=user_id, micro=micro, reason=reason, month=month.first_day, by=by
    )


def additions_to(user_id: UUID, window: Window) -> list[AddedAllowance]:
    """Return the allowances that staff gave in a month, the latest first."""
    return list(AddedAllowance.objects.filter(user=user_id, month=window.first_day))


def status_of(user_id: UUID, tier: str, window: Window) -> dict[str, int | None]:
    """Return how much of a user's month may be spent, is spent, and is held."""
    row = Allowance.objects.filter(scope="user", user=user_id, month=window.first_day).first()
    spent, reserved, added = (row.spent, row.reserved, row.added) if row else (0, 0, 0)
    budget = plans.plan_of(tier).budget_micro if settings.PLANS else None
    limit = None if budget is None else budget + added
    return {
        "limit_micro": limit,
        "added_micro": added,
        "spent_micro": spent,
        "reserved_micro": reserved,
        "used_percent": None if limit is None else 100 * (spent + reserved) // limit if limit else 100,
    }
