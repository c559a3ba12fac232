"""Passkeys (WebAuthn): challenges for browsers, and browsers' answers to them.

A challenge waits in Redis under a handle for a few minutes. It is for one purpose and one user, and is used once. If
Redis forgets it, the browser asks for another one.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final
from urllib.parse import urlsplit

import structlog
from django.conf import settings
from django.core.cache import cache
from django.db import IntegrityError, transaction
from django.db.models import Q
from django.utils import timezone
from fido2.server import Fido2Server
from fido2.webauthn import (
    AttestedCredentialData,
    AuthenticationResponse,
    PublicKeyCredentialRpEntity,
    PublicKeyCredentialUserEntity,
    ResidentKeyRequirement,
    UserVerificationRequirement,
)

from adiuva.accounts.keys import cipher_for
from adiuva.accounts.models import Passkey, User
from adiuva.core.errors import Invalid, Text

log = structlog.get_logger(__name__)

_CHALLENGE_S: Final = 300
_MAX_NAME_CHARS: Final = 60
MAX_PER_USER: Final = 20


@dataclass(frozen=True)
class Assertion:
    """Answer of a browser to a challenge: the challenge's handle, and the credential as `toJSON()` gives it."""

    handle: str
    credential: dict[str, Any]


class PasskeyRefused(Invalid):
    code = "passkey_refused"

    def __init__(self) -> None:
        super().__init__("this passkey was not accepted: try again", fields={"credential": ["Not accepted."]})


# ── Challenges ──────────────────────────────────────────────────────────────────────────────────────────


def challenge_to_register(user: User) -> tuple[str, dict[str, Any]]:
    """Return (handle, options for `navigator.credentials.create`)."""
    options, state = _server().register_begin(
        PublicKeyCredentialUserEntity(id=user.pk.bytes, name=user.email, display_name=user.email),
        credentials=_credentials(user),
        # The browser finds such a key without an address, so a user can sign in with it alone.
        resident_key_requirement=ResidentKeyRequirement.PREFERRED,
        user_verification=UserVerificationRequirement.PREFERRED,
    )
    return _keep(state, "register", user), dict(options)["publicKey"]


def challenge(purpose: str, user: User | None) -> tuple[str, dict[str, Any]]:
    """Return (handle, options for `navigator.credentials.get`).

    Without a user the browser offers the passkeys it has, and the device must verify its owner: such a passkey stands
    for password and second factor.
    """
    options, state = _server().authenticate_begin(
        _credentials(user) if user else None,
        user_verification=(
            UserVerificationRequirement.PREFERRED if user else UserVerificationRequirement.REQUIRED
        ),
    )
    return _keep(state, purpose, user), dict(options)["publicKey"]


# ── Answers ─────────────────────────────────────────────────────────────────────────────────────────────


def register(answer: Assertion, *, user: User, name: str) -> Passkey:
    """Store a new passkey. Raises Invalid."""
    state = _take(answer.handle, "register", user)
    try:
        data = _server().register_complete(state, answer.credential).credential_data if state else None
    except _REFUSALS:
        data = None
    if data is None:
        raise PasskeyRefused
    if Passkey.objects.filter(user=user).count() >= MAX_PER_USER:
        raise Invalid(Text("an account has at most {most} passkeys", most=MAX_PER_USER))
    made = Passkey(user=user, credential_id=data.credential_id, credential=bytes(data))
    label = "".join(filter(str.isprintable, name)).strip()[:_MAX_NAME_CHARS] or "Passkey"
    Passkey.name.seal_into(cipher_for(user.pk), made, label)
    try:
        with transaction.atomic():
            made.save(force_insert=True)
    except IntegrityError:
        raise PasskeyRefused from None
    return made


def accepts(answer: Assertion, *, purpose: str, user: User) -> bool:
    """Return whether this is a passkey of the user, and a fresh answer to a challenge for this purpose."""
    state = _take(answer.handle, purpose, user)
    return state is not None and _verified(answer, state, Passkey.objects.filter(user=user)) is not None


def user_of(answer: Assertion) -> User | None:
    """Return the active user whose passkey answered a challenge that was for nobody in particular."""
    state = _take(answer.handle, "sign in", None)
    found = _verified(answer, state, Passkey.objects.filter(user__is_active=True)) if state else None
    return found.user if found else None


# fido2 raises these for answers that are not well formed, not signed by the key, or not for us.
_REFUSALS = (ValueError, KeyError, TypeError, AttributeError, IndexError)


def _verified(answer: Assertion, state: dict[str, Any], among: Any) -> Passkey | None:
    try:
        response = AuthenticationResponse.from_dict(answer.credential)
        row: Passkey | None = among.select_related("user").filter(credential_id=response.raw_id).first()
        if row is None:
            return None
        _server().authenticate_complete(state, [AttestedCredentialData(bytes(row.credential))], response)
    except _REFUSALS as error:
        log.info("passkey.refused", error=type(error).__name__)
        return None
    # A counter that does not go up belongs to a copy of the key. Most passkeys do not count: their counter stays 0.
    count = response.response.authenticator_data.counter
    newer = Q(sign_count__lt=count) | Q(sign_count=0) if count else Q(sign_count=0)
    used = Passkey.objects.filter(newer, pk=row.pk).update(sign_count=count, last_used_at=timezone.now())
    if not used:
        log.warning("passkey.counter_went_back", user_id=str(row.user_id), passkey_id=str(row.pk))
    return row if used else None


# ── Internals ───────────────────────────────────────────────────────────────────────────────────────────


def _server() -> Fido2Server:
    """Return fido2's server. Passkeys belong to the host of settings.PUBLIC_URL, and work on pages that it serves."""
    public = urlsplit(settings.PUBLIC_URL)
    host = public.hostname or "localhost"

    def is_ours(origin: str) -> bool:
        parts = urlsplit(origin)
        return parts.hostname == host and parts.scheme in {"https", public.scheme}

    return Fido2Server(PublicKeyCredentialRpEntity(name="Adiuva", id=host), verify_origin=is_ours)


def _credentials(user: User) -> list[AttestedCredentialData]:
    stored = Passkey.objects.filter(user=user).values_list("credential", flat=True)
    return [AttestedCredentialData(bytes(each)) for each in stored]


def _keep(state: dict[str, Any], purpose: str, user: User | None) -> str:
    handle = secrets.token_urlsafe(24)
    verification = state["user_verification"]
    kept = {"challenge": state["challenge"], "user_verification": verification and verification.value}
    cache.set(_key(handle, purpose, user), kept, _CHALLENGE_S)
    return handle


def _take(handle: str, purpose: str, user: User | None) -> dict[str, Any] | None:
    """Return the state of a challenge, once: several requests may read it, but only one deletes it."""
    key = _key(handle, purpose, user)
    found: dict[str, Any] | None = cache.get(key)
    return found if found and cache.delete(key) else None


def _key(handle: str, purpose: str, user: User | None) -> str:
    whole = f"{purpose}\n{user.pk if user else ''}\n{handle}"
    return f"passkey:{sha256(whole.encode('utf-8', 'surrogatepass')).hexdigest()}"
