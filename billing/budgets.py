"""Budgets of work: money is reserved before each request to a model, and settled by the actual cost.

A reservation is one statement that takes from all allowances that apply (billing.allowances), or from none; their rows
are locked in the order of their ids. A hold keeps the reserved money until the work settles; if its process dies, the
hold is spent in full when it expires (billing.budget_sweep), never given back.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django.db import connection
from psycopg.types.numeric import Int8

from adiuva import llm
from adiuva.core import db
from adiuva.llm import BudgetSpent, Meter, ModelUse
from adiuva.llm.prices import Price
from adiuva.llm.types import Usage
from billing import allowances, turn_holds
from billing.allowances import Limits
from billing.models import Purpose
from billing.turn_holds import GRACE, LOW_PERCENT, Held

# Adds `amount` to a hold if all allowances have room for it. A cap bounds the spent and the reserved money together;
# staff's additions raise the user's own. `low` is true once a month: for the first reservation that may report it
# once this share is spent.
_RESERVE_SQL: Final = """
WITH asked AS (SELECT * FROM unnest(%(ids)s::bigint[], %(caps)s::bigint[]) AS asked (id, cap)),
locked AS (
    SELECT allowance.id, asked.cap + allowance.added AS cap, spent, reserved, scope, told_low
    FROM billing_allowance AS allowance JOIN asked ON asked.id = allowance.id
    ORDER BY allowance.id FOR NO KEY UPDATE OF allowance
),
decided AS (
    SELECT count(*) = cardinality(%(ids)s::bigint[]) AND bool_and(spent + reserved + %(amount)s <= cap) AS granted,
        min(spent) FILTER (WHERE scope = 'user') AS spent, min(cap) FILTER (WHERE scope = 'user') AS cap,
        COALESCE(bool_or(
            %(tells)s AND scope = 'user' AND NOT told_low AND spent * 100 >= cap * %(low_percent)s
        ), false) AS low
    FROM locked
),
taken AS (
    UPDATE billing_allowance AS allowance SET reserved = allowance.reserved + %(amount)s,
        told_low = allowance.told_low OR (decided.low AND locked.scope = 'user')
    FROM locked, decided WHERE allowance.id = locked.id AND decided.granted
),
held AS (
    INSERT INTO billing_hold (id, user_ref, purpose, agent, model, amount, allowances, expires_at)
    SELECT %(hold)s, %(user)s, %(purpose)s, %(agent)s::uuid, %(model)s, %(amount)s, %(ids)s,
        now() + %(lasts_s)s * interval '1 second'
    FROM decided WHERE decided.granted
    ON CONFLICT (id) DO UPDATE
    SET amount = billing_hold.amount + excluded.amount, expires_at = excluded.expires_at
)
SELECT granted, spent, cap, low FROM decided
"""

# Common table expressions that settle `cost` of a hold, and give back the rest of it if the work is over. They follow
# the `spender` of billing.usage, which is locked first; then the allowances, then the hold. `first`: the relation read
# first; nothing is settled unless it has a row.
SETTLE_SQL: Final = """
settled AS (
    SELECT allowance.id FROM {first} AS account, billing_allowance AS allowance
    WHERE allowance.id = ANY(%(hold_allowances)s::bigint[]) ORDER BY allowance.id FOR NO KEY UPDATE OF allowance
),
hold AS (
    SELECT held.id, held.amount, CASE WHEN %(hold_is_over)s THEN held.amount ELSE LEAST(held.amount, %(hold_cost)s) END
        AS freed
    FROM (SELECT count(*) FROM settled) AS allowances, {first} AS account, billing_hold AS held
    WHERE held.id = %(hold)s FOR UPDATE OF held
),
hold_left AS (
    UPDATE billing_hold SET amount = billing_hold.amount - hold.freed,
        expires_at = now() + %(hold_lasts_s)s * interval '1 second'
    FROM hold WHERE billing_hold.id = hold.id AND NOT %(hold_is_over)s
),
hold_gone AS (DELETE FROM billing_hold USING hold WHERE billing_hold.id = hold.id AND %(hold_is_over)s),
paid AS (
    UPDATE billing_allowance AS allowance SET spent = allowance.spent + %(hold_cost)s,
        reserved = allowance.reserved - COALESCE((SELECT freed FROM hold), 0)
    FROM settled WHERE allowance.id = settled.id AND (NOT %(hold_is_expected)s OR EXISTS (SELECT FROM hold))
)
"""


def meter_for(
    user_id: UUID, purpose: Purpose, agent: UUID | None = None, agent_cap: int | None = None, **how: Any
) -> Meter:
    """Return the meter of a piece of work: one that reserves money, where anything may limit the cost of the work."""
    if settings.PLANS or settings.INSTALLATION_BUDGET or agent_cap is not None:
        return BudgetedMeter(user_id, purpose, agent, agent_cap=agent_cap, **how)
    return Meter(user_id, purpose, agent)


def settle_values(
    hold: UUID, allowances: Sequence[int], *, cost: int, is_over: bool, is_expected: bool, lasts_s: float = 0
) -> dict[str, Any]:
    """Return the parameters of SETTLE_SQL. `is_expected`: money was held; if it is gone, the sweep settled it."""
    return {
        "hold": hold, "hold_allowances": list(map(Int8, allowances)), "hold_cost": Int8(cost), "hold_is_over": is_over,
        "hold_is_expected": is_expected, "hold_lasts_s": lasts_s,
    }  # fmt: skip


@dataclass(eq=False)
class BudgetedMeter(Meter):
    """A meter that reserves the most that each request may cost before it is made.

    `keeps_answer`: the cost of one request stays reserved for a last answer, which `is_last` then may use. `ahead`: the
    number of requests that it tries to reserve at once. `lasts_s`: the longest time that the work takes from each
    reservation. `spent_before`: the cost of the same piece of work before this meter. `is_low`: whether this work is
    the first of the month that finds little left. `percent_left`: of the user's month.
    """

    agent_cap: int | None = None
    keeps_answer: bool = False
    ahead: int = 1
    lasts_s: float = 600.0
    spent_before: int = 0
    is_low: bool = False
    renews_at: dt.datetime | None = None
    hold: UUID = field(default_factory=uuid.uuid4)
    _limits: Limits | None = None
    _is_known: bool = False  # whether _limits has been looked up
    _has_held: bool = False
    _held: int = 0
    _used: int = 0  # the part of the hold that is used
    _pending: int = 0  # the most that requests under way may cost
    _spent: int = 0  # the user's month's spending when it was last read
    _cap: int = 0
    _reserving: asyncio.Lock = field(default_factory=asyncio.Lock)
    _ended: asyncio.Event = field(
        default_factory=asyncio.Event
    )  # set when a request has ended since the last wait

    def start_with(self, found: Held) -> None:
        """Begin with the money that was held when the work was claimed."""
        self.hold, self._limits, self._is_known = found.wish.hold, found.limits, True
        self._held, self._has_held = found.wish.amount, True
        self._spent, self._cap, self.is_low = found.spent, found.cap, found.is_low
        self.renews_at = found.limits.window.ends_at

    async def admit(self, model: str, most_micro: int | None) -> None:
        async with self._reserving:
            if not self._is_known:
                await db.run(self._find_limits)
            if self._limits is None:
                return
            if most_micro is None:  # an unknown cost is never "costs nothing"
                raise llm.PriceMissing(model)
            while True:
                self._ended.clear()
                if await self._has_room(model, most_micro):
                    break
                if not self._pending and not self._ended.is_set():
                    raise BudgetSpent(self.renews_at)
                # A request costs less than it might: the money that requests under way leave, or have left meanwhile,
                # may suffice.
                await self._ended.wait()
            with self._lock:
                self._pending += most_micro
            if self.purpose == Purpose.CHAT and not self._uses and not self.spent_before:
                turn_holds.note_usual(model, most_micro)

    async def _has_room(self, model: str, most_micro: int) -> bool:
        """Return whether a request's cost is held, or could be reserved. Raises WorkBudgetSpent."""
        assert self._limits is not None
        kept = most_micro if self.keeps_answer and not self.is_last else 0
        wanted = self._used + self._pending + most_micro + kept
        if self.is_last and self._has_held:
            return True
        each = self._limits.each
        if each is not None and self.spent_before + self._used + self._pending >= each:
            if self._pending:
                return False
            raise llm.WorkBudgetSpent
        need = wanted - self._held
        if need <= 0 or not self._limits.ids:
            return True
        more = most_micro * (self.ahead - 1)
        if more and await db.run(self._reserve, model, need + more):
            return True
        return await db.run(self._reserve, model, need)

    def add(
        self, model: str, usage: Usage, price: Price | None, *, is_estimated: bool, most_micro: int | None
    ) -> None:
        with self._lock:
            use = self._uses.setdefault(model, ModelUse(model))
            self._used += use.add(usage, price, is_estimated=is_estimated)
            self._pending -= most_micro or 0
        self._ended.set()

    def dismiss(self, most_micro: int | None) -> None:
        with self._lock:
            self._pending -= most_micro or 0
        self._ended.set()

    def take(self) -> list[ModelUse]:
        with self._lock:
            taken, self._uses = list(self._uses.values()), {}
            cost = sum(use.cost_micro for use in taken)
            self._used -= cost
            self._held = max(0, self._held - cost)
            self._spent += cost
            self.spent_before += cost
        return taken

    def give_back(self, uses: Sequence[ModelUse]) -> None:
        super().give_back(uses)
        cost = sum(use.cost_micro for use in uses)
        with self._lock:
            self._used += cost
            self._held += cost
            self._spent -= cost
            self.spent_before -= cost

    @property
    def has_held(self) -> bool:
        """True if money is, or was, on hold for the work."""
        return self._has_held

    @property
    def percent_left(self) -> int | None:
        """The percentage of the user's month that is left, as far as this work knows; None if nothing limits it."""
        if not self._cap:
            return None
        return max(0, 100 * (self._cap - self._spent - self._used) // self._cap)

    def settlement(self, cost: int, *, is_over: bool) -> dict[str, Any]:
        """Return the parameters by which SETTLE_SQL pays `cost` from the hold."""
        if not self._is_known and cost:  # requests that need no admission, such as those for vectors
            with contextlib.suppress(BudgetSpent):
                self._find_limits()
        ids = self._limits.ids if self._limits else ()
        return settle_values(
            self.hold, ids, cost=cost, is_over=is_over, is_expected=self._has_held,
            lasts_s=self.lasts_s + GRACE.total_seconds(),
        )  # fmt: skip

    def _find_limits(self) -> None:
        self._limits = allowances.limits_of(self.user_id, self.purpose, self.agent, self.agent_cap)
        self._is_known = True
        if self._limits is not None:
            self.renews_at = self._limits.window.ends_at

    def _reserve(self, model: str, amount: int) -> bool:
        assert self._limits is not None
        with connection.cursor() as cursor:
            cursor.execute(
                _RESERVE_SQL,
                {
                    "ids": list(self._limits.ids),
                    "caps": list(self._limits.caps),
                    "amount": amount,
                    "tells": self.purpose == Purpose.CHAT,
                    "low_percent": LOW_PERCENT,
                    "hold": self.hold,
                    "user": self.user_id,
                    "purpose": str(self.purpose),
                    "agent": self.agent,
                    "model": model,
                    "lasts_s": self.lasts_s + GRACE.total_seconds(),
                },
            )
            granted, spent, cap, low = cursor.fetchone()
        with self._lock:
            self._spent, self._cap = spent or 0, cap or 0
            if granted:
                self._held += amount
                self._has_held = True
                self.is_low = self.is_low or low
        return bool(granted)
