"""Registering and signing in, over REST."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from django.test import override_settings
from rest_framework.settings import api_settings
from rest_framework.test import APIClient

from adiuva.accounts import services, throttles
from adiuva.accounts.models import User
from adiuva.core.redis import sync_redis
from tests.accounts.hashers import CountingArgon2id
from tests.factories import confirmed, somebody

REGISTER, LOGIN, ME = "/api/v1/auth/register", "/api/v1/auth/login", "/api/v1/auth/me"
PASSWORD = "a long and quiet afternoon"


def new_email() -> str:
    return f"{uuid4().hex}@example.com"


@pytest.fixture
def ten_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    """No further try becomes possible while a test runs, however long it takes."""
    monkeypatch.setitem(api_settings.DEFAULT_THROTTLE_RATES, "login", "10/h")


def test_registering_signs_in(rest: APIClient) -> None:
    answer = rest.post(REGISTER, {"email": new_email(), "password": PASSWORD})
    assert answer.status_code == 201
    assert sorted(answer.json()) == ["access_token", "expires_at", "refresh_token"]
    assert 0 < answer.json()["expires_at"] - time.time() <= 900
    assert answer["Cache-Control"] == "no-store"
    me = rest.get(ME, headers={"Authorization": f"Bearer {answer.json()['access_token']}"})
    assert me.status_code == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"email": "nobody", "password": PASSWORD}, "email"),
        ({"email": "a@example.com", "password": "short"}, "password"),
        ({"email": "a@example.com", "password": "12345678"}, "password"),
        ({"email": "grandmother@example.com", "password": "grandmother"}, "password"),
        ({"email": "a@example.com", "password": "x" * 1001}, "password"),
        ({"email": "a@example.com"}, "password"),
        ({"email": None, "password": PASSWORD}, "email"),
        ({"email": ["a@example.com"], "password": PASSWORD}, "email"),
        ({"email": f"{'a' * 250}@example.com", "password": PASSWORD}, "email"),
    ],
)
def test_what_cannot_be_an_account_is_refused_by_field(
    rest: APIClient, body: dict[str, object], field: str
) -> None:
    answer = rest.post(REGISTER, body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid")
    assert list(answer.json()["fields"]) == [field]
    assert not User.objects.filter(email__in=["a@example.com", "grandmother@example.com"]).exists()


@pytest.mark.parametrize("character", ["\0", "\ud800"])
def test_characters_that_no_database_keeps_are_refused(rest: APIClient, character: str) -> None:
    escaped = {"\0": "\\u0000", "\ud800": "\\ud800"}[character]
    raw = f'{{"email": "a@example.com", "password": "long enough {escaped}"}}'
    for path in (REGISTER, LOGIN):
        assert rest.post(path, raw, content_type="application/json").status_code == 400


def test_signing_in_ignores_the_letters_case_of_the_address(rest: APIClient) -> None:
    person = somebody()
    answer = rest.post(LOGIN, {"email": person.email.upper(), "password": person.password})
    assert answer.status_code == 200
    assert User.objects.get(pk=person.id).last_login is not None


def test_a_refused_login_says_the_same_whatever_was_wrong(rest: APIClient) -> None:
    known, inactive = somebody(), somebody(is_active=False)
    tries = [
        {"email": known.email, "password": "not the password"},
        {"email": new_email(), "password": "not the password"},
        {"email": inactive.email, "password": inactive.password},
    ]
    answers = [rest.post(LOGIN, body) for body in tries]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.content for answer in answers}) == 1
    assert answers[0].json()["code"] == "invalid_credentials"
    assert answers[0]["WWW-Authenticate"] == "Bearer"
    headers = [{k: v for k, v in answer.items() if k != "X-Request-ID"} for answer in answers]
    assert headers[0] == headers[1] == headers[2]


@override_settings(PASSWORD_HASHERS=["tests.accounts.hashers.CountingArgon2id"])
def test_a_refused_login_costs_the_same_whatever_was_wrong(
    rest: APIClient, django_assert_num_queries: pytest.FixtureRequest
) -> None:
    known, inactive, owner = somebody(), somebody(is_active=False), confirmed()
    services.register(email=owner.email, password=PASSWORD)
    for email, password in [
        (known.email, "not the password"),
        (owner.email, "not the password"),
        (new_email(), "not the password"),
        (inactive.email, inactive.password),
    ]:
        before = CountingArgon2id.hashed
        with django_assert_num_queries(1):  # type: ignore[operator]
            rest.post(LOGIN, {"email": email, "password": password})
        assert CountingArgon2id.hashed - before == 2


def test_after_ten_tries_an_address_must_wait_and_nobody_else(rest: APIClient, ten_an_hour: None) -> None:
    person, other = somebody(), somebody()
    wrong = {"email": person.email, "password": "not the password"}
    right = {"email": person.email.upper(), "password": person.password}
    assert {rest.post(LOGIN, wrong).status_code for _ in range(10)} == {401}

    refused = rest.post(LOGIN, right)
    assert (refused.status_code, refused.json()["code"]) == (429, "throttled")
    assert 300 < refused.json()["retry_after_s"] <= 360
    assert refused["Retry-After"] == str(refused.json()["retry_after_s"])

    assert rest.post(LOGIN, right, REMOTE_ADDR="198.51.100.7").status_code == 200
    assert rest.post(LOGIN, {"email": other.email, "password": other.password}).status_code == 200


def test_the_wait_of_a_throttle_is_as_long_as_it_says(rest: APIClient, ten_an_hour: None) -> None:
    person = somebody()
    for _ in range(11):
        refused = rest.post(LOGIN, {"email": person.email, "password": "not the password"})
    counter = throttles.counter("login", "127.0.0.1", person.email)
    for passed_s, status in ((refused.json()["retry_after_s"] - 60, 429), (60, 200)):
        sync_redis("rate_limits").decrby(f"adiuva:rate:{counter}", passed_s * 1_000_000)
        again = rest.post(LOGIN, {"email": person.email, "password": person.password})
        assert again.status_code == status


def test_the_neighbours_of_an_ipv6_network_count_as_one_address(rest: APIClient, ten_an_hour: None) -> None:
    wrong = {"email": new_email(), "password": "not the password"}
    statuses = [
        rest.post(LOGIN, wrong, REMOTE_ADDR=f"2001:db8:{0xCAFE:x}:1::{host:x}").status_code
        for host in range(1, 12)
    ]
    assert statuses == [*[401] * 10, 429]


def test_a_throttle_lets_no_more_through_when_all_come_at_once(ten_an_hour: None) -> None:
    who = uuid4().hex
    with ThreadPoolExecutor(20) as threads:
        waits = list(threads.map(lambda _: throttles.count_attempt("login", who), range(60)))
    assert sum(wait is None for wait in waits) == 10


def test_the_forms_of_admin_and_api_share_the_throttle(rest: APIClient, ten_an_hour: None) -> None:
    staff = somebody(is_staff=True)
    for _ in range(10):
        rest.post(LOGIN, {"email": staff.email, "password": "not the password"})
    for page in ("/admin/login/", "/api-auth/login/"):
        form = {"username": staff.email, "password": staff.password}
        answer = rest.post(page, form, format="multipart")
        assert answer.status_code == 400  # the form again
        assert b"Too many tries" in answer.content
