"""Staff help somebody who lost their second factor, without ever seeing or setting one."""

from __future__ import annotations

from datetime import timedelta

import pyotp
import pytest
from django.db.models import F
from django.test import Client
from rest_framework.test import APIClient

from adiuva.accounts import mails, second_factors, services
from adiuva.accounts.mail_links import Purpose, make_token
from adiuva.accounts.models import Mail, StaffAction, User
from tests.accounts.mailbox import mail_to, mails_to, token_in
from tests.accounts.test_account import client_of
from tests.accounts.test_admin import USERS, act, helper
from tests.accounts.test_second_factors import add_app, second_step, ticket_of
from tests.factories import Person, confirmed, somebody

PAGE = "/account/remove-second-factor"


@pytest.fixture
def person(db: None) -> Person:
    return confirmed()


@pytest.fixture
def app(person: Person) -> pyotp.TOTP:
    return add_app(client_of(person), person)[0]


def ordered(*people: Person) -> str:
    return act(helper(), USERS, "send_factor_removal", *(person.id for person in people))


def a_day_passes(person: Person) -> None:
    Mail.objects.filter(user_id=person.id).update(not_before=F("not_before") - timedelta(days=1))


def methods(person: Person) -> list[str]:
    return second_factors.methods_of(User.objects.get(pk=person.id))


def test_the_link_comes_a_day_after_a_notice_and_asks_for_the_password(
    person: Person, app: pyotp.TOTP
) -> None:
    assert "the link is sent in a day" in ordered(person)
    assert "lost the second factor" in mail_to(person.email, "you lost your second factor")
    assert not [one for one in mails_to(person.email) if "Remove the second factor" in one["Subject"]]
    a_day_passes(person)
    token = token_in(mail_to(person.email, "Remove the second factor"))
    browser = Client()
    page = browser.get(PAGE, {"token": token})
    assert page.status_code == 200 and b"password" in page.content
    assert browser.post(PAGE, {"token": token, "password": "wrong"}).status_code == 400
    assert methods(person)
    done = browser.post(PAGE, {"token": token, "password": person.password})
    assert done.status_code == 200 and b"is removed" in done.content
    assert methods(person) == []
    assert services.login(email=person.email, password=person.password)
    assert mail_to(person.email, "A way to sign in was removed")
    # Another factor is not removed by the same link.
    add_app(client_of(person), person)
    assert browser.post(PAGE, {"token": token, "password": person.password}).status_code == 400
    assert methods(person)
    seen = client_of(person).get("/api/v1/auth/staff-actions").json()
    assert [row["kind"] for row in seen] == ["factor_reset"]


def test_whoever_uses_the_factor_meanwhile_has_not_lost_it(
    rest: APIClient, person: Person, app: pyotp.TOTP
) -> None:
    ordered(person)
    assert second_step(rest, ticket_of(rest, person), code=app.now()).status_code == 200
    a_day_passes(person)
    mails.sweep()
    assert not Mail.objects.filter(user_id=person.id).exists()
    assert not [one for one in mails_to(person.email) if "Remove the second factor" in one["Subject"]]


def test_a_use_or_a_new_password_voids_the_link(rest: APIClient, person: Person, app: pyotp.TOTP) -> None:
    user = User.objects.get(pk=person.id)
    used, changed = make_token(Purpose.FACTORS, user), ""
    second_step(rest, ticket_of(rest, person), code=app.now())
    changed = make_token(Purpose.FACTORS, User.objects.get(pk=person.id))
    services.set_password(user=User.objects.get(pk=person.id), password="evening sun over")
    for token in (used, changed):
        assert Client().post(PAGE, {"token": token, "password": "evening sun over"}).status_code == 400
    assert methods(person)


def test_who_gets_no_link(person: Person, app: pyotp.TOTP) -> None:
    plain, boss = confirmed(), confirmed(is_staff=True, is_superuser=True)
    unsure = somebody()
    add_app(client_of(unsure), unsure)
    page = ordered(plain, unsure, boss)
    assert page.count("has no second factor, or did not confirm") == 2  # superusers are out of reach
    ordered(person)
    assert "under way" in ordered(person)
    assert Mail.objects.filter(kind=Mail.Kind.FACTOR_RESET).count() == 1
    assert list(StaffAction.objects.values_list("user_id", flat=True)) == [person.id]
