"""The page of a team: invite, accept, seats, remove, leave, all by forms alone."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest
from django.test import Client

from adiuva.accounts.models import User
from tests.billing.payers import Payer
from tests.billing.test_pages import browser_of, text_of
from tests.factories import somebody
from tests.fakes.stripe import Stripe

PAGE = "/account/team"


def test_a_team_is_run_on_its_page(payer: Payer, stripe: Stripe, settings: Any) -> None:
    settings.PLANS = True
    owner, guest = browser_of(payer), Payer(stripe)
    assert "You have no team" in text_of(owner, PAGE)
    payer.subscribe("team", seats=2)
    assert "Seats taken: 1 of 2" in text_of(owner, PAGE)
    shown = owner.post(PAGE, {"act": "invite", "email": "rosa@crew.example"}).content.decode()
    (link,) = re.findall(r'href="http://testserver(/account/team\?invitation=[^"]*)"', shown)
    link = html.unescape(link)
    browser = browser_of(guest)
    assert "invites you to their team" in text_of(browser, link)
    browser.post(PAGE, {"act": "accept", "invitation": link.partition("=")[2]})
    assert guest.tier == "team" and "pays for your seat" in text_of(browser, PAGE)
    assert browser.get(link).status_code == 404
    full = owner.post(PAGE, {"act": "invite", "email": "otto@crew.example"})
    assert full.status_code == 402 and "2 seats, and 2 of them are taken" in full.content.decode()
    assert "is changed" in text_of(owner, owner.post(PAGE, {"act": "seats", "seats": "3"})["Location"])
    for seats, status in (("1", 409), ("x", 409)):
        assert owner.post(PAGE, {"act": "seats", "seats": seats}).status_code == status
    owner.post(PAGE, {"act": "rename", "name": "Harbour"})
    assert "Harbour" in text_of(browser, PAGE)
    assert owner.post(PAGE, {"act": "remove x"}).status_code == 404
    browser.post(PAGE, {"act": "leave"})
    assert guest.tier == "free" and "Seats taken: 1 of 3" in text_of(owner, PAGE)


def test_browsers_say_from_where_the_forms_of_a_team_are_sent(committed_db: str) -> None:
    """With `no-referrer` they send `Origin: null`, which is refused; the path, which may hold a link, is not told."""
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(User.objects.get(pk=somebody().id))
    page = browser.get(PAGE)
    assert page["Referrer-Policy"] == "strict-origin"
    token = browser.cookies["csrftoken"] = "a" * 32
    body = {"act": "leave", "csrfmiddlewaretoken": token}
    assert browser.post(PAGE, body, HTTP_ORIGIN="null").status_code == 403
    assert browser.post(PAGE, body, HTTP_ORIGIN="http://testserver").status_code == 404


@pytest.mark.django_db
def test_nobody_sees_a_team_before_signing_in() -> None:
    assert Client().get(PAGE)["Location"].startswith("/account/sign-in")
