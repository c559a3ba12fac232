"""Users for tests, and REST clients signed in as them."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass

import httpx
from django.conf import settings
from django.db import transaction
from django.utils import timezone

from adiuva.accounts import tokens
from adiuva.accounts.models import Session, User
from adiuva.core.crypto import UserCipher
from adiuva.devices.models import Process


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
    """Create a user who is signed in: the rows of a registration, without its mail and its checks. Every other test
    makes some.

    Needs the fixture `committed_db` or `db`.
    """
    password, moment = "correct horse battery", timezone.now()
    user = User(**({"email": f"{uuid.uuid4().hex}@example.com"} | fields))
    user.set_password(password)
    with transaction.atomic():
        user.save(force_insert=True)
        session = Session.objects.create(
            user=user,
            created_at=moment,
            rotated_at=moment,
            last_used_at=moment,
            expires_at=moment + settings.SESSION_LIFE,
        )
    signed_in = tokens.issue(session)
    return Person(user.email, password, signed_in.access_token, signed_in.refresh_token, user.pk)


def confirmed(**fields: object) -> Person:
    """A user who is signed in, and who confirmed their address."""
    return somebody(email_verified_at=timezone.now(), **fields)


def a_process(lease: dt.timedelta = dt.timedelta(hours=1)) -> Process:
    """A web process, for rows of devices that are online because it is alive."""
    return Process.objects.create(lease_until=timezone.now() + lease)


def seal_text(cipher: UserCipher, text: str) -> bytes:
    """Seal a text as some user's, for tests of keys: at a place that no column has."""
    return cipher.cipher.seal(text.encode("utf-8", "surrogatepass"), cipher.place("notes", 1, "text"))


def unseal_text(cipher: UserCipher, sealed: bytes) -> str:
    return cipher.cipher.unseal(sealed, cipher.place("notes", 1, "text")).decode("utf-8", "surrogatepass")
