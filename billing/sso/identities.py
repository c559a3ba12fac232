"""Reads a person's identity from a provider's ID token, verified and with an address of a proven domain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from django.core.exceptions import ValidationError

from adiuva.accounts import addresses
from adiuva.accounts.validators import validate_locale
from billing.sso import configuration, nonces, oidc
from billing.sso.errors import SsoRefused
from billing.sso.models import IdentityProvider

MAX_CHARS: Final = 4096


@dataclass(frozen=True)
class Person:
    """A provider's statement about the person who signed in."""

    issuer: str
    subject: str
    address: str = field(repr=False)
    locale: str
    refresh_token: str = field(repr=False)


def person_of(provider: IdentityProvider, word: str, answer: Mapping[str, str]) -> Person:
    if answer.get("iss", provider.issuer) != provider.issuer:  # RFC 9207: the answer of another provider
        raise SsoRefused("the provider's answer is not valid")
    if "error" in answer:
        raise SsoRefused("you did not sign in at your organisation, so nothing was opened here")
    code = answer.get("code", "")
    if not code or len(code) > MAX_CHARS:
        raise SsoRefused("the provider's answer is not valid")
    client, meta = configuration.client_of(provider), oidc.discover(provider.issuer)
    tokens = oidc.exchange_code(
        client,
        meta,
        code=code,
        verifier=nonces.derived(word, "verifier"),
        redirect_uri=configuration.redirect_uri(),
    )
    claims = oidc.claims_of(client, meta, tokens.id_token, nonce=nonces.derived(word, "nonce"))
    address = _address(claims)
    if not provider.domains.filter(name=address.rpartition("@")[2], proven_at__isnull=False).exists():
        raise SsoRefused("your address is not of a domain that your organisation has proven here")
    return Person(
        provider.issuer, claims["sub"], address, _locale(claims.get("locale")), tokens.refresh_token
    )


def _address(claims: Mapping[str, Any]) -> str:
    """Return the person's address; if a provider leaves `email` out, the name with which they sign in."""
    if claims.get("email_verified") in (False, "false"):
        raise SsoRefused("your organisation has not confirmed your e-mail address")
    said = claims.get("email") or claims.get("preferred_username")
    try:
        return addresses.normalize(said if isinstance(said, str) else "")
    except addresses.AddressInvalid:
        raise SsoRefused("your organisation does not say what your e-mail address is") from None


def _locale(said: object) -> str:
    text = said.replace("_", "-") if isinstance(said, str) else "en"
    try:
        validate_locale(text)
    except ValidationError:
        return "en"
    return text
