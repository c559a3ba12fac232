"""Signing in with a second factor, and asking again before what cannot be taken back."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pyotp
import pytest
import time_machine
from rest_framework.settings import api_settings
from rest_framework.test import APIClient

from adiuva.accounts import second_factors, services
from adiuva.accounts.models import Passkey, RecoveryCode, Session, Totp, User
from tests.accounts.authenticator import Authenticator
from tests.accounts.mailbox import mail_to, mails_to
from tests.accounts.test_account import client_of
from tests.accounts.test_mail_link_actions import reset_token
from tests.conflicts import overtaken
from tests.factories import Person, confirmed, somebody

AUTH = "/api/v1/auth"


@pytest.fixture
def person(db: None) -> Person:
    return confirmed()


@pytest.fixture
def me(person: Person) -> APIClient:
    return client_of(person)


def add_app(me: APIClient, person: Person) -> tuple[pyotp.TOTP, list[str]]:
    """An authenticator app, confirmed a minute ago, and the recovery codes."""
    started = me.post(f"{AUTH}/totp", {"password": person.password}).json()
    app = pyotp.parse_uri(started["uri"])
    assert isinstance(app, pyotp.TOTP) and app.secret == started["secret"]
    with time_machine.travel(datetime.now(UTC) - timedelta(minutes=1), tick=False):
        code = app.now()
        done = me.post(f"{AUTH}/totp/confirm", {"code": code})
    assert done.status_code == 200
    return app, done.json()["recovery_codes"]


def add_passkey(me: APIClient, person: Person, device: Authenticator) -> dict[str, Any]:
    made = me.post(f"{AUTH}/passkeys/register-options", {"password": person.password}).json()
    answer = device.make(made["options"])
    added = me.post(f"{AUTH}/passkeys", {"handle": made["handle"], "credential": answer, "name": "laptop"})
    assert added.status_code == 201, added.content
    return dict(added.json())


def ticket_of(rest: APIClient, person: Person) -> str:
    refused = rest.post(f"{AUTH}/login", {"email": person.email, "password": person.password})
    assert (refused.status_code, refused.json()["code"]) == (403, "second_factor_required")
    return str(refused.json()["ticket"])


def second_step(rest: APIClient, ticket: str, **proof: Any) -> Any:
    return rest.post(f"{AUTH}/login/second-factor", {"ticket": ticket, **proof})


# ── The app ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_password_alone_opens_nothing_once_there_is_an_app(
    rest: APIClient, me: APIClient, person: Person
) -> None:
    app, codes = add_app(me, person)
    assert len(set(codes)) == 10
    before = Session.objects.filter(user_id=person.id).count()
    refused = rest.post(f"{AUTH}/login", {"email": person.email, "password": person.password})
    assert refused.status_code == 403
    body = refused.json()
    assert (body["code"], body["methods"]) == ("second_factor_required", ["totp", "recovery_code"])
    assert body["message"] and 0 < body["expires_at"] - time.time() <= 600
    assert Session.objects.filter(user_id=person.id).count() == before
    wrong = rest.post(f"{AUTH}/login", {"email": person.email, "password": "not the password"})
    assert (wrong.status_code, wrong.json()["code"]) == (401, "invalid_credentials")

    answer = second_step(rest, body["ticket"], code=app.now())
    assert answer.status_code == 200
    assert sorted(answer.json()) == ["access_token", "expires_at", "refresh_token"]
    assert client_of(person, answer.json()["access_token"]).get(f"{AUTH}/me").status_code == 200
    assert "new way to sign in" in mail_to(person.email, "new way to sign in").lower() or mails_to(
        person.email
    )


def test_a_code_works_once(rest: APIClient, me: APIClient, person: Person) -> None:
    app, _ = add_app(me, person)
    code = app.now()
    assert second_step(rest, ticket_of(rest, person), code=code).status_code == 200
    again = second_step(rest, ticket_of(rest, person), code=code)
    assert (again.status_code, again.json()["code"]) == (401, "second_factor_refused")
    earlier = app.at(datetime.now(UTC) - timedelta(seconds=30))
    assert second_step(rest, ticket_of(rest, person), code=earlier).status_code == 401


@pytest.mark.parametrize("code", ["", "000000x", "12345", "１２３４５６", "٠٠٠٠٠٠"])
def test_no_code_is_no_code(rest: APIClient, me: APIClient, person: Person, code: str) -> None:
    add_app(me, person)
    assert second_step(rest, ticket_of(rest, person), code=code).status_code in {400, 401}


def test_one_of_many_who_use_a_code_or_a_recovery_code_at_once_gets_in(committed_db: str, web: str) -> None:
    person = confirmed()
    app, codes = add_app(client_of(person), person)
    user = User.objects.get(pk=person.id)
    for proof in ({"code": app.now()}, {"recovery_code": codes[0].upper()}):
        body = {"ticket": second_factors.make_ticket(user), **proof}
        with ThreadPoolExecutor(6) as threads:
            sent = threads.map(
                lambda body: httpx.post(f"{web}{AUTH}/login/second-factor", json=body), [body] * 6
            )
        assert sorted(answer.status_code for answer in sent) == [200, *[401] * 5]
        user.refresh_from_db()
    assert RecoveryCode.objects.filter(user=user, used_at__isnull=True).count() == 9


def test_an_app_that_was_not_confirmed_does_not_count(rest: APIClient, me: APIClient, person: Person) -> None:
    me.post(f"{AUTH}/totp", {"password": person.password})
    wrong = me.post(f"{AUTH}/totp/confirm", {"code": "000000"})
    assert (wrong.status_code, list(wrong.json()["fields"])) == (400, ["code"])
    assert rest.post(f"{AUTH}/login", {"email": person.email, "password": person.password}).status_code == 200


def test_a_second_app_must_wait_for_the_first_to_go(rest: APIClient, me: APIClient, person: Person) -> None:
    add_app(me, person)
    confirmation = {"password": person.password}
    assert me.post(f"{AUTH}/totp", confirmation).json()["code"] == "totp_exists"
    assert me.get(f"{AUTH}/second-factors").json() == {
        "totp": True,
        "passkeys": [],
        "recovery_codes_left": 10,
    }
    assert me.delete(f"{AUTH}/totp").json()["code"] == "confirmation_required"
    assert me.delete(f"{AUTH}/totp", confirmation).json() == {"ok": True}
    assert me.get(f"{AUTH}/second-factors").json() == {
        "totp": False,
        "passkeys": [],
        "recovery_codes_left": 0,
    }
    assert services.login(email=person.email, password=person.password)
    assert mail_to(person.email, "was removed")


def test_a_ticket_ends_with_its_time_and_with_the_password(
    rest: APIClient, me: APIClient, person: Person
) -> None:
    app, codes = add_app(me, person)
    ticket = ticket_of(rest, person)
    for bad in ("", "x", "a:b:c", "ä", ticket + "x"):
        assert second_step(rest, bad, code=app.now()).status_code in {400, 401}
    with time_machine.travel(datetime.now(UTC) + timedelta(minutes=11), tick=False):
        assert second_step(rest, ticket, recovery_code=codes[0]).status_code == 401
    services.change_password(user=User.objects.get(pk=person.id), current=person.password, new="evening sun")
    assert second_step(rest, ticket, recovery_code=codes[0]).status_code == 401


def test_guesses_of_codes_are_counted_by_account(rest: APIClient, me: APIClient, person: Person) -> None:
    add_app(me, person)
    ticket = ticket_of(rest, person)
    statuses = [second_step_from(rest, f"198.51.100.{number}", ticket, "000000") for number in range(21)]
    assert statuses == [*[401] * 20, 429]


def second_step_from(rest: APIClient, address: str, ticket: str, code: str) -> int:
    body = {"ticket": ticket, "code": code}
    return int(rest.post(f"{AUTH}/login/second-factor", body, REMOTE_ADDR=address).status_code)


def test_new_recovery_codes_replace_the_old(rest: APIClient, me: APIClient, person: Person) -> None:
    assert me.post(f"{AUTH}/recovery-codes", {"password": person.password}).status_code == 409
    _, old = add_app(me, person)
    new = me.post(f"{AUTH}/recovery-codes", {"password": person.password}).json()["recovery_codes"]
    assert second_step(rest, ticket_of(rest, person), recovery_code=old[0]).status_code == 401
    assert (
        second_step(rest, ticket_of(rest, person), recovery_code=new[0].replace("-", " ")).status_code == 200
    )
    assert second_step(rest, ticket_of(rest, person), recovery_code=new[0]).status_code == 401


def with_two_factors() -> User:
    person = confirmed()
    me = client_of(person)
    add_app(me, person)
    add_passkey(me, person, Authenticator())
    return User.objects.get(pk=person.id)


def test_of_recovery_codes_that_are_made_twice_at_once_the_last_ten_count(committed_db: str) -> None:
    user = with_two_factors()
    codes = overtaken(
        lambda: second_factors.new_recovery_codes(user=user),
        lambda: second_factors.new_recovery_codes(user=user),
    )
    left = RecoveryCode.objects.filter(user=user)
    assert {bytes(code.code_hash) for code in left} == {second_factors._hash(code) for code in codes}


def test_recovery_codes_go_with_the_last_factors_if_both_are_removed_at_once(committed_db: str) -> None:
    user = with_two_factors()
    passkey = Passkey.objects.get(user=user)
    overtaken(
        lambda: second_factors.remove_passkey(user=user, passkey_id=passkey.pk),
        lambda: second_factors.remove_totp(user=user),
    )
    assert not RecoveryCode.objects.filter(user=user).exists()


def test_a_dump_holds_no_secret_and_no_code(me: APIClient, person: Person) -> None:
    app, codes = add_app(me, person)
    row = Totp.objects.get(user_id=person.id)
    assert app.secret.encode() not in bytes(row.secret)
    stored = {bytes(each.code_hash) for each in RecoveryCode.objects.filter(user_id=person.id)}
    assert all(len(each) == 32 for each in stored) and codes[0].encode() not in stored


def test_a_reset_leaves_the_second_factor_of_a_confirmed_account(
    rest: APIClient, me: APIClient, person: Person
) -> None:
    add_app(me, person)
    body = {"token": reset_token(rest, person), "new_password": "evening sun"}
    assert rest.post(f"{AUTH}/password/reset/confirm", body).status_code == 200
    refused = rest.post(f"{AUTH}/login", {"email": person.email, "password": "evening sun"})
    assert refused.json()["code"] == "second_factor_required"


def test_a_reset_removes_what_a_stranger_added_before_the_address_was_confirmed(
    rest: APIClient, db: None
) -> None:
    stranger = somebody()
    add_app(client_of(stranger), stranger)
    body = {"token": reset_token(rest, stranger), "new_password": "evening sun"}
    assert rest.post(f"{AUTH}/password/reset/confirm", body).status_code == 200
    assert services.login(email=stranger.email, password="evening sun")


# ── Passkeys ────────────────────────────────────────────────────────────────────────────────────────────


def passkey_answer(rest: APIClient, device: Authenticator, **body: str) -> dict[str, Any]:
    made = rest.post(f"{AUTH}/login/passkey-options", body).json()
    return {"handle": made["handle"], "credential": device.sign(made["options"])}


def test_a_passkey_is_a_second_factor_and_signs_in_alone(
    rest: APIClient, me: APIClient, person: Person
) -> None:
    device = Authenticator()
    added = add_passkey(me, person, device)
    assert (added["name"], len(added["recovery_codes"])) == ("laptop", 10)
    ticket = ticket_of(rest, person)
    answer = passkey_answer(rest, device, ticket=ticket)
    assert second_step(rest, ticket, passkey=answer).status_code == 200
    assert second_step(rest, ticket, passkey=answer).status_code == 401  # the challenge was used

    alone = passkey_answer(rest, device)
    signed_in = rest.post(f"{AUTH}/login/passkey", alone)
    assert signed_in.status_code == 200
    mine = client_of(person, signed_in.json()["access_token"])
    assert mine.get(f"{AUTH}/me").json()["id"] == str(person.id)
    assert rest.post(f"{AUTH}/login/passkey", alone).status_code == 401
    (listed,) = mine.get(f"{AUTH}/second-factors").json()["passkeys"]
    assert listed["name"] == "laptop" and listed["last_used_at"]
    assert mine.delete(f"{AUTH}/passkeys/{listed['id']}", {"password": person.password}).json() == {
        "ok": True
    }
    assert rest.post(f"{AUTH}/login/passkey", passkey_answer(rest, device)).status_code == 401


def test_a_passkey_whose_device_did_not_verify_its_owner_does_not_sign_in_alone(
    rest: APIClient, me: APIClient, person: Person
) -> None:
    device = Authenticator(verifies=False)
    add_passkey(me, person, device)
    assert rest.post(f"{AUTH}/login/passkey", passkey_answer(rest, device)).status_code == 401
    ticket = ticket_of(rest, person)
    assert second_step(rest, ticket, passkey=passkey_answer(rest, device, ticket=ticket)).status_code == 200


def other_origin(device: Authenticator) -> None:
    device.origin = "https://evil.example"


def other_key(device: Authenticator) -> None:
    device.key = Authenticator().key


def unknown_id(device: Authenticator) -> None:
    device.id = b"another passkey!"


@pytest.mark.parametrize("spoil", [other_origin, other_key, unknown_id])
def test_what_another_site_or_key_signed_is_refused(
    rest: APIClient, me: APIClient, person: Person, spoil: Callable[[Authenticator], None]
) -> None:
    device = Authenticator()
    add_passkey(me, person, device)
    spoil(device)
    assert rest.post(f"{AUTH}/login/passkey", passkey_answer(rest, device)).status_code == 401
    ticket = ticket_of(rest, person)
    assert second_step(rest, ticket, passkey=passkey_answer(rest, device, ticket=ticket)).status_code == 401


@pytest.mark.parametrize(
    "credential", [{}, {"id": 1}, {"id": "a", "rawId": "a", "response": {}, "type": "x"}, {"response": []}]
)
def test_what_no_browser_says_is_refused(
    rest: APIClient, me: APIClient, person: Person, credential: dict[str, Any]
) -> None:
    made = rest.post(f"{AUTH}/login/passkey-options", {}).json()
    body = {"handle": made["handle"], "credential": credential}
    assert rest.post(f"{AUTH}/login/passkey", body).status_code in {400, 401}
    made = me.post(f"{AUTH}/passkeys/register-options", {"password": person.password}).json()
    refused = me.post(f"{AUTH}/passkeys", {"handle": made["handle"], "credential": credential})
    assert (refused.status_code, refused.json()["code"]) in {(400, "passkey_refused"), (400, "invalid")}


def test_a_passkey_of_another_person_is_no_second_factor(
    rest: APIClient, me: APIClient, person: Person
) -> None:
    mine, theirs, other = Authenticator(), Authenticator(), confirmed()
    add_passkey(me, person, mine)
    add_passkey(client_of(other), other, theirs)
    ticket = ticket_of(rest, person)
    assert second_step(rest, ticket, passkey=passkey_answer(rest, theirs, ticket=ticket)).status_code == 401
    # Nor does a challenge serve another purpose or another account than the one that it was made for.
    for_other = passkey_answer(rest, mine, ticket=ticket_of(rest, other))
    assert second_step(rest, ticket, passkey=for_other).status_code == 401
    assert second_step(rest, ticket, passkey=passkey_answer(rest, mine)).status_code == 401


def test_a_copied_passkey_is_noticed_by_its_counter(rest: APIClient, me: APIClient, person: Person) -> None:
    device = Authenticator(counts=True)
    add_passkey(me, person, device)
    assert rest.post(f"{AUTH}/login/passkey", passkey_answer(rest, device)).status_code == 200
    device.count = 0  # a copy, made before
    assert rest.post(f"{AUTH}/login/passkey", passkey_answer(rest, device)).status_code == 401


def test_a_passkey_is_added_once_and_by_whom_it_was_asked(me: APIClient, person: Person) -> None:
    device, other = Authenticator(), confirmed()
    made = me.post(f"{AUTH}/passkeys/register-options", {"password": person.password}).json()
    body = {"handle": made["handle"], "credential": device.make(made["options"])}
    assert client_of(other).post(f"{AUTH}/passkeys", body).status_code == 400
    assert me.post(f"{AUTH}/passkeys", body).status_code == 201
    assert me.post(f"{AUTH}/passkeys", body).status_code == 400
    assert Passkey.objects.filter(user_id=person.id).count() == 1


# ── What asks again ───────────────────────────────────────────────────────────────────────────────────────


ASKING = [
    ("delete", f"{AUTH}/me"),
    ("post", "/api/v1/account/export"),
    ("post", f"{AUTH}/email/change"),
    ("post", f"{AUTH}/totp"),
    ("post", f"{AUTH}/passkeys/register-options"),
    ("post", f"{AUTH}/recovery-codes"),
]


@pytest.mark.parametrize(("method", "path"), ASKING)
@pytest.mark.parametrize("body", [{}, {"password": ""}, {"password": "not the password"}, {"passkey": None}])
def test_a_token_alone_does_nothing_that_cannot_be_taken_back(
    me: APIClient, person: Person, method: str, path: str, body: dict[str, Any]
) -> None:
    answer = getattr(me, method)(path, {"email": "new@example.com", **body} if "email" in path else body)
    assert (answer.status_code, answer.json()["code"]) == (403, "confirmation_required")
    assert User.objects.filter(pk=person.id, new_email="").exists()


def test_a_passkey_confirms_as_well_as_the_password(me: APIClient, person: Person) -> None:
    device = Authenticator()
    add_passkey(me, person, device)
    made = me.post(f"{AUTH}/passkeys/confirm-options").json()
    passkey = {"handle": made["handle"], "credential": device.sign(made["options"])}
    assert me.post("/api/v1/account/export", {"passkey": passkey}).status_code == 202
    again = me.delete(f"{AUTH}/me", {"passkey": passkey})
    assert (again.status_code, again.json()["code"]) == (403, "confirmation_required")
    made = me.post(f"{AUTH}/passkeys/confirm-options").json()
    passkey = {"handle": made["handle"], "credential": device.sign(made["options"])}
    assert me.delete(f"{AUTH}/me", {"passkey": passkey}).json() == {"ok": True}


def test_guesses_of_the_password_by_a_stolen_token_are_counted(
    me: APIClient, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(api_settings.DEFAULT_THROTTLE_RATES, "login", "10/h")  # no try comes back meanwhile
    statuses = [me.delete(f"{AUTH}/me", {"password": f"guess {number}"}).status_code for number in range(11)]
    assert statuses == [*[403] * 10, 429]


def test_an_address_changes_when_the_new_one_is_confirmed_and_the_old_one_is_told(
    rest: APIClient, me: APIClient, person: Person
) -> None:
    from tests.accounts.mailbox import token_in

    new = f"new.{person.email}"
    body = {"email": new.upper(), "password": person.password}
    assert me.post(f"{AUTH}/email/change", body).status_code == 202
    assert me.get(f"{AUTH}/me").json()["new_email"] == new
    assert me.get(f"{AUTH}/me").json()["email"] == person.email
    assert "another e-mail address" in mail_to(person.email, "A new address was asked for")
    token = token_in(mail_to(new, "Confirm your new address"))
    assert rest.post(f"{AUTH}/email/confirm-change", {"token": token}).json() == {"ok": True}
    assert rest.post(f"{AUTH}/email/confirm-change", {"token": token}).json()["code"] == "link_invalid"
    found = me.get(f"{AUTH}/me").json()
    assert (found["email"], found["email_verified"], found["new_email"]) == (new, True, "")
    assert services.login(email=new, password=person.password)
    assert "has another one" in mail_to(person.email, "was changed")


def test_an_address_of_another_account_is_not_told_and_not_taken(
    rest: APIClient, me: APIClient, person: Person
) -> None:
    owner = confirmed()
    body = {"email": owner.email, "password": person.password}
    assert me.post(f"{AUTH}/email/change", body).json() == {"ok": True}
    assert mail_to(owner.email, "You have an Adiuva account already")
    assert not [message for message in mails_to(owner.email) if "Confirm" in message["Subject"]]


async def test_the_headless_device_signs_in_with_a_code(committed_db: str, web: str) -> None:
    import aiohttp

    from adiuva.core import db
    from adiuva.devices.client.account import Account, ServerAddress
    from adiuva.devices.client.errors import SignInRefused

    def prepare() -> tuple[Person, list[str]]:
        person = confirmed()
        return person, add_app(client_of(person), person)[1]

    person, codes = await db.run(prepare)
    address = ServerAddress.parse(web)
    async with aiohttp.ClientSession() as http:
        for code, says in ((None, "second factor"), ("wrong", "this code")):
            account = Account(address, email=person.email, password=person.password, code=code)
            with pytest.raises(SignInRefused, match=says):
                await account.access_token(http)
        account = Account(address, email=person.email, password=person.password, code=codes[0])
        assert await account.access_token(http)
