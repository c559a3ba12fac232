"""Django system checks of billing: keys that plugins cannot be signed with."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, register

from billing.marketplace.signing import SigningKeys


@register("adiuva")
def check_plugin_keys(app_configs: Any = None, **_: Any) -> list[CheckMessage]:
    """Report keys that cannot be read, and in production the development key. Without any, nothing is signed."""
    entries, problem = settings.PLUGIN_KEYS, ""
    development = settings.DEVELOPMENT_PLUGIN_KEYS.partition(":")[2]
    if settings.PRODUCTION and any(entry.partition(":")[2] == development for entry in entries):
        problem = "holds the development key, which everybody has"
    elif entries:
        try:
            SigningKeys(entries)
        except ValueError:
            problem = "cannot be read"
    if not problem:
        return []
    return [
        Error(
            f"ADIUVA_PLUGIN_KEYS {problem}.",
            hint="Set it to `id:key`, where key is what `openssl rand -base64 32` makes, each id once, or unset it.",
            id="adiuva.E014",
        )
    ]
