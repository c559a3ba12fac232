"""Throttles of sign-in attempts.

A rate of 10/min allows ten attempts at once and then one every six seconds (adiuva/core/rate_limit.py). While Redis is
away nobody can sign in, because an outage must not make it easier to guess passwords. Keys hold hashes, neither
addresses nor e-mails.
"""

from __future__ import annotations

import ipaddress
from hashlib import sha256
from typing import cast

from django.http import HttpRequest
from rest_framework.request import Request
from rest_framework.settings import api_settings
from rest_framework.throttling import BaseThrottle
from rest_framework.views import APIView

from adiuva.accounts.models import User
from adiuva.accounts.second_factors import SecondFactorRefused, user_of_ticket
from adiuva.core import rate_limit
from adiuva.core.rate_limit import Limit


def count_attempt(scope: str, *who: str) -> float | None:
    """Count an attempt. Returns None if it is allowed, or else the seconds until the next one is."""
    return count_attempts((scope, *who))


def count_attempts(*counters: tuple[str, ...]) -> float | None:
    """Count an attempt in several counters, each a scope and a client, in one round trip. All of them must allow it."""
    limits = [Limit(counter(scope, *who), *_rate(scope)) for scope, *who in counters]
    never = [limit.period_s for limit in limits if limit.allowed < 1]
    return max(never) if never else rate_limit.take(*limits)


def counter(scope: str, *who: str) -> str:
    """Return the name of the counter in Redis."""
    name = sha256("\n".join(who).encode("utf-8", "surrogatepass")).hexdigest()
    return f"{scope}:{name}"


def _rate(scope: str) -> tuple[int, int]:
    """Return (attempts, seconds) of a rate such as `10/min` in the settings."""
    allowed, _, period = str(api_settings.DEFAULT_THROTTLE_RATES[scope]).partition("/")
    return int(allowed), {"s": 1, "m": 60, "h": 3600, "d": 86400}[period[0]]


def client_address(request: Request | HttpRequest) -> str:
    """Return the address to count. For IPv6 it is the /64 network, since a host can use any address in it."""
    remote = BaseThrottle().get_ident(cast(Request, request)) or ""
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
        """Return what identifies the client in the counter; None if the request is not counted."""
        return (client_address(request),)

    def counters(self, request: Request) -> list[tuple[str, ...]]:
        """Return the counters of an attempt, each a scope and a client."""
        who = self.who(request)
        return [(self.scope, *who)] if who else []

    def allow_request(self, request: Request, view: APIView) -> bool:
        counted = self.counters(request)
        self._wait = count_attempts(*counted) if counted else None
        return self._wait is None

    def wait(self) -> float | None:
        return self._wait


class AddressThrottle(_Throttle):
    """Throttle of all attempts from an address, so that it cannot try many accounts."""

    scope = "login_address"


class AddressAndEmailThrottle(AddressThrottle):
    """Throttle of attempts from an address, and of those on one account from an address. A count per account alone
    would let anyone lock its owner out."""

    account_scope = "login"

    def counters(self, request: Request) -> list[tuple[str, ...]]:
        who = self.account(request)
        return [*super().counters(request), *([(self.account_scope, *who)] if who else [])]

    def account(self, request: Request) -> tuple[str, ...] | None:
        email = request.data.get("email") if isinstance(request.data, dict) else None
        if not isinstance(email, str):
            return None  # the serializer refuses such a body
        return client_address(request), User.normalize_username(email)


class MailThrottle(AddressAndEmailThrottle):
    """Throttle of mails that somebody requests for one address. A count per address alone would let anyone keep its
    owner from them."""

    account_scope = "mail"


class UserMailThrottle(_Throttle):
    """Throttle of mails that a signed-in user requests."""

    scope = "mail"

    def who(self, request: Request) -> tuple[str, ...] | None:
        return "user", str(request.user.pk)


class UserThrottle(_Throttle):
    """Throttle of guesses of the current password by somebody who holds a session."""

    scope = "login"

    def who(self, request: Request) -> tuple[str, ...] | None:
        return "user", str(request.user.pk)


class TicketThrottle(AddressThrottle):
    """Throttle of tries of the second step from an address, and for an account. Only somebody who knows the password
    can use the latter up."""

    def counters(self, request: Request) -> list[tuple[str, ...]]:
        who = self.account(request)
        return [*super().counters(request), *([("second_factor", *who)] if who else [])]

    def account(self, request: Request) -> tuple[str, ...] | None:
        ticket = request.data.get("ticket") if isinstance(request.data, dict) else None
        try:
            return ("user", str(user_of_ticket(ticket).pk)) if isinstance(ticket, str) else None
        except SecondFactorRefused:
            return None  # the view refuses it, too


class RefreshThrottle(_Throttle):
    scope = "refresh"
