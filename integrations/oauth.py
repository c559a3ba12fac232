"""The way to a provider's consent page and back.

What travels is a state: a random word, signed together with its user, provider, redirect address and time. What
stays is a row with its hash and PKCE's verifier, which lets it through once.

Who comes back is not signed in, as the consent is given in a browser and the app is elsewhere: the state says whose
it is. So the page names the Adiuva account, and whoever was tricked into connecting to somebody else's sees it.
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

from adiuva.core.crypto import SealBroken
from adiuva.core.errors import AdiuvaError
from integrations import connections, oauth_clients
from integrations.errors import ConsentFailed, GrantRefused
from integrations.models import Connection, Consent, Provider

log = structlog.get_logger("adiuva.integrations")

CONSENT_LIFETIME: Final = timedelta(minutes=10)
_MAX_PARAMETER_CHARS: Final = 4_096  # of what a provider sends back
_MAX_PENDING_CONSENTS: Final = 20  # consents of a user that may be under way; older ones are given up


def redirect_uri(provider: str) -> str:
    """Where a provider sends people back to; it is registered there, letter by letter."""
    return settings.PUBLIC_URL + reverse("oauth-callback", kwargs={"provider": provider})


def start_consent(*, user_id: UUID, provider: str, connection: Connection | None = None) -> str:
    """The address of the provider's consent page, for this user, once, within ten minutes.

    `connection`: one to be connected again; the provider is told which account that is. Raise
    ProviderNotConfigured.
    """
    word, verifier, back = secrets.token_urlsafe(24), secrets.token_urlsafe(48), redirect_uri(provider)
    url = oauth_clients.authorization_url(
        provider,
        state=_signed(word, user_id, provider, back, connection.pk if connection else None),
        verifier=verifier,
        redirect_uri=back,
        hint=connection.address_if_known if connection else "",
    )
    old = (
        Consent.objects.filter(user_id=user_id)
        .order_by("-expires_at")
        .values("pk")[_MAX_PENDING_CONSENTS - 1 :]
    )
    Consent.objects.filter(pk__in=list(old.values_list("pk", flat=True))).delete()
    consent = Consent(user_id=user_id, provider=provider, state_hash=_state_hash(word), redirect_uri=back)
    consent.verifier = consent.seal(verifier)
    consent.expires_at = Now() + CONSENT_LIFETIME
    consent.save(force_insert=True)
    return url


@dataclass(frozen=True)
class Connected:
    """`instead_of`: the connection that was to be connected again, where the user chose another account."""

    row: Connection
    instead_of: Connection | None


def complete_consent(provider: str, answer: Mapping[str, str], *, signed_in: UUID | None = None) -> Connected:
    """What a provider sent back becomes a connection. Blocks. Raise AdiuvaError with a message for the user's eyes.

    `signed_in`: who is signed in in this browser, if anybody is: they must be whom the state was made for.
    """
    consent, wanted = _redeem(provider, answer.get("state", ""), signed_in)
    name = Provider(provider).label
    if "error" in answer:
        if answer["error"] in {"access_denied", "consent_required"}:
            refused = f"You did not allow Adiuva to read this {name} account. Nothing was connected."
            if provider != Provider.GMAIL:
                refused += (
                    " If your organisation decides about apps, ask its administrator to allow Adiuva first."
                )
            raise ConsentFailed(refused)
        raise ConsentFailed(f"{name}'s sign-in reported an error. Nothing was connected: please try again.")
    code = answer.get("code", "")
    if not code or len(code) > _MAX_PARAMETER_CHARS:
        raise ConsentFailed(f"{name}'s sign-in sent no code. Nothing was connected: please try again.")
    try:
        grant = oauth_clients.exchange_code(
            provider, code=code, verifier=consent.unseal(), redirect_uri=consent.redirect_uri
        )
    except GrantRefused:
        raise ConsentFailed(
            f"{name}'s sign-in does not accept this code: it was used, has expired, or was made for another "
            "address. Nothing was connected: please try again."
        ) from None
    except SealBroken:
        raise _invalid() from None
    _require_usable(provider, consent.user_id, grant)
    row = connections.connect(user_id=consent.user_id, provider=provider, grant=grant)
    others = Connection.objects.of(consent.user_id).exclude(pk=row.pk)
    return Connected(row, others.filter(pk=wanted).first() if wanted else None)


# ── Inside ──────────────────────────────────────────────────────────────────────────────────────────────


def _redeem(provider: str, state: str, signed_in: UUID | None) -> tuple[Consent, UUID | None]:
    """The consent that a state is for, which it lets through this once, and the connection that was to be connected
    again. Raise ConsentFailed."""
    word, user_id, wanted = _verified(provider, state)
    mine = Consent.objects.filter(state_hash=_state_hash(word), user_id=user_id, provider=provider)
    fresh = Q(used_at__isnull=True, expires_at__gt=Now(), redirect_uri=redirect_uri(provider))
    # Of all who bring it at once, one changes the row. That holds for an UPDATE of one table alone: with a join it has
    # a subquery, which who waited for the row does not ask again. It counts as used however the rest goes.
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
            "This link was made for another Adiuva account than the one that is signed in here. Nothing was connected."
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
    """Of states for one provider and one address, so that another's do not verify."""
    return signing.TimestampSigner(salt=f"adiuva oauth state {provider} {back}")


def _state_hash(word: str) -> bytes:
    return hashlib.sha256(word.encode()).digest()


def _require_usable(provider: str, user_id: UUID, grant: oauth_clients.Grant) -> None:
    """A grant that could not be used is not kept. Raise ConsentFailed."""
    name = Provider(provider).label
    if missing := grant.missing(provider):
        log.info("consent.incomplete", user_id=str(user_id), provider=provider, missing=len(missing))
        raise ConsentFailed(
            f"You did not allow all that is needed to read {name}. Nothing was connected: please try again, and leave "
            "the boxes on the consent page ticked."
        )
    lasting = grant.refresh_token is not None or connections.has_refresh_token(
        user_id=user_id, provider=provider, account=grant.account
    )
    if not lasting:
        raise ConsentFailed(
            f"{name} gave no lasting permission. Nothing was connected: remove Adiuva from the apps of your account "
            "there, and try again."
        )


def _expired() -> AdiuvaError:
    return ConsentFailed("This link has expired. Go back to the app and connect the account again.")


def _invalid() -> AdiuvaError:
    return ConsentFailed(
        "This link is not valid: it is incomplete, was changed, or belongs to another provider. Nothing was connected."
    )
