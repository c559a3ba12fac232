"""Stripe's webhook events: verified, stored once as ids only, and turned into requests to copy the objects anew.

An event is a hint. `catch_up` finds an event that never came within a quarter of an hour, and `compare` finds a
subscription that no event names within a day.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
from collections.abc import Collection, Iterable
from typing import Final

import orjson
import structlog
from django.conf import settings
from django.core.cache import cache
from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from adiuva.core.enqueue import enqueue_on_commit
from adiuva.core.errors import AdiuvaError
from adiuva.core.pruning import delete_in_batches
from billing.marketplace import connected_accounts, purchase_sync
from billing.models import Plan
from billing.payments import disputes, events_api, stripe_api, sync
from billing.payments.events_api import EventState
from billing.payments.models import Event, Subscription
from billing.payments.stripe_api import StripeAway, StripeOff

MAX_BODY_BYTES: Final = 1_048_576
_TOLERANCE_S: Final = 300
# Events of the last hour are listed again, since some are listed late.
_OVERLAP: Final = dt.timedelta(hours=1)
_KEPT_BY_STRIPE: Final = dt.timedelta(days=30)
_KEPT: Final = dt.timedelta(days=90)
_BATCH: Final = 500
_LISTED_AT: Final = "billing.events_listed_at"
_WITHOUT_SUBSCRIPTION: Final = frozenset(
    [*events_api.MONEY_TYPES, *events_api.DISPUTE_TYPES, *events_api.PLUGIN_TYPES]
)

log = structlog.get_logger(__name__)


class BadSignature(AdiuvaError):
    code, status = "bad_signature", 400

    def __init__(self) -> None:
        super().__init__("this is not signed by the payment service, or too long ago")


def receive(body: bytes, signature: str) -> None:
    """Store an event: one INSERT, and no call to Stripe. Raises BadSignature, and StripeOff without a secret."""
    secrets = settings.STRIPE["webhook_secrets"]
    if not secrets:
        raise StripeOff
    if not _is_signed(body, signature, secrets):
        raise BadSignature
    try:
        event = events_api.read_event(orjson.loads(body))
    except orjson.JSONDecodeError:
        event = None
    if event is None:  # it is Stripe's own and yet not readable: refused, so that staff see it at Stripe
        log.error("stripe.event_unreadable")
        raise BadSignature
    _store([event])


def _is_signed(body: bytes, signature: str, secrets: Iterable[str]) -> bool:
    """Return whether a `Stripe-Signature` header signs the body, and its time is less than 300 s off."""
    pieces = [piece.strip().partition("=") for piece in signature[:4096].split(",")]
    times = [value for name, _, value in pieces if name == "t"]
    given = [value for name, _, value in pieces if name == "v1"]
    if len(times) != 1 or not (times[0].isascii() and times[0].isdecimal()) or len(times[0]) > 12:
        return False
    if abs(timezone.now().timestamp() - int(times[0])) > _TOLERANCE_S:
        return False
    signed = times[0].encode() + b"." + body
    right = [hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest().encode() for secret in secrets]
    return any(hmac.compare_digest(each, value.encode()) for each in right for value in given)


def _store(events: Iterable[EventState]) -> None:
    rows = [
        Event(
            stripe_id=event.stripe_id,
            type=event.type[:100],
            object_id=event.object_id,
            subscription_id=event.subscription_id,
            payment_intent=event.payment_intent,
            api_version=event.api_version[:40],
            livemode=event.livemode,
            created=event.created,
            state=_state_of(event),
            error=event.error,
        )
        for event in events
    ]
    for row in rows:
        if row.state == Event.State.REFUSED:
            log.error("stripe.event_refused", event_id=row.stripe_id, reason=row.error)
    with transaction.atomic():
        Event.objects.bulk_create(rows, ignore_conflicts=True)
        enqueue_on_commit("billing.sync")


def _state_of(event: EventState) -> Event.State:
    if event.error:
        return Event.State.REFUSED
    return Event.State.NEW if _concerns_us(event) else Event.State.IGNORED


def _concerns_us(event: EventState) -> bool:
    is_live = settings.STRIPE["secret_key"].startswith(("sk_live_", "rk_live_"))
    about = event.subscription_id or event.type in _WITHOUT_SUBSCRIPTION
    return event.type in events_api.EVENT_TYPES and bool(about) and event.livemode is is_live


def process() -> int:
    """Turn new events into requests for new copies, one for each subscription. Returns how many events there were."""
    done = 0
    while True:
        with transaction.atomic():
            new = Event.objects.filter(state=Event.State.NEW).order_by("received_at")
            batch = list(new.select_for_update(skip_locked=True)[:_BATCH])
            if not batch:
                return done
            # In the order of locks (docs/architecture/billing.md).
            disputes.want([event.object_id for event in batch if event.type in events_api.DISPUTE_TYPES])
            sync.want([event.subscription_id for event in batch if event.subscription_id])
            _want_of_plugins(batch)
            if any(event.type in _WITHOUT_SUBSCRIPTION for event in batch):
                enqueue_on_commit("billing.copy_ledger")
            Event.objects.filter(pk__in=[event.pk for event in batch]).update(state=Event.State.DONE)
        done += len(batch)


def _want_of_plugins(events: Collection[Event]) -> None:
    connected_accounts.want(Q(stripe_account__in=[event.object_id for event in events]))
    purchase_sync.want_told(
        payment_intents={event.payment_intent for event in events if event.payment_intent},
        sessions={event.object_id for event in events if event.type in events_api.PLUGIN_TYPES},
    )


def catch_up() -> int:
    """Store events that did not come. Returns how many there are since the last call.

    If the time of that is forgotten, list all events that Stripe keeps.
    """
    if not stripe_api.is_on():
        return 0
    began = timezone.now()
    listed_at = cache.get(_LISTED_AT)
    since = dt.datetime.fromisoformat(listed_at) - _OVERLAP if listed_at else began - _KEPT_BY_STRIPE
    try:
        found = list(events_api.events_since(max(since, began - _KEPT_BY_STRIPE)))
    except StripeAway as error:
        log.warning("stripe.events_not_listed", reason=error.reason)
        return 0
    _store(found)
    cache.set(_LISTED_AT, began.isoformat(), timeout=None)
    process()
    return len(found)


def compare() -> int:
    """Request a copy of each subscription at Stripe that differs from ours. Returns how many do; 0 is right."""
    if not stripe_api.is_on():
        return 0
    known = {row.stripe_id: row for row in Subscription.objects.filter(status__in=_MAY_DIFFER)}
    prices = dict(Plan.objects.exclude(stripe_price_id=None).values_list("stripe_price_id", "tier"))
    different = []
    try:
        for state in stripe_api.subscriptions(status="all"):
            row = known.pop(state.stripe_id, None)
            if row is None:
                is_new = state.status in Subscription.LIVE and state.environment == stripe_api.environment()
                if is_new:
                    different.append(state.stripe_id)
            elif (
                row.status != state.status
                or row.tier != prices.get(state.price_id, state.tier)
                or row.quantity != state.quantity
                or row.cancel_at_period_end is not state.cancel_at_period_end
                or row.period_end != state.period_end
            ):
                different.append(state.stripe_id)
    except StripeAway as error:
        log.warning("stripe.subscriptions_not_listed", reason=error.reason)
        return 0
    different += known  # not listed at all: a fetch will tell
    if different:
        log.warning("subscription.differs", count=len(different))
        sync.want(different)
    return len(different)


_MAY_DIFFER: Final = [
    status
    for status in Subscription.Status.values
    if status not in (Subscription.Status.CANCELED, Subscription.Status.INCOMPLETE_EXPIRED)
]


def forget_old() -> int:
    """Delete events that Stripe has forgotten as well."""
    old = Event.objects.filter(received_at__lt=timezone.now() - _KEPT).exclude(state=Event.State.NEW)
    return delete_in_batches(old.order_by("received_at"))
