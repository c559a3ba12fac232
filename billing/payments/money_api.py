"""The calls to Stripe about money: movements and their reasons, our balance, disputes and refunds."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from billing.payments import stripe_api


@dataclass(frozen=True, slots=True)
class Movement:
    """A change of the balance that Stripe keeps for us: `cents` before the fee, less than zero if it left."""

    stripe_id: str
    kind: str
    cents: int
    fee_cents: int
    currency: str
    happened_at: dt.datetime
    source_kind: str
    charge_id: str
    payment_id: str


@dataclass(frozen=True, slots=True)
class Paid:
    """The purpose of a payment. `tax_cents` is the part of `cents` that is tax; `purchase` is our own id."""

    invoice_id: str = ""
    subscription_id: str = ""
    customer_id: str = ""
    cents: int = 0
    tax_cents: int = 0
    purchase: str = ""


@dataclass(frozen=True, slots=True)
class DisputeState:
    charge_id: str
    payment_id: str
    cents: int
    currency: str
    reason: str
    status: str
    opened_at: dt.datetime
    evidence_due_by: dt.datetime | None


def movements(since: dt.datetime | None) -> Iterator[Movement]:
    """Yield all changes of the balance since a time, the latest first."""
    params: dict[str, Any] = {"limit": stripe_api.PAGE, "expand": ["data.source"]}
    if since is not None:
        params["created"] = {"gte": int(since.timestamp())}
    while True:
        page = stripe_api.call(lambda api: api.balance_transactions.list(dict(params)))
        yield from map(_movement, page.data)
        if not page.has_more:
            return
        params["starting_after"] = page.data[-1].id


def _movement(found: Any) -> Movement:
    source = found.source.to_dict() if found.source is not None and not isinstance(found.source, str) else {}
    kind = str(source.get("object", ""))
    charge = source.get("id") if kind == "charge" else source.get("charge")
    return Movement(
        stripe_id=found.id,
        kind=found.type,
        cents=found.amount,
        fee_cents=found.fee,
        currency=found.currency,
        happened_at=stripe_api.time_of(found.created),
        source_kind=kind,
        charge_id=charge if isinstance(charge, str) else "",
        payment_id=source.get("payment_intent") or "",
    )


def paid_for(payment_id: str) -> Paid:
    """Return the invoice that a payment paid, with its subscription and tax, or the plugin; empty if neither."""
    params: dict[str, Any] = {
        "payment": {"type": "payment_intent", "payment_intent": payment_id},
        "expand": ["data.invoice"],
    }
    found = stripe_api.call(lambda api: api.invoice_payments.list(params)).data
    if not found or isinstance(found[0].invoice, str):
        return _bought_with(payment_id)
    return _paid(found[0].invoice)


def paid_by_invoices(since: dt.datetime) -> dict[str, Paid]:
    """Return what payments of invoices since a time were for, by the payments' ids: a hundred in a call."""
    params: dict[str, Any] = {
        "created": {"gte": int(since.timestamp())},
        "status": "paid",
        "limit": stripe_api.PAGE,
        "expand": ["data.invoice"],
    }
    paid: dict[str, Paid] = {}
    while True:
        page = stripe_api.call(lambda api: api.invoice_payments.list(dict(params)))
        for each in page.data:
            payment = each.payment.payment_intent
            if isinstance(payment, str) and not isinstance(each.invoice, str):
                paid[payment] = _paid(each.invoice)
        if not page.has_more:
            return paid
        params["starting_after"] = page.data[-1].id


def _paid(found: Any) -> Paid:
    """Return what an invoice is for."""
    invoice = found.to_dict()
    parent = (invoice.get("parent") or {}).get("subscription_details") or {}
    return Paid(
        invoice_id=invoice["id"],
        subscription_id=parent.get("subscription") or "",
        customer_id=invoice.get("customer") or "",
        cents=invoice.get("total") or 0,
        tax_cents=sum(each["amount"] for each in invoice.get("total_taxes") or []),
    )


def _bought_with(payment_id: str) -> Paid:
    found = stripe_api.call(lambda api: api.checkout.sessions.list({"payment_intent": payment_id})).data
    if not found or not (purchase := stripe_api.note(found[0], "adiuva_purchase")):
        return Paid()
    session = found[0].to_dict()
    return Paid(
        customer_id=session.get("customer") or "",
        cents=session["amount_total"],
        tax_cents=(session.get("total_details") or {}).get("amount_tax") or 0,
        purchase=purchase,
    )


def balance() -> dict[str, int]:
    """Return the balance that Stripe keeps for us, by currency, with money on its way to us."""
    found = stripe_api.call(lambda api: api.balance.retrieve()).to_dict()
    sums: dict[str, int] = {}
    for each in (*found["available"], *found["pending"]):
        sums[each["currency"]] = sums.get(each["currency"], 0) + each["amount"]
    return sums


def get_dispute(stripe_id: str) -> DisputeState:
    found = stripe_api.call(lambda api: api.disputes.retrieve(stripe_id)).to_dict()
    due = (found.get("evidence_details") or {}).get("due_by")
    return DisputeState(
        charge_id=found["charge"],
        payment_id=found.get("payment_intent") or "",
        cents=found["amount"],
        currency=found["currency"],
        reason=found.get("reason") or "",
        status=found["status"],
        opened_at=stripe_api.time_of(found["created"]),
        evidence_due_by=stripe_api.time_of(due) if due else None,
    )


def refund(*, charge_id: str, cents: int, row: str, key: str) -> str:
    params = {
        "charge": charge_id,
        "amount": cents,
        "metadata": {"adiuva_row": row, "env": stripe_api.environment()},
    }
    return str(stripe_api.call(lambda api: api.refunds.create(params, {"idempotency_key": key})).id)


def find_refund(*, charge_id: str, row: str) -> str | None:
    """Return the refund that a row made and whose answer was lost."""
    for each in stripe_api.call(
        lambda api: api.refunds.list({"charge": charge_id, "limit": stripe_api.PAGE})
    ).data:
        if stripe_api.note(each, "adiuva_row") == row:
            return str(each.id)
    return None
