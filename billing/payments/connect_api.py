"""The calls to Stripe about plugins: connected accounts, checkouts that are paid once, transfers and reversals."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from django.conf import settings

from billing.payments import stripe_api

# States of a dispute in which the money may still come back to us.
_OPEN_DISPUTES: Final = frozenset(
    {"warning_needs_response", "warning_under_review", "needs_response", "under_review"}
)
# States of a payment whose money will not come.
_FAILED: Final = frozenset({"requires_payment_method", "canceled"})


# ── Connected accounts ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class AccountState:
    """The state of an account. `submitted`: whether its owner has answered Stripe's questions. `receives`: whether it
    takes transfers now.
    """

    stripe_id: str
    submitted: bool
    receives: bool
    country: str


def create_account(*, email: str, developer: str, row: str, key: str) -> str:
    """Create an account at Stripe for a developer. Stripe asks its owner who they are, and pays it out."""
    params = {
        "type": "express",
        "email": email,
        "capabilities": {"transfers": {"requested": True}},
        "metadata": {"adiuva_developer": developer, "adiuva_row": row, "env": stripe_api.environment()},
    }
    return str(stripe_api.call(lambda api: api.accounts.create(params, {"idempotency_key": key})).id)


def find_account(*, row: str, since: dt.datetime) -> str | None:
    """Return the account that a row made after `since`, and whose answer was lost."""
    return stripe_api.find_made(lambda api, params: api.accounts.list(params), since=since, row=row)


def get_account(stripe_id: str) -> AccountState:
    """Return an account's state. Raises Refused if there is none, or if it is no longer ours."""
    found = stripe_api.call(lambda api: api.accounts.retrieve(stripe_id)).to_dict()
    receives = (found.get("capabilities") or {}).get("transfers") == "active" and found["payouts_enabled"]
    return AccountState(
        stripe_id, bool(found["details_submitted"]), bool(receives), found.get("country") or ""
    )


def account_page(stripe_id: str, *, back: str, again: str) -> str:
    """Return the address of Stripe's page on which the owner says who they are. It works once, for some minutes.

    The owner returns to `back`; Stripe sends them to `again` if the address has expired.
    """
    params = {"account": stripe_id, "type": "account_onboarding", "return_url": back, "refresh_url": again}
    return str(stripe_api.call(lambda api: api.account_links.create(params)).url)


def earnings_page(stripe_id: str) -> str:
    """Return the address of Stripe's page on which the owner sees their payouts."""
    return str(stripe_api.call(lambda api: api.accounts.login_links.create(stripe_id)).url)


# ── Purchases ───────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class PurchaseState:
    """The state at Stripe of a checkout that is paid once, and of its charge.

    `status`: open, complete or expired; failed if it was completed by a debit, say, and the money did not come. Cents
    with tax; `lost_cents` went back through the buyer's bank for good.
    """

    status: str
    url: str
    is_paid: bool = False
    payment_intent: str = ""
    charge: str = ""
    paid_at: dt.datetime | None = None
    total_cents: int = 0
    tax_cents: int = 0
    currency: str = ""
    refunded_cents: int = 0
    lost_cents: int = 0
    is_disputed: bool = False


def create_purchase(
    *,
    purchase: str,
    name: str,
    cents: int,
    currency: str,
    customer_id: str,
    row: str,
    key: str,
    back: str,
    cancelled: str,
) -> str:
    """Create a page at Stripe on which a plugin is paid, once. Returns the session's id."""
    note_of_it = {"adiuva_purchase": purchase, "env": stripe_api.environment()}
    price = {"currency": currency, "unit_amount": cents, "product_data": {"name": name}}
    params: dict[str, Any] = {
        "mode": "payment",
        "customer": customer_id,
        "client_reference_id": purchase,
        "line_items": [{"quantity": 1, "price_data": price}],
        "payment_intent_data": {"metadata": note_of_it, "transfer_group": purchase},
        "success_url": back,
        "cancel_url": cancelled,
        "metadata": {"adiuva_row": row, **note_of_it},
    }
    if settings.STRIPE["automatic_tax"]:
        price["tax_behavior"] = "inclusive"
        params |= {
            "automatic_tax": {"enabled": True},
            "customer_update": {"name": "auto", "address": "auto"},
        }
    return str(stripe_api.call(lambda api: api.checkout.sessions.create(params, {"idempotency_key": key})).id)


def get_purchase(session_id: str) -> PurchaseState:
    """Return a session, its charge, and the charge's disputes: one call, or two if there is a dispute."""
    expand = {"expand": ["payment_intent.latest_charge"]}
    found = stripe_api.call(lambda api: api.checkout.sessions.retrieve(session_id, expand)).to_dict()
    intent = found.get("payment_intent")
    charge = intent.get("latest_charge") if isinstance(intent, dict) else None
    if not isinstance(charge, dict) or not charge["paid"]:
        is_failed = found["status"] == "complete" and isinstance(intent, dict) and intent["status"] in _FAILED
        return PurchaseState("failed" if is_failed else found["status"], found.get("url") or "")
    lost, is_disputed = _disputed(charge["id"]) if charge["disputed"] else (0, False)
    return PurchaseState(
        status=found["status"],
        url="",
        is_paid=True,
        payment_intent=intent["id"],
        charge=charge["id"],
        paid_at=stripe_api.time_of(charge["created"]),
        total_cents=charge["amount"],
        tax_cents=(found.get("total_details") or {}).get("amount_tax") or 0,
        currency=charge["currency"],
        refunded_cents=charge["amount_refunded"],
        lost_cents=lost,
        is_disputed=is_disputed,
    )


def _disputed(charge_id: str) -> tuple[int, bool]:
    """Return how much of a charge was lost, and whether something is undecided."""
    found = stripe_api.call(
        lambda api: api.disputes.list({"charge": charge_id, "limit": stripe_api.PAGE})
    ).data
    lost = sum(each.amount for each in found if each.status == "lost")
    return lost, any(each.status in _OPEN_DISPUTES for each in found)


@dataclass(frozen=True, slots=True)
class ChargeState:
    """The state of a charge in a list, which shows changes that we missed."""

    payment_intent: str
    refunded_cents: int
    is_disputed: bool


def charges_since(since: dt.datetime) -> Iterator[ChargeState]:
    """Yield all paid charges since a time, the latest first."""
    params: dict[str, Any] = {"limit": stripe_api.PAGE, "created": {"gte": int(since.timestamp())}}
    while True:
        page = stripe_api.call(lambda api: api.charges.list(dict(params)))
        for each in page.data:
            if each.paid and each.payment_intent:
                yield ChargeState(str(each.payment_intent), each.amount_refunded, each.disputed)
        if not page.has_more:
            return
        params["starting_after"] = page.data[-1].id


# ── Transfers ───────────────────────────────────────────────────────────────────────────────────────────


def transfer(*, account: str, cents: int, currency: str, charge: str, group: str, row: str, key: str) -> str:
    """Send a developer their part of a charge. It leaves when the charge's money is there. Returns its id."""
    params = {
        "amount": cents,
        "currency": currency,
        "destination": account,
        "source_transaction": charge,
        "transfer_group": group,
        "metadata": {"adiuva_row": row, "env": stripe_api.environment()},
    }
    return str(stripe_api.call(lambda api: api.transfers.create(params, {"idempotency_key": key})).id)


def find_transfer(*, group: str, row: str) -> str | None:
    for each in stripe_api.call(
        lambda api: api.transfers.list({"transfer_group": group, "limit": stripe_api.PAGE})
    ).data:
        if stripe_api.note(each, "adiuva_row") == row:
            return str(each.id)
    return None


def reverse(*, transfer_id: str, cents: int, row: str, key: str) -> str:
    """Take a part of a transfer back. Raises Refused with `balance_insufficient` if the account lacks the money."""
    params = {"amount": cents, "metadata": {"adiuva_row": row, "env": stripe_api.environment()}}
    made = stripe_api.call(
        lambda api: api.transfers.reversals.create(transfer_id, params, {"idempotency_key": key})
    )
    return str(made.id)


def find_reversal(*, transfer_id: str, row: str) -> str | None:
    params = {"limit": stripe_api.PAGE}
    for each in stripe_api.call(lambda api: api.transfers.reversals.list(transfer_id, params)).data:
        if stripe_api.note(each, "adiuva_row") == row:
            return str(each.id)
    return None


def sent(account: str) -> int:
    """Return the cents that went to an account in all, less those that were taken back."""
    params: dict[str, Any] = {"destination": account, "limit": stripe_api.PAGE}
    cents: int = 0
    while True:
        page = stripe_api.call(lambda api: api.transfers.list(dict(params)))
        cents += int(sum(each.amount - each.amount_reversed for each in page.data))
        if not page.has_more:
            return cents
        params["starting_after"] = page.data[-1].id
