"""People sign in through their organisation, in browsers and apps."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone
from rest_framework.test import APIClient

from adiuva.accounts import services
from adiuva.accounts.models import Session, User
from billing.sso.models import Identity, SignIn, SsoSession
from billing.teams import members
from billing.teams.models import Membership
from tests.billing.sso.teams import TeamOf, account, refresh, who
from tests.factories import confirmed, somebody

LOGIN = "/api/v1/auth/login"


def login(email: str, password: str) -> Any:
    return APIClient().post(LOGIN, {"email": email, "password": password}, format="json")


def test_a_new_person_gets_an_account_a_seat_and_the_plan(team: TeamOf) -> None:
    address = team.address()
    browser = team.sign_in(address)
    assert who(browser) == address
    user = account(address)
    assert user.email_verified_at and not user.has_usable_password() and user.tier == "team"
    assert Membership.objects.of(user.pk).seated().get().team == team.team
    assert who(team.sign_in(address)) == address
    assert User.objects.filter(email=address).count() == 1
    assert team.events()[-3:] == ["account_made", "signed_in", "signed_in"]
    ends = Session.objects.filter(user=user).latest("created_at").expires_at
    assert ends < timezone.now() + dt.timedelta(days=1, minutes=1)


def test_an_app_signs_in_by_the_browser_and_only_it_can_finish(team: TeamOf) -> None:
    address = team.address()
    code = team.app_code(address)
    assert team.finish(code, "w" * 64).data["code"] == "sso_expired"
    assert team.finish(code).status_code == 200
    assert team.finish(code).data["code"] == "sso_expired"
    tokens = team.app_sign_in(address)
    rest = APIClient()
    rest.credentials(HTTP_AUTHORIZATION=f"Bearer {tokens['access_token']}")
    assert rest.get("/api/v1/auth/me").data["email"] == address
    assert refresh(tokens).status_code == 200


def test_without_a_free_seat_nothing_is_made(team: TeamOf) -> None:
    for _ in range(2):
        team.sign_in(team.address())
    address = team.address()
    team.is_person(address)
    _, answer = team.come_back(address)
    assert answer.status_code == 409 and "no free seat" in answer.content.decode()
    assert not User.objects.filter(email=address).exists()
    assert team.events()[-1] == "refused"


def test_an_account_that_exists_is_linked_only_by_its_password(team: TeamOf) -> None:
    address = team.address()
    person = confirmed(email=address)
    team.is_person(address)
    browser, page = team.come_back(address)
    assert page.status_code == 200 and "Is this account yours?" in page.content.decode() and not who(browser)
    word = page.content.decode().partition('name="word" value="')[2].partition('"')[0]
    wrong = browser.post("/account/sso/link", {"word": word, "password": "not it", "code": ""})
    assert wrong.status_code == 401 and not who(browser)
    as_new = browser.post("/account/sso/link", {"word": word, "new": "1"})
    assert as_new.status_code == 401 and User.objects.filter(email=address).count() == 1
    assert not Identity.objects.filter(user_id=person.id).exists()
    assert browser.post("/account/sso/link", {"word": word, "password": person.password}).status_code == 302
    assert who(browser) == address and Identity.objects.get(user_id=person.id).subject == address
    assert browser.post("/account/sso/link", {"word": word, "password": person.password}).status_code == 400
    assert who(team.sign_in(address)) == address


def test_a_second_factor_of_the_account_is_asked_for_too(team: TeamOf) -> None:
    from adiuva.accounts import second_factors

    address = team.address()
    person = confirmed(email=address)
    user = account(address)
    import pyotp

    secret, _ = second_factors.start_totp(user=user)
    (code, *_) = second_factors.confirm_totp(user=user, code=pyotp.TOTP(secret).now())
    team.is_person(address)
    browser, page = team.come_back(address)
    word = page.content.decode().partition('name="word" value="')[2].partition('"')[0]
    form = {"word": word, "password": person.password}
    assert browser.post("/account/sso/link", form).status_code == 401
    assert browser.post("/account/sso/link", {**form, "code": code}).status_code == 302
    assert who(browser) == address


def test_somebody_elses_unconfirmed_account_shadows_nobody(team: TeamOf) -> None:
    address = team.address()
    squatter = somebody(email=address)
    team.is_person(address)
    browser, page = team.come_back(address)
    word = page.content.decode().partition('name="word" value="')[2].partition('"')[0]
    assert browser.post("/account/sso/link", {"word": word, "new": "1"}).status_code == 302
    mine = User.objects.get(email=address, email_verified_at__isnull=False)
    assert mine.pk != squatter.id and who(browser) == address
    assert Identity.objects.get(user=mine).subject == address
    assert not Identity.objects.filter(user_id=squatter.id).exists()


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ({"email_verified": False}, "not confirmed your e-mail address"),
        ({"email": "ada@elsewhere.example"}, "not of a domain"),
        ({"email": None}, "does not say"),
        ({"email": 5}, "does not say"),
        ({"nonce": "another"}, "not valid"),
    ],
    ids=["not confirmed", "another domain", "none", "no text", "another sign-in's"],
)
def test_what_the_provider_says_is_checked(team: TeamOf, claims: dict[str, Any], words: str) -> None:
    address = team.address()
    team.is_person(address)
    team.idp.claims = claims
    browser, answer = team.come_back(address)
    assert answer.status_code == 403 and words in answer.content.decode() and not who(browser)
    assert not User.objects.filter(email=address).exists()


def test_a_sign_in_belongs_to_the_browser_that_began_and_counts_once(team: TeamOf) -> None:
    address = team.address()
    team.is_person(address)
    mine, stranger = Client(), Client()
    from tests.billing.sso.teams import link_in

    left = mine.post("/account/sso", {"email": address})
    back = team.idp.sign_in(link_in(left, "/authorize"))
    assert stranger.get(back).status_code == 400 and not who(stranger)
    assert mine.get(back).status_code == 302 and who(mine) == address
    assert mine.get(back).status_code == 400
    row = SignIn.objects.latest("expires_at")
    assert row.person is None


def test_the_answer_of_another_provider_is_refused(team: TeamOf) -> None:
    address = team.address()
    team.is_person(address)
    _, answer = team.come_back(address, iss="https://other.example")
    assert answer.status_code == 403
    team.idp.faults = {"denies"}
    _, answer = team.come_back(address)
    assert answer.status_code == 403 and "alert(1)" not in answer.content.decode()
    team.idp.faults = {"token_500"}
    _, answer = team.come_back(address)
    assert answer.status_code == 503


@pytest.mark.parametrize("wanted", ["https://evil.example/", "//evil.example", "javascript:alert(1)"])
def test_nobody_is_led_elsewhere_afterwards(team: TeamOf, wanted: str) -> None:
    from urllib.parse import quote

    from tests.billing.sso.teams import link_in

    address, browser = team.address(), Client()
    team.is_person(address)
    left = browser.post(f"/account/sso?next={quote(wanted)}", {"email": address})
    assert browser.get(team.idp.sign_in(link_in(left, "/authorize")))["Location"] == "/account/"


def test_an_address_without_it_is_told_so(team: TeamOf, db: None) -> None:
    answer = Client().post("/account/sso", {"email": "ada@nowhere.example"})
    assert answer.status_code == 400 and "no single sign-on" in answer.content.decode()
    body = {"email": "ada@nowhere.example", "challenge": "c" * 43}
    assert APIClient().post("/api/v1/auth/sso/begin", body, format="json").data["code"] == "sso_unknown"


def test_required_the_password_is_refused_to_members_and_left_to_the_owner(team: TeamOf) -> None:
    address = team.address()
    person = confirmed(email=address)
    members.join(team_id=team.team.pk, user_id=person.id)
    assert team.require().data["code"] == "sso_not_ready"
    team.sign_in(team.address())
    assert team.require().status_code == 200
    refused = login(address, person.password)
    assert (refused.status_code, refused.data["code"]) == (403, "sso_required")
    assert refresh({"refresh_token": person.refresh_token}).status_code == 401
    page = Client().post("/account/sign-in", {"username": address, "password": person.password})
    assert page.status_code == 403 and "through your organisation" in page.content.decode()
    assert login(address, "not the password").data["code"] == "invalid_credentials"
    assert login(team.owner.email, team.owner.password).status_code == 200
    assert team.require(False).status_code == 200
    assert login(address, person.password).status_code == 200


def test_a_plan_that_ended_locks_nobody_out(team: TeamOf) -> None:
    from billing import tiers
    from billing.models import Override

    address = team.address()
    person = confirmed(email=address)
    members.join(team_id=team.team.pk, user_id=person.id)
    team.sign_in(team.address())
    team.require()
    tiers.end(override=Override.objects.get(user_id=team.owner.id))
    assert login(address, person.password).status_code == 200
    answer = Client().post("/account/sso", {"email": address})
    assert answer.status_code == 400


def old(team: TeamOf, minutes: int) -> None:
    vouched_at = timezone.now() - dt.timedelta(minutes=minutes)
    SsoSession.objects.filter(provider=team.provider).update(vouched_at=vouched_at)


def test_who_leaves_the_organisation_is_out_at_the_next_refresh(team: TeamOf) -> None:
    address = team.address()
    first, second = team.app_sign_in(address), team.app_sign_in(address)
    old(team, 16)
    renewed = refresh(first)
    assert renewed.status_code == 200
    team.idp.leaves(address)
    assert refresh(renewed.data).status_code == 200  # asked a moment ago
    old(team, 16)
    gone = refresh(second)
    assert (gone.status_code, gone.data["code"]) == (401, "sso_session_over")
    assert refresh(renewed.data).status_code == 401
    assert not Session.objects.live().filter(user__email=address).exists()
    assert team.events()[-1] == "session_ended"


def test_a_provider_that_is_away_ends_nothing_for_a_day(team: TeamOf) -> None:
    tokens = team.app_sign_in(team.address())
    team.idp.faults = {"token_500"}
    old(team, 16)
    tokens = refresh(tokens).data
    old(team, 25 * 60)
    assert refresh(tokens).status_code == 401


def test_who_is_removed_from_the_team_is_out_and_does_not_come_back_by_themselves(team: TeamOf) -> None:
    address = team.address()
    tokens = team.app_sign_in(address)
    membership = Membership.objects.of(account(address).pk).get()
    members.remove(owner_id=team.owner.id, membership_id=membership.pk)
    assert refresh(tokens).status_code == 401
    team.is_person(address)
    _, answer = team.come_back(address)
    assert answer.status_code == 403 and "no member" in answer.content.decode()
    members.invite(owner_id=team.owner.id, email=address)
    assert who(team.sign_in(address)) == address


def test_a_deactivated_account_stays_closed(team: TeamOf) -> None:
    address = team.address()
    team.sign_in(address)
    services.deactivate(users=User.objects.filter(email=address))
    _, answer = team.come_back(address)
    assert answer.status_code == 403
