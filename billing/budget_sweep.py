"""Settles the holds of work whose process is gone, and deletes past months."""

from __future__ import annotations

import datetime as dt
from typing import Final

import structlog
from django.db import connection, transaction
from django.db.models.functions import Now

from adiuva.core.pruning import delete_in_batches
from adiuva.llm import ModelUse
from billing import budgets, usage
from billing.models import Allowance, Hold

_BATCH: Final = 500
_KEPT: Final = dt.timedelta(days=731)

log = structlog.get_logger(__name__)


def settle_lost() -> int:
    """Spend expired holds in full: nobody knows what their work cost, but it was not more. Returns how many."""
    lost = 0
    for hold in Hold.objects.filter(expires_at__lt=Now()).order_by("expires_at")[:_BATCH]:
        lost += _settle(hold)
    return lost


# Locks in the order of all code that settles a hold: the account, its allowances, the hold.
_LOCK_SQL: Final = """
WITH account AS (SELECT id FROM accounts_user WHERE id = %s FOR KEY SHARE)
SELECT allowance.id FROM (SELECT count(*) FROM account) AS first, billing_allowance AS allowance
WHERE allowance.id = ANY(%s) ORDER BY allowance.id FOR NO KEY UPDATE OF allowance
"""


def _settle(hold: Hold) -> bool:
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(_LOCK_SQL, [hold.user_ref, hold.allowances])
        # Another process that settles it at this moment has locked it; then it is left alone.
        still = Hold.objects.select_for_update(skip_locked=True).filter(pk=hold.pk, expires_at__lt=Now())
        if (held := still.first()) is None:
            return False
        amount = held.amount
        uses = [ModelUse(held.model, 1, cost_micro=amount, estimated_micro=amount, estimated_calls=1)]
        values = budgets.settle_values(held.pk, held.allowances, cost=amount, is_over=True, is_expected=True)
        with connection.cursor() as cursor:
            cursor.execute(
                usage.SETTLED_SQL,
                {
                    **usage.used_values(held.user_ref, held.purpose, uses if amount else (), held.agent),
                    **values,
                },
            )
    log.warning("budget.hold_lost", user_id=str(hold.user_ref), purpose=hold.purpose, micro=amount)
    return True


def delete_old() -> int:
    """Delete months past their retention. Returns how many rows."""
    before = dt.datetime.now(dt.UTC).date() - _KEPT
    return delete_in_batches(Allowance.objects.filter(month__lt=before).order_by("month"))
