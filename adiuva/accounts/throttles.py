"""How often one may try.

Counted in Redis in fixed windows, so in any period at most twice the rate gets through. Counters are atomic:
many requests at once count as many. Keys hold hashes, no addresses and no e-mails.
"""

from __future__ import annotations

import ipaddress
import time
from hashlib import sha256

from django.core.cache import cache
from rest_framework.request import Request
from rest_framework.settings import api_settings
from rest_framework.throttling import BaseThrottle
from rest_framework.views import APIView

from adiuva.accounts.models import User


def count_attempt(scope: str, *who: str) -> float | None:
    """Count one try. None: go on; else the seconds until the next is allowed."""
    allowed, period = _rate(scope)
    window, into = divmod(time.time(), period)
    name = sha256("\n".join(who).encode("utf-8", "surrogatepass")).hexdigest()
    key = f"rate:{scope}:{name}:{int(window)}"
    # `add` first, as only it gives the counter an end.
    tries = 1 if cache.add(key, 1, 2 * period) else cache.incr(key)
    return None if tries <= allowed else period - into


def _rate(scope: str) -> tuple[int, int]:
    """From `10/min` in the settings: how many, in how many seconds."""
    allowed, _, period = str(api_settings.DEFAULT_THROTTLE_RATES[scope]).partition("/")
    return int(allowed), {"s": 1, "m": 60, "h": 3600, "d": 86400}[period[0]]


def client_address(request: Request) -> str:
    """What counts as one address: an IPv6 host has a whole /64 to choose from."""
    remote = BaseThrottle().get_ident(request) or ""
    try:
        address = ipaddress.ip_address(remote)
    except ValueError:
        return remote
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


class _Throttle(BaseThrottle):
    scope: str
    _wait: float | None = None

    def who(self, request: Request) -> tuple[str, ...] | None:
        """What is counted together, or None for what is not counted."""
        return (client_address(request),)

    def allow_request(self, request: Request, view: APIView) -> bool:
        who = self.who(request)
        self._wait = count_attempt(self.scope, *who) if who else None
        return self._wait is None

    def wait(self) -> float | None:
        return self._wait


class AddressThrottle(_Throttle):
    """All that one address does at the open doors, so that it cannot try many accounts."""

    scope = "login_address"


class AddressAndEmailThrottle(_Throttle):
    """One account from one address. Not per account alone: nobody can lock its owner out from elsewhere."""

    scope = "login"

    def who(self, request: Request) -> tuple[str, ...] | None:
        email = request.data.get("email") if isinstance(request.data, dict) else None
        if not isinstance(email, str):
            return None  # such a body is refused
        return client_address(request), User.normalize_username(email)


class UserThrottle(_Throttle):
    """Guesses at the current password by whoever holds a session."""

    scope = "login"

    def who(self, request: Request) -> tuple[str, ...] | None:
        return "user", str(request.user.pk)


class RefreshThrottle(_Throttle):
    scope = "refresh"
