"""The number of seats that an owner pays for: changed at Stripe, by a row first, like all actions at Stripe."""

from __future__ import annotations

from uuid import UUID

from django.db import transaction

from adiuva.core.errors import AdiuvaError, Conflict
from billing.models import Plan
from billing.payments import stripe_jobs, sync
from billing.payments.models import StripeJob, Subscription
from billing.payments.stripe_api import Refused, StripeAway
from billing.payments.subscribing import NothingPaid, ready
from billing.teams import seats
from billing.teams.models import Team


class SeatsInUse(Conflict):
    """More seats are taken than that. `members` in the answer: how many."""

    code = "seats_in_use"


class SeatsChanging(Conflict):
    code = "seats_changing"


class CardRefused(AdiuvaError):
    code, status = "card_refused", 402

    def __init__(self) -> None:
        super().__init__("the card did not pay for the seats: look at your cards, then try again")


def change(*, owner_id: UUID, number: int) -> bool:
    """Pay for another number of seats. Returns False if Stripe does not know yet: the wish is kept and tried again.

    From now on, nobody can be invited to a seat that is to go. Raises NothingPaid, SeatsInUse, SeatsChanging,
    CardRefused, Refused.
    """
    with transaction.atomic():
        seats.lock(owner_id)
        tiers = Plan.objects.filter(per_seat=True).values_list("tier", flat=True)
        paid = Subscription.objects.of(owner_id).giving().filter(tier__in=list(tiers)).first()
        if paid is None:
            raise NothingPaid
        taken = seats.taken(Team.objects.filter(owner_id=owner_id).first())
        if number < taken:
            raise SeatsInUse("more seats are taken than that: remove members first", members=taken)
        wish = _wish(paid, number, owner_id)
        if wish is None:
            return True
    try:
        ready(wish)
        sync.fetch_now(paid.stripe_id)
    except Refused as error:
        if error.is_of_card:
            raise CardRefused from None
        raise
    except StripeAway:
        return False
    return True


def _wish(paid: Subscription, number: int, owner_id: UUID) -> StripeJob | None:
    """Return the job for Stripe; None if the number is right. One at a time: the later of two calls could
    come first.
    """
    subject = paid.stripe_id
    under_way = StripeJob.objects.filter(kind=StripeJob.Kind.SEATS, subject=subject, state__in=StripeJob.OPEN)
    if not under_way.exists() and paid.quantity == number and paid.wanted == paid.synced:
        return None
    if under_way.exclude(detail__seats=number).exists():
        try:
            stripe_jobs.withdraw(StripeJob.Kind.SEATS, subject)
        except stripe_jobs.InProgress:
            raise SeatsChanging(
                "the number of seats is being changed just now: try again in a minute"
            ) from None
    return stripe_jobs.want(
        StripeJob.Kind.SEATS, subject, owner_id, seats=number, grows=number > paid.quantity
    )
