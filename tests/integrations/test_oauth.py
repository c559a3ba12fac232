"""Connecting an account: to the consent page and back, once, by whom it was begun, and never with a token in sight."""

from __future__ import annotations

import hashlib
import html
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import pytest
import time_machine
from django.core import signing
from django.db import connections as databases
from django.http import HttpResponse
from django.test import Client
from django.utils import timezone

from adiuva.accounts.models import User
from adiuva.core.language import language_of
from integrations import oauth
from integrations.errors import ConsentFailed
from integrations.models import Connection, Consent
from tests.accounts.test_account import client_of
from tests.factories import somebody
from tests.fakes.identity import Bare, Fail, Identity, Lost, Refuse
from tests.fakes.provider import WAIT_S, Raw
from tests.integrations.browser_user import Owner, connection_in, reasons, visit

SCOPES = {
    "gmail": {"https://www.googleapis.com/auth/gmail.readonly", "openid", "email"},
    "outlook": {"Mail.Read", "User.Read", "offline_access", "openid", "profile"},
    "teams": {
        "ChannelMessage.Read.All",
        "Channel.ReadBasic.All",
        "Team.ReadBasic.All",
        "User.Read",
        "offline_access",
        "openid",
        "profile",
    },
}


def changed(address: str, **values: str) -> str:
    """The address with other values in its query; an empty one takes the name out."""
    head, _, query = address.partition("?")
    given = dict(parse_qsl(query)) | values
    return f"{head}?{urlencode({name: value for name, value in given.items() if value})}"


def state_of(address: str) -> str:
    return parse_qs(urlsplit(address).query)["state"][0]


def refused(page: Any, saying: str) -> None:
    assert page.status_code == 400
    text = html.unescape(reasons(page))
    assert saying in text and "is not connected" in text and "status=failed" in text, text


@pytest.mark.parametrize("provider", SCOPES)
def test_an_account_is_connected_through_its_providers_consent_page(
    owner: Owner, identity: Identity, provider: str
) -> None:
    url = owner.authorize(provider)
    query = parse_qs(urlsplit(url).query)
    assert set(query["scope"][0].split()) == SCOPES[provider]
    assert query["redirect_uri"] == [f"http://localhost:8000/api/v1/oauth/{provider}/callback"]
    assert query["code_challenge_method"] == ["S256"]

    identity.account = "Ada@Example.com"
    page = visit(owner.agree(provider))
    assert page.status_code == 200
    assert "Ada@Example.com" in reasons(page) and owner.person.email in reasons(page)
    row = Connection.objects.of(owner.id).get()
    assert connection_in(page) == str(row.pk)
    assert (row.provider, row.address, row.health, row.reason) == (provider, "Ada@Example.com", "ok", "")
    assert identity.accepts(row.unseal(Connection.access_token))

    listed = owner.rest.get("/api/v1/connections").json()
    assert [(one["id"], one["account"], one["health"]) for one in listed] == [
        (str(row.pk), "Ada@Example.com", "ok")
    ]
    assert SCOPES[provider] - {"openid", "profile", "offline_access"} <= set(listed[0]["scopes"])


def test_the_page_lets_nothing_in_and_nothing_out(owner: Owner) -> None:
    for address in (owner.agree(), "/api/v1/oauth/gmail/callback?state=x"):
        page = visit(address)
        policy = page["Content-Security-Policy"]
        assert policy.startswith("default-src 'none';") and "frame-ancestors 'none'" in policy
        assert page["Cache-Control"] == "no-store"
        assert page["Referrer-Policy"] == "no-referrer"
        assert "<script" not in page.content.decode()
        assert 'href="adiuva://oauth/gmail?status=' in page.content.decode()


def test_no_answer_and_no_log_holds_a_token_a_code_or_a_secret(
    owner: Owner, identity: Identity, caplog: pytest.LogCaptureFixture
) -> None:
    seen = []
    for provider in SCOPES:
        back = owner.agree(provider)
        seen += [visit(back).content.decode(), visit(back).content.decode()]
        one = owner.rest.post(f"/api/v1/oauth/{provider}/refresh")
        assert one.status_code == 200, one.content
        seen.append(one.content.decode())
    seen.append(owner.rest.get("/api/v1/connections").content.decode())
    rows = list(Connection.objects.of(owner.id))
    seen += [repr(rows), str(rows), caplog.text]
    hidden = [
        word
        for row in rows
        for word in (row.unseal(Connection.access_token), row.unseal(Connection.refresh_token))
    ]
    hidden += [
        request.form[name]
        for request in identity.requests
        for name in ("code", "code_verifier")
        if name in request.form
    ]
    hidden.append("client-secret-of-the-tests")
    assert len(hidden) >= 12
    assert [word for word in hidden if any(word in text for text in seen)] == []
    sealed = b"".join(bytes(row.access_token) + bytes(row.refresh_token) + bytes(row.account) for row in rows)
    assert not any(word.encode() in sealed for word in [*hidden, "ada@example.com"])


def test_a_state_lets_one_through_once(owner: Owner, identity: Identity) -> None:
    back = owner.agree()
    assert visit(back).status_code == 200
    refused(visit(back), "used before")
    # and with a code that was not used yet
    other = parse_qs(urlsplit(owner.agree()).query)["code"][0]
    refused(visit(changed(back, code=other)), "used before")
    assert Connection.objects.of(owner.id).count() == 1


def test_of_many_who_bring_a_state_at_once_one_is_let_through(owner: Owner, identity: Identity) -> None:
    """Each with a code that the provider would take: the state alone decides."""
    together = threading.Barrier(8)

    def redeem(state: str) -> bool:
        try:
            databases["default"].ensure_connection()
            together.wait(WAIT_S)
            oauth._redeem("gmail", state, None)
        except ConsentFailed as refused:
            assert "used before" in refused.message
            return False
        finally:
            databases.close_all()
        return True

    with ThreadPoolExecutor(8) as threads:
        for _ in range(12):
            state = state_of(owner.authorize())
            assert sum(threads.map(redeem, [state] * 8)) == 1


def test_looking_at_a_link_does_not_use_it_up(owner: Owner) -> None:
    back = owner.agree()
    browser = Client()
    assert browser.head(back).status_code == 405
    assert browser.post(back).status_code == 405
    assert visit(back).status_code == 200


def test_a_state_is_good_for_ten_minutes(owner: Owner) -> None:
    back = owner.agree()
    with time_machine.travel(timezone.now() + timedelta(minutes=10, seconds=1)):
        refused(visit(back), "expired")
    with time_machine.travel(timezone.now() + timedelta(minutes=9)):
        assert visit(back).status_code == 200


def test_a_state_ends_by_the_databases_clock_too(owner: Owner) -> None:
    back = owner.agree()
    Consent.objects.filter(user_id=owner.id).update(expires_at=timezone.now())
    refused(visit(back), "expired")


def test_a_state_of_another_provider_is_refused(owner: Owner) -> None:
    back = owner.agree("gmail")
    for other in ("outlook", "teams"):
        refused(visit(back.replace("/gmail/", f"/{other}/")), "not valid")
    assert visit("/api/v1/oauth/facebook/callback?state=x").status_code == 404


def test_a_state_is_bound_to_its_redirect_address(owner: Owner, settings: Any) -> None:
    back = owner.agree()
    settings.PUBLIC_URL = "https://elsewhere.example.com"
    refused(visit(back), "not valid")


def test_forged_states_are_refused_before_the_provider_is_asked(owner: Owner, identity: Identity) -> None:
    back = owner.agree()
    real, asked = state_of(back), len(identity.requests)
    word, _, signature = real.partition(":")
    other = somebody()
    where = oauth.redirect_uri("gmail")
    forged = [
        "",
        "x",
        real[:-1],
        real + "A",
        real.swapcase(),
        f"{word[:-1]}0:{signature}",
        f"{word.partition('.')[0]}.{other.id.hex}:{signature}",  # for another user
        word,
        "ünïcode:ünïcode:ünïcode",
        "x" * 100_000,
        signing.TimestampSigner(salt=f"adiuva oauth state gmail {where}", key="another key").sign(word),
        signing.TimestampSigner(salt="another salt").sign(word),
    ]
    for state in forged:
        refused(visit(changed(back, state=state)), "not valid")
    # signed by us, but for nobody who was sent there
    unknown = signing.TimestampSigner(salt=f"adiuva oauth state gmail {where}").sign(f"word.{other.id.hex}.")
    refused(visit(changed(back, state=unknown)), "expired")
    assert len(identity.requests) == asked
    assert visit(back).status_code == 200  # the real one was not touched by any of it


def test_a_state_is_refused_where_somebody_else_is_signed_in(owner: Owner, identity: Identity) -> None:
    other, browser = somebody(), Client()
    browser.post("/api-auth/login/", {"username": other.email, "password": other.password})
    back, asked = owner.agree(), len(identity.requests)
    refused(visit(back, browser), "made for another Adiuva account")
    assert len(identity.requests) == asked
    assert not Connection.objects.filter(user_id__in=[owner.id, other.id]).exists()

    mine = Client()
    mine.post("/api-auth/login/", {"username": owner.person.email, "password": owner.person.password})
    assert visit(owner.agree(), mine).status_code == 200


@pytest.mark.parametrize("provider", ["gmail", "outlook"])
def test_a_code_for_another_redirect_address_is_refused(
    owner: Owner, identity: Identity, provider: str
) -> None:
    theirs = changed(owner.authorize(provider), redirect_uri="https://evil.example.com/callback")
    sent = parse_qs(urlsplit(identity.consent(theirs)).query)
    back = f"/api/v1/oauth/{provider}/callback?{urlencode({name: value[0] for name, value in sent.items()})}"
    refused(visit(back), "made for another address")
    assert not Connection.objects.of(owner.id).exists()


@pytest.mark.parametrize("provider", ["gmail", "outlook"])
def test_a_code_of_somebody_elses_consent_is_refused(owner: Owner, identity: Identity, provider: str) -> None:
    """PKCE: a code is of use only with the verifier of the consent that it came from."""
    theirs = parse_qs(urlsplit(Owner(identity).agree(provider)).query)["code"][0]
    refused(visit(changed(owner.agree(provider), code=theirs)), "does not accept this code")


def test_an_id_token_of_another_consent_or_client_is_refused(owner: Owner, identity: Identity) -> None:
    lies: list[dict[str, Any]] = [
        {"nonce": "0" * 64},
        {"aud": "another-client"},
        {"email": None},
        {"email": "a\nb"},
        {"email": "x" * 400},
    ]
    for lie in lies:
        identity.claims = lie
        refused(visit(owner.agree("gmail")), "cannot be connected at the moment")
    identity.claims = {"nonce": "0" * 64}
    assert visit(owner.agree("outlook")).status_code == 400
    assert not Connection.objects.of(owner.id).exists()


def test_who_says_no_reads_that_nothing_was_connected(owner: Owner, identity: Identity) -> None:
    identity.denies = True
    back = owner.agree()
    refused(visit(back), "You did not allow")
    assert "alert(1)" not in visit(back).content.decode()
    refused(visit(changed(owner.agree(), error="server_error<b>")), "reported an error")
    refused(visit(changed(owner.agree(), error="", error_description="")), "sent no code")


@pytest.mark.parametrize("provider", SCOPES)
def test_a_consent_with_boxes_unticked_is_not_kept(owner: Owner, identity: Identity, provider: str) -> None:
    identity.leaves_out = {
        "https://www.googleapis.com/auth/gmail.readonly",
        "Mail.Read",
        "Team.ReadBasic.All",
    }
    refused(visit(owner.agree(provider)), "did not allow all")
    assert not Connection.objects.of(owner.id).exists()


def test_who_chooses_another_account_than_the_one_to_be_mended_is_told(
    owner: Owner, identity: Identity
) -> None:
    old = owner.connect(account="ada@example.com")
    identity.account = "grace@example.com"
    page = visit(owner.agree(connection=str(old.pk)))
    assert page.status_code == 200 and connection_in(page) != str(old.pk)
    assert "You wanted to connect ada@example.com again" in reasons(page)
    identity.account = "ada@example.com"
    for query in ({"connection": str(old.pk)}, {}):
        page = visit(owner.agree(**query))
        assert connection_in(page) == str(old.pk) and "You wanted" not in reasons(page)


def test_an_organisation_that_decides_is_named_where_there_may_be_one(
    owner: Owner, identity: Identity
) -> None:
    identity.denies = True
    assert "administrator" in reasons(visit(owner.agree("teams")))
    assert "administrator" not in reasons(visit(owner.agree("gmail")))


def test_a_consent_without_a_lasting_permission_is_not_kept(owner: Owner, identity: Identity) -> None:
    identity.script(Bare())
    refused(visit(owner.agree()), "no lasting permission")
    row = owner.connect()
    identity.script(Bare())
    assert visit(owner.agree()).status_code == 200  # the one that is held already serves
    assert Connection.objects.get(pk=row.pk).unseal(Connection.refresh_token) == row.unseal(
        Connection.refresh_token
    )


FAULTS = {
    "away": Fail(503),
    "too many": Fail(429, retry_after=30),
    "broken": Lost(),
    "not JSON": Raw(b"<html>", content_type="text/html"),
    "not an object": Raw(b"[1]"),
    "nothing": Raw(b""),
    "no token": Raw(b'{"token_type": "Bearer"}'),
    "odd token": Raw(b'{"access_token": {"a": 1}, "id_token": "a.b.c"}'),
    "odd ID token": Raw(b'{"access_token": "a", "id_token": 7}'),
    "refused client": Refuse("invalid_client", 401),
    "odd error": Raw(b'{"error": ["<b>"]}', status=400),
    "an error for a header": Raw(b'{"error": "a\\r\\nb"}', status=400),
    "a redirect": Raw(b"", status=307, headers={"Location": "http://127.0.0.1:9/token"}),
    "endless": Raw(b'{"a": "' + b"x" * (2 << 20) + b'"}'),
}


@pytest.mark.parametrize("provider", ["gmail", "outlook"])
def test_whatever_a_token_endpoint_says_the_user_reads_a_page(
    owner: Owner, identity: Identity, provider: str
) -> None:
    for fault, step in FAULTS.items():
        identity.script(step)
        page = visit(owner.agree(provider))
        assert page.status_code == 400 and "is not connected" in page.content.decode(), fault
        assert len(identity.requests[-1].form["code"]) > 10, fault  # it was the fault that was met
    assert not Connection.objects.of(owner.id).exists()
    assert visit(owner.agree(provider)).status_code == 200


def test_only_who_is_signed_in_is_sent_to_a_provider(owner: Owner) -> None:
    owner.rest.credentials()
    assert owner.rest.get("/api/v1/oauth/gmail/authorize").status_code == 401


def test_an_unknown_or_unregistered_provider_is_named(owner: Owner, settings: Any) -> None:
    assert owner.rest.get("/api/v1/oauth/facebook/authorize").status_code == 404
    settings.GOOGLE = settings.GOOGLE | {"client_secret": ""}
    answer = owner.rest.get("/api/v1/oauth/gmail/authorize")
    assert (answer.status_code, answer.json()["code"]) == (503, "provider_not_configured")


def test_of_many_begun_consents_the_newest_are_kept(owner: Owner) -> None:
    urls = [owner.authorize() for _ in range(23)]
    assert Consent.objects.filter(user_id=owner.id).count() == 20
    newest = hashlib.sha256(state_of(urls[-1]).partition(".")[0].encode()).digest()
    assert Consent.objects.filter(user_id=owner.id, state_hash=newest).exists()


def test_a_consent_of_an_account_that_is_locked_or_gone_is_refused(owner: Owner) -> None:
    from adiuva.accounts import services
    from adiuva.accounts.models import User

    locked, gone = owner.agree(), Owner(owner.identity)
    back = gone.agree()
    services.deactivate(users=User.objects.filter(pk=owner.id))
    services.delete_account(user=User.objects.get(pk=gone.id))
    refused(visit(locked, Client()), "expired")  # such an account cannot sign in any more
    refused(visit(back), "expired")


# ── Who began it ────────────────────────────────────────────────────────────────────────────────────────


def link_to_app(page: HttpResponse) -> dict[str, str]:
    found = re.search(r'href="(adiuva://[^"]*)"', page.content.decode())
    assert found
    return dict(parse_qsl(urlsplit(found[1].replace("&amp;", "&")).query))


@pytest.mark.parametrize("provider", ["gmail", "outlook", "teams"])
def test_a_browser_that_is_not_signed_in_connects_nothing_until_the_app_finishes_it(
    owner: Owner, identity: Identity, provider: str
) -> None:
    back = owner.agree(provider)
    asked = len(identity.requests)
    page = visit(back, Client())
    assert (
        page.status_code == 200 and "One more step" in reasons(page) and owner.person.email in reasons(page)
    )
    assert len(identity.requests) == asked  # no token was asked for
    assert not Connection.objects.filter(user_id=owner.id).exists()
    said = link_to_app(page)
    assert said.keys() == {"status", "completion"} and said["status"] == "returned"

    path, body = f"/api/v1/oauth/{provider}/complete", {"completion": said["completion"]}
    # Somebody who was sent a stranger's link has the completion in their own app, which is signed in as themselves.
    victim = client_of(somebody()).post(path, body)
    assert (victim.status_code, victim.json()["code"]) == (400, "consent_failed")
    assert not Connection.objects.exclude(user_id=None).filter(user_id=owner.id).exists()
    done = owner.rest.post(path, body)
    assert (done.status_code, done.json()["provider"]) == (200, provider)
    assert owner.rest.post(path, body).json()["code"] == "consent_failed"
    assert Connection.objects.filter(user_id=owner.id).count() == 1


def test_it_can_be_finished_by_signing_in_on_the_page(owner: Owner) -> None:
    browser = Client()
    page = visit(owner.agree(), browser)
    found = re.search(r'href="(/api/v1/oauth/gmail/finish[^"]*)"', page.content.decode())
    assert found
    to_sign_in = browser.get(found[1])
    assert to_sign_in.status_code == 302 and to_sign_in["Location"].startswith("/account/sign-in?next=")
    wrong = Client()
    wrong.force_login(User.objects.get(pk=somebody().id))
    refused(wrong.get(found[1]), "another Adiuva account")
    form = {"username": owner.person.email, "password": owner.person.password}
    after = browser.post(to_sign_in["Location"], form)
    assert after["Location"] == found[1]
    assert "is connected" in reasons(browser.get(after["Location"]))
    assert Connection.objects.filter(user_id=owner.id).count() == 1


def test_a_completion_expires_with_its_consent(owner: Owner) -> None:
    said = link_to_app(visit(owner.agree(), Client()))
    Consent.objects.filter(user_id=owner.id).update(expires_at=timezone.now())
    for completion in (said["completion"], "", "x"):
        answer = owner.rest.post("/api/v1/oauth/gmail/complete", {"completion": completion})
        assert answer.status_code == 400
    assert not Connection.objects.filter(user_id=owner.id).exists()


def test_one_of_many_who_finish_at_once_does(owner: Owner, identity: Identity) -> None:
    said = link_to_app(visit(owner.agree(), Client()))

    def finish(_: int) -> bool:
        try:
            return bool(
                oauth.finish_consent(user_id=owner.id, provider="gmail", completion=said["completion"])
            )
        except ConsentFailed:
            return False
        finally:
            databases.close_all()

    with ThreadPoolExecutor(6) as threads:
        assert sum(threads.map(finish, range(6))) == 1


@pytest.mark.parametrize(
    ("locale", "accepted", "heading"),
    [
        ("", "fr-CH, en;q=0.5", "Gmail n'est pas connecté"),
        ("", "pt-BR", "Gmail is not connected"),
        ("de-AT", "fr", "Gmail ist nicht verbunden"),
    ],
)
def test_the_page_after_consent_is_in_the_visitors_language(
    locale: str, accepted: str, heading: str, db: None
) -> None:
    client = Client()
    if locale:
        client.force_login(User.objects.get(pk=somebody(locale=locale).id))
    answer = client.get(
        "/api/v1/oauth/gmail/callback?state=x", headers={"Accept-Language": accepted}
    ).content.decode()
    assert f"<h1>{heading}</h1>" in html.unescape(answer)
    language = language_of(locale or accepted)
    assert f'<html lang="{language}">' in answer
    assert ("This link is not valid" in answer) is (language == "en")
