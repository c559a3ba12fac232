"""Parser of Django's mail settings in a single URL, as DATABASE_URL configures a database."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote, urlsplit

_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_PORTS = {"smtp": 587, "smtps": 465}
_TIMEOUT_S = 20


def mail_settings(url: str) -> dict[str, Any]:
    """Return the settings for a URL of the scheme smtp, smtps, file or none. ValueError says what is wrong, not the
    URL.

    smtp uses STARTTLS, except to this machine, where a relay rarely has a certificate.
    """
    parts = urlsplit(url)
    if parts.scheme == "none":
        return {"EMAIL_BACKEND": "django.core.mail.backends.dummy.EmailBackend"}
    if parts.scheme == "file":
        if not parts.path:
            raise ValueError("names no folder")
        return {
            "EMAIL_BACKEND": "django.core.mail.backends.filebased.EmailBackend",
            "EMAIL_FILE_PATH": unquote(parts.path),
        }
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError("must look like smtp://user:password@host:587")
    local = parts.hostname in _LOOPBACK
    return {
        "EMAIL_BACKEND": "django.core.mail.backends.smtp.EmailBackend",
        "EMAIL_HOST": parts.hostname,
        "EMAIL_PORT": parts.port or (25 if local else _PORTS[parts.scheme]),
        "EMAIL_HOST_USER": unquote(parts.username or ""),
        "EMAIL_HOST_PASSWORD": unquote(parts.password or ""),
        "EMAIL_USE_SSL": parts.scheme == "smtps",
        "EMAIL_USE_TLS": parts.scheme == "smtp" and not local,
        "EMAIL_TIMEOUT": _TIMEOUT_S,
    }
