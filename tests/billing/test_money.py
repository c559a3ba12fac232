"""Charges, refunds and disputes: what the ledger says of them to the cent, and what becomes of the plan."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import IntegrityError, InternalError, connections, transaction
from django.db.models.functions import Now
from django.utils.timezone import now

from billing.models import Customer, Dispute, LedgerEntry, LedgerLine, StripeJob, Subscription
from billing.payments import disputes, ledger, money_api, refunds
from tests.billing.payers import Payer, deliver, due_now, settle
from tests.fakes.stripe import Cut, Fail, Stripe
from tests.fakes.stripe.money import fail_refund, move

LONG_AGO = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)


def on_accounts(payer: Payer) -> dict[str, int]:
    """What the ledger has of this payer's Stripe, by account."""
    ledger.copy(LONG_AGO)
    mine = payer.stripe.do(lambda world: [row["id"] for row in world.of("balance_transaction")])
    found: dict[str, int] = {}
    for account, cents in LedgerLine.objects.filter(entry__in=mine).values_list("account", "cents"):
        found[account] = found.get(account, 0) + cents
    assert sum(found.values()) == 0
    assert found.get("stripe", 0) == money_api.balance().get("eur", 0)
    return {account: cents for account, cents in found.items() if cents}


def charge_of(payer: Payer) -> LedgerEntry:
    ledger.copy(LONG_AGO)
    customer = Customer.objects.get(user_id=payer.person.id).stripe_id
    return LedgerEntry.objects.filter(kind="charge", customer_id=customer).latest("happened_at")


def with_tax(world: Any) -> None:
    world.tax = True


def test_a_charge_and_its_refunds_are_on_the_books_to_the_cent(payer: Payer) -> None:
    payer.stripe.do(with_tax)
    payer.subscribe("pro")
    assert on_accounts(payer) == {"stripe": 1426, "fees": 74, "tax": -271, "sales": -1229}
    charge = charge_of(payer)
    assert charge.subscription_id == Subscription.objects.of(payer.person.id).get().stripe_id
    for cents in (333, 334):
        refunds.want(charge=charge, cents=cents)
        settle()
        on_accounts(payer)
    assert refunds.left_of(charge) == 833
    refunds.want(charge=charge)
    settle()
    assert on_accounts(payer) == {
        "stripe": -74,
        "fees": 74,
        "sales": -1229,
        "refunds": 1229,
    }  # no tax is left
    payer.tell()
    assert payer.tier == "pro"  # a refund alone ends nothing
    with pytest.raises(Exception, match="not so much left"):
        refunds.want(charge=charge, cents=1)


def test_a_refund_that_fails_puts_its_tax_back_and_a_second_one_takes_it_again(payer: Payer) -> None:
    payer.stripe.do(with_tax)
    payer.subscribe("pro")
    before, charge = on_accounts(payer), charge_of(payer)
    refunds.want(charge=charge)
    settle()
    assert "tax" not in on_accounts(payer)
    payer.stripe.do(lambda world: fail_refund(world, next(world.of("refund"))["id"]))
    assert on_accounts(payer) == before
    refunds.want(charge=charge)
    settle()
    assert on_accounts(payer) == {"stripe": -74, "fees": 74, "sales": -1229, "refunds": 1229}


def test_a_debit_that_fails_after_it_was_counted_takes_its_tax_back(payer: Payer) -> None:
    payer.stripe.do(with_tax)
    payer.subscribe("pro")
    charge = charge_of(payer).charge_id
    payer.stripe.do(lambda world: move(world, "payment_failure_refund", charge, -1500, "eur"))
    assert "tax" not in on_accounts(payer) and refunds.left_of(charge_of(payer)) == 0


def test_a_refund_may_end_the_plan_and_comes_also_after_its_end(payer: Payer) -> None:
    payer.subscribe("pro")
    refunds.want(charge=charge_of(payer), cents=500, ends=True)
    settle()
    payer.tell()
    assert payer.tier == "free"
    refunds.want(charge=charge_of(payer))
    settle()
    assert on_accounts(payer)["refunds"] == 1500


@pytest.mark.parametrize("fault", [Fail(500, done=True), Cut(), Cut(done=True)])
def test_whatever_breaks_a_refund_is_made_once(payer: Payer, fault: Any) -> None:
    payer.subscribe("pro")
    payer.stripe.fault("POST /v1/refunds", fault)
    refunds.want(charge=charge_of(payer), cents=700)
    for _ in range(3):
        settle()
        due_now(payer)
    assert on_accounts(payer)["refunds"] == 700
    (job,) = StripeJob.objects.filter(kind="refund", subject=charge_of(payer).charge_id)
    assert job.state == "done"


@pytest.mark.parametrize("won", [True, False])
def test_a_dispute_keeps_the_plan_until_it_is_decided(payer: Payer, won: bool) -> None:
    payer.subscribe("pro")
    dispute = payer.stripe.dispute(charge_of(payer).charge_id)["id"]
    told(payer)
    row = Dispute.objects.get(pk=dispute)
    assert (row.status, row.cents, row.is_closed, payer.tier) == ("needs_response", 1500, False, "pro")
    payer.stripe.decide(dispute, won=won)
    told(payer)
    row.refresh_from_db()
    assert (row.status, row.is_closed) == ("won" if won else "lost", True)
    assert payer.tier == ("pro" if won else "free")
    settle()
    payer.tell()
    (subscription,) = payer.stripe.do(lambda world: list(world.of("subscription")))
    assert subscription["status"] == ("active" if won else "canceled")  # nothing is charged again
    books = on_accounts(payer)
    assert books.get("disputes", 0) == (0 if won else 1500)
    assert books["fees"] == 74 + 1500


def test_staff_can_give_back_what_a_lost_dispute_took(payer: Payer) -> None:
    payer.subscribe("pro")
    dispute = payer.stripe.dispute(charge_of(payer).charge_id)["id"]
    payer.stripe.decide(dispute, won=False)
    told(payer, sends=False)
    assert payer.tier == "free"
    disputes.release(dispute=Dispute.objects.get(pk=dispute))
    assert payer.tier == "pro"
    assert StripeJob.objects.get(kind="end", user_id=payer.person.id).state == "dropped"


def told(payer: Payer, *, sends: bool = True) -> None:
    for event in payer.stripe.do(lambda world: list(world.of("event"))):
        assert deliver(payer.rest, event).status_code == 200
    # A worker of other tests may have taken the events, and asked for a copy from the Stripe that it has: none.
    disputes.want(payer.stripe.do(lambda world: [row["id"] for row in world.of("dispute")]))
    settle(sends=sends)


def test_the_database_refuses_lines_that_do_not_sum_to_zero_and_changes_of_the_past(payer: Payer) -> None:
    def entry(source: str) -> LedgerEntry:
        return LedgerEntry.objects.create(
            source=source, kind="charge", cents=1, currency="eur", happened_at=now()
        )

    name = f"txn_{payer.person.id}"
    with pytest.raises(IntegrityError, match="do not sum to zero"), transaction.atomic():
        LedgerLine.objects.create(entry=entry(name), account="stripe", cents=1, currency="eur")
    with transaction.atomic():
        kept = entry(name)
        for account, cents in (("stripe", 1), ("sales", -1)):
            LedgerLine.objects.create(entry=kept, account=account, cents=cents, currency="eur")
    for change in (
        lambda: LedgerLine.objects.filter(entry=kept).update(cents=2),
        lambda: LedgerLine.objects.filter(entry=kept).delete(),
        lambda: LedgerEntry.objects.filter(pk=name).update(kind="x"),
    ):
        with pytest.raises((IntegrityError, InternalError), match="only added to"), transaction.atomic():
            change()


def test_what_differs_from_stripe_is_seen(payer: Payer, stripe: Stripe) -> None:
    payer.subscribe("pro")
    ledger.copy(LONG_AGO)
    before = ledger.check().get("eur", 0)  # other tests have their own Stripe
    stripe.do(older_than_a_month)
    assert ledger.check()["eur"] == before - 5


def older_than_a_month(world: Any) -> None:
    """Money that came when nobody wrote it down."""
    move(world, "charge", "ch_unknown", 5, "eur")["created"] = 0


def test_staff_find_a_charge_refund_a_part_of_it_and_see_the_lines(payer: Payer) -> None:
    from django.contrib.admin.utils import quote
    from django.test import Client
    from django.urls import reverse

    from adiuva.accounts.models import User
    from tests.factories import somebody

    payer.subscribe("pro")
    charge = charge_of(payer)
    staff = Client()
    staff.force_login(User.objects.get(pk=somebody(is_staff=True, is_superuser=True).id))
    rows = reverse("admin:billing_ledgerentry_changelist")
    for term in (charge.charge_id, charge.customer_id, charge.subscription_id):
        assert charge.source in staff.get(rows, {"q": term}).content.decode()
    subscriptions = reverse("admin:billing_subscription_changelist")
    assert charge.subscription_id in staff.get(subscriptions, {"q": charge.charge_id}).content.decode()
    page = staff.get(
        reverse("admin:billing_ledgerentry_change", args=[quote(charge.source)])
    ).content.decode()
    assert "what Stripe took" in page
    chosen = {"action": "refund", "_selected_action": [charge.source]}
    staff.post(rows, {**chosen, "cents": "9999"})
    assert not StripeJob.objects.filter(kind="refund", subject=charge.charge_id).exists()
    staff.post(rows, {**chosen, "cents": "250"})
    settle()
    assert on_accounts(payer)["refunds"] == 250


def test_many_charges_take_one_list_of_what_they_paid(payer: Payer, stripe: Stripe) -> None:
    payer.subscribe("pro")
    for _ in range(4):
        stripe.advance(days=31)
    stripe.calls.clear()
    ledger.copy(LONG_AGO)
    assert stripe.count("/v1/invoice_payments") == 1
    entries = LedgerEntry.objects.filter(customer_id=charge_of(payer).customer_id, kind="charge")
    assert entries.count() == 5
    assert all(entry.invoice_id and entry.subscription_id for entry in entries)


def test_two_workers_fetch_a_dispute_once_and_one_that_is_not_there_is_forgotten(
    payer: Payer, stripe: Stripe
) -> None:
    payer.subscribe("pro")
    dispute = stripe.dispute(charge_of(payer).charge_id)["id"]
    disputes.want([dispute, "dp_nowhere"])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: closing(disputes.run), range(4)))
    assert [stripe.count(f"GET /v1/disputes/{each}") for each in (dispute, "dp_nowhere")] == [1, 1]
    assert list(Dispute.objects.filter(pk__in=[dispute, "dp_nowhere"]).values_list("pk", flat=True)) == [
        dispute
    ]


def test_a_dispute_that_cannot_be_fetched_is_tried_again_later(payer: Payer, stripe: Stripe) -> None:
    payer.subscribe("pro")
    dispute = stripe.dispute(charge_of(payer).charge_id)["id"]
    stripe.fault(f"GET /v1/disputes/{dispute}", Fail(500))
    disputes.want([dispute])
    disputes.run()
    row = Dispute.objects.filter(pk=dispute)
    assert (row.get().synced, row.get().attempts) == (0, 1)
    row.update(not_before=Now())
    disputes.run()
    assert row.get().synced == 1


def closing(act: Callable[[], int]) -> int:
    """Of a thread: its connection to the database is closed afterwards."""
    try:
        return act()
    finally:
        connections.close_all()
