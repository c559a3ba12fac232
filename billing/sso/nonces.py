"""Random secrets of a sign-in: their hashes, and the nonce and PKCE verifier, which are derived and not stored."""

from __future__ import annotations

import base64
import hashlib
import hmac

from django.conf import settings

from adiuva.core.crypto import derive_key


def hash_of(word: str) -> bytes:
    return hashlib.sha256(word.encode("utf-8", "surrogatepass")).digest()


def derived(word: str, purpose: str) -> str:
    """Derive from a word a value that only this server can compute."""
    key = derive_key(settings.SECRET_KEY.encode(), f"adiuva sso {purpose}")
    return _base64(hmac.digest(key, word.encode(), hashlib.sha256))


def s256(verifier: str) -> str:
    return _base64(hashlib.sha256(verifier.encode("utf-8", "surrogatepass")).digest())


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
