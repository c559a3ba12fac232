"""Delimiters around untrusted data in a prompt."""

from __future__ import annotations

import hashlib
import hmac

from django.conf import settings


def delimit_untrusted(name: str, text: str) -> str:
    """The text between a begin and an end line that name it.

    Both lines carry a keyed hash of the text, so that nothing in the text can contain or forge them.
    """
    key = hashlib.sha256(b"adiuva.core.prompt_delimiting\0" + settings.SECRET_KEY.encode()).digest()
    said = f"{name}\0{text}".encode("utf-8", "surrogatepass")
    mark = f"data-{hmac.new(key, said, hashlib.sha256).hexdigest()[:16]}"
    return f"[begin {name} {mark}]\n{text}\n[end {name} {mark}]"
