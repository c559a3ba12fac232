"""The OAuth consent flow: to a provider's consent page and back.

The browser carries a state: a random word, signed together with its user, provider, redirect URI and time. The database
keeps a row with the word's hash and the PKCE verifier; the row accepts the state once.

The state says which user it belongs to, not who sits at the browser that returns: somebody may have been sent the link
of a stranger, and would connect their mailbox to the stranger's account. So a connection is made only when the user who
began is there: their browser is signed in, or they finish with the completion that the returning browser gets. The link
back to the app holds it, and the app sends it with its token; or they sign in on the page.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

import structlog
from django.conf import settings
from django.core import signing
from django.db.models import Q
from django.db.models.functions import Now
from django.urls import reverse

from adiuva.accounts.keys import cipher_for
from adiuva.accounts.models import User
from adiuva.core.crypto import SealBroken
from adiuva.core.errors import AdiuvaError, Text
from integrations import connections, oauth_clients
from integrations.errors import ConsentFailed, GrantRefused
from integrations.models import Connection, Consent, Provider

log = structlog.get_logger(__name__)

CONSENT_LIFETIME: Final = timedelta(minutes=10)
# The most characters of a code or state that a provider's redirect may have.
_MAX_PARAMETER_CHARS: Final = 4_096
# The most pending consents of a user; the oldest are deleted.
_MAX_PENDING_CONSENTS: Final = 20


def redirect_uri(provider: str) -> str:
    """Return the address to which a provider sends the browser back. It must be registered there exactly like this."""
    return settings.PUBLIC_URL + reverse("oauth-callback", kwargs={"provider": provider})


def start_consent(*, user_id: UUID, provider: str, connection: Connection | None = None) -> str:
    """Return the URL of the provider's consent page, valid for this user, once, within CONSENT_LIFETIME.

    `connection`: one to be connected again; the provider is told which account that is. Raises ProviderNotConfigured,
    or QuotaExceeded where the plan has no room for a further provider.
    """
    connections.check_room(user_id, provider)
    word, verifier, back = secrets.token_urlsafe(24), secrets.token_urlsafe(48), redirect_uri(provider)
    url = oauth_clients.authorization_url(
        provider,
        state=_signed(word, user_id, provider, back, connection.pk if connection else None),
        verifier=verifier,
        redirect_uri=back,
        hint=connection.address_or_blank if connection else "",
    )
    old = (
        Consent.objects.filter(user_id=user_id)
        .order_by("-expires_at")
        .values("pk")[_MAX_PENDING_CONSENTS - 1 :]
    )
    Consent.objects.filter(pk__in=list(old.values_list("pk", flat=True))).delete()
    consent = Consent(user_id=user_id, provider=provider, state_hash=_state_hash(word), redirect_uri=back)
    Consent.verifier.seal_into(cipher_for(user_id), consent, verifier)
    consent.expires_at = Now() + CONSENT_LIFETIME
    consent.save(force_insert=True)
    return url


@dataclass(frozen=True)
class Connected:
    """An account was connected. `instead_of`: the connection to renew, if the user chose another account."""

    row: Connection
    instead_of: Connection | None


@dataclass(frozen=True)
class Returned:
    """The provider agreed, and `owner` must finish with the completion (see finish_consent) before anything is made."""

    owner: User
    completion: str


def complete_consent(
    provider: str, answer: Mapping[str, str], *, signed_in: UUID | None = None
) -> Connected | Returned:
    """Turn the parameters of a provider's redirect into a connection, if its user is signed in in this browser. Blocks.

    `signed_in`: the user who is signed in in this browser, if any; the state must belong to them. Raises AdiuvaError
    with a message that is shown to the user.
    """
    consent, wanted = _redeem(provider, answer.get("state", ""), signed_in)
    name = Provider(provider).label
    if "error" in answer:
        if answer["error"] in {"access_denied", "consent_required"}:
            refused = Text(
                "You did not allow Adiuva to read this {name} account. Nothing was connected.", name=name
            )
            if provider != Provider.GMAIL:
                hint = Text(
                    "If your organisation decides about apps, ask its administrator to allow Adiuva first."
                )
                refused = Text("{refused} {hint}", refused=refused, hint=hint)
            raise ConsentFailed(refused)
        raise ConsentFailed(
            Text("{name}'s sign-in reported an error. Nothing was connected: please try again.", name=name)
        )
    code = answer.get("code", "")
    if not code or len(code) > _MAX_PARAMETER_CHARS:
        raise ConsentFailed(
            Text("{name}'s sign-in sent no code. Nothing was connected: please try again.", name=name)
        )
    if signed_in is None:
        return _keep_returned(consent, code, wanted)
    return _connect(consent, code, wanted)


def finish_consent(*, user_id: UUID, provider: str, completion: str) -> Connected:
    """Make the connection of a consent that this user began, once. Blocks.

    Raises AdiuvaError with a message that is shown to the user.
    """
    mine = Consent.objects.filter(user_id=user_id, provider=provider, completion_hash=_state_hash(completion))
    consent = mine.select_related("user").first()
    # If several requests bring the same completion at once, one of them changes the row.
    if consent is None or not mine.filter(expires_at__gt=Now()).update(completion_hash=None):
        raise ConsentFailed(
            "This was finished before, has expired, or was begun by another Adiuva account than the one that is "
            "signed in here. Nothing was connected."
        )
    try:
        kept = Consent.returned.unseal_from(cipher_for(user_id), consent)
    except SealBroken:
        raise _invalid() from None
    return _connect(consent, kept["code"], UUID(kept["wanted"]) if kept["wanted"] else None)


# ── Internals ──────────────────────────────────────────────────────────────────────────────────────────────


def _keep_returned(consent: Consent, code: str, wanted: UUID | None) -> Returned:
    completion = secrets.token_urlsafe(24)
    kept = {"code": code, "wanted": str(wanted) if wanted else None}
    Consent.returned.seal_into(cipher_for(consent.user_id), consent, kept)
    consent.completion_hash = _state_hash(completion)
    consent.save(update_fields=["returned", "completion_hash"])
    return Returned(consent.user, completion)


def _connect(consent: Consent, code: str, wanted: UUID | None) -> Connected:
    provider, name = consent.provider, Provider(consent.provider).label
    try:
        verifier = Consent.verifier.unseal_from(cipher_for(consent.user_id), consent)
        grant = oauth_clients.exchange_code(
            provider, code=code, verifier=verifier, redirect_uri=consent.redirect_uri
        )
    except GrantRefused:
        raise ConsentFailed(
            Text(
                "{name}'s sign-in does not accept this code: it was used, has expired, or was made for another "
                "address. Nothing was connected: please try again.",
                name=name,
            )
        ) from None
    except SealBroken:
        raise _invalid() from None
    _require_usable(provider, consent.user_id, grant)
    row = connections.connect(user_id=consent.user_id, provider=provider, grant=grant)
    others = Connection.objects.of(consent.user_id).exclude(pk=row.pk)
    return Connected(row, others.filter(pk=wanted).first() if wanted else None)


def _redeem(provider: str, state: str, signed_in: UUID | None) -> tuple[Consent, UUID | None]:
    """Use up the consent of a state; return it and the connection that was to be connected again.

    Raises ConsentFailed.
    """
    word, user_id, wanted = _verified(provider, state)
    mine = Consent.objects.filter(state_hash=_state_hash(word), user_id=user_id, provider=provider)
    fresh = Q(used_at__isnull=True, expires_at__gt=Now(), redirect_uri=redirect_uri(provider))
    # If several requests bring the same state at once, one of them changes the row. This holds only for an UPDATE of
    # a single table: with a join it would have a subquery, which is not evaluated again after waiting for the row's
    # lock. The state counts as used even if a later step fails.
    if not mine.filter(fresh).update(used_at=Now()):
        if mine.filter(used_at__isnull=False).exists():
            raise ConsentFailed(
                "This link was used before. Go back to the app and connect the account again."
            )
        raise _expired()
    consent = mine.select_related("user").get()
    if not consent.user.is_active:
        raise _expired()
    if signed_in is not None and signed_in != user_id:
        raise ConsentFailed(
            "This link was made for another Adiuva account than the one that is signed in here. Nothing was "
            "connected."
        )
    return consent, wanted


def _signed(word: str, user_id: UUID, provider: str, back: str, wanted: UUID | None) -> str:
    return _signer(provider, back).sign(f"{word}.{user_id.hex}.{wanted.hex if wanted else ''}")


def _verified(provider: str, state: str) -> tuple[str, UUID, UUID | None]:
    if not state.isascii() or len(state) > _MAX_PARAMETER_CHARS:
        raise _invalid()
    try:
        signed = _signer(provider, redirect_uri(provider)).unsign(state, max_age=CONSENT_LIFETIME)
    except signing.SignatureExpired:
        raise _expired() from None
    except signing.BadSignature:
        raise _invalid() from None
    word, user, wanted = signed.split(".")
    return word, UUID(user), UUID(wanted) if wanted else None


def _signer(provider: str, back: str) -> signing.TimestampSigner:
    """Return the signer of the states of one provider and redirect URI; those of another do not verify."""
    return signing.TimestampSigner(salt=f"adiuva oauth state {provider} {back}")


def _state_hash(word: str) -> bytes:
    return hashlib.sha256(word.encode("utf-8", "surrogatepass")).digest()


def _require_usable(provider: str, user_id: UUID, grant: oauth_clients.Grant) -> None:
    """Refuse a grant that could not be used. Raises ConsentFailed."""
    name = Provider(provider).label
    if missing := grant.missing(provider):
        log.info("consent.incomplete", user_id=str(user_id), provider=provider, missing=len(missing))
        raise ConsentFailed(
            Text(
                "You did not allow all that is needed to read {name}. Nothing was connected: please try again, and "
                "leave the boxes on the consent page ticked.",
                name=name,
            )
        )
    lasting = grant.refresh_token is not None or connections.has_refresh_token(
        user_id=user_id, provider=provider, account=grant.account
    )
    if not lasting:
        raise ConsentFailed(
            Text(
                "{name} gave no lasting permission. Nothing was connected: remove Adiuva from the apps of your "
                "account there, and try again.",
                name=name,
            )
        )


def _expired() -> AdiuvaError:
    return ConsentFailed("This link has expired. Go back to the app and connect the account again.")


def _invalid() -> AdiuvaError:
    return ConsentFailed(
        "This link is not valid: it is incomplete, was changed, or belongs to another provider. Nothing was "
        "connected."
    )
