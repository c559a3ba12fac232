"""Django's sign-in for forms and the admin, by the same rules as REST's."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.backends import ModelBackend
from django.http import HttpRequest

from adiuva.accounts import services
from adiuva.accounts.models import User


class PasswordBackend(ModelBackend):
    """Backend that signs in by address and password. Django's own expects one account for an address."""

    def authenticate(
        self, request: HttpRequest | None, username: str | None = None, password: str | None = None, **_: Any
    ) -> User | None:
        if username is None or password is None:
            return None
        try:
            return services.check_credentials(email=username, password=password)
        except services.InvalidCredentials:
            return None
