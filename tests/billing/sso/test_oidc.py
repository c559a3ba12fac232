"""The client of OpenID Connect, before a provider that misbehaves."""

from __future__ import annotations

import base64
import hashlib
import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from billing.sso import oidc
from billing.sso.errors import SsoAway, SsoMisconfigured, SsoRefused
from tests.fakes.oidc import CLIENT, SECRET, Oidc

BACK = "http://testserver/account/sso/callback"
VERIFIER = "v" * 43
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).decode().rstrip("=")


def signed_in(idp: Oidc, nonce: str = "asked") -> dict[str, Any]:
    """The claims of a whole sign-in."""
    client = oidc.Client(idp.url, CLIENT, SECRET)
    meta = oidc.discover(idp.url)
    url = oidc.authorization_url(
        client, meta, state="s", nonce="asked", challenge=CHALLENGE, redirect_uri=BACK
    )
    back = parse_qs(urlsplit(idp.sign_in(url)).query)
    tokens = oidc.exchange_code(client, meta, code=back["code"][0], verifier=VERIFIER, redirect_uri=BACK)
    return oidc.claims_of(client, meta, tokens.id_token, nonce=nonce)


def test_a_person_signs_in_and_the_provider_is_asked_no_more_than_needed(idp: Oidc) -> None:
    assert signed_in(idp)["email"] == "ada@example.com"
    signed_in(idp)
    assert len(idp.asked("/.well-known/openid-configuration")) == len(idp.asked("/keys")) == 1
    assert idp.asked("/authorize")[0]["scope"] == "openid email profile offline_access"
    assert all("client_secret" not in form for form in idp.asked("/token"))


def test_a_provider_that_wants_the_secret_in_the_body_gets_it_there(idp: Oidc) -> None:
    idp.faults = {"post_secret", "no_refresh"}
    assert signed_in(idp)["sub"] == "1"
    assert idp.asked("/authorize")[0]["scope"] == "openid email profile"


def test_rsa_keys_are_as_good() -> None:
    with Oidc(kind="RSA") as other:
        from django.test import override_settings

        with override_settings(SSO_NETWORKS=["127.0.0.0/8"]):
            assert signed_in(other)["sub"] == "1"


@pytest.mark.parametrize(
    "fault", ["alg_none", "alg_hs256", "tampered", "unknown_kid"], ids=lambda fault: str(fault)
)
def test_a_token_that_is_not_signed_by_the_provider_is_refused(idp: Oidc, fault: str) -> None:
    idp.faults = {fault}
    with pytest.raises(SsoRefused):
        signed_in(idp)
    assert len(idp.asked("/keys")) <= 2


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "another client"},
        {"aud": [CLIENT, "another client"]},
        {"aud": [CLIENT, "another client"], "azp": "another client"},
        {"azp": "another client"},
        {"iss": "https://other.example"},
        {"iss": None},
        {"nonce": "another's"},
        {"nonce": None},
        {"nonce": ["asked"]},
        {"exp": lambda now: now - 61},
        {"exp": None},
        {"iat": None},
        {"iat": lambda now: now + 600},
        {"sub": None},
        {"sub": ""},
        {"sub": "x" * 256},
        {"sub": 7},
    ],
    ids=lambda claims: " ".join(claims),
)
def test_a_token_for_somebody_or_something_else_is_refused(idp: Oidc, claims: dict[str, Any]) -> None:
    idp.claims = claims
    with pytest.raises(SsoRefused, match="the provider's answer is not valid"):
        signed_in(idp)


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": lambda now: now - 20, "iat": lambda now: now - 320},
        {"iat": lambda now: now + 30},
        {"aud": [CLIENT]},
        {"aud": [CLIENT, "another client"], "azp": CLIENT},
    ],
    ids=["ended a moment ago", "begins in a moment", "one in a list", "the party of two"],
)
def test_clocks_may_differ_by_a_minute_and_audiences_have_two_forms(
    idp: Oidc, claims: dict[str, Any]
) -> None:
    idp.claims = claims
    assert signed_in(idp)["sub"] == "1"


def test_a_key_may_go_without_a_name_where_there_is_one(idp: Oidc) -> None:
    idp.faults = {"no_kid"}
    assert signed_in(idp)["sub"] == "1"


def test_changed_keys_are_fetched_and_unknown_ones_do_not_make_us_ask_again_and_again(idp: Oidc) -> None:
    signed_in(idp)
    idp.rotate()
    assert signed_in(idp)["sub"] == "1"
    assert len(idp.asked("/keys")) == 2
    idp.faults = {"unknown_kid"}
    for _ in range(3):
        with pytest.raises(SsoRefused):
            signed_in(idp)
    assert len(idp.asked("/keys")) == 2


@pytest.mark.parametrize(
    "fault", ["discovery_500", "jwks_500", "token_500", "token_html", "slow_token", "huge_discovery", "drips"]
)
def test_a_provider_that_does_not_answer_well_is_away_and_bounded(
    idp: Oidc, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "_TOTAL_S", 0.4)
    idp.faults = {fault}
    began = time.monotonic()
    with pytest.raises(SsoAway):
        signed_in(idp)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("fault", ["other_issuer", "inner_jwks", "no_id_token", "invalid_client"])
def test_what_an_owner_set_wrongly_is_said(idp: Oidc, fault: str) -> None:
    idp.faults = {fault}
    with pytest.raises(SsoMisconfigured):
        signed_in(idp)
    assert not any(path == "/latest/meta-data/" for _, path, _ in idp.requests)


def test_a_redirect_is_not_followed(idp: Oidc) -> None:
    idp.faults = {"redirect_discovery"}
    with pytest.raises(SsoAway):
        oidc.discover(idp.url)


def test_a_code_counts_once_and_for_its_verifier_alone(idp: Oidc) -> None:
    client, meta = oidc.Client(idp.url, CLIENT, SECRET), oidc.discover(idp.url)
    url = oidc.authorization_url(client, meta, state="s", nonce="n", challenge=CHALLENGE, redirect_uri=BACK)
    for verifier in ("w" * 43, VERIFIER):
        code = parse_qs(urlsplit(idp.sign_in(url)).query)["code"][0]
        if verifier == VERIFIER:
            oidc.exchange_code(client, meta, code=code, verifier=verifier, redirect_uri=BACK)
        with pytest.raises(SsoRefused):
            oidc.exchange_code(client, meta, code=code, verifier=verifier, redirect_uri=BACK)


def test_the_provider_is_asked_again_until_its_person_leaves(idp: Oidc) -> None:
    client, meta = oidc.Client(idp.url, CLIENT, SECRET), oidc.discover(idp.url)
    url = oidc.authorization_url(client, meta, state="s", nonce="n", challenge=CHALLENGE, redirect_uri=BACK)
    code = parse_qs(urlsplit(idp.sign_in(url)).query)["code"][0]
    tokens = oidc.exchange_code(client, meta, code=code, verifier=VERIFIER, redirect_uri=BACK)
    second = oidc.ask_again(client, meta, refresh_token=tokens.refresh_token, subject="1")
    assert second != tokens.refresh_token
    idp.faults = {"token_500"}
    with pytest.raises(SsoAway):
        oidc.ask_again(client, meta, refresh_token=second, subject="1")
    idp.faults = set()
    third = oidc.ask_again(client, meta, refresh_token=second, subject="1")
    idp.leaves("1")
    with pytest.raises(oidc.NoLonger):
        oidc.ask_again(client, meta, refresh_token=third, subject="1")
    assert "secret" not in repr(client) and tokens.id_token not in repr(tokens)
