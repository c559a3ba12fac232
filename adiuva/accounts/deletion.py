"""Deletion of an account: its key is destroyed and all of its rows are deleted.

One transaction does both for most accounts. For an account with many rows, the first transaction destroys the key and
closes the account: nobody can sign in, its address is free, its work stops, and nobody can read what was sealed. A
worker then deletes the rows in short transactions, so that no lock and no snapshot lasts; a sweep resumes interrupted
deletions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from graphlib import TopologicalSorter
from typing import Any, Final
from uuid import UUID

import structlog
from django.contrib.auth.hashers import make_password
from django.db import OperationalError, transaction
from django.db.models import Model, QuerySet

from adiuva.accounts import keys
from adiuva.accounts.models import Deletion, User
from adiuva.accounts.signals import closing
from adiuva.core import db, leases
from adiuva.core.enqueue import enqueue_on_commit
from adiuva.core.pruning import BATCH, delete_with_parts, parts_of

# An account with more rows is closed first, and a worker deletes it. This many rows take less than a second.
MOST_AT_ONCE: Final = 10_000
_ATTEMPTS: Final = 5
_LEASE: Final = timedelta(minutes=2)
# After this time a worker leaves the rest to the next task, so that others have their turn.
_TURN_S: Final = 60.0

log = structlog.get_logger(__name__)


def begin(user: User) -> None:
    """Begin to delete an account; see services.delete_account."""
    _again(_close if _has_many(user.pk) else delete_at_once, user)


def _again(step: Callable[[User], None], user: User) -> None:
    for attempts_left in range(_ATTEMPTS - 1, -1, -1):
        try:
            step(user)
            return
        except OperationalError as error:
            # A worker that holds one of the rows may wait for another, so that PostgreSQL ends one of the two
            # transactions.
            if not db.is_conflict(error) or not attempts_left:
                raise
            log.info("account.deletion_repeated", user_id=str(user.pk))


@transaction.atomic
def delete_at_once(user: User) -> None:
    """Delete an account in one transaction. PostgreSQL may end it for the sake of another."""
    User.objects.select_for_update().filter(pk=user.pk).first()
    for rows in _rows_of(user.pk):
        # A transaction that adds a part waits for us, and then finds that its whole is gone. Without this lock, a part
        # could be added after we deleted the others, and deleting the whole would fail.
        if parts_of(rows.model):
            list(rows.order_by("pk").select_for_update(of=("self",)).values_list("pk", flat=True))
    user_id = user.pk
    keys.shred(user_id)
    user.delete()
    log.info("account.deleted", user_id=str(user_id))


# ── In steps ────────────────────────────────────────────────────────────────────────────────────────────


@transaction.atomic
def _close(user: User) -> None:
    locked = User.objects.select_for_update().filter(pk=user.pk).first()
    if locked is None or Deletion.objects.filter(pk=user.pk).exists():
        return
    closing.send(sender=User, user_id=user.pk)
    keys.shred(user.pk)
    User.objects.filter(pk=user.pk).update(
        is_active=False,
        is_staff=False,
        is_superuser=False,
        email=f"{user.pk}@deleted.invalid",
        email_verified_at=None,
        new_email="",
        password=make_password(None),
    )
    Deletion.objects.create(user_id=user.pk)
    enqueue_on_commit("accounts.delete", user.pk)
    log.info("account.closed", user_id=str(user.pk))


def resume(user_id: UUID) -> None:
    """Delete rows of a closed account for a while, and the account once few are left. Safe at any time."""
    found = leases.claim(Deletion.objects.filter(pk=user_id), _LEASE)
    if not found:
        return
    lease = found[0].lease(_LEASE)
    until = time.monotonic() + _TURN_S
    try:
        with db.conflicts_put_off("account.deletion_put_off", user_id=str(user_id)):
            for _ in _steps(user_id):
                lease.renew()
                if time.monotonic() > until:
                    break
            else:
                delete_at_once(User.objects.get(pk=user_id))
                return
        lease.release()
        enqueue_on_commit("accounts.delete", user_id, after_s=1.0)
    except leases.LeaseLost:
        log.info("account.deletion_goes_on_elsewhere", user_id=str(user_id))


def sweep() -> None:
    """Start tasks for closed accounts that no worker is deleting."""
    for user_id in Deletion.objects.filter(leases.is_free()).values_list("pk", flat=True)[:100]:
        enqueue_on_commit("accounts.delete", user_id)


def _steps(user_id: UUID) -> Iterator[int]:
    """Delete rows of tables where an account may have many. The rest goes with the account, in the order of locks."""
    for model, owner in _owned():
        rows = model._base_manager.filter(**{owner: user_id})
        if any(each[BATCH:].exists() for each in (rows, *_parts(rows))):
            yield from delete_with_parts(rows)


def _has_many(user_id: UUID) -> bool:
    room = MOST_AT_ONCE
    for rows in _rows_of(user_id):
        room -= rows[: room + 1].count()
        if room < 0:
            return True
    return False


# ── What belongs to an account ──────────────────────────────────────────────────────────────────────────


def _owned() -> list[tuple[type[Model], str]]:
    """Return the models with rows of a user, each with its reference to the user.

    Models that refer to others come first, because deleting a row changes all rows that name it.
    """
    owned = parts_of(User)
    referring: TopologicalSorter[type[Model]] = TopologicalSorter()
    for model, _ in owned:
        fields = (field for other, _ in owned if other is not model for field in other._meta.concrete_fields)
        referring.add(model, *(field.model for field in fields if field.related_model is model))
    place = {model: number for number, model in enumerate(referring.static_order())}
    return sorted(owned, key=lambda each: place[each[0]])


def _rows_of(user_id: UUID) -> Iterator[QuerySet[Any]]:
    """Yield the querysets of a user's rows, wholes before their parts."""
    for model, owner in parts_of(User):
        rows = model._base_manager.filter(**{owner: user_id})
        yield rows
        yield from _parts(rows)


def _parts(rows: QuerySet[Any], above: tuple[type[Model], ...] = (User,)) -> Iterator[QuerySet[Any]]:
    """Yield the querysets of the rows' parts. A model that refers to itself, by whatever way, is not followed twice."""
    above = (*above, rows.model)
    for model, whole in parts_of(rows.model):
        if model not in above:
            parts = model._base_manager.filter(**{f"{whole}__in": rows})
            yield parts
            yield from _parts(parts, above)
