"""Authentication of REST requests. From then on they are answered in the user's language."""

from __future__ import annotations

from rest_framework.authentication import BaseAuthentication, SessionAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from adiuva.accounts import services
from adiuva.accounts.models import Session, User
from adiuva.core.errors import NotAuthenticated
from adiuva.core.language import speak_to


class BearerAuthentication(BaseAuthentication):
    """By `Authorization: Bearer <access token>`. `request.user` is the user, `request.auth` the session. It takes one
    query."""

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
    """By the browser's session, on the API's pages."""

    def authenticate(self, request: Request) -> tuple[User, None] | None:
        found = super().authenticate(request)
        if found is not None:
            speak_to(found[0])
        return found

    def enforce_csrf(self, request: Request) -> None:
        """Look for the token in a form or the header. DRF's request would put any other body through its parsers, and
        refuse bytes that none of them takes."""
        super().enforce_csrf(request._request)  # type: ignore[arg-type]
