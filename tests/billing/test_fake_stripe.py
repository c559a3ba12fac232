"""The fake Stripe, called by Stripe's own library and by a browser's forms."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import stripe
from stripe import StripeClient

from tests.fakes.stripe import API_VERSION, DECLINES, Cut, Fail, Raw, Stripe, signed
from tests.fakes.stripe.forms import read_form


@pytest.fixture
def fake() -> Iterator[Stripe]:
    with Stripe() as server:
        yield server


def client(fake: Stripe, retries: int = 0) -> Any:
    """Typed as Any: the library's parameters are closed types."""
    return StripeClient(
        "sk_test_x",
        base_addresses={"api": fake.url, "connect": fake.url, "files": fake.url},
        stripe_version=API_VERSION,
        max_network_retries=retries,
    ).v1


def subscribed(fake: Stripe, cents: int = 900) -> tuple[Any, Any]:
    api = client(fake)
    customer = api.customers.create({"email": "ada@example.com"})
    plan = {"currency": "eur", "unit_amount": cents, "recurring": {"interval": "month"}}
    price = api.prices.create({**plan, "product_data": {"name": "Pro"}, "lookup_key": "pro"})
    session = api.checkout.sessions.create(
        {
            "mode": "subscription",
            "customer": customer.id,
            "line_items": [{"price": price.id, "quantity": 1}],
            "success_url": "http://127.0.0.1/back?s={CHECKOUT_SESSION_ID}",
            "subscription_data": {"metadata": {"row": "7"}},
        }
    )
    assert fake.pay(session.id) == f"http://127.0.0.1/back?s={session.id}"
    paid = api.checkout.sessions.retrieve(session.id, {"expand": ["subscription"]})
    assert (paid.status, paid.payment_status) == ("complete", "paid")
    return api, paid.subscription


def test_a_checkout_makes_a_subscription_whose_items_carry_the_period(fake: Stripe) -> None:
    api, subscription = subscribed(fake)
    assert subscription.status == "active" and subscription.metadata["row"] == "7"
    assert subscription["items"].data[0].current_period_end > subscription.created
    with pytest.raises(AttributeError):
        _ = subscription.current_period_end
    (invoice,) = api.invoices.list({"subscription": subscription.id}).data
    assert (invoice.status, invoice.amount_paid) == ("paid", 900)
    kinds = [event.type for event in api.events.list({"limit": 100}).data]
    assert {"checkout.session.completed", "customer.subscription.created", "invoice.paid"} <= set(kinds)


def test_a_month_renews_a_failed_card_is_past_due_and_ends_after_its_retries(fake: Stripe) -> None:
    api, subscription = subscribed(fake)
    fake.advance(days=31)
    assert api.subscriptions.retrieve(subscription.id).status == "active"
    fake.card(subscription.customer, DECLINES)
    fake.advance(days=30)
    assert api.subscriptions.retrieve(subscription.id).status == "past_due"
    fake.advance(days=8)
    assert api.subscriptions.retrieve(subscription.id).status == "canceled"


def test_a_cancel_ends_with_the_period_and_an_upgrade_is_charged_for_what_is_left(fake: Stripe) -> None:
    api, subscription = subscribed(fake)
    more = api.prices.create(
        {
            "currency": "eur",
            "unit_amount": 2900,
            "recurring": {"interval": "month"},
            "product_data": {"name": "T"},
        }
    )
    fake.advance(days=15)
    item = subscription["items"].data[0].id
    changed = api.subscriptions.update(
        subscription.id,
        {"items": [{"id": item, "price": more.id}], "proration_behavior": "always_invoice"},
    )
    invoice = api.invoices.retrieve(changed.latest_invoice)
    assert invoice.billing_reason == "subscription_update" and 990 <= invoice.amount_paid <= 1000
    api.subscriptions.update(subscription.id, {"cancel_at_period_end": True})
    fake.advance(days=16)
    assert api.subscriptions.retrieve(subscription.id).status == "canceled"
    with pytest.raises(stripe.InvalidRequestError):
        api.subscriptions.cancel(subscription.id)


def test_a_key_gives_the_first_answer_again_errors_included(fake: Stripe) -> None:
    api = client(fake)
    one = api.customers.create({"email": "a@example.com"}, {"idempotency_key": "k"})
    assert api.customers.create({"email": "a@example.com"}, {"idempotency_key": "k"}).id == one.id
    with pytest.raises(stripe.IdempotencyError):
        api.customers.create({"email": "b@example.com"}, {"idempotency_key": "k"})
    fake.fault("POST /v1/customers", Fail(500, done=True), Fail(500))
    for key, made in (("done", 2), ("not done", 2)):
        for _ in range(2):
            with pytest.raises(stripe.APIError):
                api.customers.create({"email": key}, {"idempotency_key": key})
        assert len(api.customers.list().data) == made
    fake.forget_keys()
    api.customers.create({"email": "done"}, {"idempotency_key": "done"})
    assert len(api.customers.list().data) == 3


def test_faults_break_connections_before_and_after_and_the_library_repeats_with_its_key(fake: Stripe) -> None:
    fake.fault("POST /v1/customers", Cut(), Cut(done=True))
    client(fake, retries=2).customers.create({"email": "a@example.com"})
    assert [call.status for call in fake.calls] == [0, 0, 200] and fake.calls[-1].replayed
    fake.fault("GET /v1/customers", Raw())
    with pytest.raises(stripe.APIError):
        client(fake).customers.list()
    assert len(client(fake).customers.list().data) == 1


def test_money_of_a_sale_goes_to_the_account_and_back(fake: Stripe) -> None:
    api = client(fake)
    price = api.prices.create({"currency": "eur", "unit_amount": 1000, "product_data": {"name": "Plugin"}})
    session = api.checkout.sessions.create(
        {
            "mode": "payment",
            "line_items": [{"price": price.id, "quantity": 1}],
            "success_url": "http://127.0.0.1/",
            "payment_intent_data": {"transfer_group": "order-7"},
        }
    )
    fake.pay(session.id)
    (charge,) = api.charges.list({"transfer_group": "order-7"}).data
    account = api.accounts.create({"type": "express", "country": "IT"})
    share = {
        "amount": 700,
        "currency": "eur",
        "destination": account.id,
        "source_transaction": charge.id,
        "transfer_group": "order-7",
    }
    with pytest.raises(stripe.InvalidRequestError):
        api.transfers.create(share)
    fake.onboard(account.id)
    transfer = api.transfers.create(share)
    with pytest.raises(stripe.InvalidRequestError):
        api.transfers.create(share)  # more than the charge
    api.transfers.reversals.create(transfer.id, {"amount": 200})
    assert api.transfers.retrieve(transfer.id).amount_reversed == 200
    api.refunds.create({"charge": charge.id, "amount": 400})
    with pytest.raises(stripe.InvalidRequestError):
        api.refunds.create({"charge": charge.id, "amount": 601})
    disputed = fake.dispute(charge.id, 600)
    fake.decide(disputed["id"], won=False)
    assert api.balance.retrieve().available[0].amount == 1000 - 59 - 700 + 200 - 400 - 600 - 1500


def test_lists_go_back_page_by_page(fake: Stripe) -> None:
    api = client(fake)
    made = [api.customers.create({"name": str(number)}).id for number in range(7)]
    first = api.customers.list({"limit": 3})
    assert first.has_more and [each.id for each in first.auto_paging_iter()] == made[::-1]
    newer = api.customers.list({"limit": 2, "ending_before": made[0]})
    assert [each.id for each in newer.data] == [made[2], made[1]]


def test_a_customer_pays_on_the_page_and_changes_the_plan_in_the_portal(fake: Stripe) -> None:
    api, subscription = subscribed(fake)
    less = api.prices.create(
        {
            "currency": "eur",
            "unit_amount": 100,
            "recurring": {"interval": "month"},
            "product_data": {"name": "L"},
        }
    )
    session = api.checkout.sessions.create(
        {
            "mode": "payment",
            "line_items": [{"price": less.id}],
            "success_url": "http://127.0.0.1/yes",
            "cancel_url": "http://127.0.0.1/no",
        }
    )
    with httpx.Client(trust_env=False) as browser:
        for card, words in (
            ("declines", "declined"),
            ("asks", "3-D Secure"),
            ("refused", "unable to authenticate"),
        ):
            assert words in browser.post(session.url, data={"card": card}).text
        assert browser.post(session.url, data={"card": "cancel"}).headers["location"].endswith("/no")
        assert browser.post(session.url, data={"card": "confirmed"}).headers["location"].endswith("/yes")
        portal = api.billing_portal.sessions.create(
            {"customer": subscription.customer, "return_url": fake.url}
        )
        assert subscription["items"].data[0].price.id in browser.get(portal.url).text
        browser.post(portal.url, data={"plan": f"{subscription.id} {less.id}"})
        schedule = api.subscriptions.retrieve(subscription.id, {"expand": ["schedule"]}).schedule
        assert schedule.phases[1]["items"][0].price == less.id
        fake.advance(days=31)
        renewed = api.subscriptions.retrieve(subscription.id)
        assert renewed["items"].data[0].price.id == less.id and renewed.schedule is None
        browser.post(portal.url, data={"cancel": subscription.id})
        assert api.subscriptions.retrieve(subscription.id).cancel_at_period_end
        assert "customer.subscription.updated" in browser.get(fake.url).text


def test_what_stripe_would_refuse_is_refused(fake: Stripe) -> None:
    api = client(fake)
    with pytest.raises(stripe.InvalidRequestError, match="unknown parameter"):
        api.customers.create({"emial": "a@example.com"})
    with pytest.raises(stripe.InvalidRequestError, match="No such customer"):
        api.customers.retrieve("cus_none")
    old = httpx.get(f"{fake.url}/v1/balance", headers={"Authorization": "Bearer sk_test_x"}, trust_env=False)
    assert old.status_code == 400
    with pytest.raises(stripe.AuthenticationError):
        StripeClient("sk_live_x", base_addresses={"api": fake.url}).v1.balance.retrieve()


def test_its_state_outlives_a_restart(tmp_path: Path) -> None:
    with Stripe(state=tmp_path / "stripe.json") as fake:
        _, subscription = subscribed(fake)
        fake.advance(days=3)
    with Stripe(state=tmp_path / "stripe.json") as fake:
        assert client(fake).subscriptions.retrieve(subscription.id).status == "active"
        assert fake.world.clock_offset_s >= 3 * 86_400


def test_deliveries_are_signed_as_the_library_checks(fake: Stripe) -> None:
    subscribed(fake)
    body = json.dumps(next(iter(fake.world.events()))).encode()
    headers = signed(body, "whsec_x", fake.world.now())
    event = stripe.Webhook.construct_event(body, headers["Stripe-Signature"], "whsec_x")
    assert event.type == "checkout.session.completed"


def test_names_of_a_form_are_paths() -> None:
    pairs = [("a[0][b]", "1"), ("a[1][b]", "2"), ("c[]", "x"), ("c[]", "y"), ("d[e][f]", "z"), ("g", "")]
    assert read_form(pairs) == {
        "a": [{"b": "1"}, {"b": "2"}],
        "c": ["x", "y"],
        "d": {"e": {"f": "z"}},
        "g": "",
    }


@pytest.mark.parametrize(("button", "ends_as"), [("1", "won"), ("", "lost")])
def test_a_charge_is_disputed_and_decided_on_the_start_page(fake: Stripe, button: str, ends_as: str) -> None:
    subscribed(fake)
    charge = fake.do(lambda world: next(world.of("charge"))["id"])
    for _ in range(2):  # the second click changes nothing
        httpx.post(f"{fake.url}/charge/{charge}", data={"step": "dispute"})
    assert "The bank decides against us" in httpx.get(fake.url).text
    (made,) = fake.do(lambda world: list(world.of("dispute")))
    for won in (button, "1" if ends_as == "lost" else ""):
        httpx.post(f"{fake.url}/dispute/{made['id']}", data={"won": won})
    assert fake.do(lambda world: [row["status"] for row in world.of("dispute")]) == [ends_as]
    assert ends_as in httpx.get(fake.url).text
