"""The calls of the API: method, path, the parameters that it takes, and what it does."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.fakes.stripe import money
from tests.fakes.stripe.checkout import new_customer, session_of
from tests.fakes.stripe.forms import flag
from tests.fakes.stripe.subscriptions import change, collect, end, expire, release, subscribe
from tests.fakes.stripe.world import Row, StripeError, World, missing, page, show

Act = Callable[..., Row]
_OF_A_LIST = {"limit", "starting_after", "ending_before", "created"}


@dataclass(frozen=True)
class Route:
    method: str
    path: re.Pattern[str]
    takes: frozenset[str]
    needs: frozenset[str]
    act: Act


ROUTES: list[Route] = []


def _route(method: str, path: str, takes: str = "", needs: str = "") -> Callable[[Act], Act]:
    pattern = re.compile("/v1/" + re.sub(r"{\w+}", r"([^/]+)", path))
    names = frozenset(takes.split()) | frozenset(needs.split()) | {"expand"}

    def add(act: Act) -> Act:
        ROUTES.append(Route(method, pattern, names, frozenset(needs.split()), act))
        return act

    return add


def call(world: World, method: str, path: str, params: Row) -> Row:
    """The answer to a call. Raises StripeError."""
    for route in ROUTES:
        found = route.path.fullmatch(path)
        if route.method != method or found is None:
            continue
        for name in params:
            if name not in route.takes:
                raise StripeError(
                    400, f"Received unknown parameter: {name}", code="parameter_unknown", param=name
                )
        for name in sorted(route.needs):
            if params.get(name) in (None, ""):
                raise StripeError(
                    400, f"Missing required param: {name}.", code="parameter_missing", param=name
                )
        paths = params.pop("expand", [])
        return world.expand(show(route.act(world, params, *found.groups())), list(paths))
    raise StripeError(404, f"Unrecognized request URL ({method}: {path}).")


def _retrieve(path: str, kind: str) -> None:
    @_route("GET", path + "/{id}")
    def retrieve(world: World, _: Row, object_id: str) -> Row:
        return world.get(kind, object_id)


def _list(path: str, kind: str, filters: str = "") -> None:
    @_route("GET", path, f"{filters} {' '.join(_OF_A_LIST)}")
    def some(world: World, params: Row) -> Row:
        fields = {name: params[name] for name in filters.split() if name in params}
        return page(world.of(kind, **fields), params, f"/v1/{path}")


def _update(path: str, kind: str, takes: str) -> None:
    @_route("POST", path + "/{id}", takes)
    def update(world: World, params: Row, object_id: str) -> Row:
        row = world.get(kind, object_id)
        metadata = {**row["metadata"], **(params.pop("metadata", None) or {})}
        row |= {**params, "metadata": metadata}
        return row


# ── Customers, prices ───────────────────────────────────────────────────────────────────────────────────


@_route("POST", "customers", "email name metadata preferred_locales description")
def _customer(world: World, params: Row) -> Row:
    row = world.make("customer", "cus", **new_customer(params))
    world.emit("customer.created", row)
    return row


@_route("GET", "customers/{id}")
def _get_customer(world: World, _: Row, object_id: str) -> Row:
    row = world.rows.get(object_id)
    if row is not None and row["object"] == "deleted_customer":
        return {"id": object_id, "object": "customer", "deleted": True}
    return world.get("customer", object_id)


_list("customers", "customer", "email")
_update("customers", "customer", "email name metadata preferred_locales description")


@_route("DELETE", "customers/{id}")
def _delete_customer(world: World, _: Row, object_id: str) -> Row:
    row = world.get("customer", object_id)
    for each in list(world.of("subscription", customer=object_id)):
        if each["status"] not in ("canceled", "incomplete_expired"):
            end(world, each)
    world.emit("customer.deleted", row)
    row["object"] = "deleted_customer"
    return {"id": object_id, "object": "customer", "deleted": True}


@_route("POST", "products", "metadata description", "name")
def _product(world: World, params: Row) -> Row:
    return world.make(
        "product", "prod", active=True, name=params["name"], metadata=params.get("metadata") or {}
    )


_retrieve("products", "product")
_list("products", "product", "active")


@_route(
    "POST",
    "prices",
    "unit_amount recurring product product_data lookup_key transfer_lookup_key nickname metadata tax_behavior",
    "currency",
)
def _price(world: World, params: Row) -> Row:
    product = params.get("product") or _product(world, params["product_data"])["id"]
    if (key := params.get("lookup_key")) is not None:
        for other in world.of("price", lookup_key=key):
            if not flag(params.get("transfer_lookup_key")):
                raise StripeError(400, f"A price (`{other['id']}`) already uses that lookup key.")
            other["lookup_key"] = None
    recurring = params.get("recurring")
    return world.make(
        "price",
        "price",
        active=True,
        currency=params["currency"],
        lookup_key=key,
        metadata=params.get("metadata") or {},
        nickname=params.get("nickname"),
        product=product,
        recurring=recurring and {"interval": recurring["interval"], "interval_count": 1},
        type="recurring" if recurring else "one_time",
        unit_amount=int(params["unit_amount"]),
    )


_retrieve("prices", "price")


@_route("GET", "prices", f"active lookup_keys product type {' '.join(_OF_A_LIST)}")
def _prices(world: World, params: Row) -> Row:
    rows: Iterator[Row] = world.of("price", product=params.get("product"), type=params.get("type"))
    if "active" in params:
        rows = (row for row in rows if row["active"] == flag(params["active"]))
    if "lookup_keys" in params:
        rows = (row for row in rows if row["lookup_key"] in params["lookup_keys"])
    return page(rows, params, "/v1/prices")


@_route("POST", "prices/{id}", "active metadata lookup_key nickname")
def _change_price(world: World, params: Row, object_id: str) -> Row:
    row = world.get("price", object_id)
    if "active" in params:
        params["active"] = flag(params["active"])
    row |= {**params, "metadata": {**row["metadata"], **(params.get("metadata") or {})}}
    return row


# ── Checkout, portal ────────────────────────────────────────────────────────────────────────────────────


@_route(
    "POST",
    "checkout/sessions",
    "customer client_reference_id cancel_url metadata subscription_data payment_intent_data line_items expires_at"
    " automatic_tax tax_id_collection allow_promotion_codes customer_update billing_address_collection locale"
    " payment_method_collection",
    "mode success_url",
)
def _session(world: World, params: Row) -> Row:
    return session_of(world, params)


_retrieve("checkout/sessions", "checkout.session")
_list("checkout/sessions", "checkout.session", "customer subscription payment_intent status")


@_route("POST", "checkout/sessions/{id}/expire")
def _expire(world: World, _: Row, object_id: str) -> Row:
    session = world.get("checkout.session", object_id)
    if session["status"] != "open":
        raise StripeError(
            400, f"Only Checkout Sessions with a status in ['open'] can be expired: {object_id}"
        )
    return expire(world, session)


@_route("POST", "billing_portal/sessions", "return_url configuration flow_data locale", "customer")
def _portal(world: World, params: Row) -> Row:
    world.get("customer", params["customer"])
    if (configuration := params.get("configuration")) is not None:
        world.get("billing_portal.configuration", configuration)
    row = world.make(
        "billing_portal.session",
        "bps",
        configuration=configuration,
        customer=params["customer"],
        flow=params.get("flow_data"),
        return_url=params.get("return_url"),
    )
    row["url"] = f"{world.base_url}/portal/{row['id']}"
    return row


@_route(
    "POST",
    "billing_portal/configurations",
    "business_profile default_return_url metadata login_page name",
    "features",
)
def _configuration(world: World, params: Row) -> Row:
    return world.make(
        "billing_portal.configuration",
        "bpc",
        **{"active": True, "is_default": False, "metadata": {}, **params},
    )


_list("billing_portal/configurations", "billing_portal.configuration", "active")
_retrieve("billing_portal/configurations", "billing_portal.configuration")
_update(
    "billing_portal/configurations",
    "billing_portal.configuration",
    "features business_profile default_return_url metadata name",
)

# ── Subscriptions, invoices ─────────────────────────────────────────────────────────────────────────────


@_route("POST", "subscriptions", "metadata payment_behavior", "customer items")
def _subscribe(world: World, params: Row) -> Row:
    behavior = params.get("payment_behavior", "allow_incomplete")
    return subscribe(
        world, params["customer"], params["items"], params.get("metadata") or {}, behavior=behavior
    )


_retrieve("subscriptions", "subscription")


@_route("GET", "subscriptions", f"customer price status {' '.join(_OF_A_LIST)}")
def _subscriptions(world: World, params: Row) -> Row:
    status = params.get("status")
    rows = world.of("subscription", customer=params.get("customer"))
    if status is None:  # as Stripe has it: all that have not ended
        rows = (row for row in rows if row["status"] not in ("canceled", "incomplete_expired"))
    elif status != "all":
        rows = (row for row in rows if row["status"] == status)
    if "price" in params:
        rows = (row for row in rows if params["price"] in [e["price"]["id"] for e in row["items"]["data"]])
    return page(rows, params, "/v1/subscriptions")


@_route(
    "POST",
    "subscriptions/{id}",
    "items cancel_at_period_end metadata proration_behavior payment_behavior cancellation_details",
)
def _change(world: World, params: Row, object_id: str) -> Row:
    return change(world, world.get("subscription", object_id), params)


@_route("DELETE", "subscriptions/{id}", "invoice_now prorate cancellation_details")
def _cancel(world: World, _: Row, object_id: str) -> Row:
    row = world.get("subscription", object_id)
    if row["status"] in ("canceled", "incomplete_expired"):
        raise missing("subscription", object_id)
    return end(world, row)


_retrieve("subscription_schedules", "subscription_schedule")


@_route("POST", "subscription_schedules/{id}/release")
def _release(world: World, _: Row, object_id: str) -> Row:
    schedule = world.get("subscription_schedule", object_id)
    if schedule["status"] != "active":
        raise StripeError(400, f"The schedule {object_id} is in the `{schedule['status']}` status.")
    return release(world, schedule)


_retrieve("invoices", "invoice")


@_route("GET", "invoices", f"customer status subscription {' '.join(_OF_A_LIST)}")
def _invoices(world: World, params: Row) -> Row:
    rows = world.of("invoice", customer=params.get("customer"), status=params.get("status"))
    if (named := params.get("subscription")) is not None:
        rows = (row for row in rows if row["parent"]["subscription_details"]["subscription"] == named)
    return page(rows, params, "/v1/invoices")


@_route("POST", "invoices/{id}/pay")
def _pay(world: World, _: Row, object_id: str) -> Row:
    invoice = world.get("invoice", object_id)
    if invoice["status"] != "open":
        raise StripeError(400, "Invoice is already paid")
    collect(world, invoice)
    if invoice["status"] != "paid":
        raise money.declined()
    return invoice


@_route("GET", "invoice_payments", f"payment invoice status {' '.join(_OF_A_LIST)}")
def _invoice_payments(world: World, params: Row) -> Row:
    wanted = (params.get("payment") or {}).get("payment_intent")
    rows = (
        {
            **each,
            "invoice": invoice["id"],
            "created": invoice["created"],
            "status": "paid" if invoice["status"] == "paid" else "open",
        }
        for invoice in world.of("invoice")
        for each in invoice["payments"]["data"]
        if wanted in (None, each["payment"]["payment_intent"])
        and params.get("status") in (None, "paid" if invoice["status"] == "paid" else "open")
    )
    return page(rows, params, "/v1/invoice_payments")


# ── Money ───────────────────────────────────────────────────────────────────────────────────────────────

_retrieve("payment_intents", "payment_intent")
_list("payment_intents", "payment_intent", "customer")
_retrieve("charges", "charge")
_list("charges", "charge", "customer payment_intent transfer_group")
_retrieve("balance_transactions", "balance_transaction")
_list("balance_transactions", "balance_transaction", "source type")
_retrieve("refunds", "refund")
_list("refunds", "refund", "charge payment_intent")
_retrieve("transfers", "transfer")
_list("transfers", "transfer", "destination transfer_group")
_retrieve("accounts", "account")
_list("accounts", "account")
_retrieve("disputes", "dispute")
_list("disputes", "dispute", "charge payment_intent")


@_route("GET", "balance")
def _balance(world: World, _: Row) -> Row:
    return money.balance(world)


@_route("POST", "refunds", "charge payment_intent amount metadata reason")
def _refund(world: World, params: Row) -> Row:
    return money.refund(world, params)


@_route(
    "POST",
    "transfers",
    "description metadata source_transaction transfer_group",
    "amount currency destination",
)
def _transfer(world: World, params: Row) -> Row:
    return money.transfer(world, params)


@_route("POST", "transfers/{id}/reversals", "amount metadata description")
def _reverse(world: World, params: Row, object_id: str) -> Row:
    return money.reverse(world, params, object_id)


@_route("GET", "transfers/{id}/reversals", " ".join(_OF_A_LIST))
def _reversals(world: World, params: Row, object_id: str) -> Row:
    rows = world.of("transfer_reversal", transfer=object_id)
    return page(rows, params, f"/v1/transfers/{object_id}/reversals")


@_route("POST", "accounts", "type controller country email capabilities metadata business_type")
def _account(world: World, params: Row) -> Row:
    return money.account(world, params)


_update("accounts", "account", "email metadata")


@_route("DELETE", "accounts/{id}")
def _delete_account(world: World, _: Row, object_id: str) -> Row:
    world.get("account", object_id)["object"] = "deleted_account"
    return {"id": object_id, "object": "account", "deleted": True}


@_route("POST", "account_links", "collection_options", "account type return_url refresh_url")
def _account_link(world: World, params: Row) -> Row:
    world.get("account", params["account"])
    row = world.make("account_link", "link", expires_at=world.now() + 300, _back=params["return_url"])
    row["_account"] = params["account"]
    row["url"] = f"{world.base_url}/onboard/{row['id']}"
    return row


@_route("POST", "accounts/{id}/login_links")
def _login_link(world: World, _: Row, object_id: str) -> Row:
    world.get("account", object_id)
    return {"object": "login_link", "created": world.now(), "url": f"{world.base_url}/"}


# ── Events ──────────────────────────────────────────────────────────────────────────────────────────────

_retrieve("events", "event")


@_route("GET", "events", f"type types delivery_success {' '.join(_OF_A_LIST)}")
def _events(world: World, params: Row) -> Row:
    types: list[Any] = [params["type"]] if "type" in params else params.get("types") or []
    rows = (row for row in world.events() if not types or row["type"] in types)
    return page(rows, params, "/v1/events")


@_route("POST", "webhook_endpoints", "api_version description metadata", "url enabled_events")
def _endpoint(world: World, params: Row) -> Row:
    secret = f"whsec_{secrets.token_hex(16)}"
    fields = {"api_version": None, "metadata": {}, **params, "status": "enabled", "secret": secret}
    return world.make("webhook_endpoint", "we", **fields)


_retrieve("webhook_endpoints", "webhook_endpoint")
_list("webhook_endpoints", "webhook_endpoint")
