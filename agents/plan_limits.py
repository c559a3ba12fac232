"""Plan limits of agents: how many may run, and which ones do if there are more.

A plan limits the number of agents, of enabled ones, and of the providers that these read. After a downgrade nothing is
deleted or switched off: enabled agents beyond the plan are held (`Agent.held_by_plan`), do not run, and come back when
there is room. Agents that run go on running; if there are too many, the oldest do. The user may choose others (`keep`).
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Collection, Sequence
from typing import Final

import structlog
from django.conf import settings
from django.db import connection, transaction
from django.utils import timezone

from adiuva.accounts.keys import NoSuchUser
from adiuva.core.db import prepared_value
from adiuva.core.errors import NotFound
from agents import schedules
from agents.models import Agent, AgentType
from billing import entitlements
from billing.entitlements import Account
from billing.models import PlanChange

log = structlog.get_logger(__name__)


def count(user_id: uuid.UUID) -> int:
    found: int = prepared_value("SELECT count(*) FROM agents_agent WHERE user_id = %s", user_id)
    return found


def count_running(user_id: uuid.UUID) -> int:
    """Return the number of enabled agents that are not held."""
    found: int = prepared_value(
        "SELECT count(*) FROM agents_agent WHERE user_id = %s AND enabled AND NOT held_by_plan", user_id
    )
    return found


def claim_new(agent: Agent) -> None:
    """Make sure that the plan has room for an agent that is about to be saved. Raises QuotaExceeded or NoSuchUser."""
    account = entitlements.lock(agent.user_id)
    if account.plan is None:
        return
    account.require_room("agents", 1, used=count(agent.user_id))
    if agent.enabled:
        require_running(account, agent)


def require_running(account: Account, agent: Agent) -> None:
    """Check the same for an agent that is about to be enabled; the account is locked. Raises QuotaExceeded."""
    if account.plan is None:
        return
    others = Agent.objects.of(agent.user_id).running().exclude(pk=agent.pk)
    types = list(others.values_list("type", flat=True))
    account.require_room("agents_enabled", 1, used=len(types))
    providers = {kind for kind in types if kind != AgentType.LOCAL_DIRECTORY}
    if not agent.is_local and agent.type not in providers:
        account.require_room("providers", 1, used=len(providers))


def check_new(user_id: uuid.UUID) -> None:
    """Refuse early what `claim_new` would refuse. Raises QuotaExceeded or NoSuchUser."""
    entitlements.check(user_id, "agents")


# ── Agents beyond the plan ──────────────────────────────────────────────────────────────────────────────


@transaction.atomic
def settle(user_id: uuid.UUID) -> int:
    """Hold the enabled agents that the plan has no room for, and release those that it has room for. Returns how many
    changed.

    Safe at any time. Raises NoSuchUser.
    """
    account = entitlements.lock(user_id)
    if account.plan is None and not Agent.objects.of(user_id).filter(held_by_plan=True).exists():
        return 0
    return _settle(account, first=())


@transaction.atomic
def keep(*, user_id: uuid.UUID, agent_ids: Collection[uuid.UUID]) -> None:
    """Let these agents of a user run before others. The remaining room goes to agents that run now, then to the oldest.

    Raises QuotaExceeded if the plan has no room for all of them, and NotFound if one is not the user's or is disabled.
    """
    account = entitlements.lock(user_id)
    if len(set(agent_ids)) != Agent.objects.of(user_id).filter(enabled=True, pk__in=agent_ids).count():
        raise NotFound("there is no such agent, or it is disabled")
    _settle(account, first=agent_ids)


def _settle(account: Account, *, first: Collection[uuid.UUID]) -> int:
    enabled = list(
        Agent.objects.of(account.user_id)
        .filter(enabled=True)
        .select_related("user")
        .order_by("created_at", "id")
        .select_for_update(of=("self",), no_key=True)
    )
    chosen = [agent for agent in enabled if agent.pk in first]
    # Sorting is stable: within each group, the oldest come first.
    by_claim = sorted(enabled, key=lambda agent: (agent.pk not in first, agent.held_by_plan))
    allowed = within(
        by_claim,
        agents_limit=account.limit("agents_enabled"),
        providers_limit=account.limit("providers"),
    )
    _require_all(account, chosen, allowed)
    changed = [agent for agent in enabled if agent.held_by_plan == (agent.pk in allowed)]
    for agent in changed:
        agent.held_by_plan = not agent.held_by_plan
        if not agent.held_by_plan:
            # As when it is switched on: slots that passed while it was held are not made up for.
            agent.next_run_at = schedules.next_run_at(agent)
    Agent.objects.bulk_update(changed, ["held_by_plan", "next_run_at"])
    if changed:
        held = sum(agent.held_by_plan for agent in changed)
        log.info("plan.agents_settled", user_id=str(account.user_id), held=held, released=len(changed) - held)
    return len(changed)


def _require_all(account: Account, chosen: Sequence[Agent], allowed: Collection[uuid.UUID]) -> None:
    if all(agent.pk in allowed for agent in chosen):
        return
    account.require_room("agents_enabled", len(chosen), used=0)
    providers = {agent.type for agent in chosen if not agent.is_local}
    account.require_room("providers", len(providers), used=0)


def within(
    agents: Sequence[Agent], *, agents_limit: int | None, providers_limit: int | None
) -> set[uuid.UUID]:
    """Return those of these agents that a plan lets run, the first before the others. None is no limit."""
    allowed: set[uuid.UUID] = set()
    providers: set[str] = set()
    for agent in agents:
        if agents_limit is not None and len(allowed) >= agents_limit:
            break
        if not agent.is_local and agent.type not in providers:
            if providers_limit is not None and len(providers) >= providers_limit:
                continue
            providers.add(agent.type)
        allowed.add(agent.pk)
    return allowed


# Users who have more agents running than their plan allows, or some that are held.
_UNSETTLED: Final = """
SELECT account.id FROM accounts_user AS account
JOIN billing_plan AS plan ON plan.tier = account.tier
JOIN (
    SELECT user_id, bool_or(held_by_plan) AS any_held, count(*) FILTER (WHERE NOT held_by_plan) AS running,
        count(DISTINCT type) FILTER (WHERE NOT held_by_plan AND type <> 'local_directory') AS providers
    FROM agents_agent WHERE enabled GROUP BY user_id
) AS theirs ON theirs.user_id = account.id
WHERE theirs.any_held OR theirs.running > plan.agents_enabled OR theirs.providers > plan.providers
ORDER BY account.id
"""
_HELD: Final = "SELECT DISTINCT user_id FROM agents_agent WHERE held_by_plan"
_EDITED_LATELY: Final = dt.timedelta(hours=1)


def sweep() -> int:
    """Settle users who have held agents, and all users if a plan was edited lately. Returns how many agents changed."""
    newest = PlanChange.objects.order_by("-id").values_list("at", flat=True).first()
    edited = newest is not None and newest > timezone.now() - _EDITED_LATELY
    return _settle_all(_UNSETTLED if settings.PLANS and edited else _HELD)


def check() -> int:
    """Settle all users whose agents do not fit their plan. Reads all enabled agents; returns what `sweep` does."""
    return _settle_all(_UNSETTLED if settings.PLANS else _HELD)


def _settle_all(statement: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        found = [user_id for (user_id,) in cursor.fetchall()]
    changed = 0
    for user_id in found:
        try:
            changed += settle(user_id)
        except NoSuchUser:
            continue
    return changed
