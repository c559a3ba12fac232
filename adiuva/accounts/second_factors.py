"""Second factors: an authenticator app, passkeys, and recovery codes for when both are lost.

An account with a confirmed app or a passkey has a second factor, and the password alone opens no session. A conditional
UPDATE uses up each code and each challenge, so that of several uses at once, one wins. A change of factors locks the
account first, since recovery codes come with the first factor and go with the last.
"""

from __future__ import annotations

import secrets
import time
from base64 import b32encode
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import Final
from uuid import UUID

import pyotp
import structlog
from django.core import signing
from django.db import transaction
from django.utils import timezone

from adiuva.accounts import mails, passkeys
from adiuva.accounts.keys import cipher_for, lock_user
from adiuva.accounts.models import Mail, Passkey, RecoveryCode, Totp, User
from adiuva.accounts.passkeys import Assertion
from adiuva.core.errors import Conflict, Forbidden, Invalid, NotAuthenticated, NotFound

log = structlog.get_logger(__name__)

TICKET_LIFE: Final = timedelta(minutes=10)
_TICKET_SALT: Final = "adiuva second factor"
_STEP_S: Final = 30
_RECOVERY_CODES: Final = 10
_CODE_BYTES: Final = 10  # 80 bits are too many to try, so a plain hash is enough


class SecondFactorRequired(Forbidden):
    """Error for a right password that is not enough. `ticket` goes to /auth/login/second-factor, with a method."""

    code = "second_factor_required"

    def __init__(self, user: User) -> None:
        super().__init__(
            "this account asks for a second factor: a code of the authenticator app, a passkey or a recovery code",
            ticket=make_ticket(user),
            methods=methods_of(user),
            expires_at=int(time.time() + TICKET_LIFE.total_seconds()),
        )


class SecondFactorRefused(NotAuthenticated):
    code = "second_factor_refused"

    def __init__(self) -> None:
        super().__init__("the code or passkey is wrong, was used, or came too late")


class TotpExists(Conflict):
    code = "totp_exists"

    def __init__(self) -> None:
        super().__init__("this account has an authenticator app: remove it before you add another")


@dataclass(frozen=True)
class Proof:
    """Second factor that somebody offers: one of these."""

    code: str = ""
    recovery_code: str = ""
    passkey: Assertion | None = None


# ── In use ──────────────────────────────────────────────────────────────────────────────────────────────


def methods_of(user: User) -> list[str]:
    """Return those of `totp`, `passkey` and `recovery_code` that this user can offer. Empty: the password is enough."""
    found = []
    if Totp.objects.filter(user=user, confirmed_at__isnull=False).exists():
        found.append("totp")
    if Passkey.objects.filter(user=user).exists():
        found.append("passkey")
    if found and RecoveryCode.objects.filter(user=user, used_at__isnull=True).exists():
        found.append("recovery_code")
    return found


def make_ticket(user: User) -> str:
    """Return a ticket that proves that the password was right, valid for a time and until the password changes."""
    return signing.dumps([user.pk.hex, _password_mark(user)], salt=_TICKET_SALT)


def user_of_ticket(ticket: str) -> User:
    """Return the user of a ticket. Raises SecondFactorRefused."""
    try:
        user_id, mark = signing.loads(ticket, salt=_TICKET_SALT, max_age=TICKET_LIFE)
    except signing.BadSignature:
        raise SecondFactorRefused from None
    user = User.objects.filter(pk=UUID(user_id), is_active=True).first()
    if user is None or _password_mark(user) != mark:
        raise SecondFactorRefused
    return user


def require(user: User, proof: Proof) -> None:
    """Use up the proof. Raises SecondFactorRefused unless it is valid."""
    if proof.passkey:
        accepted = passkeys.accepts(proof.passkey, purpose="second factor", user=user)
    elif proof.recovery_code:
        accepted = _use_recovery_code(user, proof.recovery_code)
    else:
        accepted = _use_totp(user, proof.code)
    if not accepted:
        log.warning("second_factor.refused", user_id=str(user.pk))
        raise SecondFactorRefused


def _password_mark(user: User) -> str:
    return sha256(user.password.encode()).hexdigest()[:32]


def _use_totp(user: User, code: str) -> bool:
    row = Totp.objects.filter(user=user, confirmed_at__isnull=False).first()
    return row is not None and _use_step(row, code)


def _use_step(row: Totp, code: str) -> bool:
    """Return whether the code is of these 30 seconds, or of those before or after them, and was not used."""
    typed = "".join(code.split())
    if not (typed.isascii() and typed.isdigit()):
        return False
    app = pyotp.TOTP(Totp.secret.unseal_from(cipher_for(row.pk), row), interval=_STEP_S)
    now = int(time.time()) // _STEP_S
    for step in (now, now - 1, now + 1):
        if secrets.compare_digest(app.generate_otp(step), typed):
            return bool(Totp.objects.filter(pk=row.pk, last_step__lt=step).update(last_step=step))
    return False


def _use_recovery_code(user: User, code: str) -> bool:
    found = RecoveryCode.objects.filter(user=user, code_hash=_hash(code), used_at__isnull=True)
    return bool(found.update(used_at=timezone.now()))


# ── The authenticator app ─────────────────────────────────────────────────────────────────────────────────


@transaction.atomic
def start_totp(*, user: User) -> tuple[str, str]:
    """Return (secret, otpauth:// address) of an app that does not count before `confirm_totp`. Raises TotpExists."""
    lock_user(user.pk)
    if Totp.objects.filter(user=user, confirmed_at__isnull=False).exists():
        raise TotpExists
    secret = pyotp.random_base32()
    row = Totp(user=user)
    Totp.secret.seal_into(cipher_for(user.pk), row, secret)
    Totp.objects.filter(user=user).delete()
    row.save(force_insert=True)
    return secret, address_of(user, secret)


def address_of(user: User, secret: str) -> str:
    return pyotp.TOTP(secret, interval=_STEP_S).provisioning_uri(name=user.email, issuer_name="Adiuva")


def pending_totp(user: User) -> str | None:
    """Return the secret of an app that waits to be confirmed."""
    row = Totp.objects.filter(user=user, confirmed_at__isnull=True).first()
    return Totp.secret.unseal_from(cipher_for(user.pk), row) if row else None


@transaction.atomic
def confirm_totp(*, user: User, code: str) -> list[str]:
    """Let the app count from now on. Returns new recovery codes if the account had none. Raises Invalid."""
    lock_user(user.pk)
    row = Totp.objects.filter(user=user, confirmed_at__isnull=True).first()
    if row is None or not _use_step(row, code):
        raise Invalid("the code is wrong", fields={"code": ["This is not the code that the app shows."]})
    Totp.objects.filter(pk=row.pk).update(confirmed_at=timezone.now())
    return _added(user)


@transaction.atomic
def remove_totp(*, user: User) -> None:
    """Remove the app. Raises NotFound."""
    lock_user(user.pk)
    if not Totp.objects.filter(user=user, confirmed_at__isnull=False).delete()[0]:
        raise NotFound("this account has no authenticator app")
    _removed(user)


# ── Passkeys and recovery codes ─────────────────────────────────────────────────────────────────────────────


@transaction.atomic
def add_passkey(*, user: User, attestation: Assertion, name: str) -> tuple[Passkey, list[str]]:
    """Store the passkey. Returns it, and new recovery codes if the account had none. Raises Invalid."""
    lock_user(user.pk)
    passkey = passkeys.register(attestation, user=user, name=name)
    return passkey, _added(user)


@transaction.atomic
def remove_passkey(*, user: User, passkey_id: UUID) -> None:
    """Remove a passkey. Raises NotFound."""
    lock_user(user.pk)
    if not Passkey.objects.filter(user=user, pk=passkey_id).delete()[0]:
        raise NotFound("there is no such passkey")
    _removed(user)


@transaction.atomic
def new_recovery_codes(*, user: User) -> list[str]:
    """Make ten codes that replace all earlier ones. They are shown once. Raises Conflict."""
    lock_user(user.pk)
    if not methods_of(user):
        raise Conflict("recovery codes are for accounts with an authenticator app or a passkey")
    mails.order(Mail.Kind.FACTOR_ADDED, user=user)
    return _make_codes(user)


@transaction.atomic
def remove_all(*, user: User) -> None:
    """Remove all second factors; from then on the password is enough."""
    lock_user(user.pk)
    had = methods_of(user)
    for model in (Totp, Passkey, RecoveryCode):
        model.objects.filter(user=user).delete()
    if had:
        _removed(user)


def recovery_codes_left(user: User) -> int:
    return RecoveryCode.objects.filter(user=user, used_at__isnull=True).count()


def _added(user: User) -> list[str]:
    mails.order(Mail.Kind.FACTOR_ADDED, user=user)
    log.info("second_factor.added", user_id=str(user.pk))
    return [] if recovery_codes_left(user) else _make_codes(user)


def _removed(user: User) -> None:
    if not methods_of(user):
        RecoveryCode.objects.filter(user=user).delete()
    mails.order(Mail.Kind.FACTOR_REMOVED, user=user)
    log.info("second_factor.removed", user_id=str(user.pk))


def _make_codes(user: User) -> list[str]:
    RecoveryCode.objects.filter(user=user).delete()
    codes = [b32encode(secrets.token_bytes(_CODE_BYTES)).decode().lower() for _ in range(_RECOVERY_CODES)]
    RecoveryCode.objects.bulk_create(RecoveryCode(user=user, code_hash=_hash(code)) for code in codes)
    return ["-".join(code[at : at + 4] for at in range(0, len(code), 4)) for code in codes]


def _hash(code: str) -> bytes:
    plain = "".join(character for character in code.lower() if character.isalnum())
    return sha256(plain.encode("utf-8", "surrogatepass")).digest()
