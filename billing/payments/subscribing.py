"""A user's actions on their subscription: check out, change, cancel, resume, and see it."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django.db import transaction

from adiuva.accounts.keys import NoSuchUser
from adiuva.accounts.models import PlanName, User
from adiuva.core.errors import Conflict, Invalid, NotFound
from billing.models import Plan
from billing.payments import stripe_api, stripe_jobs, sync
from billing.payments.models import Customer, StripeJob, Subscription
from billing.payments.stripe_api import Refused, StripeAway

_MAX_SEATS: Final = 500


class AlreadyOnPlan(Conflict):
    code = "already_on_plan"


class AlreadyOver(Conflict):
    code = "already_over"


class NothingPaid(NotFound):
    def __init__(self) -> None:
        super().__init__("this account has no subscription")


def check_out(*, user_id: UUID, tier: str, seats: int = 1, site: str = "") -> str:
    """Return the address of the page on which the plan is paid, or on which the change of a paid plan is confirmed.

    `site` is the address at which the user reaches this server, and comes back to. A second call returns the same page.
    Raises Invalid, AlreadyOnPlan, StripeOff, StripeAway, Refused.
    """
    plan = Plan.objects.filter(tier=tier).first()
    if plan is None or tier == PlanName.FREE or not plan.price_cents:
        raise Invalid("tier: there is nothing to pay for.", fields={"tier": ["There is nothing to pay for."]})
    if not 1 <= seats <= (_MAX_SEATS if plan.per_seat else 1):
        raise Invalid(
            "seats: this plan has no such number.", fields={"seats": ["This plan has no such number."]}
        )
    if not stripe_api.is_on() or not plan.stripe_price_id:
        raise stripe_api.StripeOff
    price: str = plan.stripe_price_id
    site = site or settings.PUBLIC_URL
    live = _live(user_id)
    if live is not None and live.status == Subscription.Status.INCOMPLETE:
        sync.fetch_now(live.stripe_id)
        live = _live(user_id)
    if live is not None:
        return _change(live, tier, price, seats, site)
    customer_of(user_id)
    return _session(user_id, {"price": price, "seats": seats, "site": site})


def _live(user_id: UUID) -> Subscription | None:
    return Subscription.objects.of(user_id).live().filter(doubled=False).first()


def _change(live: Subscription, tier: str, price: str, seats: int, site: str) -> str:
    if live.tier == tier and live.quantity == seats and not live.cancel_at_period_end:
        if live.status == Subscription.Status.INCOMPLETE and live.payment_url:
            return live.payment_url  # of the first payment: until then it gives nothing
        raise AlreadyOnPlan("the account is on this plan already")
    assert live.customer is not None
    change = (live.stripe_id, stripe_api.item_of(live.stripe_id), price, seats)
    return stripe_api.portal(customer_id=live.customer.stripe_id, back=_account_page(site), change=change)


def customer_of(user_id: UUID) -> Customer:
    """Return the user's customer at Stripe, made with their first checkout."""
    mine = Customer.objects.filter(user_id=user_id)
    found = mine.first()
    if found is None:
        with transaction.atomic():
            lock(user_id)  # as the end of the job does: either there is a customer now, or the job is open
            wanted = (
                None if mine.exists() else stripe_jobs.want(StripeJob.Kind.CUSTOMER, str(user_id), user_id)
            )
        if wanted is not None:
            ready(wanted)
        found = mine.first()
    if found is None:
        raise StripeAway("customer_not_ready")
    return found


def _session(user_id: UUID, wish: dict[str, Any]) -> str:
    """Return the open session of this plan, or a new one. One of another plan is closed first: only one can be paid."""
    mine = StripeJob.objects.filter(kind=StripeJob.Kind.CHECKOUT, subject=str(user_id))
    for _ in range(3):
        former = mine.filter(state=StripeJob.State.DONE).order_by("-created_at").first()
        if former is not None and (url := _still_open(former, wish, user_id)):
            return url
        wanted = _wanted_session(user_id, former, wish)
        if wanted is None:
            continue
        done = ready(wanted)
        if wanted.detail == wish:
            return stripe_api.get_checkout(done.stripe_id).url
        # A session of another plan, left by a failure or made by a second click: it is open now, and is closed above.
    raise StripeAway("in_progress")


@transaction.atomic
def _wanted_session(user_id: UUID, former: StripeJob | None, wish: dict[str, Any]) -> StripeJob | None:
    """Return the open job for a session, or a new one; None if another click has opened a session after `former`.

    Locks the account, since a job may come and be done between any two looks. Looks for an open one first: it may be
    done by the second look, but not the other way round.
    """
    lock(user_id)
    mine = StripeJob.objects.filter(kind=StripeJob.Kind.CHECKOUT, subject=str(user_id))
    if (known := mine.filter(state__in=StripeJob.OPEN).first()) is not None:
        return known
    if mine.filter(state=StripeJob.State.DONE).order_by("-created_at").first() != former:
        return None
    return stripe_jobs.want(StripeJob.Kind.CHECKOUT, str(user_id), user_id, **wish)


def lock(user_id: UUID) -> None:
    """Lock the account until the end of the transaction. Raises NoSuchUser."""
    if not User.objects.select_for_update(no_key=True).filter(pk=user_id).exists():
        raise NoSuchUser("this account no longer exists")


def _still_open(former: StripeJob, wish: dict[str, Any], user_id: UUID) -> str:
    """Return the address of a former session if it is open and for the same; else close it. Raises AlreadyOnPlan."""
    session = stripe_api.get_checkout(former.stripe_id)
    if session.status == "open":
        if former.detail == wish:
            return session.url
        stripe_api.expire_checkout(session.stripe_id)
        session = stripe_api.get_checkout(former.stripe_id)  # it may have been paid between the two calls
    if session.status == "complete" and _is_paid_now(session.subscription_id, user_id):
        raise AlreadyOnPlan("this has just been paid")
    return ""


def _is_paid_now(subscription_id: str, user_id: UUID) -> bool:
    """Return whether a completed session gave a subscription that lives; its event may not have come yet."""
    if not subscription_id:
        return False
    sync.fetch_now(subscription_id)
    return _live(user_id) is not None


def is_paid(*, user_id: UUID, checkout: str) -> bool:
    """Return whether the user has the plan paid for in this checkout (a job's id). Asks Stripe if need be."""
    try:
        pk = UUID(checkout)
    except ValueError:
        return _is_given(user_id)
    mine = StripeJob.objects.filter(
        pk=pk, kind=StripeJob.Kind.CHECKOUT, user_id=user_id, state=StripeJob.State.DONE
    ).first()
    if mine is not None and not _is_given(user_id):
        try:
            session = stripe_api.get_checkout(mine.stripe_id)
            if session.status == "complete":
                _is_paid_now(session.subscription_id, user_id)
        except (StripeAway, Refused, stripe_api.StripeOff):
            return False
    return _is_given(user_id)


def _is_given(user_id: UUID) -> bool:
    live = _live(user_id)
    return live is not None and live.status != Subscription.Status.INCOMPLETE


def ready(job: StripeJob) -> StripeJob:
    """Carry out a job and return it. Raises StripeAway if another process has it, or if it has failed for now."""
    if job.state in StripeJob.OPEN:
        job = stripe_jobs.carry_out(job.pk)
    if job.state == StripeJob.State.FAILED:
        raise Refused(job.error)
    if job.state != StripeJob.State.DONE:
        raise StripeAway("in_progress")
    return job


def open_portal(*, user_id: UUID, site: str = "") -> str:
    """Return the address of Stripe's page for cards and invoices. Raises NothingPaid, StripeOff, StripeAway."""
    customer = Customer.objects.filter(user_id=user_id).first()
    if customer is None:
        raise NothingPaid
    return stripe_api.portal(customer_id=customer.stripe_id, back=_account_page(site or settings.PUBLIC_URL))


def cancel(*, user_id: UUID) -> bool:
    """End the subscription with its period, and take back a smaller plan that was to come.

    Returns False if Stripe does not know yet: the job is kept and tried again. Raises NothingPaid, InProgress, Refused.
    """
    return _toggle(user_id, StripeJob.Kind.CANCEL, StripeJob.Kind.RESUME)


def resume(*, user_id: UUID) -> bool:
    """Take a cancel back while the period lasts. Returns what `cancel` does, and raises AlreadyOver as well."""
    if _live(user_id) is None and Subscription.objects.of(user_id).exists():
        raise AlreadyOver("the subscription has ended; subscribe again")
    return _toggle(user_id, StripeJob.Kind.RESUME, StripeJob.Kind.CANCEL)


def _toggle(user_id: UUID, kind: str, opposite: str) -> bool:
    with transaction.atomic():
        lock(user_id)
        live = _live(user_id)
        if live is None:
            raise NothingPaid
        stripe_jobs.withdraw(opposite, live.stripe_id)
        wanted = stripe_jobs.want(kind, live.stripe_id, user_id)
    try:
        ready(wanted)
        sync.fetch_now(live.stripe_id)
    except StripeAway:
        return False
    return True


def pays(*, user_id: UUID) -> bool:
    """Return whether the user has a subscription that will be charged again."""
    live = _live(user_id)
    return live is not None and not live.cancel_at_period_end


def describe(user_id: UUID) -> dict[str, Any]:
    """Describe the live subscription, or the latest one: the fields that GET /billing/subscription adds."""
    row = _live(user_id) or Subscription.objects.of(user_id).order_by("-started_at").first()
    if row is None:
        return {"status": "none"}
    wishes = StripeJob.objects.filter(subject=row.stripe_id, state__in=StripeJob.OPEN).values_list(
        "kind", flat=True
    )
    return {
        "status": row.status,
        "seats": row.quantity,
        "period_end": row.period_end,
        "cancel_at_period_end": row.cancel_at_period_end,
        "cancelling": StripeJob.Kind.CANCEL in set(wishes),
        "pending_tier": row.pending_tier or None,
        "payment_failed_at": row.past_due_since,
        "payment_url": row.payment_url or None,
    }


def _account_page(site: str) -> str:
    return f"{site}/account/billing"
