"""Django's middleware for sessions, sign-in and messages, which API requests with an access token skip.

Programs send such requests, and no cookies. All other requests come from browsers, and take Django's way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib.auth import middleware as auth
from django.contrib.auth.models import AnonymousUser
from django.contrib.messages import middleware as messages
from django.contrib.sessions import middleware as sessions

if TYPE_CHECKING:
    from django.http import HttpRequest


def has_token(request: HttpRequest) -> bool:
    """Return whether it is a program's request. Its token alone authenticates it; an invalid token is refused."""
    scheme: str = request.META.get("HTTP_AUTHORIZATION", "")[:7]
    return scheme.lower() == "bearer " and request.path.startswith("/api/")


class _BrowsersOnly:
    get_response: Any

    def __call__(self, request: HttpRequest) -> Any:
        if has_token(request):
            return self.get_response(request)
        return super().__call__(request)  # type: ignore[misc]


class SessionMiddleware(_BrowsersOnly, sessions.SessionMiddleware):
    pass


class AuthenticationMiddleware(_BrowsersOnly, auth.AuthenticationMiddleware):
    def __call__(self, request: HttpRequest) -> Any:
        request.user = AnonymousUser()  # Django's views expect one
        return super().__call__(request)


class MessageMiddleware(_BrowsersOnly, messages.MessageMiddleware):
    pass
