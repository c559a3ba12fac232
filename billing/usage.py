"""Stores the use of models by users' work: counted by adiuva.llm.metering, and written once for each piece of work.

If the work ends in a statement of its own, as a turn does, that statement writes the figures (`USED_SQL` with
`used_values`). All other work runs within `metered`, which writes the rest when it ends.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID

import structlog
from django.db import transaction
from psycopg.types.numeric import Int8

from adiuva import llm
from adiuva.core import db
from adiuva.core.db import prepared_cursor
from adiuva.core.logging import log_failure
from adiuva.core.pruning import delete_in_batches
from adiuva.llm import Meter, ModelUse
from billing import budgets
from billing.budgets import BudgetedMeter
from billing.models import Purpose, Use

RETENTION: Final = dt.timedelta(days=731)
_COUNTS: Final = (
    "calls", "input_tokens", "cached_tokens", "output_tokens", "cost_micro", "estimated_micro", "estimated_calls",
    "unpriced_calls",
)  # fmt: skip

log = structlog.get_logger(__name__)

# Common table expressions for a statement that ends a piece of work. `spender` is its account, locked against its
# deletion, before anything else that the statement locks.
_SPENDER_SQL: Final = """
spender AS (SELECT id, timezone FROM accounts_user WHERE id = %(use_user)s FOR KEY SHARE)
"""
# Adds to the user's use today, in their time zone; nothing for an account that is gone. Rows are locked in the order
# of the models' names.
_USE_SQL: Final = """
use_of_models AS (
    INSERT INTO billing_use AS known (user_id, day, purpose, agent, model, calls, input_tokens, cached_tokens,
        output_tokens, cost_micro, estimated_micro, estimated_calls, unpriced_calls)
    SELECT spender.id, (now() AT TIME ZONE spender.timezone)::date, %(use_purpose)s, %(use_agent)s::uuid, given.*
    FROM spender, unnest(%(use_model)s::text[], %(use_calls)s::bigint[],
        %(use_input_tokens)s::bigint[], %(use_cached_tokens)s::bigint[], %(use_output_tokens)s::bigint[],
        %(use_cost_micro)s::bigint[],
        %(use_estimated_micro)s::bigint[], %(use_estimated_calls)s::bigint[], %(use_unpriced_calls)s::bigint[])
        AS given (model)
    WHERE {is_new}
    ORDER BY given.model
    ON CONFLICT (user_id, day, purpose, agent, model) DO UPDATE SET
        calls = known.calls + excluded.calls, input_tokens = known.input_tokens + excluded.input_tokens,
        cached_tokens = known.cached_tokens + excluded.cached_tokens,
        output_tokens = known.output_tokens + excluded.output_tokens,
        cost_micro = known.cost_micro + excluded.cost_micro,
        estimated_micro = known.estimated_micro + excluded.estimated_micro,
        estimated_calls = known.estimated_calls + excluded.estimated_calls,
        unpriced_calls = known.unpriced_calls + excluded.unpriced_calls
)
"""
# Follows a `spender`, with id and time zone, that a statement finds by itself. With `used_values`: adds the use.
USE_SQL: Final = _USE_SQL.format(is_new="true")
# With `settled_values`: also pays it from the hold. A hold that is gone was spent in full by the sweep, which counted
# it as used: then there is nothing to add.
_USE_ONCE_SQL: Final = _USE_SQL.format(is_new="NOT %(hold_is_expected)s OR EXISTS (SELECT FROM hold)")
USE_AND_PAY_SQL: Final = f"{budgets.SETTLE_SQL.format(first='spender')}, {_USE_ONCE_SQL}"
# With the account, which may be gone: money held for it is paid all the same.
USED_SQL: Final = f"{_SPENDER_SQL}, {USE_SQL}"
USED_AND_PAID_SQL: Final = ", ".join(
    (_SPENDER_SQL, budgets.SETTLE_SQL.format(first="(SELECT count(*) FROM spender)"), _USE_ONCE_SQL)
)
_RECORD_SQL: Final = f"WITH {USED_SQL} SELECT"
SETTLED_SQL: Final = f"WITH {USED_AND_PAID_SQL} SELECT"


def used_values(
    user_id: UUID, purpose: Purpose | str, uses: Sequence[ModelUse], agent: UUID | None = None
) -> dict[str, Any]:
    """Return the parameters of USED_SQL."""
    # All numbers have one width, whatever their size: a statement is prepared for each width.
    lists = {f"use_{name}": [Int8(getattr(use, name)) for use in uses] for name in _COUNTS}
    models = [use.model for use in uses]
    return {
        "use_user": user_id,
        "use_purpose": str(purpose),
        "use_agent": agent,
        "use_model": models,
        **lists,
    }


def record(
    user_id: UUID, purpose: Purpose | str, uses: Sequence[ModelUse], agent: UUID | None = None
) -> None:
    """Add to a user's use today, in one statement; none if there is nothing to add."""
    if uses:
        with prepared_cursor() as cursor:
            cursor.execute(_RECORD_SQL, used_values(user_id, purpose, uses, agent))


def settle(meter: Meter, uses: Sequence[ModelUse], *, is_over: bool) -> None:
    """Record a meter's counts and pay them from its hold, in one statement. Once work `is_over`, free the rest."""
    if not isinstance(meter, BudgetedMeter):
        record(meter.user_id, meter.purpose, uses, meter.agent)
    elif uses or (is_over and meter.has_held):
        with prepared_cursor() as cursor:
            cursor.execute(SETTLED_SQL, settled_values(meter, uses, is_over=is_over))


def settling(meter: Meter, uses: Sequence[ModelUse]) -> tuple[str, dict[str, Any]]:
    """Return common table expressions that do what `settle` does for work that goes on, and their parameters; none if
    there is nothing to write.
    """
    if not uses:
        return "", {}
    if isinstance(meter, BudgetedMeter):
        return USED_AND_PAID_SQL, settled_values(meter, uses, is_over=False)
    return USED_SQL, used_values(meter.user_id, meter.purpose, uses, meter.agent)


def settled_values(meter: BudgetedMeter, uses: Sequence[ModelUse], *, is_over: bool) -> dict[str, Any]:
    """Return the parameters of USED_AND_PAID_SQL."""
    cost = sum(use.cost_micro for use in uses)
    return {
        **used_values(meter.user_id, meter.purpose, uses, meter.agent),
        **meter.settlement(cost, is_over=is_over),
    }


def _settle_rest(meter: Meter, also: Callable[[Sequence[ModelUse]], None] | None) -> None:
    """Settle a meter's counts since they were last taken. `also` writes them elsewhere in the same transaction."""
    uses = meter.take()
    with transaction.atomic():
        if also is not None and uses:
            also(uses)
        settle(meter, uses, is_over=True)


@asynccontextmanager
async def metered(
    user_id: UUID,
    purpose: Purpose,
    agent: UUID | None = None,
    also: Callable[[Sequence[ModelUse]], None] | None = None,
    **budget: Any,
) -> AsyncIterator[Meter]:
    """Count the block's use of models as this user's, and at its end settle what nobody has settled by then.

    `budget`: further parameters of billing.budgets.meter_for.
    """
    meter = budgets.meter_for(user_id, purpose, agent, **budget)
    try:
        with llm.counting_into(meter):
            yield meter
    finally:
        try:
            if meter.uses() or (isinstance(meter, BudgetedMeter) and meter.has_held):
                await db.run(_settle_rest, meter, also)
        except Exception as error:
            log_failure("usage.not_recorded", error, user_id=str(user_id), purpose=str(purpose))


def total(uses: Sequence[ModelUse]) -> ModelUse:
    """Return the sum over models, under the name of the one that cost most or read most."""
    if not uses:
        return ModelUse("")
    leading = max(uses, key=lambda use: (use.cost_micro, use.output_tokens, use.input_tokens))
    return ModelUse(leading.model, *(sum(getattr(use, name) for use in uses) for name in _COUNTS))


def delete_old() -> int:
    """Delete figures past their retention. Returns how many rows."""
    before = dt.datetime.now(dt.UTC).date() - RETENTION
    return delete_in_batches(Use.objects.filter(day__lt=before).order_by("day"))
