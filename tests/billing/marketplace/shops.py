"""A developer who sells a plugin, and buyers of it, at a Stripe of the test's own."""

from __future__ import annotations

import datetime as dt
from typing import Any

from django.db.models import Q, QuerySet, Sum
from django.utils.timezone import now
from rest_framework.test import APIClient

from adiuva.accounts.models import User
from adiuva.core.errors import Conflict
from billing.marketplace import buying, connected_accounts, payouts, purchase_sync
from billing.models import (
    Developer,
    DeveloperPayment,
    Event,
    LedgerLine,
    PluginPurchase,
    StripeJob,
)
from billing.payments import disputes, ledger, shares, stripe_jobs, webhooks
from billing.payments.copies import is_stale
from tests.billing.marketplace.factories import a_developer, a_listed_plugin
from tests.billing.payers import Payer, deliver, until
from tests.factories import somebody
from tests.fakes.stripe import Stripe

LONG_AGO = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
PLUGINS = "/api/v1/plugins"


class Buyer(Payer):
    """A user on a plan with plugins."""

    def __init__(self, stripe: Stripe) -> None:
        super().__init__(stripe)
        User.objects.filter(pk=self.person.id).update(tier="power")


class Shop:
    """A developer with an account at Stripe that takes transfers, and a listed plugin."""

    def __init__(self, stripe: Stripe, *, price_cents: int = 1000) -> None:
        self.stripe = stripe
        self.person = somebody(tier="power")
        self.developer = a_developer(self.person.id)
        connected_accounts.page_of(developer=self.developer)
        self.developer.refresh_from_db()
        self.account = str(self.developer.stripe_account)
        stripe.onboard(self.account)
        connected_accounts.refresh(self.developer.pk)
        self.plugin = a_listed_plugin(self.developer, price_cents=price_cents)

    def checkout(self, buyer: Buyer) -> str:
        """The id of the session on which the plugin is paid."""
        answer = buyer.rest.post(f"{PLUGINS}/{self.plugin.pk}/install")
        assert answer.status_code == 402, answer.data
        return str(answer.data["checkout_url"].rpartition("/")[2])

    def sell(self, buyer: Buyer | None = None) -> PluginPurchase:
        """Have it bought and paid, and let our server know."""
        session = self.checkout(buyer or Buyer(self.stripe))
        self.stripe.pay(session)
        self.tell()
        return PluginPurchase.objects.get(session=session)

    def tell(self) -> None:
        """Deliver the events of the fake that were not delivered yet, and do what a worker does."""
        for event in self.stripe.do(_new_events):
            assert deliver(APIClient(), event).status_code == 200
        work(self.developer)

    def refund(self, sale: PluginPurchase, cents: int | None = None) -> None:
        """Have it refunded, once a worker of other tests no longer looks at an event of the sale."""
        wanted: list[StripeJob] = []

        def want() -> None:
            try:
                wanted.append(buying.refund(purchase=sale, cents=cents))
            except Conflict:
                work(self.developer)

        until(lambda: wanted, want)

    def over(self) -> None:
        """Let the hold of all sales be over, and do what is due."""
        self.developer.sales.filter(transfer_after__gt=now()).update(transfer_after=now())
        work(self.developer)

    def at_stripe(self) -> int:
        """What went to the developer, less what came back, as Stripe has it."""
        return self.stripe.do(
            lambda world: sum(
                row["amount"] - row["amount_reversed"]
                for row in world.of("transfer", destination=self.account)
            )
        )

    def on_accounts(self) -> dict[str, int]:
        """What the ledger has of this Stripe, by account; it sums to zero."""
        ledger.copy(LONG_AGO)
        mine = self.stripe.do(lambda world: [row["id"] for row in world.of("balance_transaction")])
        rows = LedgerLine.objects.filter(entry__in=mine).values_list("account").annotate(sum=Sum("cents"))
        found = dict(rows)
        assert sum(found.values()) == 0
        return {account: cents for account, cents in found.items() if cents}


def _new_events(world: Any) -> list[Any]:
    """The latest first, which is not the order in which they happened."""
    found = [event for event in world.of("event") if not event.get("_told")]
    for event in found:
        event["_told"] = True
    return [{name: value for name, value in event.items() if name != "_told"} for event in found]


def work(developer: Developer) -> None:
    """What workers do every ten seconds. A worker of other tests may do a part of it, or have locked a row just now."""

    def act() -> None:
        webhooks.process()
        # A worker of other tests may have taken the events, and does not know this test's Stripe.
        purchase_sync.want(Q(developer=developer))
        _intents_of(developer).update(not_before=now())
        stripe_jobs.sweep()
        purchase_sync.run()
        connected_accounts.run()
        disputes.run()
        payouts.settle(developer.pk)
        stripe_jobs.sweep()

    until(lambda: _is_done(developer), act)


def _intents_of(developer: Developer) -> QuerySet[StripeJob]:
    """Those that Stripe has not carried out yet."""
    sales = developer.sales.values_list("pk", "charge", "user_id")
    subjects = {str(each) for row in sales for each in row}
    subjects |= {str(pk) for pk in developer.payments.values_list("pk", flat=True)} | {str(developer.pk)}
    return StripeJob.objects.filter(subject__in=subjects, state__in=StripeJob.OPEN)


def _is_done(developer: Developer) -> bool:
    accounts = Developer.objects.filter(pk=developer.pk).exclude(stripe_account=None)
    sales = developer.sales.exclude(session=None)
    return not (
        any(rows.filter(is_stale()).exists() for rows in (accounts, sales))
        or Event.objects.filter(state=Event.State.NEW).exists()
        or _intents_of(developer).exists()
    )


def is_exact(developer: Developer) -> None:
    """Each sale has what it should have, and so has the developer."""
    for sale in developer.sales.exclude(state="open"):
        gone = sale.refunded_cents + sale.lost_cents
        assert sale.due_cents == shares.due_of(total=sale.total_cents, tax=sale.tax_cents, gone=gone)
        counted = sale.payments.filter(state__in=["open", "done"])
        settled = sum(DeveloperPayment.SIGNS[each.kind] * each.cents for each in counted)  # type: ignore[index]
        assert sale.settled_cents == settled


def due(developer: Developer) -> int:
    return int(developer.sales.aggregate(sum=Sum("due_cents"))["sum"] or 0)


def payments_of(sale: PluginPurchase) -> list[tuple[str, int, str]]:
    rows: Any = sale.payments.order_by("created_at").values_list("kind", "cents", "state")
    return list(rows)
