"""Delimiters around untrusted data in a prompt."""

from __future__ import annotations

import hashlib
import hmac
from functools import cache

from django.conf import settings


def delimit_untrusted(name: str, text: str) -> str:
    """Return the text between a begin line and an end line that name it.

    Both lines carry a keyed hash of the text, so that nothing in the text can contain or forge them.
    """
    mark = _mark(name, text)
    return f"[begin {name} {mark}]\n{text}\n[end {name} {mark}]"


def delimit_own(name: str, text: str) -> str:
    """Return a text of ours for a message of the user, between lines that no text of the user can contain or forge."""
    mark = _mark(f"own {name}", text).replace("data-", "app-")
    return f"[{name} {mark}]\n{text}\n[{name} ends {mark}]"


def _mark(name: str, text: str) -> str:
    found = _hash(settings.SECRET_KEY).copy()
    found.update(f"{name}\0{text}".encode("utf-8", "surrogatepass"))
    return f"data-{found.hexdigest()[:16]}"


@cache
def _hash(secret: str) -> hmac.HMAC:
    """Return the hash of the empty text, to be copied: a new one costs more than what it is given."""
    key = hashlib.sha256(b"adiuva.core.prompt_delimiting\0" + secret.encode()).digest()
    return hmac.new(key, digestmod=hashlib.sha256)
