"""Checkout, changes, failed payments, cancels and events, over REST, against a fake Stripe that can fail."""

from __future__ import annotations

import datetime as dt
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from django.db import connections
from django.db.models import Q
from django.db.models.functions import Now
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rest_framework.test import APIClient

from adiuva.accounts import services
from adiuva.accounts.models import Mail, User
from bench.payments import fast_changes
from bench.payments.failpoints import failpoints
from bench.payments.subscribers import subscribers
from bench.payments.webhook_inputs import some_input
from billing.models import Plan
from billing.payments import events_api, stripe_api, stripe_jobs, subscribing, sync, webhooks
from billing.payments.models import Customer, Event, StripeJob, Subscription
from tests.accounts.mailbox import mail_to, mails_to
from tests.billing.payers import BILLING, SECRET, Payer, deliver, due_now, settle, until
from tests.fakes.stripe import ASKS, DECLINES, WORKS, Cut, Fail, Raw, Stripe
from tests.fakes.stripe.subscriptions import change, collect


def live_at_stripe(payer: Payer) -> list[Any]:
    customers = set(Customer.objects.filter(user_id=payer.person.id).values_list("stripe_id", flat=True))
    return payer.stripe.do(
        lambda world: [
            row
            for row in world.of("subscription")
            if row["customer"] in customers and row["status"] not in ("canceled", "incomplete_expired")
        ]
    )


def toggle(payer: Payer, method: str) -> Any:
    """Cancel (`delete`) or resume (`post`)."""
    address = f"{BILLING}/subscription"
    return payer.rest.delete(address) if method == "delete" else payer.rest.post(f"{address}/resume")


def test_a_plan_is_bought_and_given_when_stripe_says_so(payer: Payer) -> None:
    assert payer.subscription()["status"] == "none"
    payer.pay("pro")
    assert payer.tier == "free"
    payer.tell(copies=2)
    assert payer.tier == "pro"
    shown = payer.subscription()
    assert (shown["status"], shown["seats"], shown["cancel_at_period_end"]) == ("active", 1, False)
    assert payer.check_out("pro").data["code"] == "already_on_plan"


def test_two_clicks_are_one_page_and_another_plan_closes_it(payer: Payer) -> None:
    first, again = (payer.check_out("pro").data["checkout_url"] for _ in range(2))
    other = payer.check_out("power").data["checkout_url"]
    assert first == again != other
    sessions = payer.stripe.do(lambda world: list(world.of("checkout.session")))
    assert [row["status"] for row in sessions] == ["open", "expired"]
    assert payer.stripe.count("POST /v1/customers") == 1


@pytest.mark.parametrize("look", [1, 2])
def test_a_click_that_another_overtakes_makes_nothing_twice(
    payer: Payer, monkeypatch: pytest.MonkeyPatch, look: int
) -> None:
    """The other click is done after this one has looked for a customer (1) or a page (2) and found none."""
    lock, seen = subscribing.lock, []

    def other() -> Any:
        try:
            return payer.check_out("pro").data["checkout_url"]
        finally:
            connections.close_all()

    def overtaken(user_id: Any) -> None:
        seen.append(None)
        if len(seen) == look:
            with ThreadPoolExecutor(1) as pool:
                seen.extend([pool.submit(other).result()] * 9)
        lock(user_id)

    monkeypatch.setattr(subscribing, "lock", overtaken)
    assert payer.check_out("pro").data["checkout_url"] == seen[-1]
    assert [len(payer.jobs(kind)) for kind in ("customer", "checkout")] == [1, 1]


class Killed(BaseException):
    """In place of a SIGKILL: nothing of the product catches it."""


@pytest.mark.parametrize("step", [4, 11, 18, 25, 32, 45])
def test_an_order_whose_process_dies_on_the_way_is_made_once(payer: Payer, step: int) -> None:
    """`bench.orders` has all steps, with processes that are really killed."""

    def die() -> None:
        raise Killed

    def order() -> None:
        if payer.tier == "free" and (answer := payer.check_out("pro")).status_code == 200:
            payer.stripe.pay(answer.data["checkout_url"].rpartition("/")[2])
        payer.tell()

    with suppress(Killed), failpoints(step, die):
        order()
    at_stripe = payer.stripe.do(lambda world: list(world.rows))
    payers_own = Q(user_id=payer.person.id) | Q(subject__in=at_stripe)
    StripeJob.objects.filter(payers_own, state__in=StripeJob.OPEN).update(lease_until=None)
    Subscription.objects.filter(stripe_id__in=at_stripe).update(lease_until=None)
    due_now(payer)
    order()
    assert (payer.tier, len(live_at_stripe(payer))) == ("pro", 1)
    charges = payer.stripe.do(lambda world: [row["amount"] for row in world.of("charge")])
    assert charges == [Plan.objects.get(tier="pro").price_cents]


def test_a_paid_page_is_noticed_before_its_event_comes(payer: Payer) -> None:
    payer.pay("pro")
    assert payer.check_out("power").data["code"] == "already_on_plan"
    assert payer.tier == "pro"


def test_a_change_of_a_paid_plan_is_confirmed_in_the_portal(payer: Payer) -> None:
    payer.subscribe("pro")
    url = payer.check_out("power").data["checkout_url"]
    assert "/portal/" in url
    assert payer.rest.post(f"{BILLING}/portal").data["portal_url"] != url
    session = payer.stripe.do(lambda world: world.get("billing_portal.session", url.rpartition("/")[2]))
    assert session["flow"]["type"] == "subscription_update_confirm"


def test_a_cancel_is_kept_while_stripe_is_away_and_can_be_taken_back(payer: Payer) -> None:
    payer.subscribe("pro")
    payer.stripe.fault("POST /v1/subscriptions", Cut(), times=2)
    answer = payer.rest.delete(f"{BILLING}/subscription")
    assert (answer.status_code, answer.data["cancelling"]) == (202, True)
    due_now(payer)
    settle()  # the second cut
    due_now(payer)
    settle()
    assert payer.subscription()["cancel_at_period_end"] and not payer.subscription()["cancelling"]
    assert payer.rest.delete(f"{BILLING}/subscription").status_code == 200
    assert payer.rest.post(f"{BILLING}/subscription/resume").data["cancel_at_period_end"] is False
    payer.rest.delete(f"{BILLING}/subscription")
    payer.stripe.advance(days=31)
    payer.tell()
    assert payer.tier == "free"
    assert payer.rest.post(f"{BILLING}/subscription/resume").data["code"] == "already_over"


def test_a_cancel_after_a_resume_whose_answer_was_lost_reaches_stripe(payer: Payer) -> None:
    payer.subscribe("pro")
    for first, second, cancelled in (("delete", "post", False), ("post", "delete", True)):
        assert toggle(payer, second).status_code == 200
        payer.stripe.fault("POST /v1/subscriptions", Cut(done=True))
        assert toggle(payer, first).status_code == 202
        assert toggle(payer, second).status_code == 200
        (row,) = live_at_stripe(payer)
        assert row["cancel_at_period_end"] is payer.subscription()["cancel_at_period_end"] is cancelled


def test_a_cancel_reaches_stripe_although_its_word_of_a_resume_has_not_come(payer: Payer) -> None:
    stripe_id = payer.subscribe("pro")
    assert toggle(payer, "delete").status_code == 200
    payer.stripe.do(
        lambda world: change(world, world.get("subscription", stripe_id), {"cancel_at_period_end": "false"})
    )
    calls = payer.stripe.count(f"POST /v1/subscriptions/{stripe_id}")
    for _ in range(2):
        assert toggle(payer, "delete").status_code == 200
    assert [row["cancel_at_period_end"] for row in live_at_stripe(payer)] == [True]
    assert payer.stripe.count(f"POST /v1/subscriptions/{stripe_id}") == calls + 1


def test_a_resume_beside_a_cancel_that_is_under_way_is_refused_and_passes_later(payer: Payer) -> None:
    payer.subscribe("pro")
    payer.stripe.fault("POST /v1/subscriptions", Cut(done=True))
    assert toggle(payer, "delete").status_code == 202
    (job,) = payer.jobs("cancel")
    StripeJob.objects.filter(pk=job.pk).update(lease_until=Now() + dt.timedelta(minutes=1))
    answer = toggle(payer, "post")
    assert (answer.status_code, answer.data["code"]) == (409, "billing_in_progress")
    StripeJob.objects.filter(pk=job.pk).update(lease_until=None)
    assert toggle(payer, "post").status_code == 200
    assert [row["cancel_at_period_end"] for row in live_at_stripe(payer)] == [False]


def test_a_cancel_that_stripe_refuses_is_an_error_and_the_copy_is_fetched(payer: Payer) -> None:
    from tests.fakes.stripe.subscriptions import end

    stripe_id = payer.subscribe("pro")
    payer.stripe.do(lambda world: end(world, world.get("subscription", stripe_id)))  # its event does not come
    answer = toggle(payer, "delete")
    assert (answer.status_code, answer.data["code"]) == (502, "billing_refused")
    settle()
    assert (payer.tier, payer.subscription()["status"]) == ("free", "canceled")
    assert toggle(payer, "delete").status_code == 404


@pytest.mark.parametrize("fault", [None, Cut(done=True), Fail(500)])
def test_a_cancel_takes_a_smaller_plan_back_that_was_to_come(payer: Payer, fault: Any) -> None:
    from tests.fakes.stripe.subscriptions import change_at_period_end

    stripe_id = payer.subscribe("power")
    price = Plan.objects.get(tier="pro").stripe_price_id
    payer.stripe.do(lambda world: change_at_period_end(world, world.get("subscription", stripe_id), price, 1))
    payer.tell()
    assert payer.subscription()["pending_tier"] == "pro"
    if fault is not None:
        payer.stripe.fault("/release", fault)
    assert toggle(payer, "delete").status_code == (202 if fault else 200)
    due_now(payer)
    settle()
    shown = payer.subscription()
    assert (shown["cancel_at_period_end"], shown["pending_tier"]) == (True, None)
    payer.stripe.advance(days=31)
    payer.tell()
    assert payer.tier == "free"


def test_a_failed_payment_keeps_the_plan_until_stripe_gives_up(payer: Payer) -> None:
    stripe_id = payer.subscribe("pro")
    customer = Customer.objects.get(user_id=payer.person.id).stripe_id
    payer.stripe.card(customer, DECLINES)
    payer.stripe.advance(days=31)
    payer.tell()
    assert payer.tier == "pro" and payer.subscription()["payment_failed_at"]
    assert Subscription.objects.get(stripe_id=stripe_id).status == "past_due"
    payer.tell(copies=2)
    assert "/account/billing" in mail_to(payer.person.email, "could not be renewed")
    said = [message["Subject"] for message in mails_to(payer.person.email)]
    assert sum("could not be renewed" in subject for subject in said) == 1
    payer.stripe.advance(days=8)
    payer.tell()
    assert payer.tier == "free"
    assert mail_to(payer.person.email, "has ended")
    assert not [mail for mail in mails_to(payer.person.email) if "ends soon" in mail["Subject"]]


def test_a_renewal_that_the_bank_wants_confirmed_has_a_page_and_keeps_the_plan(payer: Payer) -> None:
    from tests.billing.test_pages import browser_of, text_of

    payer.subscribe("pro")
    payer.stripe.card(Customer.objects.get(user_id=payer.person.id).stripe_id, ASKS)
    payer.stripe.advance(days=31)
    payer.tell()
    url = payer.subscription()["payment_url"]
    assert payer.tier == "pro" and "/invoice/" in url
    assert mail_to(payer.person.email, "could not be renewed")
    assert "Pay or confirm" in text_of(browser_of(payer), "/account/billing")
    payer.stripe.do(lambda world: collect(world, world.get("invoice", url.rpartition("/")[2]), WORKS))
    payer.tell()
    assert payer.subscription()["status"] == "active" and payer.subscription()["payment_url"] is None


def test_events_that_never_came_are_found_and_a_silent_change_by_comparison(payer: Payer) -> None:
    until(lambda: not webhooks.compare(), settle)  # other tests' are unknown at this Stripe: they have ended
    payer.pay("pro")
    assert webhooks.catch_up() > 0
    settle()
    assert payer.tier == "pro"
    payer.stripe.do(lambda world: next(world.of("subscription")).update(status="canceled"))
    assert webhooks.compare() == 1
    settle()
    assert payer.tier == "free"
    assert webhooks.compare() == 0


def test_deleting_an_account_ends_what_is_paid_without_waiting_for_stripe(payer: Payer) -> None:
    payer.subscribe("pro")
    customer = Customer.objects.get(user_id=payer.person.id).stripe_id
    payer.stripe.fault("DELETE /v1/customers", Fail(500), Cut())
    services.delete_account(user=User.objects.get(pk=payer.person.id))
    assert payer.stripe.count("DELETE /v1/customers") == 0
    for _ in range(3):
        due_now(payer)
        settle()
    assert payer.stripe.do(lambda world: world.rows[customer]["object"]) == "deleted_customer"
    row = Subscription.objects.get(customer__stripe_id=customer)
    assert row.user_id is None and row.status == "canceled"
    assert Customer.objects.get(stripe_id=customer).user_id is None


def test_a_customer_that_was_being_made_for_a_deleted_account_is_deleted(payer: Payer) -> None:
    payer.stripe.fault("POST /v1/customers", Cut(done=True))
    assert payer.check_out("pro").status_code == 503
    services.delete_account(user=User.objects.get(pk=payer.person.id))
    for _ in range(2):
        due_now(payer)
        settle()
    (row,) = payer.stripe.do(
        lambda world: [row for row in world.rows.values() if "customer" in row["object"]]
    )
    assert row["object"] == "deleted_customer"


def test_a_second_live_subscription_gives_nothing_and_is_seen(payer: Payer) -> None:
    from tests.fakes.stripe.subscriptions import end, subscribe

    payer.subscribe("pro")
    customer = Customer.objects.get(user_id=payer.person.id).stripe_id
    payer.stripe.do(
        lambda world: subscribe(
            world, customer, [{"price": next(world.of("price", nickname="Adiuva Power"))["id"]}], {}
        ).update(start_date=world.now() + 5)
    )
    payer.tell()
    assert payer.tier == "pro"
    assert list(Subscription.objects.of(payer.person.id).values_list("tier", "doubled")) == [
        ("power", True),
        ("pro", False),
    ]
    older = Subscription.objects.of(payer.person.id).get(tier="pro").stripe_id
    payer.stripe.do(lambda world: end(world, world.get("subscription", older)))
    sync.want([older])
    settle()
    assert payer.tier == "power"
    assert toggle(payer, "delete").status_code == 200


@pytest.mark.parametrize(
    "fault",
    [
        Fail(500),
        Fail(500, done=True),
        Cut(),
        Cut(done=True),
        Raw(),
        Fail(429, retry_after=1),
        Fail(429, retry_after="Sun, 01 Nov 2026 08:00:00 GMT"),
        Fail(409),
    ],
)
@pytest.mark.parametrize("call", ["POST /v1/customers", "POST /v1/checkout"])
def test_whatever_breaks_there_is_one_customer_and_one_page(payer: Payer, call: str, fault: Any) -> None:
    payer.stripe.fault(call, fault)
    answer = payer.check_out("pro")
    if answer.status_code == 503:
        assert answer.data["code"] == "billing_away"
        due_now(payer)
        answer = payer.check_out("pro")
    assert answer.status_code == 200, answer.data
    mine = str(payer.person.id)
    found = payer.stripe.do(
        lambda world: (
            [row for row in world.of("customer") if row["metadata"]["adiuva_user"] == mine],
            [row for row in world.of("checkout.session") if row["client_reference_id"] == mine],
        )
    )
    assert [len(rows) for rows in found] == [1, 1]


def test_after_a_day_what_was_done_is_looked_for_before_it_is_sent_again(payer: Payer) -> None:
    payer.stripe.fault("POST /v1/customers", Cut(done=True))
    assert payer.check_out("pro").status_code == 503
    payer.stripe.forget_keys()
    StripeJob.objects.filter(user_id=payer.person.id).update(first_sent_at=Now() - dt.timedelta(hours=30))
    due_now(payer)
    assert payer.check_out("pro").status_code == 200
    assert len(payer.stripe.do(lambda world: list(world.of("customer")))) == 1


def test_a_job_that_is_dropped_while_stripe_is_searched_is_not_sent(
    payer: Payer, monkeypatch: pytest.MonkeyPatch
) -> None:
    payer.stripe.fault("POST /v1/customers", Cut())
    assert payer.check_out("pro").status_code == 503
    (job,) = payer.jobs("customer")
    StripeJob.objects.filter(pk=job.pk).update(first_sent_at=Now() - dt.timedelta(hours=30))
    payer.stripe.calls.clear()
    find = stripe_api.find_customer

    def overtaken(**given: Any) -> Any:
        stripe_jobs.drop(StripeJob.Kind.CUSTOMER, job.subject)
        return find(**given)

    monkeypatch.setattr(stripe_api, "find_customer", overtaken)
    assert stripe_jobs.carry_out(job.pk).state == "dropped"
    assert payer.stripe.count("POST /v1/customers") == 0


def test_a_job_whose_account_goes_while_stripe_fails_is_dropped(
    payer: Payer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert payer.check_out("pro").status_code == 200
    customer = Customer.objects.get(user_id=payer.person.id)
    find = stripe_jobs._customer_of

    def and_deleted(job: StripeJob) -> str:
        found = find(job)
        Customer.objects.filter(pk=customer.pk).update(user=None)
        return found

    job = stripe_jobs.want(StripeJob.Kind.CHECKOUT, str(payer.person.id), payer.person.id, price="x")
    StripeJob.objects.filter(pk=job.pk).update(detail=payer.jobs("checkout")[0].detail)
    payer.stripe.fault("POST /v1/checkout", Fail(500))
    monkeypatch.setattr(stripe_jobs, "_customer_of", and_deleted)
    with pytest.raises(stripe_api.StripeAway):
        stripe_jobs.carry_out(job.pk)
    job.refresh_from_db()
    assert (job.state, job.error, job.lease_until) == ("dropped", "not_possible", None)


def test_a_first_payment_that_is_still_open_is_no_plan_and_has_its_page(payer: Payer) -> None:
    from tests.fakes.stripe.subscriptions import subscribe

    assert payer.check_out("pro").status_code == 200
    customer = Customer.objects.get(user_id=payer.person.id).stripe_id
    payer.stripe.card(customer, ASKS)
    price = Plan.objects.get(tier="pro").stripe_price_id
    payer.stripe.do(lambda world: subscribe(world, customer, [{"price": price}], {}))
    payer.tell()
    assert (payer.tier, payer.subscription()["status"]) == ("free", "incomplete")
    answer = payer.check_out("pro")
    assert answer.status_code == 200
    assert answer.data["checkout_url"] == payer.subscription()["payment_url"]


def test_staff_try_a_job_again_that_stripe_refused_and_read_what_cannot_be(payer: Payer) -> None:
    from django.test import Client
    from django.urls import reverse

    from tests.billing.test_team_rest import put_seats
    from tests.factories import somebody

    payer.subscribe("team", seats=2)
    payer.stripe.card(Customer.objects.get(user_id=payer.person.id).stripe_id, DECLINES)
    assert [put_seats(payer, seats).status_code for seats in (5, 4)] == [402, 402]
    payer.stripe.card(Customer.objects.get(user_id=payer.person.id).stripe_id, WORKS)
    first, second = payer.jobs("seats")
    staff = Client()
    staff.force_login(User.objects.get(pk=somebody(is_staff=True, is_superuser=True).id))
    chosen = {"action": "again", "_selected_action": [str(first.pk), str(second.pk)]}
    said = staff.post(reverse("admin:billing_stripejob_changelist"), chosen, follow=True).content.decode()
    assert "1 will be tried" in said and "Not tried" in said
    settle()
    assert sorted(job.state for job in payer.jobs("seats")) == ["done", "failed"]
    assert payer.subscription()["seats"] in (4, 5)


def test_what_is_not_signed_now_is_refused_before_anything_else(stripe: Stripe) -> None:
    event = {"id": "evt_x", "type": "invoice.paid"}
    client, now = APIClient(), int(time.time())
    assert deliver(client, event, secret="whsec_other").data["code"] == "bad_signature"
    for at in (now - 400, now + 400):
        assert deliver(client, event, at=at).status_code == 400
    assert deliver(client, event).status_code == 400  # signed, and no event
    for header in (
        "",
        "t=,v1=",
        f"t={now}",
        f"t={now},v1=é",
        "t=9" * 900,
        f"t={now},t={now},v1=00",
        "\u0661",
    ):
        answer = client.generic(
            "POST",
            f"{BILLING}/webhook",
            b"\xff\xfe",
            content_type="application/json",
            HTTP_STRIPE_SIGNATURE=header,
        )
        assert answer.status_code == 400, header
    assert not Event.objects.filter(stripe_id="evt_x").exists()


def test_no_event_is_believed_and_none_is_answered_with_a_fault(stripe: Stripe) -> None:
    """A sample of what `python -m bench.webhooks` sends through ASGI."""
    users = subscribers(stripe, 3)
    mine = Customer.objects.filter(user_id__in=users.values())
    customers, chance = list(mine.values_list("stripe_id", flat=True)), random.Random(7)
    for _ in range(80):
        given = some_input(chance, [*users], customers, SECRET)
        taken, event_id = False, ""
        try:
            webhooks.receive(given.body, given.sign().decode("latin-1"))
            taken, event_id = True, json.loads(given.body)["id"]
        except webhooks.BadSignature:
            pass
        assert not taken or given.is_signed, given
        assert not taken or Event.objects.filter(pk=event_id).exists(), given
    settle()
    tiers = User.objects.filter(pk__in=users.values()).values_list("tier", flat=True)
    assert list(tiers) == ["pro"] * 3
    live = Subscription.objects.live().filter(customer__stripe_id__in=customers)
    assert set(live.values_list("stripe_id", flat=True)) == set(users)


def test_changes_within_milliseconds_leave_nothing_stale(stripe: Stripe) -> None:
    """A sample of what `python -m bench.webhooks` does with 150."""
    users = subscribers(stripe, 4)
    assert fast_changes.play(stripe, [*users], secret=SECRET, seed=1) == {"ours": 0}


@pytest.mark.parametrize("odd", ["../../etc/passwd", "sub_1' OR '1'='1", "sub_x/cancel", "\u202e", "sub x"])
def test_what_is_no_id_is_refused_with_a_code_and_never_asked_for(stripe: Stripe, odd: str) -> None:
    client, made = APIClient(), f"evt_{time.monotonic_ns()}"
    event: dict[str, Any] = {
        "id": made,
        "type": "customer.subscription.updated",
        "created": int(time.time()),
        "livemode": False,
        "data": {"object": {"id": odd, "object": "subscription"}},
    }
    assert deliver(client, event).status_code == 200
    settle()
    row = Event.objects.get(pk=made)
    assert (row.state, row.error, row.object_id, row.subscription_id) == ("refused", "bad_id", "", "")
    assert deliver(client, {**event, "id": f"{made}/{odd}"}).status_code == 400
    assert stripe.count("/v1/subscriptions/") == 0
    assert not Subscription.objects.filter(stripe_id=odd).exists()


def test_a_subscription_that_stripe_does_not_have_is_asked_for_once(stripe: Stripe) -> None:
    made = f"evt_{time.monotonic_ns()}"
    event = {
        "id": made,
        "type": "customer.subscription.updated",
        "created": int(time.time()),
        "livemode": False,
        "data": {"object": {"id": f"sub_of_{made}", "object": "subscription"}},
    }
    assert deliver(APIClient(), event).status_code == 200
    for _ in range(3):
        settle()
    row = Event.objects.get(pk=made)
    assert (row.state, row.error) == ("refused", "resource_missing")
    assert stripe.count(f"GET /v1/subscriptions/sub_of_{made}") == 1
    assert not Subscription.objects.filter(stripe_id=f"sub_of_{made}").exists()


def test_what_stripe_refuses_is_given_up_until_somebody_asks_anew(payer: Payer) -> None:
    stripe_id = payer.subscribe("pro")
    row, path = Subscription.objects.filter(stripe_id=stripe_id), f"GET /v1/subscriptions/{stripe_id}"
    payer.stripe.fault(path, Fail(400, code="refused_on_order"))
    payer.stripe.calls.clear()
    sync.want([stripe_id])
    for _ in range(3):
        due_now(payer)
        settle()
    assert (payer.stripe.count(path), row.get().refused, payer.tier) == (1, "refused_on_order", "pro")
    sync.want([stripe_id])
    settle()
    assert (payer.stripe.count(path), row.get().refused) == (2, "")


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda e: (
            st.lists(e)
            | st.dictionaries(
                st.sampled_from(["id", "type", "data", "object", "created", "livemode", "parent"]), e
            )
        ),
    )
)
def test_a_signed_body_of_any_form_is_an_event_or_refused(body: Any) -> None:

    found = events_api.read_event(body)
    assert found is None or found.stripe_id


def test_without_a_key_nothing_can_be_bought_and_plans_are_shown(committed_db: str, settings: Any) -> None:
    settings.STRIPE = {**settings.STRIPE, "secret_key": "", "webhook_secrets": []}
    payer = Payer(Stripe())
    assert payer.check_out("pro").data["code"] == "billing_off"
    assert payer.rest.post(f"{BILLING}/portal").data["code"] == "not_found"
    assert payer.subscription()["status"] == "none"
    assert len(payer.rest.get(f"{BILLING}/plans").data) == 4
    assert stripe_jobs.sweep() == sync.run() == 0


@pytest.mark.parametrize(
    ("body", "field"), [({"tier": "free"}, "tier"), ({"tier": "pro", "seats": 2}, "seats")]
)
def test_what_cannot_be_bought_is_said_at_its_field(payer: Payer, body: Any, field: str) -> None:
    answer = payer.rest.post(f"{BILLING}/checkout", body, format="json")
    assert answer.status_code == 400 and field in answer.data["fields"]


def test_who_has_not_paid_is_reminded_and_told_of_the_end_and_who_has_is_not(stripe: Stripe) -> None:
    payers = [Payer(stripe), Payer(stripe)]
    for payer in payers:
        payer.subscribe("pro")
        stripe.card(Customer.objects.get(user_id=payer.person.id).stripe_id, DECLINES)
    stripe.advance(days=31)
    payers[0].tell()
    row = Subscription.objects.of(payers[1].person.id)
    row.update(status="active", past_due_since=None)  # paid at last
    for kind, subject in (("plan_ends_soon", "ends soon"), ("plan_ended", "has ended")):
        Mail.objects.filter(user_id__in=[payer.person.id for payer in payers], kind=kind).update(
            not_before=Now()
        )
        assert mail_to(payers[0].person.email, subject)
        assert not [mail for mail in mails_to(payers[1].person.email) if subject in mail["Subject"]]
