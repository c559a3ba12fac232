"""Client of Stripe's API, with the calls about prices, customers and subscriptions.

Only this module imports Stripe's library, and only for the first call: it takes 30 MB.

Each call is tried once; the caller's row decides what follows a failure. The library's errors become three: StripeOff
(nothing is configured), StripeAway (the outcome is unknown, or the call may pass later), Refused (never).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog
from django.conf import settings

from adiuva.core.errors import AdiuvaError, Unavailable
from adiuva.core.http import retry_after_s

if TYPE_CHECKING:
    from stripe import StripeClient

T = TypeVar("T")

# The version that this code was written for; events of other versions do no harm, since only their ids are used.
API_VERSION: Final = "2026-10-28.endive"
_OF_CARD: Final = "card:"
_TIMEOUT_S: Final = (3.0, 10.0)  # to connect, to answer
PAGE: Final = 100

log = structlog.get_logger(__name__)


class StripeOff(Unavailable):
    code = "billing_off"

    def __init__(self) -> None:
        super().__init__("this server takes no payments")


class StripeAway(Unavailable):
    """Stripe did not answer, or not as it should. `may_be_done`: it may have carried the call out all the same.

    `is_kept`: Stripe keeps this failure for the call's key, and would only repeat it.
    """

    code = "billing_away"

    def __init__(
        self,
        reason: str,
        *,
        may_be_done: bool = True,
        is_kept: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__("the payment service does not answer; try again in a minute")
        self.reason, self.may_be_done, self.is_kept = reason, may_be_done, is_kept
        self.retry_after_s = retry_after_s


class Refused(AdiuvaError):
    """Stripe will not do this, now or later."""

    code, status = "billing_refused", 502

    def __init__(self, reason: str) -> None:
        super().__init__("the payment service refused this")
        self.reason = reason

    @property
    def is_of_card(self) -> bool:
        """Return whether the card did not pay, rather than the call being wrong. A job's row keeps that as well."""
        return self.reason.startswith(_OF_CARD)


@dataclass(frozen=True, slots=True)
class SubscriptionState:
    """The facts kept of a subscription at Stripe. Prices are ids; `tier` is from the price's metadata."""

    stripe_id: str
    customer_id: str
    status: str
    price_id: str
    tier: str
    quantity: int
    period_end: dt.datetime
    started_at: dt.datetime
    cancel_at_period_end: bool
    pending_price_id: str
    environment: str
    payment_url: str = ""


def is_on() -> bool:
    return bool(settings.STRIPE["secret_key"])


def environment() -> str:
    """Return the mark on each object that keeps two installations on one Stripe account apart."""
    return str(settings.PUBLIC_URL)


@cache
def _client(key: str, api: str) -> StripeClient:
    import stripe

    stripe.enable_telemetry = False
    addresses: Any = {"base_addresses": {"api": api, "connect": api, "files": api}} if api else {}
    return stripe.StripeClient(
        key,
        stripe_version=API_VERSION,
        max_network_retries=0,
        http_client=stripe.RequestsClient(timeout=_TIMEOUT_S),
        **addresses,
    )


def call(act: Callable[[Any], T]) -> T:
    if not is_on():
        raise StripeOff
    client = _client(settings.STRIPE["secret_key"], settings.STRIPE["api"])
    import stripe

    try:
        return act(client.v1)
    except stripe.RateLimitError as error:
        wait_s = retry_after_s((error.headers or {}).get("Retry-After"))
        raise StripeAway("rate_limited", may_be_done=False, retry_after_s=wait_s) from None
    except (stripe.AuthenticationError, stripe.PermissionError) as error:
        log.error("stripe.key_refused", status=error.http_status)
        raise StripeAway("key_refused", may_be_done=False) from None
    except stripe.APIConnectionError:
        raise StripeAway("no_answer") from None
    except stripe.CardError as error:
        raise Refused(f"{_OF_CARD}{error.code or 'declined'}") from None
    except (stripe.InvalidRequestError, stripe.IdempotencyError) as error:
        if error.http_status == 409:  # the same key is being carried out now
            raise StripeAway("in_progress") from None
        raise Refused(error.code or type(error).__name__) from None
    except stripe.StripeError as error:
        raise StripeAway(f"status_{error.http_status}", is_kept=(error.http_status or 0) >= 500) from None


def note(found: Any, name: str) -> str:
    """Return our note on an object of Stripe; empty if there is none."""
    return str(found.metadata.to_dict().get(name, "")) if found.metadata else ""


def time_of(seconds: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)


# ── Prices ──────────────────────────────────────────────────────────────────────────────────────────────


def price_of(*, tier: str, name: str, cents: int, currency: str) -> str:
    """Return the monthly price of a plan, made once if there is none: its key names plan and price."""
    key = f"adiuva_{tier}_{cents}_{currency}"
    found = call(lambda api: api.prices.list({"lookup_keys": [key], "active": True})).data
    if found:
        return str(found[0].id)
    params = {
        "currency": currency,
        "unit_amount": cents,
        "recurring": {"interval": "month"},
        "lookup_key": key,
        "nickname": name,
        "metadata": {"adiuva_tier": tier},
        "product_data": {"name": name},
    }
    return str(call(lambda api: api.prices.create(params, {"idempotency_key": f"price:{key}"})).id)


# ── Customers ───────────────────────────────────────────────────────────────────────────────────────────


def create_customer(*, email: str, user_id: str, row: str, key: str) -> str:
    params = {"email": email, "metadata": {"adiuva_user": user_id, "adiuva_row": row, "env": environment()}}
    return str(call(lambda api: api.customers.create(params, {"idempotency_key": key})).id)


def find_customer(*, since: dt.datetime, row: str) -> str | None:
    """Return the customer that a row made after `since`, and whose answer was lost."""
    return find_made(lambda api, params: api.customers.list(params), since=since, row=row)


def find_made(list_page: Callable[[Any, dict[str, Any]], Any], *, since: dt.datetime, row: str) -> str | None:
    """Return the id of the object that a row made at Stripe after `since`. Goes through the list of its kind."""
    params: dict[str, Any] = {"created": {"gte": int(since.timestamp())}, "limit": PAGE}
    while True:
        page = call(lambda api: list_page(api, dict(params)))
        for each in page.data:
            if note(each, "adiuva_row") == row:
                return str(each.id)
        if not page.has_more:
            return None
        params["starting_after"] = page.data[-1].id


def delete_customer(customer_id: str) -> None:
    """Delete a customer, which cancels all their subscriptions at once. A missing one is no failure."""
    try:
        call(lambda api: api.customers.delete(customer_id))
    except Refused as error:
        if error.reason != "resource_missing":
            raise


# ── Checkout, portal ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Checkout:
    stripe_id: str
    status: str
    url: str
    subscription_id: str


def _checkout(found: Any) -> Checkout:
    return Checkout(found.id, found.status, found.url or "", found.subscription or "")


def create_checkout(
    *,
    customer_id: str,
    price_id: str,
    seats: int,
    user_id: str,
    row: str,
    key: str,
    back: str,
    cancelled: str,
) -> Checkout:
    """Create a page at Stripe on which a subscription is paid. `back` and `cancelled` are addresses of ours."""
    params: dict[str, Any] = {
        "mode": "subscription",
        "customer": customer_id,
        "client_reference_id": user_id,
        "line_items": [{"price": price_id, "quantity": seats}],
        "success_url": back,
        "cancel_url": cancelled,
        "metadata": {"adiuva_row": row, "env": environment()},
        "subscription_data": {"metadata": {"adiuva_user": user_id, "env": environment()}},
        "allow_promotion_codes": True,
    }
    if settings.STRIPE["automatic_tax"]:
        params |= {
            "automatic_tax": {"enabled": True},
            "tax_id_collection": {"enabled": True},
            "customer_update": {"name": "auto", "address": "auto"},
        }
    return _checkout(call(lambda api: api.checkout.sessions.create(params, {"idempotency_key": key})))


def get_checkout(session_id: str) -> Checkout:
    return _checkout(call(lambda api: api.checkout.sessions.retrieve(session_id)))


def find_checkout(*, customer_id: str, row: str) -> Checkout | None:
    """Return the session that a row opened and whose answer was lost."""
    params = {"customer": customer_id, "limit": PAGE}
    for each in call(lambda api: api.checkout.sessions.list(params)).data:
        if note(each, "adiuva_row") == row:
            return _checkout(each)
    return None


def expire_checkout(session_id: str) -> None:
    """Expire a session. If it is no longer open, that is no failure."""
    try:
        call(lambda api: api.checkout.sessions.expire(session_id))
    except Refused:
        if get_checkout(session_id).status == "open":
            raise


def portal(*, customer_id: str, back: str, change: tuple[str, str, str, int] | None = None) -> str:
    """Return the address of a page at Stripe for cards, invoices, changes and cancels.

    `change` (subscription, its item, price, quantity) leads to the page that confirms just this change.
    """
    params: dict[str, Any] = {"customer": customer_id, "return_url": back}
    if configuration := settings.STRIPE["portal_configuration"]:
        params["configuration"] = configuration
    if change is not None:
        subscription, item, price, quantity = change
        params["flow_data"] = {
            "type": "subscription_update_confirm",
            "subscription_update_confirm": {
                "subscription": subscription,
                "items": [{"id": item, "price": price, "quantity": quantity}],
            },
            "after_completion": {"type": "redirect", "redirect": {"return_url": back}},
        }
    return str(call(lambda api: api.billing_portal.sessions.create(params)).url)


# ── Subscriptions ───────────────────────────────────────────────────────────────────────────────────────


def get_subscription(stripe_id: str) -> SubscriptionState:
    """Return a subscription. Raises Refused with the reason `resource_missing` if there is none."""
    return _subscription(
        call(lambda api: api.subscriptions.retrieve(stripe_id, {"expand": ["schedule", "latest_invoice"]}))
    )


def item_of(stripe_id: str) -> str:
    """Return the id of a subscription's one item."""
    found = call(lambda api: api.subscriptions.retrieve(stripe_id))
    return str(found["items"].data[0].id)


def set_seats(stripe_id: str, *, item: str, seats: int, grows: bool, key: str) -> None:
    """Set the number of seats. More are charged for the period at once, or refused; fewer are credited later."""
    params: dict[str, Any] = {
        "items": [{"id": item, "quantity": seats}],
        "proration_behavior": "always_invoice" if grows else "create_prorations",
        "payment_behavior": "error_if_incomplete" if grows else "allow_incomplete",
    }
    call(lambda api: api.subscriptions.update(stripe_id, params, {"idempotency_key": key}))


def set_cancel(stripe_id: str, *, cancel: bool, key: str) -> None:
    params = {"cancel_at_period_end": cancel}
    call(lambda api: api.subscriptions.update(stripe_id, params, {"idempotency_key": key}))


def release_schedule(stripe_id: str) -> None:
    """Take back a change of the plan that is to come, if there is one: beside it, Stripe refuses a cancel."""
    found = call(lambda api: api.subscriptions.retrieve(stripe_id, {"expand": ["schedule"]})).schedule
    if found is not None and found.status == "active":
        call(lambda api: api.subscription_schedules.release(found.id))


def cancel_now(stripe_id: str) -> None:
    """Cancel a subscription at once. If it is over, that is no failure."""
    try:
        call(lambda api: api.subscriptions.cancel(stripe_id))
    except Refused as error:
        if error.reason != "resource_missing":
            raise


def subscriptions(*, status: str = "all") -> Iterator[SubscriptionState]:
    """Yield all subscriptions of the account, the latest first."""
    params: dict[str, Any] = {"status": status, "limit": PAGE, "expand": ["data.schedule"]}
    while True:
        page = call(lambda api: api.subscriptions.list(dict(params)))
        yield from map(_subscription, page.data)
        if not page.has_more:
            return
        params["starting_after"] = page.data[-1].id


def _subscription(found: Any) -> SubscriptionState:
    item = found["items"].data[0]  # the attribute is dict's own method
    return SubscriptionState(
        stripe_id=found.id,
        customer_id=found.customer,
        status=found.status,
        price_id=item.price.id,
        tier=note(item.price, "adiuva_tier"),
        quantity=item.quantity or 1,
        period_end=time_of(item.current_period_end),  # since 2025 a period belongs to the item
        started_at=time_of(found.start_date),
        cancel_at_period_end=found.cancel_at_period_end,
        pending_price_id=_later_price(found),
        environment=note(found, "env"),
        payment_url=_open_invoice(found),
    )


def _open_invoice(found: Any) -> str:
    """Return the page to pay the latest invoice, or to confirm its payment at the bank, if it is open; else ""."""
    invoice = found.latest_invoice
    if invoice is None or isinstance(invoice, str) or invoice.status != "open":
        return ""
    return invoice.hosted_invoice_url or ""


def _later_price(found: Any) -> str:
    """Return the price of the phase after the present one, if a schedule has one."""
    schedule = found.schedule
    if schedule is None or isinstance(schedule, str) or schedule.status != "active":
        return ""
    present = found["items"].data[0].current_period_end
    for phase in schedule.phases:
        if phase.start_date >= present:
            return str(phase["items"][0].price)
    return ""
