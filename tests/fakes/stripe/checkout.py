"""Checkout sessions: made by the product, completed by a customer on the session's page."""

from __future__ import annotations

from typing import Final

from tests.fakes.stripe.money import LATER, WORKS, charge, declined
from tests.fakes.stripe.subscriptions import subscribe
from tests.fakes.stripe.world import DAY_S, Row, StripeError, World, show, tax_in

_OPEN_FOR_S: Final = DAY_S


def session_of(world: World, params: Row) -> Row:
    """A checkout session. Its page is ours, see `pages`."""
    lines: list[Row] = [
        {"price": _price_of(world, each), "quantity": int(each.get("quantity", 1))}
        for each in params.get("line_items") or []
    ]
    if not lines:
        raise StripeError(
            400, "Missing required param: line_items.", code="parameter_missing", param="line_items"
        )
    mode = params["mode"]
    if mode not in ("subscription", "payment"):
        raise StripeError(400, f"Invalid mode: {mode}", param="mode")
    if (customer := params.get("customer")) is not None:
        world.get("customer", customer)
    total = sum(each["price"]["unit_amount"] * each["quantity"] for each in lines)
    session = world.make(
        "checkout.session",
        "cs_test",
        amount_total=total,
        cancel_url=params.get("cancel_url"),
        client_reference_id=params.get("client_reference_id"),
        currency=lines[0]["price"]["currency"],
        customer=customer,
        expires_at=int(params.get("expires_at", world.now() + _OPEN_FOR_S)),
        invoice=None,
        metadata=params.get("metadata") or {},
        mode=mode,
        payment_intent=None,
        payment_status="unpaid",
        status="open",
        subscription=None,
        total_details={"amount_discount": 0, "amount_shipping": 0, "amount_tax": tax_in(world, total)},
        success_url=params["success_url"],
        url=None,
        _lines=lines,
        _subscription_data=params.get("subscription_data") or {},
        _intent_data=params.get("payment_intent_data") or {},
    )
    session["url"] = f"{world.base_url}/pay/{session['id']}"
    return session


def _price_of(world: World, line: Row) -> Row:
    """A price that is known, or that the line itself describes."""
    if "price" in line:
        return show(world.get("price", line["price"]))
    data = line["price_data"]
    if int(data["unit_amount"]) < 50 and data["currency"] == "eur":
        raise StripeError(
            400,
            "The Checkout Session's total amount due must add up to at least €0.50",
            code="amount_too_small",
        )
    return {
        "id": "",
        "currency": data["currency"],
        "nickname": data["product_data"]["name"],
        "unit_amount": int(data["unit_amount"]),
        "recurring": None,
    }


def complete(world: World, session: Row, card: str = WORKS) -> str:
    """What the customer does on the session's page. Returns the address that they are sent to.

    Raises StripeError if the card declines or asks: the session stays open, and nothing is charged. With LATER, what
    is paid once is on its way.
    """
    if session["status"] != "open":
        raise StripeError(400, "This Checkout Session is no longer open.")
    if card not in (WORKS, LATER):
        raise declined()
    if session["customer"] is None:
        customer = world.make("customer", "cus", **new_customer({}))
        session["customer"] = customer["id"]
        world.emit("customer.created", customer)
    world.get("customer", session["customer"])["_card"] = WORKS
    if session["mode"] == "subscription":
        items = [{"price": each["price"]["id"], "quantity": each["quantity"]} for each in session["_lines"]]
        made = subscribe(
            world, session["customer"], items, session["_subscription_data"].get("metadata") or {}
        )
        session |= {"subscription": made["id"], "invoice": made["latest_invoice"]}
    else:
        intent = charge(
            world,
            customer=session["customer"],
            cents=session["amount_total"],
            currency=session["currency"],
            card=card,
            metadata=session["_intent_data"].get("metadata"),
            transfer_group=session["_intent_data"].get("transfer_group"),
        )
        session["payment_intent"] = intent["id"]
    payment_status = "unpaid" if card == LATER else "paid"
    session |= {"status": "complete", "payment_status": payment_status, "url": None}
    world.emit("checkout.session.completed", session)
    address: str = session["success_url"]
    return address.replace("{CHECKOUT_SESSION_ID}", session["id"])


def fail_later(world: World, session: Row) -> None:
    """The money that was on its way does not come."""
    world.get("payment_intent", session["payment_intent"])["status"] = "requires_payment_method"
    world.emit("checkout.session.async_payment_failed", session)


def new_customer(params: Row) -> Row:
    return {
        "address": None,
        "balance": 0,
        "email": params.get("email"),
        "invoice_settings": {"default_payment_method": None},
        "metadata": params.get("metadata") or {},
        "name": params.get("name"),
        "preferred_locales": params.get("preferred_locales") or [],
        "_card": WORKS,
    }
