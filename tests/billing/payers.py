"""Users who pay, and what Stripe sends about them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from django.db.models import Q
from django.db.models.functions import Now
from rest_framework.test import APIClient

from adiuva.accounts.models import User
from billing.payments import disputes, stripe_jobs, sync, webhooks
from billing.payments.copies import is_stale
from billing.payments.models import Dispute, Event, StripeJob, Subscription
from tests.factories import Person, somebody
from tests.fakes.stripe import Stripe, signed

SECRET = "whsec_of_the_tests"
BILLING = "/api/v1/billing"
PATIENCE_S = 30  # on a loaded machine


class Payer:
    """A user with a client of the API, and what they do at Stripe."""

    def __init__(self, stripe: Stripe) -> None:
        self.stripe = stripe
        self.person: Person = somebody()
        self.rest = APIClient()
        self.rest.credentials(HTTP_AUTHORIZATION=f"Bearer {self.person.access_token}")

    def check_out(self, tier: str = "pro", **body: Any) -> Any:
        return self.rest.post(f"{BILLING}/checkout", {"tier": tier, **body}, format="json")

    def pay(self, tier: str = "pro", **body: Any) -> str:
        """Check out and pay. Returns the session's id; our server was not told yet."""
        answer = self.check_out(tier, **body)
        assert answer.status_code == 200, answer.data
        session = answer.data["checkout_url"].rpartition("/")[2]
        self.stripe.pay(session)
        return session

    def subscribe(self, tier: str = "pro", **body: Any) -> str:
        """Pay, and let our server know. Returns the subscription's id at Stripe."""
        self.pay(tier, **body)
        self.tell()
        return Subscription.objects.of(self.person.id).get().stripe_id

    def tell(self, *, copies: int = 1) -> None:
        """Deliver all events of the fake, and do what a worker does."""
        for event in self.stripe.do(lambda world: list(world.of("event"))):
            for _ in range(copies):
                assert deliver(self.rest, event).status_code == 200
        settle()

    @property
    def tier(self) -> str:
        return User.objects.get(pk=self.person.id).tier

    def subscription(self) -> Any:
        return self.rest.get(f"{BILLING}/subscription").data

    def jobs(self, kind: str) -> list[StripeJob]:
        return list(StripeJob.objects.filter(kind=kind, user_id=self.person.id).order_by("created_at"))


def deliver(client: APIClient, event: dict[str, Any], secret: str = SECRET, at: int | None = None) -> Any:
    body = json.dumps(event).encode()
    signature = signed(body, secret, int(time.time()) if at is None else at)["Stripe-Signature"]
    return APIClient().generic(
        "POST", f"{BILLING}/webhook", body, content_type="application/json", HTTP_STRIPE_SIGNATURE=signature
    )


def settle(*, sends: bool = True) -> None:
    """What the worker does every ten seconds, until it is done. Without `sends`, what Stripe is to do waits."""

    def act() -> None:
        webhooks.process()
        if sends:
            stripe_jobs.sweep()
        sync.run()
        disputes.run()

    until(_is_settled, act)


def until(is_so: Callable[[], object], act: Callable[[], object]) -> None:
    """Do something until it has its effect: a worker of other tests may have locked a row, or taken a part of it."""
    give_up_at = time.monotonic() + PATIENCE_S
    while True:
        act()
        if is_so():
            return
        assert time.monotonic() < give_up_at, "this did not come about"
        time.sleep(0.05)


def _is_settled() -> bool:
    due = Q(is_stale(), not_before__lte=Now())
    copied = not Subscription.objects.filter(due).exists() and not Dispute.objects.filter(due).exists()
    return copied and not Event.objects.filter(state=Event.State.NEW).exists()


def due_now(payer: Payer) -> None:
    """Let what waits of a payer be due. It is also theirs if it is about what their Stripe has."""
    at_stripe = payer.stripe.do(lambda world: list(world.rows))
    mine = Q(user_id=payer.person.id) | Q(subject__in=at_stripe)
    StripeJob.objects.filter(mine, state__in=StripeJob.OPEN).update(not_before=Now())
    Subscription.objects.filter(stripe_id__in=at_stripe).update(not_before=Now())
