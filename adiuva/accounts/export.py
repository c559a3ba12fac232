"""Part of an account in its archive. Passwords and tokens are not in it: the server stores at most their hashes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

from adiuva.accounts.keys import cipher_for
from adiuva.accounts.models import Passkey, RecoveryCode, Session, StaffAction, Totp, User
from adiuva.core.export_archive import ROWS_PER_BATCH, ArchivePart, exported_columns, register


def _account(user_id: UUID) -> Iterator[Mapping[str, Any]]:
    yield from User.objects.filter(pk=user_id).values(
        "id",
        "email",
        "email_verified_at",
        "new_email",
        "tier",
        "timezone",
        "locale",
        "is_staff",
        "created_at",
        "last_login",
    )


def _sessions(user_id: UUID) -> Iterator[dict[str, Any]]:
    rows = Session.objects.filter(user_id=user_id).order_by("created_at", "id")
    yield from rows.values(*exported_columns(Session, but=["user", "generation", "rotated_at"])).iterator(
        ROWS_PER_BATCH
    )


def _staff_actions(user_id: UUID) -> Iterator[dict[str, Any]]:
    rows = StaffAction.objects.filter(user_id=user_id).order_by("id")
    yield from rows.values(*exported_columns(StaffAction, but=["user", "staff_id"])).iterator(ROWS_PER_BATCH)


def _second_factors(user_id: UUID) -> Iterator[dict[str, Any]]:
    for app in Totp.objects.filter(user_id=user_id, confirmed_at__isnull=False):
        yield {"kind": "totp", "created_at": app.created_at}
    cipher = cipher_for(user_id)
    for row in Passkey.objects.filter(user_id=user_id).order_by("created_at", "id").iterator(ROWS_PER_BATCH):
        name = Passkey.name.unseal_from(cipher, row)
        times = {"created_at": row.created_at, "last_used_at": row.last_used_at}
        yield {"kind": "passkey", "id": row.pk, "name": name, **times}
    for code in RecoveryCode.objects.filter(user_id=user_id).order_by("pk"):
        yield {"kind": "recovery_code", "used_at": code.used_at}


register(
    ArchivePart("staff_actions.jsonl", "What staff did to the account.", _staff_actions),
    ArchivePart(
        "second_factors.jsonl", "How it signs in besides the password, without the secrets.", _second_factors
    ),
    ArchivePart("account.jsonl", "The account.", _account),
    ArchivePart("sessions.jsonl", "Where it is or was signed in, without the tokens.", _sessions),
)
