"""Registering: one spelling for each address, and no word on which addresses have an account."""

from __future__ import annotations

import unicodedata
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import httpx
import pytest
from django.core import mail
from django.test import override_settings
from rest_framework.test import APIClient

from adiuva.accounts import services
from adiuva.accounts.addresses import AddressInvalid, normalize
from adiuva.accounts.models import User
from tests.accounts.hashers import CountingArgon2id
from tests.accounts.mailbox import mail_to, mails_to, token_in
from tests.factories import confirmed

AUTH = "/api/v1/auth"
PASSWORD = "a long and quiet afternoon"


def new_email() -> str:
    return f"{uuid4().hex}@example.com"


@pytest.mark.parametrize(
    ("typed", "stored"),
    [
        ("Ada@Example.COM", "ada@example.com"),
        (" ada@example.com ", "ada@example.com"),
        ("ada@bücher.example", "ada@xn--bcher-kva.example"),
        ("ada@BÜCHER.example", "ada@xn--bcher-kva.example"),
        ("ada@bu\u0308cher.example", "ada@xn--bcher-kva.example"),
        ("ada@bücher。example", "ada@xn--bcher-kva.example"),
        ("ada@XN--BCHER-KVA.example", "ada@xn--bcher-kva.example"),
        ("ada@\uff45xample.com", "ada@example.com"),
        ("ada@\u212aelvin.example", "ada@kelvin.example"),
        ("ada+work@example.com", "ada+work@example.com"),
    ],
)
def test_each_spelling_of_an_address_is_stored_as_one(typed: str, stored: str) -> None:
    assert normalize(typed) == stored
    assert normalize(stored) == stored


@pytest.mark.parametrize(
    "typed",
    ["m\u0131ke@example.com", "\u212aate@example.com", "\u017fue@example.com", "ädä@example.com", "ada",
     "\uff41da@example.com", "ada@xn--zz--.example", "ada@bücher..example", "@example.com", "ada@",
     "a" * 250 + "@example.com"],
)  # fmt: skip
def test_what_looks_like_another_address_is_none(rest: APIClient, typed: str) -> None:
    with pytest.raises(AddressInvalid):
        normalize(typed)
    answer = rest.post(f"{AUTH}/register", {"email": typed, "password": PASSWORD})
    assert (answer.status_code, list(answer.json()["fields"])) == (400, ["email"])
    assert rest.post(f"{AUTH}/login", {"email": typed, "password": PASSWORD}).status_code in {400, 401}


def test_a_twin_of_an_international_domain_signs_in_to_the_same_account(rest: APIClient) -> None:
    name = uuid4().hex
    services.register(email=f"{name}@bücher.example", password=PASSWORD)
    for twin in (f"{name}@xn--bcher-kva.example", f"{name}@BU\u0308CHER.example"):
        assert rest.post(f"{AUTH}/login", {"email": twin, "password": PASSWORD}).status_code == 200


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_password_is_the_same_however_the_keyboard_composes_it(rest: APIClient, form: str) -> None:
    email, password = new_email(), "über fünf große Bäume"
    other = "NFD" if form == "NFC" else "NFC"
    rest.post(f"{AUTH}/register", {"email": email, "password": unicodedata.normalize(form, password)})
    body = {"email": email, "password": unicodedata.normalize(other, password)}
    assert rest.post(f"{AUTH}/login", body).status_code == 200


def test_an_address_with_an_account_is_answered_as_one_without(rest: APIClient) -> None:
    owner, nobody = confirmed(), new_email()
    answers = [
        rest.post(f"{AUTH}/register", {"email": email.upper(), "password": PASSWORD})
        for email in (owner.email, nobody)
    ]
    assert [answer.status_code for answer in answers] == [201, 201]
    # Not only the answer: what it opens works in the same way.
    for answer, email in zip(answers, (owner.email, nobody), strict=True):
        tokens = answer.json()
        me = rest.get(f"{AUTH}/me", headers={"Authorization": f"Bearer {tokens['access_token']}"}).json()
        assert (me["email"], me["email_verified"]) == (email, False)
        assert me["id"] != str(owner.id)
        assert rest.post(f"{AUTH}/refresh", {"refresh_token": tokens["refresh_token"]}).status_code == 200
        assert rest.post(f"{AUTH}/login", {"email": email, "password": PASSWORD}).status_code == 200
        assert rest.post(f"{AUTH}/login", {"email": email, "password": "not that"}).status_code == 401
    # The owner signs in as before, to the account that was theirs, and a mail told them.
    signed_in = services.login(email=owner.email, password=owner.password)
    assert services.authenticate(access_token=signed_in.access_token).user_id == owner.id
    assert "nothing was changed" in mail_to(owner.email, "You have an Adiuva account already")
    assert not [m for m in mails_to(owner.email) if "Confirm" in m["Subject"]]
    assert "Confirm" in str([m["Subject"] for m in mails_to(nobody)])


@override_settings(PASSWORD_HASHERS=["tests.accounts.hashers.CountingArgon2id"])
def test_registering_costs_the_same_whether_the_address_has_an_account(rest: APIClient) -> None:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    owner, costs = confirmed(), []
    for email in (owner.email, new_email()):
        before = CountingArgon2id.hashed
        with CaptureQueriesContext(connection) as queries:
            rest.post(f"{AUTH}/register", {"email": email, "password": PASSWORD})
        costs.append((CountingArgon2id.hashed - before, len(queries)))
    assert costs[0] == costs[1]


def test_many_who_register_an_address_at_once_each_get_an_account(
    committed_db: str, web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    email = new_email()
    with ThreadPoolExecutor(4) as threads:
        body = {"email": email, "password": PASSWORD}
        answers = list(threads.map(lambda _: httpx.post(f"{web}{AUTH}/register", json=body), range(4)))
    assert [answer.status_code for answer in answers] == [201] * 4
    assert User.objects.filter(email=email).count() == 4


def test_who_confirms_an_address_first_has_it(rest: APIClient) -> None:
    """Somebody who registers with another's address gains nothing: the owner makes an account of their own."""
    email = new_email()
    rest.post(f"{AUTH}/register", {"email": email, "password": "the intruder's password"})
    (intruder,) = User.objects.filter(email=email)
    theirs = token_in(mail_to(email, "Confirm your address"))
    mail.outbox.clear()
    rest.post(f"{AUTH}/register", {"email": email, "password": PASSWORD})
    mine = token_in(mail_to(email, "Confirm your address"))
    assert rest.post(f"{AUTH}/email/verify", {"token": mine}).json() == {"ok": True}

    late = rest.post(f"{AUTH}/email/verify", {"token": theirs})
    assert (late.status_code, late.json()["code"]) == (409, "address_in_use")
    signed_in = services.login(email=email, password=PASSWORD)
    assert services.authenticate(access_token=signed_in.access_token).user_id != intruder.pk
    rest.post(f"{AUTH}/password/reset", {"email": email})
    token = token_in(mail_to(email, "Set a new password"))
    assert (
        rest.post(
            f"{AUTH}/password/reset/confirm", {"token": token, "new_password": "evening sun"}
        ).status_code
        == 200
    )
    assert services.login(email=email, password="evening sun")
    intruder.refresh_from_db()
    assert intruder.check_password("the intruder's password")


def test_without_mails_an_address_is_taken_once(rest: APIClient, settings: object) -> None:
    email = new_email()
    with override_settings(MAIL_ENABLED=False):
        assert rest.post(f"{AUTH}/register", {"email": email, "password": PASSWORD}).status_code == 201
        again = rest.post(f"{AUTH}/register", {"email": email.upper(), "password": PASSWORD})
        assert (again.status_code, again.json()["code"]) == (409, "email_taken")
        reset = rest.post(f"{AUTH}/password/reset", {"email": email})
        assert (reset.status_code, reset.json()["code"]) == (503, "mail_not_configured")
    assert not mails_to(email)


def test_nobody_is_mailed_without_end(rest: APIClient) -> None:
    email = new_email()
    statuses = [
        rest.post(f"{AUTH}/register", {"email": email, "password": PASSWORD}).status_code for _ in range(6)
    ]
    assert statuses == [*[201] * 5, 429]
    assert rest.post(f"{AUTH}/password/reset", {"email": email}).status_code == 429
