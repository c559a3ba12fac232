"""The pages on which people see plans, pay, and look after what they pay."""

from __future__ import annotations

import datetime as dt
import re
import uuid

import pytest
from django.test import Client
from django.utils import timezone
from django.utils.formats import date_format

from adiuva.accounts.models import User
from billing import tiers
from billing.payments.models import Customer, StripeJob
from tests.billing.payers import Payer
from tests.factories import somebody
from tests.fakes.stripe import DECLINES, Cut, Stripe

PAGE = "/account/billing"


def browser_of(payer: Payer) -> Client:
    browser = Client()
    browser.force_login(User.objects.get(pk=payer.person.id))
    return browser


def text_of(browser: Client, page: str) -> str:
    answer = browser.get(page)
    assert answer.status_code == 200
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", answer.content.decode()))


def test_prices_are_there_for_everybody_and_an_own_plan_after_sign_in(committed_db: str) -> None:
    shown = text_of(Client(), "/pricing")
    assert "5 GB of storage" in shown and "25 GB of storage" in shown
    assert "€15.00 a month" in shown and "€49.00 a month for each member" in shown
    assert Client().get(PAGE)["Location"].startswith("/account/sign-in")


def test_reasons_and_prices_are_in_the_language_of_the_account(committed_db: str) -> None:
    browser = Client()
    browser.force_login(User.objects.get(pk=somebody(locale="de").id))
    shown = browser.post(PAGE, {"act": "portal"}).content.decode()
    assert "Dieses Konto hat kein Abonnement." in shown and "15,00\xa0€" in shown


def test_a_plan_that_nobody_offers_is_not_bought(committed_db: str) -> None:
    browser = Client()
    browser.force_login(User.objects.get(pk=somebody().id))
    for tier in ("gold", "go\0ld", "free"):
        answer = browser.post(PAGE, {"tier": tier})
        assert answer.status_code == 400 and "there is nothing to pay for" in answer.content.decode().lower()


def test_days_are_those_of_the_accounts_time_zone(committed_db: str) -> None:
    noon = (timezone.now() + dt.timedelta(days=40)).replace(hour=12, minute=0)
    for zone, days in (("Pacific/Auckland", 1), ("UTC", 0)):
        person = somebody(timezone=zone)
        tiers.give(user_id=person.id, tier="pro", until=noon, reason="a trial", by=uuid.uuid4())
        browser = Client()
        browser.force_login(User.objects.get(pk=person.id))
        day = date_format(noon.date() + dt.timedelta(days=days))
        assert f"Given to you until {day}." in text_of(browser, PAGE)


def test_a_plan_is_bought_and_the_page_after_it_knows_before_any_event(payer: Payer) -> None:
    browser = browser_of(payer)
    left = browser.post(PAGE, {"tier": "pro"}).content.decode()
    (url,) = set(re.findall(r'href="(http[^"]*/pay/[^"]*)"', left))
    (job,) = payer.jobs("checkout")
    waiting = browser.get(f"/billing/return?checkout={job.pk}").content.decode()
    assert 'http-equiv="refresh"' in waiting and "looks=1" in waiting
    assert 'http-equiv="refresh"' not in browser.get("/billing/return?looks=10").content.decode()
    back = payer.stripe.pay(url.rpartition("/")[2])
    assert back == f"http://testserver/billing/return?checkout={job.pk}"
    assert "Your plan is Pro now." in text_of(browser, back.removeprefix("http://testserver"))
    assert "Paid until" in text_of(browser, PAGE)


def test_a_period_whose_payment_failed_is_not_said_to_be_paid(payer: Payer) -> None:
    payer.subscribe("pro")
    payer.stripe.card(Customer.objects.get(user_id=payer.person.id).stripe_id, DECLINES)
    payer.stripe.advance(days=31)
    payer.tell()
    shown = text_of(browser_of(payer), PAGE)
    assert "A payment failed" in shown and "Paid until" not in shown


def test_a_cancel_is_kept_on_the_page_while_stripe_is_away(payer: Payer) -> None:
    payer.subscribe("pro")
    browser = browser_of(payer)
    payer.stripe.fault("POST /v1/subscriptions", Cut())
    assert "Your wish is kept" in text_of(browser, browser.post(PAGE, {"act": "cancel"})["Location"])
    assert "on its way" in text_of(browser, PAGE)
    browser.post(PAGE, {"act": "resume"})
    assert "on its way" not in text_of(browser, PAGE)
    assert "/portal/" in browser.post(PAGE, {"act": "portal"}).content.decode()


@pytest.mark.parametrize(
    ("form", "status"), [({"tier": "free"}, 400), ({"tier": "team", "seats": "0"}, 400), ({}, 400)]
)
def test_what_cannot_be_bought_is_said(payer: Payer, form: dict[str, str], status: int) -> None:
    answer = browser_of(payer).post(PAGE, form)
    assert answer.status_code == status and b'role="alert"' in answer.content


def test_somebody_elses_checkout_tells_nothing(payer: Payer, stripe: Stripe) -> None:
    payer.pay("pro")
    other = Payer(stripe)
    (job,) = StripeJob.objects.filter(kind="checkout", user_id=payer.person.id)
    assert "not confirmed" in text_of(browser_of(other), f"/billing/return?checkout={job.pk}&looks=10")
    assert text_of(browser_of(other), "/billing/cancelled").count("Nothing was paid") >= 1
