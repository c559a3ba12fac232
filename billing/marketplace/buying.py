"""Buying a plugin: a page at Stripe on which it is paid once, and refunds."""

from __future__ import annotations

import datetime as dt
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from adiuva.core.errors import AdiuvaError, Conflict, Invalid
from billing import entitlements
from billing.marketplace import purchase_sync
from billing.marketplace.models import Developer, Plugin
from billing.marketplace.money_models import PluginPurchase
from billing.payments import connect_api, stripe_api, stripe_jobs, subscribing
from billing.payments.models import StripeJob
from billing.payments.stripe_api import StripeAway
from billing.payments.stripe_jobs import NotPossible

State = PluginPurchase.State
# When a plugin is revoked, sales of this last period are refunded.
REVOKED_REFUNDS: Final = dt.timedelta(days=30)


class PaymentRequired(AdiuvaError):
    """The answer has the page on which to pay the plugin, and its price."""

    code, status = "payment_required", 402

    def __init__(self, *, checkout_url: str, price_cents: int, currency: str) -> None:
        super().__init__(
            "this plugin has to be bought first",
            checkout_url=checkout_url,
            price_cents=price_cents,
            currency=currency,
        )


class AlreadyBought(Conflict):
    code = "already_bought"

    def __init__(self) -> None:
        super().__init__("you have bought this plugin already")


class PayoutsNotReady(Conflict):
    code = "payouts_not_ready"

    def __init__(self) -> None:
        super().__init__("this plugin cannot be bought now: its developer cannot be paid")


def may_have(user_id: UUID, plugin: Plugin) -> bool:
    """Return whether money does not keep a user from installing a plugin: it is free, theirs, or bought."""
    return (
        not plugin.price_cents
        or plugin.developer.user_id == user_id
        or PluginPurchase.objects.of(user_id).owning().filter(plugin=plugin).exists()
    )


def check_out(*, user_id: UUID, plugin: Plugin, site: str = "") -> str:
    """Return the address of the page on which a listed plugin is paid. A second call returns the same page.

    Raises AlreadyBought, PayoutsNotReady, NotInPlan, Invalid, StripeOff, StripeAway, Refused.
    """
    entitlements.require(user_id, "plugins")
    if not plugin.price_cents:
        raise Invalid("this plugin costs nothing")
    if not stripe_api.is_on():
        raise stripe_api.StripeOff
    if not can_be_paid(plugin.developer):
        raise PayoutsNotReady
    if may_have(user_id, plugin):
        raise AlreadyBought
    site = site or settings.PUBLIC_URL
    customer = subscribing.customer_of(user_id).stripe_id
    wish = {"cents": plugin.price_cents, "currency": plugin.currency, "customer": customer, "site": site}
    for _ in range(3):
        sale = _sale(user_id, plugin)
        if sale.session and (url := _still_open(sale, wish)):
            return url
        job = _wanted(user_id, sale, wish)
        if job is None:
            continue
        ready = subscribing.ready(job)
        if job.detail == wish:
            return connect_api.get_purchase(ready.stripe_id).url
        # A session of another price, left by a failure or made by a second click: it is open now, and is closed above.
    raise StripeAway("in_progress")


def can_be_paid(developer: Developer) -> bool:
    """Return whether a developer's plugins are sold: they have an account, and Stripe has not restricted it.

    A developer who has not answered Stripe's questions yet may sell already: the shares wait.
    """
    return developer.stripe_account is not None and (developer.payouts_enabled or not developer.account_told)


@transaction.atomic
def _sale(user_id: UUID, plugin: Plugin) -> PluginPurchase:
    """Return the user's purchase that is not paid yet, made if there is none. Raises AlreadyBought."""
    subscribing.lock(user_id)
    mine = PluginPurchase.objects.of(user_id).filter(plugin=plugin)
    if mine.owning().exists():
        raise AlreadyBought
    found = mine.filter(state=State.OPEN).first()
    if found is None:
        found = PluginPurchase.objects.create(
            user_id=user_id,
            plugin=plugin,
            developer_id=plugin.developer_id,
            total_cents=plugin.price_cents,
            currency=plugin.currency,
        )
    return found


def _last(sale: PluginPurchase) -> StripeJob | None:
    opened = StripeJob.objects.filter(
        kind=StripeJob.Kind.PURCHASE, subject=str(sale.pk), state=StripeJob.State.DONE
    )
    return opened.order_by("-created_at").first()


def _still_open(sale: PluginPurchase, wish: dict[str, Any]) -> str:
    """Return the address of the session if it is open and for the same; otherwise close it. Raises AlreadyBought."""
    session = sale.session or ""
    state = connect_api.get_purchase(session)
    if state.status == "open":
        former = _last(sale)
        if former is not None and former.stripe_id == session and former.detail == wish:
            return state.url
        stripe_api.expire_checkout(session)
        state = connect_api.get_purchase(session)  # it may have been paid between the two calls
    if state.status == "complete":
        purchase_sync.fetch_now(sale.pk)
        # It is ours, or the money is on its way, as with a transfer from a bank.
        raise AlreadyBought
    return ""


@transaction.atomic
def _wanted(user_id: UUID, sale: PluginPurchase, wish: dict[str, Any]) -> StripeJob | None:
    """Return the job of a session, or None if another click has opened one meanwhile."""
    subscribing.lock(user_id)
    row = PluginPurchase.objects.select_for_update(no_key=True).get(pk=sale.pk)
    if row.session != sale.session or row.state != State.OPEN:
        return None
    # The plugin's owner may have changed since the first click.
    owner = Plugin.objects.values_list("developer_id", flat=True).get(pk=row.plugin_id)
    row.developer_id, row.total_cents, row.currency = owner, wish["cents"], wish["currency"]
    row.save(update_fields=["developer", "total_cents", "currency"])
    return stripe_jobs.want(StripeJob.Kind.PURCHASE, str(sale.pk), user_id, **wish)


def _send(job: StripeJob) -> str:
    sale = PluginPurchase.objects.select_related("plugin").filter(pk=job.subject).first()
    if sale is None or sale.user_id is None or sale.state != State.OPEN:
        raise NotPossible
    page = f"{job.detail['site']}/plugins/{sale.plugin.slug}"
    return connect_api.create_purchase(
        purchase=str(sale.pk),
        name=sale.plugin.name,
        cents=job.detail["cents"],
        currency=job.detail["currency"],
        customer_id=job.detail["customer"],
        row=str(job.pk),
        key=job.key,
        back=f"{page}?bought={sale.pk}",
        cancelled=page,
    )


def _look(job: StripeJob) -> str | None:
    found = stripe_api.find_checkout(customer_id=job.detail["customer"], row=str(job.pk))
    return found.stripe_id if found else None


def _done(job: StripeJob) -> None:
    PluginPurchase.objects.filter(pk=job.subject, state=State.OPEN).update(session=job.stripe_id)


stripe_jobs.register(StripeJob.Kind.PURCHASE, stripe_jobs.Kind(_send, _look, _done))


def is_bought(*, user_id: UUID, purchase_id: UUID) -> bool:
    """Return whether a user has the purchase that they return from paying. Asks Stripe if that is not known yet."""
    mine = PluginPurchase.objects.of(user_id).filter(pk=purchase_id)
    if mine.filter(state=State.OPEN).exclude(session=None).exists():
        try:
            purchase_sync.fetch_now(purchase_id)
        except AdiuvaError:
            return False
    return mine.owning().exists()


# ── Refunds ─────────────────────────────────────────────────────────────────────────────────────────────


@transaction.atomic
def refund(*, purchase: PluginPurchase, cents: int | None = None) -> StripeJob:
    """Have a purchase refunded, by default all that is left of it. The developer's part is then taken back as well.

    Raises Invalid, and Conflict while it is disputed or another refund is on its way.
    """
    row = PluginPurchase.objects.select_for_update(no_key=True).get(pk=purchase.pk)
    left = row.total_cents - row.gone_cents
    wanted = left if cents is None else cents
    if not row.charge or not 0 < wanted <= left:
        raise Invalid("there is not so much left to refund")
    if row.state == State.DISPUTED:
        raise Conflict("the payment is disputed: the buyer's bank decides about it")
    if (
        StripeJob.objects.filter(
            kind=StripeJob.Kind.REFUND, subject=row.charge, state__in=StripeJob.OPEN
        ).exists()
        or row.wanted != row.synced
    ):
        raise Conflict("a refund of this charge is on its way")
    return stripe_jobs.want(StripeJob.Kind.REFUND, row.charge, None, cents=wanted)


def refund_recent(*, plugin: Plugin) -> tuple[int, int]:
    """Refund the sales of a plugin in the last 30 days, as when it was revoked.

    Returns how many, and how many could not be refunded yet: they are disputed, or Stripe is working on them.
    """
    recent = plugin.purchases.filter(state__in=(State.PAID, State.DISPUTED))
    done = left = 0
    for sale in recent.filter(paid_at__gte=timezone.now() - REVOKED_REFUNDS):
        try:
            refund(purchase=sale)
            done += 1
        except (Conflict, Invalid):
            left += 1
    return done, left


def _refunded(charge_id: str) -> None:
    purchase_sync.want(Q(charge=charge_id))


stripe_jobs.after_refunds(_refunded)
