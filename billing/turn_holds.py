"""Budget that is reserved in the claim of a turn: usually enough for all its requests, which saves round trips."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from django.conf import settings
from psycopg.types.numeric import Int8

from billing.allowances import Limits
from billing.months import whole_month

# From this percentage on, a user is told that little is left.
LOW_PERCENT: Final = 80
# A hold is spent this long after its work should have ended.
GRACE: Final = dt.timedelta(seconds=60)
# From its claim on, a turn holds the cost of two requests and a last answer.
_HELD_REQUESTS: Final = 3

# Common table expressions of the statement that claims a turn: they hold the usual cost of its first two requests and a
# last answer, if the user's month has room for it and nothing else limits them. They follow `owner` (with tier and
# timezone) and `claimed`. If they grant nothing, the first request reserves its own cost.
CLAIM_SQL: Final = """
month AS (
    SELECT allowance.id, allowance.month, allowance.spent, allowance.reserved, allowance.told_low, plan.budget_micro,
        plan.budget_micro + allowance.added AS cap, plan.turn_micro
    FROM claimed CROSS JOIN owner JOIN billing_plan AS plan ON plan.tier = owner.tier
    JOIN billing_allowance AS allowance ON allowance.user_id = owner.id AND allowance.scope = 'user'
        AND allowance.agent IS NULL
        AND allowance.month = date_trunc('month', now() AT TIME ZONE owner.timezone)::date
    WHERE plan.budget_micro IS NOT NULL
    FOR NO KEY UPDATE OF allowance
),
granted AS (
    SELECT month.*, NOT told_low AND spent * 100 >= cap * %(low_percent)s AS low FROM month
    WHERE spent + reserved + %(hold_amount)s <= cap
),
month_held AS (
    UPDATE billing_allowance AS allowance SET reserved = allowance.reserved + %(hold_amount)s,
        told_low = allowance.told_low OR granted.low
    FROM granted WHERE allowance.id = granted.id
),
held AS (
    INSERT INTO billing_hold (id, user_ref, purpose, agent, model, amount, allowances, expires_at)
    SELECT %(hold)s, owner.id, 'chat', NULL, %(hold_model)s, %(hold_amount)s, ARRAY[granted.id],
        now() + %(hold_lasts_s)s * interval '1 second'
    FROM granted, owner
)
"""
CLAIM_COLUMNS: Final = "granted.id, granted.month, budget_micro, turn_micro, spent, cap, low"


@dataclass(frozen=True, slots=True)
class Wish:
    """The amount that the statement that claims a turn is to hold: `amount`, for requests to `model`."""

    hold: UUID
    amount: int
    model: str

    def values(self, lasts_s: float) -> dict[str, Any]:
        """Return the parameters of CLAIM_SQL."""
        return {
            "hold": self.hold, "hold_amount": Int8(self.amount), "hold_model": self.model,
            "hold_lasts_s": lasts_s + GRACE.total_seconds(), "low_percent": LOW_PERCENT,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Held:
    """The amount that was held, and the month as the statement has read it."""

    wish: Wish
    limits: Limits
    spent: int
    cap: int
    is_low: bool


# The highest recent cost of a turn's first request in this process, and its model.
_usual: tuple[str, int] = ("", 0)


def wish_for_turn() -> Wish | None:
    """Return the amount that a turn should hold from its claim on.

    None unless its user's month alone limits it, and this process knows the cost of a turn.
    """
    model, most = _usual
    if not settings.PLANS or settings.INSTALLATION_BUDGET or not most:
        return None
    return Wish(uuid.uuid4(), _HELD_REQUESTS * most, model)


def held(wish: Wish, row: Sequence[Any], zone: str) -> Held | None:
    """Return the money that CLAIM_SQL has held, from the values of CLAIM_COLUMNS and the owner's time zone."""
    allowance, month, budget, each, spent, cap, is_low = row
    if allowance is None:
        return None
    limits = Limits((allowance,), (budget,), whole_month(month, ZoneInfo(zone)), each)
    return Held(wish, limits, spent, cap, is_low)


def note_usual(model: str, most_micro: int) -> None:
    global _usual
    _usual = (model, max(most_micro, _usual[1] * 9 // 10 if model == _usual[0] else 0))
