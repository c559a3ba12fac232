"""Paid plugins at a Stripe that misbehaves on order: who has them, and who has the money, to the cent."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from django.conf import settings
from django.db import connection
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now
from structlog.testing import capture_logs

from adiuva.accounts.models import User
from billing.marketplace import buying, connected_accounts, payouts, purchase_sync
from billing.models import Developer, PluginPurchase, StripeJob
from billing.payments import stripe_jobs
from billing.payments.stripe_api import StripeAway
from tests.billing.marketplace.factories import a_developer
from tests.billing.marketplace.shops import PLUGINS, Buyer, Shop, due, is_exact, payments_of, work
from tests.billing.payers import until
from tests.factories import somebody
from tests.fakes.stripe import LATER, Cut, Fail, Stripe
from tests.fakes.stripe.checkout import complete, fail_later
from tests.fakes.stripe.money import fail_refund


@pytest.fixture
def shop(stripe: Stripe) -> Shop:
    return Shop(stripe)


def test_a_plugin_is_bought_then_installed_and_shared_70_to_30_after_tax_and_hold(shop: Shop) -> None:
    def with_tax(world: Any) -> None:
        world.tax = True

    shop.stripe.do(with_tax)
    buyer = Buyer(shop.stripe)
    url = f"{PLUGINS}/{shop.plugin.pk}/install"
    first = buyer.rest.post(url)
    assert (first.status_code, first.data["code"]) == (402, "payment_required")
    assert (first.data["price_cents"], first.data["currency"]) == (1000, "eur")
    assert buyer.rest.post(url).data["checkout_url"] == first.data["checkout_url"]  # a double click
    shop.stripe.pay(first.data["checkout_url"].rpartition("/")[2])
    answer = buyer.rest.post(url)  # our server learns of it by this very call
    assert answer.status_code == 200 and answer.data["ok"] is True, answer.data
    sale = PluginPurchase.objects.get(user_id=buyer.person.id)
    assert (sale.state, sale.total_cents, sale.tax_cents, sale.due_cents) == ("paid", 1000, 181, 573)
    shop.tell()
    assert shop.at_stripe() == 0 and payments_of(sale) == []  # it is on hold
    books = shop.on_accounts()
    assert books == {"stripe": 941, "fees": 59, "tax": -181, "shares": -573, "sales": -246}
    shop.over()
    assert payments_of(sale) == [("transfer", 573, "done")] and shop.at_stripe() == 573
    assert shop.on_accounts() == {**books, "stripe": 941 - 573, "transfers": 573}
    assert payouts.check() == [] or shop.developer.pk not in payouts.check()
    is_exact(shop.developer)


def test_what_is_refunded_within_the_hold_is_never_sent(shop: Shop) -> None:
    sale = shop.sell()
    shop.refund(sale, 400)
    shop.tell()
    shop.over()
    assert payments_of(sale) == [("transfer", 420, "done")]
    other = shop.sell()
    shop.refund(other)
    shop.tell()
    shop.over()
    other.refresh_from_db()
    assert other.state == "refunded" and payments_of(other) == []
    assert shop.at_stripe() == due(shop.developer) == 420


def test_partial_refunds_after_the_payout_are_taken_back_to_the_cent(shop: Shop) -> None:
    sale = shop.sell()
    shop.over()
    assert shop.at_stripe() == 700
    for cents in (333, 333, 334):
        buying.refund(purchase=sale, cents=cents)
        shop.tell()
        assert shop.at_stripe() == due(shop.developer)
    sale.refresh_from_db()
    assert sale.state == "refunded" and shop.at_stripe() == 0
    assert [cents for kind, cents, _ in payments_of(sale) if kind == "reversal"] == [233, 233, 234]
    books = shop.on_accounts()
    assert books.get("shares", 0) + books.get("transfers", 0) == 0


def test_what_an_account_has_no_longer_is_a_debt_that_the_next_sales_repay(shop: Shop) -> None:
    sale = shop.sell()
    shop.over()
    shop.stripe.pay_out(shop.account)
    shop.refund(sale)
    shop.tell()
    sale.refresh_from_db()
    assert sale.debt_since is not None and (sale.settled_cents, sale.due_cents) == (700, 0)
    assert payments_of(sale) == [("transfer", 700, "done"), ("reversal", 700, "failed")]
    buyer_has_it_back = shop.stripe.do(lambda world: world.get("charge", sale.charge)["amount_refunded"])
    assert buyer_has_it_back == 1000
    second = shop.sell()
    shop.over()
    sale.refresh_from_db()
    assert payments_of(second) == [("kept", 700, "done")] and sale.debt_since is None
    assert shop.at_stripe() == due(shop.developer) == 700
    third = shop.sell()
    shop.over()
    assert payments_of(third) == [("transfer", 700, "done")]
    is_exact(shop.developer)


def test_what_was_paid_back_is_told_and_handed_out_no_more(shop: Shop) -> None:
    buyer = Buyer(shop.stripe)
    sale = shop.sell(buyer)
    url = f"{PLUGINS}/{shop.plugin.pk}/install"
    download = buyer.rest.post(url).data["download_url"]

    def refunded() -> list[bool]:
        return [each["refunded"] for each in buyer.rest.get(f"{PLUGINS}/installed").data]

    shop.refund(sale, 400)
    shop.tell()
    assert refunded() == [False] and buyer.rest.get(f"{PLUGINS}/updates").data == []
    shop.refund(sale)
    shop.tell()
    assert refunded() == [True]
    assert [each["slug"] for each in buyer.rest.get(f"{PLUGINS}/updates").data] == [shop.plugin.slug]
    assert buyer.rest.get(download).data["code"] == "download_over"
    assert buyer.rest.post(url).status_code == 402
    shop.sell(buyer)
    assert refunded() == [False] and buyer.rest.post(url).status_code == 200


@pytest.mark.parametrize("is_done", [True, False])
def test_a_transfer_whose_answer_was_lost_is_not_sent_after_a_dispute(shop: Shop, is_done: bool) -> None:
    sale = shop.sell()
    shop.stripe.fault("POST /v1/transfers", Cut(done=is_done))
    shop.developer.sales.update(transfer_after=now())
    payouts.settle(shop.developer.pk)
    job = StripeJob.objects.get(kind="transfer", subject=str(sale.payments.get().pk))
    with pytest.raises(StripeAway):
        stripe_jobs.carry_out(job.pk)
    dispute = shop.stripe.dispute(sale.charge)["id"]
    mine = PluginPurchase.objects.filter(pk=sale.pk)
    until(lambda: mine.get().state == "disputed", lambda: purchase_sync.fetch_now(sale.pk))
    shop.tell()
    assert shop.at_stripe() == (700 if is_done else 0)
    assert payments_of(sale) == [("transfer", 700, "done" if is_done else "dropped")]
    shop.stripe.decide(dispute, won=not is_done)
    shop.tell()
    shop.over()
    assert shop.at_stripe() == due(shop.developer) == (0 if is_done else 700)
    is_exact(shop.developer)


def test_a_plugin_is_bought_on_its_page_which_knows_before_any_event(shop: Shop) -> None:
    buyer, browser = Buyer(shop.stripe), Client()
    page = f"/plugins/{shop.plugin.slug}"
    assert "/account/sign-in" in browser.post(page)["Location"]
    browser.force_login(User.objects.get(pk=buyer.person.id))
    assert "Buy for €10.00" in browser.get(page).content.decode()
    left = browser.post(page).content.decode()
    (url,) = set(re.findall(r'href="(http[^"]*/pay/[^"]*)"', left))
    sale = PluginPurchase.objects.get(user_id=buyer.person.id)
    waiting = browser.get(f"{page}?bought={sale.pk}").content.decode()
    assert 'http-equiv="refresh"' in waiting and "looks=1" in waiting and "Buy for" not in waiting
    assert 'http-equiv="refresh"' not in browser.get(f"{page}?bought={sale.pk}&looks=10").content.decode()
    back = shop.stripe.pay(url.rpartition("/")[2])
    assert back == f"http://testserver{page}?bought={sale.pk}"
    assert "It is paid and yours." in browser.get(back.removeprefix("http://testserver")).content.decode()
    assert "It is yours." in browser.get(page).content.decode()
    again = browser.post(page)
    assert again.status_code == 409 and "You have bought this plugin already." in again.content.decode()
    for strange in ("bought=x", f"bought={sale.pk}&looks=x", "bought="):
        assert browser.get(f"{page}?{strange}").status_code == 200


@pytest.mark.parametrize("won", [True, False])
def test_a_dispute_holds_the_share_until_it_is_decided(shop: Shop, won: bool) -> None:
    buyer = Buyer(shop.stripe)
    sale = shop.sell(buyer)
    dispute = shop.stripe.dispute(sale.charge)["id"]
    shop.tell()
    shop.over()
    sale.refresh_from_db()
    assert sale.state == "disputed" and payments_of(sale) == []
    assert buyer.rest.post(f"{PLUGINS}/{shop.plugin.pk}/install").status_code == 200  # it is still theirs
    with pytest.raises(Exception, match="disputed"):
        buying.refund(purchase=sale, cents=1)
    shop.stripe.decide(dispute, won=won)
    shop.tell()
    shop.over()
    sale.refresh_from_db()
    assert (sale.state, shop.at_stripe()) == (("paid", 700) if won else ("lost", 0))
    books = shop.on_accounts()
    assert books.get("shares", 0) + books.get("transfers", 0) == 0
    assert books["fees"] == 59 + 1500  # the fee of a dispute is ours


def test_a_dispute_that_is_lost_after_the_payout_is_taken_back(shop: Shop) -> None:
    sale = shop.sell()
    shop.over()
    shop.stripe.decide(shop.stripe.dispute(sale.charge)["id"], won=False)
    shop.tell()
    assert payments_of(sale) == [("transfer", 700, "done"), ("reversal", 700, "done")]
    assert shop.at_stripe() == 0


@pytest.mark.parametrize("fault", [Fail(500, done=True), Cut(done=True)])
@pytest.mark.parametrize("call", ["POST /v1/transfers", "/reversals"])
def test_whatever_breaks_money_moves_once(shop: Shop, call: str, fault: Any) -> None:
    sale = shop.sell()
    if call == "POST /v1/transfers":
        shop.stripe.fault(call, fault)
    shop.over()
    assert shop.at_stripe() == 700
    if call == "/reversals":
        shop.stripe.fault(f"POST /v1/transfers/{sale.payments.get().stripe_id}/reversals", fault)
    shop.refund(sale, 500)
    shop.tell()
    assert shop.at_stripe() == 350 == due(shop.developer)
    assert [state for _, _, state in payments_of(sale)] == ["done", "done"]
    is_exact(shop.developer)


def test_who_cannot_be_paid_sells_nothing_and_loses_nothing(shop: Shop) -> None:
    sale = shop.sell()
    shop.stripe.restrict(shop.account)
    shop.over()  # Stripe refuses the transfer before we know why
    shop.tell()
    sale.refresh_from_db()
    shop.developer.refresh_from_db()
    assert (shop.developer.payouts_enabled, sale.settled_cents, shop.at_stripe()) == (False, 0, 0)
    answer = Buyer(shop.stripe).rest.post(f"{PLUGINS}/{shop.plugin.pk}/install")
    assert (answer.status_code, answer.data["code"]) == (409, "payouts_not_ready")
    shop.stripe.onboard(shop.account)
    shop.tell()
    shop.over()
    assert shop.at_stripe() == 700


def test_stripes_page_for_developers_leads_back_to_a_page_of_ours(stripe: Stripe) -> None:
    person = somebody(tier="power")
    page = connected_accounts.page_of(developer=a_developer(person.id))
    back = httpx.post(page, data={"step": "done"}).headers["location"]
    browser = Client()
    browser.force_login(User.objects.get(pk=person.id))
    assert browser.get(back.removeprefix(settings.PUBLIC_URL)).status_code == 200


def test_who_is_not_through_with_stripe_yet_sells_and_the_share_waits(stripe: Stripe) -> None:
    shop = Shop(stripe)
    Developer.objects.filter(pk=shop.developer.pk).update(payouts_enabled=False, account_told=False)
    sale = shop.sell()
    shop.over()
    assert payments_of(sale) in ([], [("transfer", 700, "done")])  # as soon as the account is fetched
    shop.stripe.onboard(shop.account)
    shop.tell()
    shop.over()
    assert shop.at_stripe() == 700


def test_what_is_paid_after_the_account_was_deleted_goes_back(shop: Shop) -> None:
    from adiuva.accounts.models import User

    buyer = Buyer(shop.stripe)
    session = shop.checkout(buyer)
    User.objects.get(pk=buyer.person.id).delete()
    shop.stripe.pay(session)
    shop.tell()
    shop.over()
    sale = PluginPurchase.objects.get(session=session)
    assert (sale.user_id, sale.state, shop.at_stripe()) == (None, "refunded", 0)


def test_a_price_that_changed_closes_the_former_page(shop: Shop) -> None:
    buyer = Buyer(shop.stripe)
    session = shop.checkout(buyer)
    type(shop.plugin).objects.filter(pk=shop.plugin.pk).update(price_cents=500)
    other = shop.checkout(buyer)
    assert other != session
    assert shop.stripe.do(lambda world: world.get("checkout.session", session)["status"]) == "expired"
    shop.stripe.pay(other)
    shop.tell()
    assert PluginPurchase.objects.get(user_id=buyer.person.id).total_cents == 500


def test_who_was_refunded_may_buy_again_and_who_owns_it_may_not(shop: Shop) -> None:
    buyer = Buyer(shop.stripe)
    sale = shop.sell(buyer)
    with pytest.raises(buying.AlreadyBought):
        buying.check_out(user_id=buyer.person.id, plugin=shop.plugin)
    shop.refund(sale)
    shop.tell()
    again = shop.sell(buyer)
    assert again.pk != sale.pk and again.state == "paid"


def test_a_refund_that_fails_after_a_second_click_gives_the_plugin_and_the_share_back(shop: Shop) -> None:
    buyer = Buyer(shop.stripe)
    sale = shop.sell(buyer)
    shop.refund(sale)
    shop.tell()
    shop.checkout(buyer)
    (made,) = shop.stripe.do(lambda world: [row["id"] for row in world.of("refund", charge=sale.charge)])
    shop.stripe.do(lambda world: fail_refund(world, made))
    shop.tell()
    sale.refresh_from_db()
    assert (sale.state, sale.refunded_cents) == ("paid", 0)
    assert buyer.rest.post(f"{PLUGINS}/{shop.plugin.pk}/install").status_code == 200
    with pytest.raises(buying.AlreadyBought):
        buying.check_out(user_id=buyer.person.id, plugin=shop.plugin)
    with pytest.raises(buying.AlreadyBought):
        buying._sale(buyer.person.id, shop.plugin)
    shop.over()
    assert shop.at_stripe() == 700


def test_a_refund_that_fails_after_the_plugin_was_bought_again_is_shown_to_staff(shop: Shop) -> None:
    buyer = Buyer(shop.stripe)
    sale = shop.sell(buyer)
    shop.refund(sale)
    shop.tell()
    again = shop.sell(buyer)
    (made,) = shop.stripe.do(lambda world: [row["id"] for row in world.of("refund", charge=sale.charge)])
    shop.stripe.do(lambda world: fail_refund(world, made))
    mine = PluginPurchase.objects.filter(pk=sale.pk)
    with capture_logs() as logs:
        until(lambda: mine.get().state == "paid", lambda: purchase_sync.fetch_now(sale.pk))
    assert {"event": "purchase.doubled", "purchase_id": str(sale.pk), "log_level": "error"} in logs
    shop.refund(again)
    shop.tell()
    again.refresh_from_db()
    assert (again.state, mine.get().state) == ("refunded", "paid")
    assert buyer.rest.post(f"{PLUGINS}/{shop.plugin.pk}/install").status_code == 200


def test_a_payment_that_fails_days_later_leads_to_a_new_page(shop: Shop) -> None:
    buyer = Buyer(shop.stripe)
    session = shop.checkout(buyer)
    shop.stripe.do(lambda world: complete(world, world.get("checkout.session", session), LATER))
    shop.tell()
    answer = buyer.rest.post(f"{PLUGINS}/{shop.plugin.pk}/install")
    assert (answer.status_code, answer.data["code"]) == (409, "already_bought")  # the money is on its way
    shop.stripe.do(lambda world: fail_later(world, world.get("checkout.session", session)))
    shop.tell()
    again = shop.checkout(buyer)
    assert again != session
    shop.stripe.pay(again)
    shop.tell()
    assert PluginPurchase.objects.get(user_id=buyer.person.id).state == "paid"


def test_a_second_click_of_a_developer_opens_no_second_account(stripe: Stripe) -> None:
    developer = a_developer(somebody(tier="power").id)
    stale = Developer.objects.get(pk=developer.pk)
    for each in (developer, stale):
        assert connected_accounts.page_of(developer=each)
    assert stripe.count("POST /v1/accounts") == 1
    assert StripeJob.objects.filter(kind="account", subject=str(developer.pk)).count() == 1


def test_a_revoked_plugin_is_refunded_to_those_who_bought_it_lately(shop: Shop) -> None:
    old, new = shop.sell(), shop.sell()
    work(shop.developer)
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE billing_pluginpurchase SET paid_at = now() - interval '31 days' WHERE id = %s", [old.pk]
        )
    staff = Client()
    staff.force_login(User.objects.get(pk=somebody(is_staff=True, is_superuser=True).id))
    form = {"action": "refund_recent", "_selected_action": [str(shop.plugin.pk)]}

    def refund() -> str:
        return staff.post("/admin/billing/plugin/", form, follow=True).content.decode()

    said: list[str] = []
    until(lambda: "1 refunded" in said[-1], lambda: (work(shop.developer), said.append(refund())))
    assert all(
        "1 not yet" in each for each in said[:-1]
    )  # a worker of other tests looked at an event of the sale
    assert StripeJob.objects.get(kind="refund", subject=new.charge).detail == {"cents": 1000}
    assert "1 not yet" in refund()
    work(shop.developer)
    shop.tell()
    assert [PluginPurchase.objects.get(pk=each.pk).state for each in (old, new)] == ["paid", "refunded"]


def test_staff_find_a_sale_refund_a_part_of_it_and_see_what_its_developer_got(shop: Shop) -> None:
    sale, staff = shop.sell(), Client()
    shop.over()
    sale.refresh_from_db()
    staff.force_login(User.objects.get(pk=somebody(is_staff=True, is_superuser=True).id))
    sales, payments = (
        reverse(f"admin:billing_{name}_changelist") for name in ("pluginpurchase", "developerpayment")
    )
    for term in (sale.charge, shop.plugin.slug, str(sale.pk), str(sale.user_id)):
        assert str(sale.pk) in staff.get(sales, {"q": term}).content.decode()
    (sent,) = sale.payments.all()
    for term in (shop.developer.handle, sent.stripe_id, str(sale.pk)):
        assert str(sent.pk) in staff.get(payments, {"q": term}).content.decode()
    chosen = {"action": "refund", "_selected_action": [str(sale.pk)]}
    assert "Not refunded" in staff.post(sales, chosen | {"cents": "9999"}, follow=True).content.decode()
    staff.post(sales, chosen | {"cents": "500"})
    shop.tell()
    sale.refresh_from_db()
    assert (sale.refunded_cents, sale.due_cents) == (500, 350)
    assert str(sale.pk) not in staff.get(sales, {"settled": "debt"}).content.decode()
    is_exact(shop.developer)
