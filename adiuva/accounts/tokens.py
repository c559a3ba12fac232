"""Access and refresh tokens: JSON Web Tokens (RFC 7519) with HS256, each kind signed with its own key."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal
from uuid import UUID

import jwt
from django.conf import settings
from django.utils import timezone

from adiuva.accounts.models import Session
from adiuva.core import crypto
from adiuva.core.errors import NotAuthenticated

Kind = Literal["access", "refresh"]

_MAX_TOKEN_CHARS = 1024
_REQUIRED_CLAIMS = ["sub", "sid", "iat", "exp", "typ"]


@dataclass(frozen=True)
class TokenPair:
    """Tokens that a client receives for signing in. `expires_at`: when the access token expires, in Unix seconds."""

    access_token: str
    refresh_token: str
    expires_at: int


@dataclass(frozen=True)
class Claims:
    user_id: UUID
    session_id: UUID
    generation: int


@lru_cache(maxsize=32)
def _key(secret: str, kind: Kind) -> bytes:
    return crypto.derive_key(secret.encode(), f"adiuva {kind} token")


def _sign(kind: Kind, session: Session, start: datetime, end: datetime, **more: Any) -> str:
    claims = {
        "typ": kind,
        "sub": str(session.user_id),
        "sid": str(session.pk),
        "iat": int(start.timestamp()),
        "exp": int(end.timestamp()),
        **more,
    }
    return jwt.encode(claims, _key(settings.SECRET_KEY, kind), algorithm="HS256")


def issue(session: Session) -> TokenPair:
    """Return both tokens of a session. The refresh token depends on the row alone, so it is the same each time."""
    now = timezone.now()
    end = min(now + settings.ACCESS_TOKEN_LIFE, session.expires_at)
    return TokenPair(
        access_token=_sign("access", session, now, end),
        refresh_token=_sign(
            "refresh", session, session.rotated_at, session.expires_at, gen=session.generation
        ),
        expires_at=int(end.timestamp()),
    )


def verify(token: str, kind: Kind) -> Claims:
    """Return the claims of a token. Raises NotAuthenticated if it has expired or is not ours."""
    if not token or len(token) > _MAX_TOKEN_CHARS or not token.isascii():
        raise NotAuthenticated("the token is not valid")
    for secret in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS):
        try:
            claims = jwt.decode(
                token,
                _key(secret, kind),
                algorithms=["HS256"],
                # `iat` is not verified, because the clock of the server that issued the token may be ahead of ours.
                options={"require": _REQUIRED_CLAIMS, "verify_iat": False},
            )
        except jwt.InvalidSignatureError:
            continue
        except jwt.ExpiredSignatureError:
            raise NotAuthenticated("the token has expired") from None
        except (jwt.InvalidTokenError, RecursionError):  # PyJWT parses the header before it verifies it
            break
        if claims["typ"] != kind:
            break
        return Claims(UUID(claims["sub"]), UUID(claims["sid"]), int(claims.get("gen", 0)))
    raise NotAuthenticated("the token is not valid")
