"""Users for tests, and REST clients signed in as them."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import httpx

from adiuva.accounts import services
from adiuva.accounts.models import User


@dataclass
class Person:
    email: str
    password: str
    access_token: str
    refresh_token: str
    id: uuid.UUID

    def rest(self, base: str) -> httpx.Client:
        """An HTTP client that is signed in as this user."""
        headers = {"Authorization": f"Bearer {self.access_token}"}
        return httpx.Client(base_url=f"{base}/api/v1", headers=headers, timeout=60)


def somebody(**fields: object) -> Person:
    """Create a user who is signed in. Needs the fixture `committed_db` or `db`."""
    email, password = f"{uuid.uuid4().hex}@example.com", "correct horse battery"
    signed_in = services.register(email=email, password=password)
    user = User.objects.get(email=email)
    if fields:
        User.objects.filter(pk=user.pk).update(**fields)
    return Person(email, password, signed_in.access_token, signed_in.refresh_token, user.pk)
