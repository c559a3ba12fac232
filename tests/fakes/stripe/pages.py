"""Pages for people: to pay, to manage a subscription, to open an account, and a start page to look at all of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from html import escape

from aiohttp import web

from tests.fakes.stripe import checkout, money
from tests.fakes.stripe.money import ASKS, DECLINES, WORKS
from tests.fakes.stripe.subscriptions import (
    advance,
    change,
    change_at_period_end,
    collect,
    period_end,
    release,
)
from tests.fakes.stripe.world import DAY_S, Row, StripeError, World

_CARDS = {
    WORKS: "a card that works",
    DECLINES: "a card that is declined",
    ASKS: "a card that asks for 3-D Secure",
}
_LOOK = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:3rem auto;padding:0 1rem;color:#1a1f36}"
    "button{font:inherit;padding:.5rem 1rem;margin:.25rem .5rem .25rem 0}fieldset{margin:1rem 0}"
    "table{border-collapse:collapse}td,th{padding:.25rem .75rem .25rem 0;text-align:left}.fake{color:#8a3b00}"
)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def add_to(router: web.UrlDispatcher, world: World) -> None:
    found = _Pages(world)
    router.add_get("/", found.start)
    router.add_post("/clock", found.clock)
    router.add_post("/customer/{id}", found.customer)
    router.add_post("/charge/{id}", found.charge)
    router.add_post("/dispute/{id}", found.dispute)
    for path, page in (
        ("/pay/{id}", found.pay),
        ("/portal/{id}", found.portal),
        ("/invoice/{id}", found.invoice),
        ("/onboard/{id}", found.onboard),
    ):
        router.add_get(path, page)
        router.add_post(path, page)


def _page(title: str, body: str, status: int = 200) -> web.Response:
    text = (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(title)}</title><style>{_LOOK}</style><main><h1>{escape(title)}</h1>"
        "<p class=fake>This is not Stripe but its double for tests: no card is read, and no money moves.</p>"
        f"{body}</main>"
    )
    return web.Response(text=text, content_type="text/html", status=status)


def _form(action: str, buttons: str) -> str:
    return f"<form method=post action='{action}'>{buttons}</form>"


def _button(text: str, **fields: str) -> str:
    ((name, value),) = fields.items()
    return f"<button name='{name}' value='{escape(value, quote=True)}'>{escape(text)}</button>"


def _money(cents: int, currency: str) -> str:
    return f"{cents // 100}.{cents % 100:02d} {currency.upper()}"


def _said(text: str) -> str:
    return f"<p role=alert><strong>{escape(text)}</strong></p>" if text else ""


class _Pages:
    def __init__(self, world: World) -> None:
        self._world = world

    def _see(self, url: str) -> web.HTTPSeeOther:
        self._world.save()
        return web.HTTPSeeOther(url)

    def _get(self, kind: str, http: web.Request) -> Row:
        try:
            return self._world.get(kind, http.match_info["id"])
        except StripeError as error:
            raise web.HTTPNotFound(text=str(error)) from None

    async def start(self, _: web.Request) -> web.Response:
        world = self._world
        customers = "".join(
            f"<tr><td>{row['id']}<td>{escape(str(row['email']))}<td>"
            + _form(
                f"/customer/{row['id']}",
                "".join(
                    _button(text + (" (now)" if row["_card"] == card else ""), card=card)
                    for card, text in _CARDS.items()
                ),
            )
            for row in world.of("customer")
        )
        events = "".join(
            f"<tr><td>{row['type']}<td>{row['data']['object'].get('id', '')}"
            for row, _ in zip(world.events(), range(30), strict=False)
        )
        charges = "".join(
            f"<tr><td>{row['id']}<td>{_money(row['amount'], row['currency'])}<td>{self._disputes(row)}"
            for row, _ in zip(world.of("charge"), range(30), strict=False)
        )
        clock = _form("/clock", _button("3 days later", days="3") + _button("31 days later", days="31"))
        return _page(
            "Stripe's double",
            f"<p>Its clock is {world.clock_offset_s // DAY_S} days ahead.</p>{clock}"
            f"<h2>Customers</h2><table>{customers}</table><h2>Charges</h2><table>{charges}</table>"
            f"<h2>The latest events</h2><table>{events}</table>",
        )

    def _disputes(self, charge: Row) -> str:
        """What the bank may do of a charge, and what came of it."""
        if not charge["disputed"]:
            return _form(f"/charge/{charge['id']}", _button("Dispute it at the bank", step="dispute"))
        buttons = _button("The bank decides for us", won="1") + _button("The bank decides against us", won="")
        return "".join(
            _form(f"/dispute/{row['id']}", buttons) if row["status"] == "needs_response" else row["status"]
            for row in self._world.of("dispute", charge=charge["id"])
        )

    async def charge(self, http: web.Request) -> web.StreamResponse:
        charge = self._get("charge", http)
        if not charge["disputed"]:
            money.dispute(self._world, charge["id"])
        raise self._see("/")

    async def dispute(self, http: web.Request) -> web.StreamResponse:
        dispute = self._get("dispute", http)
        if dispute["status"] == "needs_response":
            money.decide(self._world, dispute["id"], won=bool((await http.post())["won"]))
        raise self._see("/")

    async def clock(self, http: web.Request) -> web.StreamResponse:
        advance(self._world, int(str((await http.post())["days"])) * DAY_S)
        raise self._see("/")

    async def customer(self, http: web.Request) -> web.StreamResponse:
        self._get("customer", http)["_card"] = str((await http.post())["card"])
        raise self._see("/")

    async def pay(self, http: web.Request) -> web.StreamResponse:
        session = self._get("checkout.session", http)
        said, step = "", "" if http.method == "GET" else str((await http.post())["card"])
        if session["status"] != "open":
            return _page("Checkout", "<p>This checkout is no longer open.</p>", 410)
        if step == "cancel":
            raise self._see(session["cancel_url"] or "/")
        if step in (WORKS, "confirmed"):
            raise self._see(checkout.complete(self._world, session))
        if step == DECLINES:
            said = "Your card was declined. Try a different card."
        elif step == "refused":
            said = "We are unable to authenticate your payment method."
        elif step == ASKS:
            buttons = _button("Confirm the payment", card="confirmed") + _button("Refuse it", card="refused")
            return _page("Your bank asks", "<p>3-D Secure: is this you?</p>" + _form(http.path, buttons))
        lines = "".join(
            f"<tr><td>{each['quantity']} × {escape(str(each['price']['nickname'] or each['price']['id']))}"
            f"<td>{_money(each['price']['unit_amount'] * each['quantity'], each['price']['currency'])}"
            for each in session["_lines"]
        )
        buttons = "".join(_button(f"Pay with {text}", card=card) for card, text in _CARDS.items())
        total = _money(session["amount_total"], session["currency"])
        return _page(
            "Checkout",
            f"{_said(said)}<table>{lines}</table><p>Total: {total}</p>"
            + _form(http.path, buttons + _button("Back", card="cancel")),
        )

    async def invoice(self, http: web.Request) -> web.StreamResponse:
        invoice, said = self._get("invoice", http), ""
        if http.method == "POST" and invoice["status"] == "open":
            card = str((await http.post())["card"])
            collect(self._world, invoice, card)
            self._world.save()
            said = "Paid." if invoice["status"] == "paid" else "Your card was declined."
        buttons = _button("Pay", card=WORKS) + _button("Pay with a card that is declined", card=DECLINES)
        return _page(
            "Invoice",
            f"{_said(said)}<p>{_money(invoice['amount_due'], invoice['currency'])}: {invoice['status']}</p>"
            + (_form(http.path, buttons) if invoice["status"] == "open" else ""),
        )

    async def onboard(self, http: web.Request) -> web.StreamResponse:
        link = self._get("account_link", http)
        if http.method == "POST":
            money.onboard(self._world, link["_account"])
            raise self._see(link["_back"])
        return _page(
            "Open an account",
            "<p>Stripe would ask who you are.</p>" + _form(http.path, _button("Done", step="done")),
        )

    async def portal(self, http: web.Request) -> web.StreamResponse:
        session, said = self._get("billing_portal.session", http), ""
        if http.method == "POST":
            name, value = next(iter((await http.post()).items()))
            try:
                said = self._act(session, name, str(value))
            except StripeError as error:
                said = str(error)
            self._world.save()
        back = session["return_url"]
        body = "".join(
            self._shown(row, http.path)
            for row in self._world.of("subscription", customer=session["customer"])
        )
        cards = "".join(_button(f"Use {text}", card=card) for card, text in _CARDS.items())
        return _page(
            "Your subscription",
            f"{_said(said)}{body or '<p>There is none.</p>'}{_form(http.path, cards)}"
            + (f"<p><a href='{escape(back, quote=True)}'>Back</a></p>" if back else ""),
        )

    def _shown(self, row: Row, path: str) -> str:
        if row["status"] in ("canceled", "incomplete_expired"):
            return f"<p>{row['id']}: {row['status']}</p>"
        item = row["items"]["data"][0]
        days = max(0, period_end(row) - self._world.now()) // DAY_S
        buttons = (
            _button("Do not cancel", keep=row["id"])
            if row["cancel_at_period_end"]
            else _button("Cancel at the end of the period", cancel=row["id"])
        )
        if row["schedule"]:
            buttons += _button("Keep the present plan", unschedule=row["id"])
        for price in self._world.of("price", active=True, type="recurring"):
            if price["id"] != item["price"]["id"]:
                name = price["nickname"] or price["id"]
                label = f"Change to {name} ({_money(price['unit_amount'], price['currency'])})"
                buttons += _button(label, plan=f"{row['id']} {price['id']}")
        for invoice in self._world.of("invoice", customer=row["customer"], status="open"):
            due = _money(invoice["amount_due"], invoice["currency"])
            buttons += f"<a href='/invoice/{invoice['id']}'>Pay the open invoice of {due}</a>"
        name = item["price"]["nickname"] or item["price"]["id"]
        return (
            f"<fieldset><legend>{item['quantity']} × {escape(str(name))}: {row['status']}</legend>"
            f"<p>{days} days are left of the period.</p>{_form(path, buttons)}</fieldset>"
        )

    def _act(self, session: Row, name: str, value: str) -> str:
        if name == "card":
            self._world.get("customer", session["customer"])["_card"] = value
            return f"It is {_CARDS[value]} from now on."
        subscription, _, price_id = value.partition(" ")
        row = self._world.get("subscription", subscription)
        if row["customer"] != session["customer"]:
            raise StripeError(404, "No such subscription")
        if name in ("cancel", "keep"):
            if row["schedule"]:
                release(self._world, self._world.get("subscription_schedule", row["schedule"]))
            change(self._world, row, {"cancel_at_period_end": str(name == "cancel").lower()})
            return "Cancelled at the end of the period." if name == "cancel" else "It goes on."
        if name == "unschedule":
            release(self._world, self._world.get("subscription_schedule", row["schedule"]))
            return "The plan stays."
        item, price = row["items"]["data"][0], self._world.get("price", price_id)
        if price["unit_amount"] < item["price"]["unit_amount"]:
            change_at_period_end(self._world, row, price_id, item["quantity"])
            return "Changed at the end of the period."
        change(
            self._world,
            row,
            {
                "items": [{"id": item["id"], "price": price_id}],
                "proration_behavior": "always_invoice",
                "payment_behavior": "error_if_incomplete",
            },
        )
        return "Changed."
