"""Subscriptions, their invoices, and what happens to both as time passes."""

from __future__ import annotations

import secrets
from typing import Any, Final

from tests.fakes.stripe.money import ASKS, DECLINES, WORKS, charge, declined, paid
from tests.fakes.stripe.world import DAY_S, Row, StripeError, World, show, tax_in

_PERIODS: Final = {"day": DAY_S, "week": 7 * DAY_S, "month": 30 * DAY_S, "year": 365 * DAY_S}
_RETRIES_AFTER_S: Final = (3 * DAY_S, 5 * DAY_S, 7 * DAY_S)  # then the subscription ends
_INCOMPLETE_FOR_S: Final = 23 * 3600
_OVER: Final = ("canceled", "incomplete_expired")


def subscribe(
    world: World, customer_id: str, items: list[Row], metadata: Row, *, behavior: str = "allow_incomplete"
) -> Row:
    """A subscription and its first invoice, which is charged at once."""
    customer = world.get("customer", customer_id)
    if behavior == "error_if_incomplete" and customer["_card"] != WORKS:
        raise declined()
    start = world.now()
    row = world.make(
        "subscription",
        "sub",
        billing_cycle_anchor=start,
        cancel_at=None,
        cancel_at_period_end=False,
        canceled_at=None,
        cancellation_details={"comment": None, "feedback": None, "reason": None},
        collection_method="charge_automatically",
        currency="",
        customer=customer["id"],
        default_payment_method=None,
        discounts=[],
        ended_at=None,
        items={"object": "list", "data": [], "has_more": False},
        latest_invoice=None,
        metadata=metadata,
        pending_update=None,
        schedule=None,
        start_date=start,
        status="incomplete",
        trial_end=None,
        _prorated=0,
    )
    row["items"]["data"] = [_item(world, row["id"], each, start) for each in items]
    row["currency"] = row["items"]["data"][0]["price"]["currency"]
    world.emit("customer.subscription.created", row)
    _bill(world, row, _amount(row), "subscription_create")
    return row


def _item(world: World, subscription_id: str, given: Row, start: int) -> Row:
    price = world.get("price", given["price"])
    if price["recurring"] is None:
        raise StripeError(
            400, "The price specified is set to `type=one_time` but this field only accepts recurring."
        )
    return {
        "id": f"si_{secrets.token_hex(8)}",
        "object": "subscription_item",
        "created": start,
        "current_period_end": start + _PERIODS[price["recurring"]["interval"]],
        "current_period_start": start,
        "metadata": {},
        "price": show(price),
        "quantity": int(given.get("quantity", 1)),
        "subscription": subscription_id,
    }


def _amount(row: Row) -> int:
    return sum(each["price"]["unit_amount"] * each["quantity"] for each in row["items"]["data"])


def _bill(world: World, row: Row, cents: int, reason: str) -> Row:
    """An invoice of a subscription, charged to the customer's card; what they have in credit is used first."""
    customer = world.get("customer", row["customer"])
    cents += row["_prorated"] + customer["balance"]
    row["_prorated"] = 0
    customer["balance"] = min(0, cents)
    due = max(0, cents)
    invoice = world.make(
        "invoice",
        "in",
        amount_due=due,
        amount_paid=0,
        amount_remaining=due,
        attempt_count=0,
        attempted=False,
        auto_advance=True,
        billing_reason=reason,
        collection_method="charge_automatically",
        currency=row["currency"],
        customer=row["customer"],
        metadata={},
        next_payment_attempt=None,
        parent={
            "type": "subscription_details",
            "subscription_details": {"subscription": row["id"], "metadata": dict(row["metadata"])},
        },
        payments={"object": "list", "data": [], "has_more": False},
        status="open",
        total=cents,
        total_taxes=[{"amount": tax_in(world, due), "tax_behavior": "inclusive"}] if world.tax else [],
        _first_try=world.now(),
    )
    invoice["hosted_invoice_url"] = f"{world.base_url}/invoice/{invoice['id']}"
    row["latest_invoice"] = invoice["id"]
    world.emit("invoice.created", invoice)
    world.emit("invoice.finalized", invoice)
    collect(world, invoice)
    return invoice


def collect(world: World, invoice: Row, card: str | None = None) -> None:
    """Try to charge an open invoice, by default to the customer's card."""
    card = card or world.get("customer", invoice["customer"])["_card"]
    invoice |= {"attempt_count": invoice["attempt_count"] + 1, "attempted": True}
    if invoice["amount_due"]:
        intent = _intent(world, invoice, card)
        if card != WORKS:
            _unpaid(world, invoice, "invoice.payment_action_required" if card == ASKS else "")
            return
        if intent["status"] != "succeeded":
            paid(world, intent)
    _settled(world, invoice)


def _intent(world: World, invoice: Row, card: str) -> Row:
    """The invoice's one payment intent."""
    if known := invoice["payments"]["data"]:
        intent = world.get("payment_intent", known[0]["payment"]["payment_intent"])
        if card != WORKS:
            intent["status"] = {DECLINES: "requires_payment_method", ASKS: "requires_action"}[card]
        return intent
    intent = charge(
        world,
        customer=invoice["customer"],
        cents=invoice["amount_due"],
        currency=invoice["currency"],
        card=card,
    )
    payment = {"type": "payment_intent", "payment_intent": intent["id"]}
    invoice["payments"]["data"].append(
        {"id": f"inpay_{secrets.token_hex(8)}", "object": "invoice_payment", "payment": payment}
    )
    return intent


def _settled(world: World, invoice: Row) -> None:
    invoice |= {
        "amount_paid": invoice["amount_due"],
        "amount_remaining": 0,
        "next_payment_attempt": None,
        "status": "paid",
    }
    world.emit("invoice.paid", invoice)
    world.emit("invoice.payment_succeeded", invoice)
    row = _subscription_of(world, invoice)
    if row["status"] in ("incomplete", "past_due") and row["latest_invoice"] == invoice["id"]:
        row["status"] = "active"
        world.emit("customer.subscription.updated", row)


def _unpaid(world: World, invoice: Row, also: str) -> None:
    tries = invoice["attempt_count"]
    row = _subscription_of(world, invoice)
    if invoice["billing_reason"] != "subscription_create":
        due = invoice["_first_try"] + _RETRIES_AFTER_S[tries - 1] if tries <= len(_RETRIES_AFTER_S) else None
        invoice["next_payment_attempt"] = due
    world.emit("invoice.payment_failed", invoice)
    if also:
        world.emit(also, invoice)
    if invoice["billing_reason"] == "subscription_create" or row["status"] in _OVER:
        return
    if invoice["next_payment_attempt"] is None:
        end(world, row)
    elif row["status"] != "past_due":
        row["status"] = "past_due"
        world.emit("customer.subscription.updated", row)


def _subscription_of(world: World, invoice: Row) -> Row:
    return world.get("subscription", invoice["parent"]["subscription_details"]["subscription"])


def end(world: World, row: Row, status: str = "canceled") -> Row:
    row |= {"ended_at": world.now(), "status": status}
    row["canceled_at"] = row["canceled_at"] or world.now()
    if row["schedule"]:
        world.get("subscription_schedule", row["schedule"])["status"] = "canceled"
    world.emit(
        "customer.subscription.deleted" if status == "canceled" else "customer.subscription.updated", row
    )
    return row


def change(world: World, row: Row, params: Row) -> Row:
    """What an update of a subscription may say."""
    if row["status"] in _OVER:
        raise StripeError(
            400, "A canceled subscription can only update its cancellation_details and metadata."
        )
    if "items" in params:
        _change_items(world, row, params)
    if "cancel_at_period_end" in params:
        if row["schedule"]:
            raise StripeError(400, "It is managed by a schedule, which must be updated or released instead.")
        cancel = str(params["cancel_at_period_end"]).lower() == "true"
        row["cancel_at_period_end"] = cancel
        row["cancel_at"] = period_end(row) if cancel else None
        row["canceled_at"] = world.now() if cancel else None
    row["metadata"] |= params.get("metadata") or {}
    world.emit("customer.subscription.updated", row)
    return row


def _change_items(world: World, row: Row, params: Row) -> None:
    before, now = _amount(row), world.now()
    kept = {each["id"]: each for each in row["items"]["data"]}
    changed = []
    for given in params["items"]:
        old = kept.get(given.get("id", ""))
        if "id" in given and old is None:
            raise StripeError(400, f"No such subscription item: '{given['id']}'", code="resource_missing")
        start = old["current_period_start"] if old else now
        known = {"price": old["price"]["id"], "quantity": old["quantity"]} if old else {}
        new = _item(world, row["id"], known | given, start)
        changed.append(new | ({name: old[name] for name in ("id", "current_period_end")} if old else {}))
    old_items = row["items"]["data"]
    row["items"]["data"] = changed
    behavior = params.get("proration_behavior", "create_prorations")
    difference = _amount(row) - before
    if behavior == "none" or not difference:
        return
    length = period_end(row) - changed[0]["current_period_start"]
    cents = difference * max(0, period_end(row) - now) // max(1, length)
    if behavior == "create_prorations":
        row["_prorated"] += cents
        return
    card = world.get("customer", row["customer"])["_card"]
    pays = params.get("payment_behavior", "allow_incomplete")
    if cents > 0 and card != WORKS and pays != "allow_incomplete":
        row["items"]["data"] = old_items
        if pays == "error_if_incomplete":
            raise declined()
        row["pending_update"] = {
            "expires_at": now + _INCOMPLETE_FOR_S,
            "subscription_items": changed,
        }
        return
    _bill(world, row, cents, "subscription_update")


def change_at_period_end(world: World, row: Row, price_id: str, quantity: int) -> Row:
    """A smaller plan from the next period on, as the portal makes it."""
    current = [{"price": each["price"]["id"], "quantity": each["quantity"]} for each in row["items"]["data"]]
    ends = period_end(row)
    schedule = world.make(
        "subscription_schedule",
        "sub_sched",
        customer=row["customer"],
        subscription=row["id"],
        status="active",
        end_behavior="release",
        metadata={},
        phases=[
            {"items": current, "start_date": row["start_date"], "end_date": ends},
            {"items": [{"price": price_id, "quantity": quantity}], "start_date": ends, "end_date": None},
        ],
    )
    row["schedule"] = schedule["id"]
    world.emit("subscription_schedule.created", schedule)
    world.emit("customer.subscription.updated", row)
    return schedule


def release(world: World, schedule: Row) -> Row:
    """End a schedule, and with it a change that was to come."""
    row = world.get("subscription", schedule["subscription"])
    schedule |= {"status": "released", "released_subscription": row["id"]}
    row["schedule"] = None
    world.emit("subscription_schedule.released", schedule)
    world.emit("customer.subscription.updated", row)
    return schedule


def period_end(row: Row) -> int:
    return int(row["items"]["data"][0]["current_period_end"])


def advance(world: World, seconds: int) -> None:
    """Move the clock. What becomes due on the way happens in its order and at its time."""
    until = world.now() + seconds
    while found := _next_due(world, until):
        at, act, row = found
        world.clock_offset_s += max(0, at - world.now())
        act(world, row)
    world.clock_offset_s += max(0, until - world.now())


def _next_due(world: World, until: int) -> tuple[int, Any, Row] | None:
    due: list[tuple[int, Any, Row]] = []
    for row in world.of("subscription"):
        if row["status"] in ("active", "past_due", "trialing"):
            due.append((period_end(row), _renew, row))
        elif row["status"] == "incomplete":
            due.append((row["created"] + _INCOMPLETE_FOR_S, _give_up, row))
    for row in world.of("invoice", status="open"):
        if row["next_payment_attempt"] is not None:
            due.append((row["next_payment_attempt"], collect, row))
    due += [(row["expires_at"], expire, row) for row in world.of("checkout.session", status="open")]
    return min((each for each in due if each[0] <= until), key=lambda each: each[0], default=None)


def _give_up(world: World, row: Row) -> None:
    end(world, row, "incomplete_expired")


def _renew(world: World, row: Row) -> None:
    if row["cancel_at_period_end"]:
        end(world, row)
        return
    items = [{"price": each["price"]["id"], "quantity": each["quantity"]} for each in row["items"]["data"]]
    if row["schedule"]:
        schedule = world.get("subscription_schedule", row["schedule"])
        items = schedule["phases"][1]["items"]
        schedule["status"] = "released"
        row["schedule"] = None
    start, ids = period_end(row), [each["id"] for each in row["items"]["data"]]
    new = [_item(world, row["id"], each, start) for each in items]
    row["items"]["data"] = [
        {**each, **({"id": ids[place]} if place < len(ids) else {})} for place, each in enumerate(new)
    ]
    world.emit("customer.subscription.updated", row)
    _bill(world, row, _amount(row), "subscription_cycle")


def expire(world: World, session: Row) -> Row:
    session |= {"status": "expired", "url": None}
    world.emit("checkout.session.expired", session)
    return session
