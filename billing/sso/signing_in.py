"""A sign-in through an organisation, from the address that somebody types to an open session.

    begin(email=…)            the provider's page for the browser, and the word that the browser keeps
    come_back(answer, …)      the result of the provider's answer, one of:
        Recognised            somebody whose account it is: open a session
        PasswordWanted        an account has this address already: `link` takes its password first
        ForApp                an app began it, and finishes it with this code and its own verifier: `finish_app`

The word in the browser (`state`) is random. A key of ours derives its nonce and PKCE verifier from it, so that neither
is stored; the row keeps the word's hash and lets each step be taken once. A browser that began holds the word in its
session; a sign-in that an app began is bound to the app by a challenge of its own, as in PKCE.

A provider's statement about a person counts for addresses of domains that its team has proven. It makes or opens no
account of anybody else: an existing account at the address is linked only with its password.
"""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Final
from uuid import UUID

from django.db.models.functions import Now
from django.utils import timezone

from adiuva.accounts import addresses, second_factors, services
from adiuva.accounts.keys import cipher_for
from adiuva.accounts.models import Session, User
from adiuva.accounts.second_factors import Proof
from adiuva.core.errors import AdiuvaError, Invalid
from adiuva.core.pruning import delete_in_batches
from billing.sso import accounts, configuration, events, identities, nonces, oidc, rules
from billing.sso.errors import SsoExpired, SsoUnknown
from billing.sso.identities import Person
from billing.sso.models import SIGN_IN_LASTS, Domain, IdentityProvider, SignIn, SsoEvent, SsoSession

_CHALLENGE_CHARS: Final = 43
Kind = SsoEvent.Kind


@dataclass(frozen=True)
class Recognised:
    user: User
    provider: IdentityProvider
    person: Person


@dataclass(frozen=True)
class PasswordWanted:
    """An account has the address. `may_be_new`: nobody has confirmed the address, so a new account is possible."""

    word: str = field(repr=False)
    address: str
    may_be_new: bool


@dataclass(frozen=True)
class ForApp:
    code: str = field(repr=False)


# ── Beginning ─────────────────────────────────────────────────────────────────────────────────────────────


def begin(*, email: str, challenge: str = "") -> tuple[str, str]:
    """Return the address of the provider's page, and the word of this sign-in.

    `challenge`: that of an app, which will finish with its verifier (S256, as in RFC 7636). Raises Invalid, SsoUnknown,
    SsoAway, SsoMisconfigured.
    """
    if challenge and not (len(challenge) == _CHALLENGE_CHARS and challenge.isascii()):
        raise Invalid("challenge: it is the S256 of a verifier.", fields={"challenge": ["43 characters."]})
    try:
        address = addresses.normalize(email)
    except addresses.AddressInvalid:
        raise SsoUnknown from None
    provider = _provider_of(address)
    meta = oidc.discover(provider.issuer)
    word = secrets.token_urlsafe(32)
    SignIn.objects.create(
        state_hash=nonces.hash_of(word),
        provider=provider,
        challenge=challenge,
        expires_at=timezone.now() + SIGN_IN_LASTS,
    )
    url = oidc.authorization_url(
        configuration.client_of(provider),
        meta,
        state=word,
        nonce=nonces.derived(word, "nonce"),
        challenge=nonces.s256(nonces.derived(word, "verifier")),
        redirect_uri=configuration.redirect_uri(),
        hint=address,
    )
    return url, word


def _provider_of(address: str) -> IdentityProvider:
    found = (
        Domain.objects.filter(name=address.rpartition("@")[2], proven_at__isnull=False)
        .select_related("provider__team")
        .first()
    )
    if found is None or not rules.is_in_plan(found.provider.team.owner_id):
        raise SsoUnknown
    return found.provider


# ── Coming back ───────────────────────────────────────────────────────────────────────────────────────────


def come_back(answer: Mapping[str, str], *, kept: str = "") -> Recognised | PasswordWanted | ForApp:
    """Sign in with the parameters of a provider's redirect, or return the step that is still needed. Blocks.

    `kept`: the word that this browser's session holds. Raises AdiuvaError with a message for the person at the browser.
    """
    word = answer.get("state", "")
    row = _redeem(word, kept)
    provider = row.provider
    try:
        person = identities.person_of(provider, word, answer)
        user = accounts.account_of(provider, person)
    except AdiuvaError as error:
        events.note(provider.team_id, Kind.REFUSED, code=error.code)
        raise
    if user is None:
        return _want_password(row, person)
    return _recognised(row, user, person)


def _redeem(word: str, kept: str) -> SignIn:
    """Use up a word. Raises SsoExpired."""
    if not word or len(word) > identities.MAX_CHARS or not word.isascii():
        raise SsoExpired
    mine = SignIn.objects.filter(state_hash=nonces.hash_of(word))
    row = mine.select_related("provider__team").first()
    # An app's sign-in comes back in any browser; its result is of use to that app alone.
    if row is None or not (row.challenge or hmac.compare_digest(word.encode(), kept.encode())):
        raise SsoExpired
    if not mine.open().filter(returned_at__isnull=True).update(returned_at=Now()):
        raise SsoExpired
    return row


# ── Linking an account ──────────────────────────────────────────────────────────────────────────────────


def _want_password(row: SignIn, person: Person) -> PasswordWanted:
    word = secrets.token_urlsafe(32)
    SignIn.person.seal_into(cipher_for(row.provider.team.owner_id), row, json.dumps(asdict(person)))
    row.next_hash = nonces.hash_of(word)
    row.save(update_fields=["person", "next_hash"])
    return PasswordWanted(word, person.address, accounts.may_be_new(person.address))


def waiting(word: str) -> PasswordWanted:
    """Return the data for a page that links an account. Raises SsoExpired."""
    row = _waiting(word)
    address = _kept_person(row).address
    return PasswordWanted(word, address, accounts.may_be_new(address))


def link(
    *, word: str, password: str, proof: Proof | None = None, as_new: bool = False
) -> Recognised | ForApp:
    """Link the account that has this address and password, or make another if nobody confirmed the address.

    Raises SsoExpired, InvalidCredentials, SecondFactorRefused, NoFreeSeat, InATeam, SsoRefused.
    """
    row = _waiting(word)
    provider, person = row.provider, _kept_person(row)
    try:
        if as_new and accounts.may_be_new(person.address):
            user = accounts.make(provider, person)
        else:
            user = services.check_credentials(email=person.address, password=password)
            if second_factors.methods_of(user):
                second_factors.require(user, proof or Proof())
            accounts.link(provider, person, user)
    except AdiuvaError as error:
        events.note(provider.team_id, Kind.REFUSED, code=error.code)
        raise
    if not SignIn.objects.open().filter(pk=row.pk, next_hash=nonces.hash_of(word)).update(next_hash=None):
        raise SsoExpired
    return _recognised(row, user, person)


def _waiting(word: str) -> SignIn:
    rows = SignIn.objects.open().filter(next_hash=nonces.hash_of(word), user=None, person__isnull=False)
    row = rows.select_related("provider__team").first()
    if row is None:
        raise SsoExpired
    return row


def _kept_person(row: SignIn) -> Person:
    return Person(**json.loads(SignIn.person.unseal_from(cipher_for(row.provider.team.owner_id), row)))


# ── Opening a session ─────────────────────────────────────────────────────────────────────────────────────


def _recognised(row: SignIn, user: User, person: Person) -> Recognised | ForApp:
    if not row.challenge:
        return Recognised(user, row.provider, person)
    code = secrets.token_urlsafe(32)
    SignIn.person.seal_into(cipher_for(row.provider.team.owner_id), row, json.dumps(asdict(person)))
    row.user, row.next_hash = user, nonces.hash_of(code)
    row.save(update_fields=["user", "person", "next_hash"])
    return ForApp(code)


def finish_app(*, code: str, verifier: str, user_agent: str = "") -> Session:
    """Open the session of the app that began. Raises SsoExpired, and what opening a session raises."""
    rows = SignIn.objects.open().filter(next_hash=nonces.hash_of(code), user__isnull=False)
    row = rows.select_related("provider__team", "user").first()
    if row is None or not verifier or not hmac.compare_digest(nonces.s256(verifier), row.challenge):
        raise SsoExpired
    if not rows.update(next_hash=None):  # one of several at once gets it
        raise SsoExpired
    assert row.user is not None
    done = Recognised(row.user, row.provider, _kept_person(row))
    session = services.open_session(user=row.user, user_agent=user_agent, way="sso")
    vouch(done, session.pk)
    return session


def vouch(done: Recognised, session_id: UUID) -> None:
    """Note that the organisation vouches for this session, which has just been opened."""
    row = SsoSession(session_id=session_id, provider=done.provider, subject=done.person.subject)
    if done.person.refresh_token:
        SsoSession.refresh_token.seal_into(cipher_for(done.user.pk), row, done.person.refresh_token)
    row.save(force_insert=True)
    IdentityProvider.objects.filter(pk=done.provider.pk, issuer=done.person.issuer).update(worked_at=Now())
    events.note(done.provider.team_id, Kind.SIGNED_IN, user_id=done.user.pk)


def forget_old() -> int:
    """Delete sign-ins that were not finished in time. Returns how many."""
    return delete_in_batches(SignIn.objects.filter(expires_at__lt=Now()).order_by("expires_at"))
