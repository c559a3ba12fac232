"""Data in a prompt, marked off as data."""

from __future__ import annotations

import hashlib
import hmac

from django.conf import settings


def delimit_untrusted(name: str, text: str) -> str:
    """A text between marks. The mark is a keyed hash of the text, so nothing in the text can know it."""
    key = hashlib.sha256(b"adiuva.core.prompt_delimiting\0" + settings.SECRET_KEY.encode()).digest()
    said = f"{name}\0{text}".encode("utf-8", "surrogatepass")
    mark = f"data-{hmac.new(key, said, hashlib.sha256).hexdigest()[:16]}"
    return f"[begin {name} {mark}]\n{text}\n[end {name} {mark}]"
