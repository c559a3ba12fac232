"""A developer's earnings by month and currency, from the rows of sales and of transfers to the developer."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Any, Final

from django.db.models import Case, Count, F, Q, Sum, Value, When
from django.db.models.functions import Now

from adiuva.core.errors import Invalid
from billing.marketplace.models import Developer
from billing.marketplace.money_models import DeveloperPayment, PluginPurchase

State = PluginPurchase.State
_MONTH: Final = "%Y-%m"


def month_of(period: str) -> tuple[dt.datetime, dt.datetime]:
    """Return the first moment of a month such as 2026-11, and of the next, in UTC. Raises Invalid."""
    try:
        if len(period) != 7:
            raise ValueError
        start = dt.datetime.strptime(period, _MONTH).replace(tzinfo=dt.UTC)
        end = (start + dt.timedelta(days=32)).replace(day=1)
    except (ValueError, OverflowError):
        raise Invalid("the period cannot be read", fields={"period": ["A month such as 2026-11."]}) from None
    return start, end


def earnings(developer: Developer, period: str | None = None) -> list[dict[str, Any]]:
    """Return, by currency, the sales of a month, or of all time, and what became of the money. All in cents.

    `share`: the developer's part of these sales; `refunded`: the money that went back to buyers; `settled`: the part of
    the share that was sent; `on_hold`: the part that waits for its hold; `waiting`: the part to be sent; `debt`: the
    amount that they have too much. Raises Invalid.
    """
    sales = developer.sales.exclude(state=State.OPEN)
    if period is not None:
        start, end = month_of(period)
        sales = sales.filter(paid_at__gte=start, paid_at__lt=end)
    missing = F("due_cents") - F("settled_cents")
    is_held = Q(transfer_after__gt=Now()) | Q(state=State.DISPUTED)
    rows = sales.values("currency").annotate(
        sales=Count("pk"),
        gross=Sum("total_cents"),
        tax=Sum("tax_cents"),
        refunded=Sum(F("refunded_cents") + F("lost_cents")),
        share=Sum("due_cents"),
        settled=Sum("settled_cents"),
        on_hold=_sum(Q(settled_cents__lt=F("due_cents")) & is_held, missing),
        waiting=_sum(Q(settled_cents__lt=F("due_cents")) & ~is_held, missing),
        debt=_sum(Q(settled_cents__gt=F("due_cents")), F("settled_cents") - F("due_cents")),
    )
    return [dict(row) for row in rows.order_by("currency")]


def _sum(when: Q, cents: Any) -> Sum:
    return Sum(Case(When(when, then=cents), default=Value(0)))


def payments(developer: Developer) -> Iterable[dict[str, Any]]:
    """Return the last hundred payments to a developer and back, newest first."""
    rows = developer.payments.filter(state__in=DeveloperPayment.State.values).select_related(
        "purchase__plugin"
    )
    for row in rows.order_by("-created_at")[:100]:
        yield {
            "id": row.pk,
            "kind": row.kind,
            "state": row.state,
            "plugin": row.purchase.plugin.slug,
            "cents": row.cents,
            "currency": row.currency,
            "at": row.done_at or row.created_at,
        }
