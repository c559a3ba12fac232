"""Secrets in the links of mails: signed, for one purpose, valid for a time, and used once.

A link holds the user's id and a fingerprint of what it changes. When that changes, by this link or otherwise, the
fingerprint changes and the link is void. So nothing has to be stored to make a link work only once.
"""

from __future__ import annotations

from datetime import timedelta
from enum import Enum
from hashlib import sha256
from uuid import UUID

from django.core import signing

from adiuva.accounts import factor_last_use
from adiuva.accounts.models import User
from adiuva.core.errors import AdiuvaError

_MAX_CHARS = 400


class Purpose(Enum):
    """Purpose of a link, with the time for which the link is valid, and the user's columns that it depends on."""

    VERIFY = ("verify", timedelta(days=3), ("email", "email_verified_at"))
    RESET = ("reset", timedelta(hours=1), ("email", "email_verified_at", "password", "last_login"))
    NEW_ADDRESS = ("new address", timedelta(days=1), ("email", "new_email", "password"))
    FACTORS = ("remove second factor", timedelta(days=1), ("email", "email_verified_at", "password"))

    def __init__(self, word: str, lifetime: timedelta, columns: tuple[str, ...]) -> None:
        self.salt = f"adiuva mail link: {word}"
        self.lifetime = lifetime
        self.columns = columns


class LinkInvalid(AdiuvaError):
    code, status = "link_invalid", 400

    def __init__(self) -> None:
        super().__init__(
            "this link is not valid: it was used, has expired, or something it hangs on has changed"
        )


def make_token(purpose: Purpose, user: User) -> str:
    return signing.dumps([user.pk.hex, _fingerprint(purpose, user)], salt=purpose.salt)


def user_of(purpose: Purpose, token: str) -> User:
    """Return the user of a token, with the row locked until the transaction ends: of several uses at once, one wins.

    Raises LinkInvalid.
    """
    user_id, fingerprint = _read(purpose, token)
    user = User.objects.select_for_update(no_key=True).filter(pk=user_id, is_active=True).first()
    if user is None or _fingerprint(purpose, user) != fingerprint:
        raise LinkInvalid
    return user


def is_valid(purpose: Purpose, token: str) -> bool:
    """Return whether the token would be accepted now."""
    try:
        user_id, fingerprint = _read(purpose, token)
    except LinkInvalid:
        return False
    user = User.objects.filter(pk=user_id, is_active=True).first()
    return user is not None and _fingerprint(purpose, user) == fingerprint


def _read(purpose: Purpose, token: str) -> tuple[UUID, str]:
    if not token.isascii() or len(token) > _MAX_CHARS:
        raise LinkInvalid
    try:
        user_id, fingerprint = signing.loads(token, salt=purpose.salt, max_age=purpose.lifetime)
    except signing.BadSignature:
        raise LinkInvalid from None
    return UUID(user_id), fingerprint


def _fingerprint(purpose: Purpose, user: User) -> str:
    parts = [str(getattr(user, name)) for name in purpose.columns]
    if purpose is Purpose.FACTORS:
        parts.append(factor_last_use.describe(user))
    return sha256("\n".join(parts).encode()).hexdigest()[:32]
