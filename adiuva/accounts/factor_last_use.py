"""Last use of an account's second factor: when and how. A recent use shows that the factor is not lost."""

from __future__ import annotations

from datetime import datetime

from adiuva.accounts.models import Passkey, RecoveryCode, Totp, User

_STEP_S = 30  # seconds that one step of Totp.last_step lasts


def used_since(user: User, moment: datetime) -> bool:
    """Return whether an app, a passkey or a recovery code of the user was accepted at or after a moment."""
    steps = Totp.objects.filter(user=user, last_step__gte=int(moment.timestamp()) // _STEP_S)
    passkeys = Passkey.objects.filter(user=user, last_used_at__gte=moment)
    codes = RecoveryCode.objects.filter(user=user, used_at__gte=moment)
    return steps.exists() or passkeys.exists() or codes.exists()


def describe(user: User) -> str:
    """Return a text that changes with any change or use of the user's second factor: what it consists of, and when each
    part was used."""
    apps = Totp.objects.filter(user=user).values_list("created_at", "last_step")
    passkeys = Passkey.objects.filter(user=user).values_list("pk", "last_used_at")
    codes = RecoveryCode.objects.filter(user=user).values_list("pk", "used_at")
    return "\n".join(sorted(" ".join(map(str, row)) for row in (*apps, *passkeys, *codes)))
