"""Authentication of REST requests. It also sets the user's language for the answer."""

from __future__ import annotations

from rest_framework.authentication import BaseAuthentication, SessionAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from adiuva.accounts import services
from adiuva.accounts.models import Session, User
from adiuva.core.errors import NotAuthenticated
from adiuva.core.language import speak_to


class BearerAuthentication(BaseAuthentication):
    """Authentication by `Authorization: Bearer <access token>`, in one query. `request.user` is the user,
    `request.auth` the session."""

    def authenticate(self, request: Request) -> tuple[User, Session] | None:
        scheme, _, token = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        try:
            session = services.authenticate(access_token=token.strip())
        except NotAuthenticated as error:
            # The browsable API authenticates again while it renders the refusal; DRF caches only its own error.
            raise AuthenticationFailed(error.message) from None
        request._request.api_user_id = session.user_id  # type: ignore[attr-defined]  # for the request log
        speak_to(session.user)
        return session.user, session

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


class BrowserAuthentication(SessionAuthentication):
    """Authentication by the browser's session, on the API's pages."""

    def authenticate(self, request: Request) -> tuple[User, None] | None:
        found = super().authenticate(request)
        if found is not None:
            speak_to(found[0])
        return found

    def enforce_csrf(self, request: Request) -> None:
        """Look for the CSRF token in a form or the header. DRF's request would pass any other body to its parsers, and
        refuse bytes that no parser takes."""
        super().enforce_csrf(request._request)  # type: ignore[arg-type]
