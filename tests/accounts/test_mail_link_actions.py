"""Mailed links: confirm an address, set a new password, change the address. Each works once, for a limited time."""

from __future__ import annotations

import re
import smtplib
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID, uuid4

import httpx
import pytest
import time_machine
from django.core import mail, signing
from django.utils import timezone
from rest_framework.test import APIClient

from adiuva.accounts import mail_link_actions, mails, services
from adiuva.accounts.mail_links import Purpose, make_token
from adiuva.accounts.models import Mail, User
from adiuva.core import leases
from tests.accounts.mailbox import link_in, mail_to, mails_to, token_in
from tests.accounts.test_account import client_of
from tests.factories import Person, confirmed, somebody

AUTH = "/api/v1/auth"
NEW = "another quiet afternoon"


def new_email() -> str:
    return f"{uuid4().hex}@example.com"


def reset_token(rest: APIClient, person: Person) -> str:
    assert rest.post(f"{AUTH}/password/reset", {"email": person.email.upper()}).status_code == 202
    return token_in(mail_to(person.email, "Set a new password"))


def test_an_address_is_confirmed_once_by_its_mail(rest: APIClient) -> None:
    email = new_email()
    rest.post(f"{AUTH}/register", {"email": email, "password": NEW})
    text = mail_to(email, "Confirm your address")
    assert link_in(text).startswith("http://localhost")
    answers = [rest.post(f"{AUTH}/email/verify", {"token": token_in(text)}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 400]
    assert answers[1].json()["code"] == "link_invalid"
    assert User.objects.get(email=email).email_verified_at is not None


def test_the_mail_that_confirms_can_be_asked_for_again(db: None) -> None:
    person, sure = somebody(), confirmed()
    for each in (person, sure):
        assert client_of(each).post(f"{AUTH}/email/send-verification").status_code == 202
    assert token_in(mail_to(person.email, "Confirm your address"))
    assert not mails_to(sure.email)


def test_a_new_password_ends_what_was_signed_in_and_the_link(rest: APIClient) -> None:
    person = confirmed()
    token = reset_token(rest, person)
    weak = rest.post(f"{AUTH}/password/reset/confirm", {"token": token, "new_password": "12345678"})
    assert (weak.status_code, list(weak.json()["fields"])) == (400, ["new_password"])
    body = {"token": token, "new_password": NEW}
    assert rest.post(f"{AUTH}/password/reset/confirm", body).json() == {"ok": True}
    assert rest.post(f"{AUTH}/password/reset/confirm", body).json()["code"] == "link_invalid"
    assert client_of(person).get(f"{AUTH}/me").status_code == 401
    assert rest.post(f"{AUTH}/refresh", {"refresh_token": person.refresh_token}).status_code == 401
    assert services.login(email=person.email, password=NEW)
    assert "was changed" in mail_to(person.email, "Your Adiuva password was changed")


def test_an_address_without_account_is_answered_alike_and_gets_no_mail(rest: APIClient) -> None:
    person, gone, nobody = confirmed(), confirmed(is_active=False), new_email()
    answers = [
        rest.post(f"{AUTH}/password/reset", {"email": each}) for each in (person.email, gone.email, nobody)
    ]
    assert len({(answer.status_code, answer.content) for answer in answers}) == 1
    assert mail_to(person.email, "Set a new password")
    assert not mails_to(gone.email) and not mails_to(nobody)
    assert not Mail.objects.filter(address__in=[person.email, gone.email, nobody]).exists()


def test_a_mail_is_in_the_language_of_the_account(rest: APIClient) -> None:
    person = confirmed(locale="it-CH")
    rest.post("/api/v1/auth/password/reset", {"email": person.email})
    text = mail_to(person.email, "Imposta una nuova password per Adiuva")
    assert f"per l'account Adiuva di {person.email}. Per impostarla" in text and "Il link vale un'ora" in text
    assert token_in(text)


def test_a_reset_confirms_an_address(rest: APIClient) -> None:
    person = somebody()
    mail_link_actions.reset_password(token=reset_token(rest, person), new_password=NEW)
    assert User.objects.get(pk=person.id).email_verified_at


def change_password(person: Person) -> None:
    services.change_password(user=User.objects.get(pk=person.id), current=person.password, new="evening sun")


def sign_in(person: Person) -> None:
    services.login(email=person.email, password=person.password)


def deactivate(person: Person) -> None:
    services.deactivate(users=User.objects.filter(pk=person.id))


def change_address(person: Person) -> None:
    user = User.objects.get(pk=person.id)
    mail_link_actions.ask_address_change(user=user, email=new_email())
    mail_link_actions.confirm_address_change(token=make_token(Purpose.NEW_ADDRESS, user))


@pytest.mark.parametrize("happened", [change_password, sign_in, deactivate, change_address])
def test_a_reset_link_is_void_after(rest: APIClient, happened: object) -> None:
    person = confirmed()
    token = reset_token(rest, person)
    happened(person)  # type: ignore[operator]
    answer = rest.post(f"{AUTH}/password/reset/confirm", {"token": token, "new_password": NEW})
    assert answer.json()["code"] == "link_invalid"


@pytest.mark.parametrize(("purpose", "life"), [(each, each.lifetime) for each in Purpose])
def test_a_link_is_valid_for_a_time(db: None, purpose: Purpose, life: timedelta) -> None:
    from adiuva.accounts.mail_links import is_valid

    token = make_token(purpose, User.objects.get(pk=somebody().id))
    assert is_valid(purpose, token)
    assert not any(is_valid(other, token) for other in Purpose if other is not purpose)
    with time_machine.travel(timezone.now() + life + timedelta(seconds=2), tick=False):
        assert not is_valid(purpose, token)


@pytest.mark.parametrize("token", ["", "x", "ä", "x" * 5000, "a:b:c", "\x00"])
def test_no_token_is_no_link(rest: APIClient, token: str) -> None:
    for path in ("email/verify", "password/reset/confirm", "email/confirm-change"):
        answer = rest.post(f"{AUTH}/{path}", {"token": token, "new_password": NEW})
        assert answer.status_code == 400


def test_one_of_many_who_use_a_link_at_once_sets_the_password(committed_db: str, web: str) -> None:
    person = confirmed()
    token = make_token(Purpose.RESET, User.objects.get(pk=person.id))

    def use(number: int) -> int:
        body = {"token": token, "new_password": f"{NEW} {number}"}
        return httpx.post(f"{web}{AUTH}/password/reset/confirm", json=body).status_code

    with ThreadPoolExecutor(6) as threads:
        statuses = list(threads.map(use, range(6)))
    assert sorted(statuses) == [200, *[400] * 5]
    assert services.login(email=person.email, password=f"{NEW} {statuses.index(200)}")


# ── The pages ───────────────────────────────────────────────────────────────────────────────────────────


def test_pages_work_without_scripts_and_looking_uses_nothing_up(committed_db: str, web: str) -> None:
    person = confirmed()
    with httpx.Client(base_url=web) as browser:
        asked = browser.get("/account/forgotten-password")
        form = {"csrfmiddlewaretoken": csrf(asked.text), "email": person.email}
        assert "Look at your mails" in browser.post("/account/forgotten-password", data=form).text
        link = re.sub("^http://[^/]*", "", link_in(mail_to(person.email, "Set a new password")))
        for _ in range(3):  # programs that look at links before their owner does
            opened = browser.get(link)
        assert opened.headers["Referrer-Policy"] == "strict-origin"
        assert opened.headers["Cache-Control"] == "no-store"
        assert "<script" not in opened.text
        form = {"csrfmiddlewaretoken": csrf(opened.text), "token": hidden(opened.text, "token")}
        weak = browser.post("/account/new-password", data={**form, "new_password": "password"})
        assert weak.status_code == 400 and "too common" in weak.text
        done = browser.post("/account/new-password", data={**form, "new_password": NEW})
        assert "Your password is set" in done.text
        again = browser.get(link)
        assert again.status_code == 400 and "This link is not valid" in again.text
    assert services.login(email=person.email, password=NEW)


def csrf(html: str) -> str:
    return hidden(html, "csrfmiddlewaretoken")


def hidden(html: str, name: str) -> str:
    found = re.search(rf'name="{name}" value="([^"]*)"', html)
    assert found
    return found[1]


# ── Sending ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_worker_sends_what_a_request_ordered(committed_db: str, web: str, worker: None) -> None:
    email = new_email()
    httpx.post(f"{web}{AUTH}/register", json={"email": email, "password": NEW}).raise_for_status()
    assert mail_to(email, "Confirm your address")


def test_a_mail_waits_while_its_server_is_away_and_is_sent_once(
    db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = somebody()

    class Away:
        def send_messages(self, _: object) -> None:
            raise smtplib.SMTPServerDisconnected("the server's words, with an address")

    mails.order(Mail.Kind.VERIFY, user=User.objects.get(pk=person.id))
    with monkeypatch.context() as patched:
        patched.setattr(mails, "get_connection", Away)
        mails.sweep()
        mails.sweep()  # it is not due again
    (waiting,) = Mail.objects.filter(user_id=person.id)
    assert waiting.attempts == 1 and waiting.not_before > timezone.now()
    assert not mail.outbox
    Mail.objects.update(not_before=timezone.now())
    mails.sweep()
    mails.sweep()
    assert len(mail.outbox) == 1
    assert not Mail.objects.filter(user_id=person.id).exists()


@pytest.mark.parametrize(
    ("code", "stays"), [(550, False), (553, False), (421, True), (450, True), (451, True), (452, True)]
)
def test_a_mail_ends_with_a_refusal_of_its_recipient_that_is_final(
    db: None, monkeypatch: pytest.MonkeyPatch, code: int, stays: bool
) -> None:
    user = User.objects.get(pk=somebody().id)

    class Refuses:
        def send_messages(self, _: object) -> None:
            raise smtplib.SMTPRecipientsRefused({user.email: (code, b"the server's words")})

    mails.order(Mail.Kind.VERIFY, user=user)
    monkeypatch.setattr(mails, "get_connection", Refuses)
    mails.sweep()
    assert list(Mail.objects.values_list("attempts", flat=True)) == [1] * stays


def lose_the_lease(user_id: UUID) -> None:
    """Another worker has found the lease of the user's mail run out, and taken the mail."""
    Mail.objects.filter(user_id=user_id).update(lease_until=timezone.now() - timedelta(seconds=1))
    assert leases.claim(Mail.objects.filter(user_id=user_id), timedelta(minutes=1))


def test_a_mail_that_took_longer_than_its_lease_is_sent_and_not_sent_again(
    db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = User.objects.get(pk=somebody().id)

    class Slow:
        def send_messages(self, _: object) -> None:
            lose_the_lease(user.pk)

    mails.order(Mail.Kind.VERIFY, user=user)
    monkeypatch.setattr(mails, "get_connection", Slow)
    mails.sweep()
    assert not Mail.objects.filter(user=user).exists()


def test_a_mail_that_failed_after_its_lease_counts_and_does_not_keep_others_waiting(
    db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, other = (User.objects.get(pk=somebody().id) for _ in range(2))

    class SlowForOne:
        def send_messages(self, messages: list[mail.EmailMessage]) -> None:
            if messages[0].to == [slow.email]:
                lose_the_lease(slow.pk)
                raise TimeoutError

    for user in (slow, other):
        mails.order(Mail.Kind.VERIFY, user=user)
    monkeypatch.setattr(mails, "get_connection", SlowForOne)
    mails.sweep()
    (waiting,) = Mail.objects.all()
    assert (waiting.user, waiting.attempts) == (slow, 1)
    Mail.objects.update(lease_until=None, attempts=11)
    mails.sweep()
    assert not Mail.objects.exists()


def test_links_are_signed_with_the_secret_key(db: None) -> None:
    user = User.objects.get(pk=somebody().id)
    payload = signing.loads(make_token(Purpose.RESET, user), salt=Purpose.RESET.salt)
    forged = signing.dumps(payload, key="another key of enough length", salt=Purpose.RESET.salt)
    assert not recovery_accepts(forged)


def recovery_accepts(token: str) -> bool:
    from adiuva.accounts.mail_links import is_valid

    return is_valid(Purpose.RESET, token)
