"""Users' data keys: made on first use, opened for a minute, shredded for ever."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from uuid import UUID

from django.conf import settings
from django.db import transaction

from adiuva import crypto
from adiuva.accounts.models import User, UserKey
from adiuva.errors import NotFound

_KEPT = 1024
# An upper bound, also, of how long another process can still read what was shredded here.
_KEPT_S = 60.0

_opened: OrderedDict[UUID, tuple[crypto.UserCipher, float]] = OrderedDict()
_guard = threading.Lock()


class NoSuchUser(NotFound):
    """The user was deleted, and with them the key: there is nothing left to read or to write."""

    code = "user_gone"


def cipher_for(user_id: UUID) -> crypto.UserCipher:
    """The user's data key at work; makes one on first use. Raises NoSuchUser. It may ask the database."""
    now = time.monotonic()
    with _guard:
        found = _opened.get(user_id)
        if found and found[1] > now:
            _opened.move_to_end(user_id)
            return found[0]
    cipher = _open(UserKey.objects.filter(pk=user_id).first() or _make(user_id))
    with _guard:
        _opened[user_id] = cipher, now + _KEPT_S
        _opened.move_to_end(user_id)
        while len(_opened) > _KEPT:
            _opened.popitem(last=False)
    return cipher


def shred(user_id: UUID) -> None:
    """Destroy the key. What it sealed stays unreadable for ever, also to us."""
    UserKey.objects.filter(pk=user_id).delete()
    forget(user_id)
    # A reader between our delete and our commit may have opened it again.
    transaction.on_commit(lambda: forget(user_id))


def forget(user_id: UUID | None = None) -> None:
    """Drop the opened key of one user, or of all, from this process' memory."""
    with _guard:
        if user_id is None:
            _opened.clear()
        else:
            _opened.pop(user_id, None)


@transaction.atomic
def rewrap(batch: int = 500) -> int:
    """Wrap up to `batch` data keys anew with the ring's newest key. Returns how many; 0: all are done.

    May run anywhere, any number of times at once, while the keys are in use: what is sealed does not change.
    """
    ring: crypto.KeyRing = settings.KEY_RING
    rows = list(
        UserKey.objects.select_for_update(skip_locked=True).filter(
            ring_key__in=[key_id for key_id in ring.ids if key_id != ring.newest]
        )[:batch]
    )
    for row in rows:
        owner = str(row.pk)
        row.ring_key, row.wrapped = ring.wrap(ring.unwrap(row.ring_key, bytes(row.wrapped), owner), owner)
    UserKey.objects.bulk_update(rows, ["ring_key", "wrapped"])
    return len(rows)


def _open(row: UserKey) -> crypto.UserCipher:
    owner = str(row.pk)
    data_key = settings.KEY_RING.unwrap(row.ring_key, bytes(row.wrapped), owner)
    return crypto.UserCipher(owner, crypto.Cipher(data_key))


@transaction.atomic
def _make(user_id: UUID) -> UserKey:
    # The lock lets one maker through, and none while the user is being deleted.
    user = User.objects.select_for_update(no_key=True).filter(pk=user_id).only("pk").first()
    if user is None:
        raise NoSuchUser("this account no longer exists")
    row = UserKey.objects.filter(pk=user_id).first()
    if row is None:
        ring_key, wrapped = settings.KEY_RING.wrap(crypto.new_key(), str(user_id))
        row = UserKey.objects.create(user=user, ring_key=ring_key, wrapped=wrapped)
    return row
