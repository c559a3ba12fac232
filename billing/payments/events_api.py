"""Stripe's events: the subscribed types, and the fields that are kept."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from billing.payments import stripe_api

# Ids become parts of addresses, so anything else that an event names is never fetched.
_ID: Final = re.compile(r"[A-Za-z0-9_-]+")
# Events about money that moved, and about disputes.
MONEY_TYPES: Final = [
    "charge.succeeded",
    "charge.refunded",
    "refund.created",
    "refund.failed",
    "refund.updated",
]
DISPUTE_TYPES: Final = [
    "charge.dispute.closed",
    "charge.dispute.created",
    "charge.dispute.funds_reinstated",
    "charge.dispute.funds_withdrawn",
    "charge.dispute.updated",
]
# Events about plugins: a checkout that is paid once, and a developer's account.
PLUGIN_TYPES: Final = [
    "account.updated",
    "checkout.session.async_payment_succeeded",
    "checkout.session.completed",
]
# The types that a webhook at Stripe should send. Those about accounts come from an endpoint for connected accounts.
EVENT_TYPES: Final = [
    *MONEY_TYPES,
    *DISPUTE_TYPES,
    *PLUGIN_TYPES,
    "customer.subscription.created",
    "customer.subscription.deleted",
    "customer.subscription.paused",
    "customer.subscription.resumed",
    "customer.subscription.updated",
    "invoice.paid",
    "invoice.payment_action_required",
    "invoice.payment_failed",
]


@dataclass(frozen=True, slots=True)
class EventState:
    """An event. `error`: why it cannot be followed; objects without a valid id are then left out."""

    stripe_id: str
    type: str
    object_id: str
    subscription_id: str
    payment_intent: str
    api_version: str
    livemode: bool
    created: dt.datetime
    error: str


def events_since(since: dt.datetime) -> Iterator[EventState]:
    """Yield events of EVENT_TYPES, the latest first. Stripe keeps them for 30 days."""
    params: dict[str, Any] = {
        "limit": stripe_api.PAGE,
        "types": EVENT_TYPES,
        "created": {"gte": int(since.timestamp())},
    }
    while True:
        page = stripe_api.call(lambda api: api.events.list(dict(params)))
        for each in page.data:
            found = read_event(each.to_dict())
            if found is not None:
                yield found
        if not page.has_more:
            return
        params["starting_after"] = page.data[-1].id


def read_event(event: Any) -> EventState | None:
    """Return the fields kept of an event's JSON; None if it does not have the form of an event."""
    try:
        about = event["data"]["object"]
        subscription = about["id"] if about.get("object") == "subscription" else about.get("subscription")
        if about.get("object") == "invoice":
            parent = (about.get("parent") or {}).get("subscription_details") or {}
            subscription = parent.get("subscription")
        named = [_text(each or "") for each in (about.get("id"), subscription, about.get("payment_intent"))]
        ids = [each if _ID.fullmatch(each) else "" for each in named]
        return EventState(
            stripe_id=_ID.fullmatch(_text(event["id"]))[0],  # type: ignore[index]  # TypeError is caught
            type=_text(event["type"]),
            object_id=ids[0],
            subscription_id=ids[1],
            payment_intent=ids[2],
            api_version=_text(event.get("api_version") or ""),
            livemode=event["livemode"] is True,
            created=stripe_api.time_of(int(event["created"])),
            error="" if ids == named else "bad_id",
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, OSError):
        return None


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > 255 or "\0" in value:
        raise TypeError
    return value
