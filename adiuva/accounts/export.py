"""The account's part of its archive. Passwords and tokens are not in it: the server stores at most their hashes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

from adiuva.accounts.models import Session, StaffAction, User
from adiuva.core.archive import ROWS_PER_BATCH, ArchivePart, exported_columns, register


def _account(user_id: UUID) -> Iterator[Mapping[str, Any]]:
    yield from User.objects.filter(pk=user_id).values(
        "id", "email", "tier", "timezone", "locale", "is_staff", "created_at", "last_login"
    )


def _sessions(user_id: UUID) -> Iterator[dict[str, Any]]:
    rows = Session.objects.filter(user_id=user_id).order_by("created_at", "id")
    yield from rows.values(*exported_columns(Session, but=["user", "generation", "rotated_at"])).iterator(
        ROWS_PER_BATCH
    )


def _staff_actions(user_id: UUID) -> Iterator[dict[str, Any]]:
    rows = StaffAction.objects.filter(user_id=user_id).order_by("id")
    yield from rows.values(*exported_columns(StaffAction, but=["user", "staff_id"])).iterator(ROWS_PER_BATCH)


register(
    ArchivePart("staff_actions.jsonl", "What staff did to the account.", _staff_actions),
    ArchivePart("account.jsonl", "The account.", _account),
    ArchivePart("sessions.jsonl", "Where it is or was signed in, without the tokens.", _sessions),
)
