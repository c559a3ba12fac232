"""Authentication of REST requests by `Authorization: Bearer <access token>`."""

from __future__ import annotations

from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from adiuva.accounts import services
from adiuva.accounts.models import Session, User
from adiuva.core.errors import NotAuthenticated


class BearerAuthentication(BaseAuthentication):
    """`request.user` is the user, `request.auth` the session. It takes one query."""

    def authenticate(self, request: Request) -> tuple[User, Session] | None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        try:
            session = services.authenticate(access_token=token.strip())
        except NotAuthenticated as error:
            # The browsable API authenticates again while it renders the refusal; DRF caches only its own error.
            raise AuthenticationFailed(error.message) from None
        request._request.api_user_id = session.user_id  # type: ignore[attr-defined]  # for the request log
        return session.user, session

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"
