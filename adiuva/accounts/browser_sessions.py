"""Sessions of browsers that are signed in to the admin or the browsable API: each has a Session, like a device.

Django keeps a browser's sign-in in a session of its own, which names ours. So the user sees it in the list and can end
it from anywhere; a new password or a deactivated account ends it too.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django.contrib.auth import logout
from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.contrib.sessions.models import Session as Cookie
from django.dispatch import receiver
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from adiuva.accounts import services
from adiuva.accounts.models import Session, User
from adiuva.accounts.sign_in_rules import Way
from adiuva.core.browser_middleware import has_token
from adiuva.core.pruning import delete_in_batches

_KEY: Final = "adiuva_session"  # in Django's session: the id of ours


@receiver(user_logged_in)
def _open(sender: Any, request: HttpRequest, user: User, **_: Any) -> None:
    way: Way = getattr(request, "sign_in_way", "password")
    session = services.open_session(user=user, user_agent=request.META.get("HTTP_USER_AGENT", ""), way=way)
    ends = timezone.now() + timedelta(seconds=settings.SESSION_COOKIE_AGE)
    Session.objects.filter(pk=session.pk).update(expires_at=ends)
    request.session[_KEY] = str(session.pk)


@receiver(user_logged_out)
def _close(sender: Any, request: HttpRequest, user: User | None, **_: Any) -> None:
    session = getattr(request, "browser_session", None)
    if session is not None:
        services.logout(session=session)


def session_id_of(request: HttpRequest) -> UUID | None:
    """Return the id of our session for the browser that has just signed in."""
    return _id(request.session.get(_KEY))


class BrowserSessions:
    """Middleware behind Django's authentication that signs a browser out when its session has ended."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        request.browser_session = None  # type: ignore[attr-defined]
        if (
            not has_token(request)
            and settings.SESSION_COOKIE_NAME in request.COOKIES
            and request.user.is_authenticated
        ):
            session_id = _id(request.session.get(_KEY))
            session = session_id and services.find_browser_session(
                user_id=request.user.pk, session_id=session_id
            )
            if session is None:
                logout(request)
            else:
                request.browser_session = session  # type: ignore[attr-defined]
        return self.get_response(request)


def _id(text: object) -> UUID | None:
    try:
        return UUID(str(text))
    except ValueError:
        return None


def delete_expired() -> int:
    """Delete Django's sessions of browsers with an expired cookie. Returns how many."""
    return delete_in_batches(Cookie.objects.filter(expire_date__lt=timezone.now()).order_by("expire_date"))
