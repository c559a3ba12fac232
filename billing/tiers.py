"""Computes a user's plan: the largest of those that anything grants them, else the free one.

`User.tier` is a copy of it that only this module writes, in the transaction that changes its sources. A sweep finds
plans that ended by time alone; once a day, `check` computes all of them anew.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Any, Final
from uuid import UUID

import structlog
from django.db import connection, transaction
from django.db.models.functions import Now

from adiuva.accounts.keys import NoSuchUser
from adiuva.accounts.models import PlanName, User
from adiuva.core import db
from billing import signals
from billing.models import Override
from billing.payments.models import GRACE

log = structlog.get_logger(__name__)

# Sources that give a plan to a user by themselves, each as (user_id, tier). A further source is a further SELECT, with
# UNION ALL.
_OWN: Final = f"""
SELECT user_id, tier FROM billing_override WHERE until IS NULL OR until > statement_timestamp()
UNION ALL
SELECT user_id, tier FROM billing_subscription WHERE user_id IS NOT NULL AND NOT doubled AND (
    status IN ('trialing', 'active')
    OR status = 'past_due' AND past_due_since > statement_timestamp() - interval '{GRACE.days} days'
) AND NOT EXISTS (
    SELECT FROM billing_dispute AS dispute
    WHERE dispute.subscription_id = billing_subscription.stripe_id AND dispute.status = 'lost' AND NOT dispute.released
)
"""  # noqa: S608
# Also the plans that seats give: the plan of the team's owner, if it is one for teams.
_GIVEN: Final = f"""
{_OWN}
UNION ALL
SELECT member.user_id, plan.tier
FROM billing_membership AS member
JOIN billing_team AS team ON team.id = member.team_id
JOIN ({_OWN}) AS paid ON paid.user_id = team.owner_id
JOIN billing_plan AS plan ON plan.tier = paid.tier AND plan.per_seat
WHERE member.state = 'active'
"""  # noqa: S608
# (user, the tier that counts) of some users.
_EFFECTIVE: Final = f"""
WITH given AS ({_GIVEN}), best AS (
    SELECT given.user_id, max(plan.position) AS position
    FROM given JOIN billing_plan AS plan USING (tier) GROUP BY given.user_id
)
SELECT account.id, coalesce(plan.tier, 'free'), account.tier
FROM accounts_user AS account
LEFT JOIN best ON best.user_id = account.id
LEFT JOIN billing_plan AS plan ON plan.position = best.position
"""  # noqa: S608
_OF_USER: Final = f"{_EFFECTIVE} WHERE account.id = %s"
# A user on the free plan whom nothing grants another is right.
_DIFFERENCES: Final = f"""
{_EFFECTIVE}
WHERE account.id IN (SELECT id FROM accounts_user WHERE tier <> 'free' UNION SELECT user_id FROM given)
    AND account.tier <> coalesce(plan.tier, 'free')
"""  # noqa: S608
# Users whose plan, or whose team's, ended by time lately: long enough that a beat that stood still for a week missed
# nothing.
_ENDED_LATELY: Final = f"""
WITH ended AS (
    SELECT user_id FROM billing_override
    WHERE until BETWEEN statement_timestamp() - interval '7 days' AND statement_timestamp()
    UNION
    SELECT user_id FROM billing_subscription
    WHERE user_id IS NOT NULL AND status = 'past_due' AND past_due_since
        BETWEEN statement_timestamp() - interval '{7 + GRACE.days} days'
        AND statement_timestamp() - interval '{GRACE.days} days'
)
SELECT id FROM accounts_user WHERE tier <> 'free' AND id IN (
    SELECT user_id FROM ended
    UNION
    SELECT member.user_id FROM ended JOIN billing_team AS team ON team.owner_id = ended.user_id
    JOIN billing_membership AS member ON member.team_id = team.id WHERE member.state = 'active'
)
"""  # noqa: S608


def _rows(statement: str, *values: Any) -> list[tuple[UUID, str, str]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return list(cursor.fetchall())


@transaction.atomic
def recompute(user_id: UUID) -> str:
    """Write the tier that counts now, and tell the apps above if it changed. Returns it. Raises NoSuchUser."""
    if not User.objects.select_for_update(no_key=True).filter(pk=user_id).values_list("pk"):
        raise NoSuchUser("this account no longer exists")
    ((_, tier, before),) = _rows(_OF_USER, user_id)
    if tier != before:
        User.objects.filter(pk=user_id).update(tier=tier)
        signals.tier_changed.send(User, user_id=user_id, tier=tier)
        log.info("plan.changed", user_id=str(user_id), tier=tier, before=before)
    return tier


def differences() -> list[UUID]:
    """Return users whose tier is wrong."""
    return [user_id for user_id, _, _ in _rows(_DIFFERENCES)]


def sweep() -> int:
    """Correct plans that have ended by time. Returns how many users it concerned."""
    with connection.cursor() as cursor:
        cursor.execute(_ENDED_LATELY)
        found = [user_id for (user_id,) in cursor.fetchall()]
    return _recompute_all(
        [user_id for user_id in found for _, tier, before in _rows(_OF_USER, user_id) if tier != before]
    )


def check() -> int:
    """Correct all wrong plans; reads all users with a plan. Returns how many it concerned."""
    return _recompute_all(differences())


def _recompute_all(user_ids: Iterable[UUID]) -> int:
    changed = 0
    for user_id in user_ids:
        try:
            with db.conflicts_put_off("plan.not_recomputed", user_id=str(user_id)):
                recompute(user_id)
                changed += 1
        except NoSuchUser:
            continue
    return changed


@transaction.atomic
def give(
    *, user_id: UUID, tier: PlanName | str, until: dt.datetime | None, reason: str, by: UUID
) -> Override:
    """Give a user a plan, until some time or until somebody ends it. Raises NoSuchUser."""
    if not User.objects.select_for_update(no_key=True).filter(pk=user_id).values_list("pk"):
        raise NoSuchUser("this account no longer exists")
    given = Override.objects.create(user_id=user_id, tier=tier, until=until, reason=reason, by=by)
    recompute(user_id)
    return given


@transaction.atomic
def end(*, override: Override) -> bool:
    """End an override now. Returns False if it had ended."""
    User.objects.select_for_update(no_key=True).filter(pk=override.user_id).values_list("pk").first()
    ended = Override.objects.live().filter(pk=override.pk).update(until=Now())
    recompute(override.user_id)
    return bool(ended)
