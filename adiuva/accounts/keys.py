"""Users' data keys: created on first use, cached for a minute, destroyed with the account.

A key is stored wrapped (see adiuva.core.crypto) in the main database, or in the keys' own database (key_store.py) if
ADIUVA_KEYS_DATABASE_URL is set. No transaction spans both databases, so the order of steps matters: a key is written
before the marker that says where it is, and deleted after its account. If a process dies in between, key_maintenance.py
finishes its work.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from datetime import timedelta
from typing import Any
from uuid import UUID

import structlog
from django.conf import settings
from django.db import DatabaseError, transaction
from django.db.models.functions import Now
from django.utils import timezone

from adiuva.accounts.key_store import copy_of, has_own_database, is_same_key, separate_keys, unwrap
from adiuva.accounts.models import Deletion, SeparateKey, User, UserKey, WrappedKey
from adiuva.core import crypto
from adiuva.core.errors import NotFound, Unavailable

log = structlog.get_logger(__name__)

_MAX_OPENED = 1024
# How long an opened key stays in memory. Other processes can use a destroyed key for at most this long.
_OPENED_FOR_S = 60.0
_LONGEST_TRANSACTION = timedelta(minutes=10)

# By user, least recently used first: the cipher, and until when it may be used on the monotonic clock.
_opened: OrderedDict[UUID, tuple[crypto.UserCipher, float]] = OrderedDict()
_guard = threading.Lock()


class NoSuchUser(NotFound):
    """Error for a user who was deleted, and the key with them: there is nothing left to read or to write."""

    code = "user_gone"


class KeyUnavailable(Unavailable):
    """Error for a key that is not where it should be. A new key would make existing data unreadable for ever."""

    code = "key_away"

    def __init__(self) -> None:
        super().__init__("the key that opens this account's data is not in the database of the keys")


# ── In use ──────────────────────────────────────────────────────────────────────────────────────────────


def lock_user(user_id: UUID) -> None:
    """Lock an account until the transaction ends. Raises NoSuchUser."""
    if not User.objects.select_for_update(no_key=True).filter(pk=user_id).values_list("pk"):
        raise NoSuchUser("this account no longer exists")


def cipher_for(user_id: UUID) -> crypto.UserCipher:
    """Return the cipher of the user's data key, created on first use. It may query. Raises NoSuchUser,
    KeyUnavailable."""
    now = time.monotonic()
    with _guard:
        found = _opened.get(user_id)
        if found and found[1] > now:
            _opened.move_to_end(user_id)
            return found[0]
    row = _find(user_id) or _create(user_id)
    cipher = crypto.UserCipher(str(user_id), crypto.Cipher(unwrap(row)))
    if _is_committed(row):
        with _guard:
            _opened[user_id] = cipher, now + _OPENED_FOR_S
            _opened.move_to_end(user_id)
            while len(_opened) > _MAX_OPENED:
                _opened.popitem(last=False)
    return cipher


@transaction.atomic
def shred(user_id: UUID) -> None:
    """Destroy the key when the surrounding transaction commits. Then nobody can read what it sealed, not even from
    backups without the key.

    Raises KeyUnavailable if the key is in a database that this process is not configured for.
    """
    here = (
        UserKey.objects.select_for_update().filter(pk=user_id).first()
    )  # waits for a process that is moving the key
    if here:
        _require_reachable(here)
        here.delete()
    if has_own_database():
        with separate_keys() as separate:  # the sweep can finish this if the process dies after the commit
            separate.filter(pk=user_id).update(doomed_at=Now())
    forget(user_id)
    transaction.on_commit(lambda: _delete_separate_key(user_id))


def forget(user_id: UUID | None = None) -> None:
    """Remove the opened key of one user, or of all users, from this process's memory."""
    with _guard:
        if user_id is None:
            _opened.clear()
        else:
            _opened.pop(user_id, None)


def _find(user_id: UUID) -> WrappedKey | None:
    if has_own_database():
        with separate_keys() as separate:
            return separate.filter(pk=user_id).first()
    here = UserKey.objects.filter(pk=user_id).first()
    return _require_reachable(here) if here else None


@transaction.atomic
def _create(user_id: UUID) -> WrappedKey:
    # The lock lets one process create the key, and none while the user is being deleted.
    user = User.objects.select_for_update(no_key=True).filter(pk=user_id).only("pk").first()
    if user is None or Deletion.objects.filter(pk=user_id).exists():
        raise NoSuchUser("this account no longer exists")
    here = UserKey.objects.select_for_update().filter(pk=user_id).first()
    if not has_own_database():
        return (
            _require_reachable(here) if here else UserKey.objects.create(user_id=user_id, **_new_key(user_id))
        )
    with separate_keys() as separate:
        if here is None:
            separate.bulk_create([SeparateKey(user_id=user_id, **_new_key(user_id))], ignore_conflicts=True)
        elif not here.is_separate:
            separate.bulk_create([copy_of(here)], ignore_conflicts=True)
        found = separate.filter(pk=user_id).first()
    if found is None:
        raise KeyUnavailable
    if here is None:
        UserKey.objects.create(user_id=user_id, ring_key=UserKey.SEPARATE, wrapped=b"")
    elif is_same_key(here, found):
        UserKey.objects.filter(pk=user_id).update(ring_key=UserKey.SEPARATE, wrapped=b"")
    return found


def _new_key(user_id: UUID) -> dict[str, Any]:
    ring_key, wrapped = settings.KEY_RING.wrap(crypto.new_key(), str(user_id))
    return {"ring_key": ring_key, "wrapped": wrapped}


def _is_committed(row: WrappedKey) -> bool:
    """Return whether the key is committed for certain. If not, do not cache it: this transaction may roll it back."""
    if isinstance(row, SeparateKey) or not transaction.get_connection().in_atomic_block:
        return True
    return row.created_at < timezone.now() - _LONGEST_TRANSACTION


def _require_reachable(here: UserKey) -> UserKey:
    """Raise KeyUnavailable if the key is in the keys' own database and this process does not know that database."""
    if here.is_separate and not has_own_database():
        raise KeyUnavailable
    return here


def _delete_separate_key(user_id: UUID) -> None:
    try:
        if has_own_database():
            with separate_keys() as separate:
                separate.filter(pk=user_id).delete()
    except DatabaseError as error:
        log.warning("key.destroy_deferred", user_id=str(user_id), error=type(error).__name__)
    # Another thread may have opened the key again between the delete and the commit.
    forget(user_id)
