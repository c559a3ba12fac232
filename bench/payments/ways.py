"""Two ways to take orders: the product's, through its REST API and its worker's functions, and the earlier backend's.

The earlier one acts on what events say, in the order in which they come, and its calls to Stripe have no keys of its
own: it is the control, which must end wrong.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Any, Final, Protocol
from uuid import UUID

import orjson

from tests.fakes.stripe import signed

SECRET: Final = "whsec_of_the_bench"
API: Final = "/api/v1/billing"
# Answers after which a client tries again: the second is a fault of the server.
AGAIN: Final = "again"
FAULT: Final = "fault"


class Way(Protocol):
    """Each method is what one request or one task does; it returns what the client is told.

    `steps`: how many a method has, about, at which its process may be killed.
    """

    steps: int

    def click(self, user: UUID, tier: str, seats: int) -> str: ...
    def deliver(self, event: dict[str, Any]) -> str: ...
    def cancel(self, user: UUID) -> str: ...
    def resume(self, user: UUID) -> str: ...
    def work(self) -> str: ...
    def catch_up(self) -> str: ...


def use_stripe_at(url: str) -> None:
    from django.conf import settings

    settings.STRIPE = {
        "secret_key": "sk_test_x",
        "webhook_secrets": [SECRET],
        "api": url,
        "portal_configuration": "",
        "automatic_tax": False,
    }


def _tried(answer: Any) -> str:
    """404: the subscription is not known yet."""
    if answer.status_code in (200, 202):
        return ""
    return AGAIN if answer.status_code in (404, 503) else FAULT


@cache
def _handler() -> Any:
    """All middlewares, loaded once: a client of Django's tests loads them again for each request."""
    from rest_framework.test import ForceAuthClientHandler

    handler = ForceAuthClientHandler(enforce_csrf_checks=False)
    handler.load_middleware()
    return handler


class Product:
    steps = 16

    def _client(self, user: UUID | None = None) -> Any:
        from rest_framework.test import APIClient

        from adiuva.accounts.models import User

        client = APIClient(raise_request_exception=False, SERVER_NAME="localhost")
        client.handler = handler = _handler()
        handler._force_user = None if user is None else User.objects.get(pk=user)
        return client

    def click(self, user: UUID, tier: str, seats: int) -> str:
        answer = self._client(user).post(f"{API}/checkout", {"tier": tier, "seats": seats}, format="json")
        if answer.status_code == 200:
            return str(answer.data["checkout_url"])
        return "" if answer.status_code == 409 else _tried(answer)

    def deliver(self, event: dict[str, Any], *, secret: str = SECRET) -> str:
        body = orjson.dumps(event)
        signature = signed(body, secret, int(time.time()))["Stripe-Signature"]
        answer = self._client().generic(
            "POST", f"{API}/webhook", body, content_type="application/json", HTTP_STRIPE_SIGNATURE=signature
        )
        return _tried(answer)

    def cancel(self, user: UUID) -> str:
        return _tried(self._client(user).delete(f"{API}/subscription"))

    def resume(self, user: UUID) -> str:
        return _tried(self._client(user).post(f"{API}/subscription/resume"))

    def work(self) -> str:
        from billing import tasks

        tasks.sync_payments()
        return ""

    def catch_up(self) -> str:
        from billing import tasks

        tasks.catch_up()
        return ""


class FirstWay:
    """Rows of `bench_first`: one for each user, made with them."""

    steps = 3

    def _change(self, where: str, value: Any, **fields: Any) -> None:
        from django.db import connection

        names = ", ".join(f"{name} = %s" for name in fields)
        with connection.cursor() as cursor:
            cursor.execute(f"UPDATE bench_first SET {names} WHERE {where} = %s", [*fields.values(), value])

    def _read(self, name: str, user: UUID) -> str:
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {name} FROM bench_first WHERE user_id = %s", [user])
            return str(cursor.fetchone()[0])

    def _call(self, act: Any) -> Any:
        from billing.payments import stripe_api

        try:
            return stripe_api.call(act)
        except (stripe_api.StripeAway, stripe_api.Refused):
            return None

    def click(self, user: UUID, tier: str, seats: int) -> str:
        from billing.models import Plan

        if not (customer := self._read("customer", user)):
            made = self._call(lambda api: api.customers.create({"metadata": {"adiuva_user": str(user)}}))
            if made is None:
                return AGAIN
            self._change("user_id", user, customer=made.id)
            customer = made.id
        price = Plan.objects.get(tier=tier).stripe_price_id
        params = {
            "mode": "subscription",
            "customer": customer,
            "client_reference_id": str(user),
            "line_items": [{"price": price, "quantity": seats}],
            "success_url": "http://localhost/",
            "metadata": {"tier": tier, "user": str(user)},
        }
        made = self._call(lambda api: api.checkout.sessions.create(params))
        return AGAIN if made is None else str(made.url)

    def deliver(self, event: dict[str, Any]) -> str:
        about, kind = event["data"]["object"], event["type"]
        if kind == "checkout.session.completed":
            user = about["client_reference_id"]
            self._change("user_id", user, tier=about["metadata"]["tier"], subscription=about["subscription"])
        elif kind.startswith("customer.subscription."):
            item = about["items"]["data"][0]
            is_over = kind.endswith("deleted")
            tier = "free" if is_over else item["price"]["metadata"]["adiuva_tier"]
            self._change("subscription", about["id"], tier=tier, status=about["status"],
                         quantity=item["quantity"], cancels=about["cancel_at_period_end"])  # fmt: skip
        elif kind == "invoice.paid":
            self._add(about["customer"], about["amount_paid"])
        return ""

    def _add(self, customer: str, cents: int) -> None:
        from django.db import connection

        with connection.cursor() as cursor:
            cursor.execute("UPDATE bench_first SET cents = cents + %s WHERE customer = %s", [cents, customer])

    def cancel(self, user: UUID) -> str:
        return self._set_cancel(user, cancel=True)

    def resume(self, user: UUID) -> str:
        return self._set_cancel(user, cancel=False)

    def _set_cancel(self, user: UUID, *, cancel: bool) -> str:
        subscription = self._read("subscription", user)
        if subscription:
            params = {"cancel_at_period_end": cancel}
            self._call(lambda api: api.subscriptions.update(subscription, params))
        return ""

    def work(self) -> str:
        return ""

    def catch_up(self) -> str:
        return ""


WAYS: Final[dict[str, type[Way]]] = {"product": Product, "first": FirstWay}
