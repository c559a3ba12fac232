"""Users' data keys: made on first use, opened for a minute, shredded for ever.

They are in the main database, or, where ADIUVA_KEYS_DATABASE_URL is set, in one that holds nothing else. There no
transaction spans both, so the order of steps decides: a key is written before the word that it is there, and goes
after its account. What a process that died between two steps left behind, `sweep` and `separate` finish.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

import structlog
from django.conf import settings
from django.db import DatabaseError, connections, transaction
from django.db.models import Count, QuerySet
from django.db.models.functions import Now
from django.utils import timezone

from adiuva.accounts.models import SeparateKey, User, UserKey, WrappedKey
from adiuva.core import crypto
from adiuva.core.errors import NotFound, Unavailable

log = structlog.get_logger("adiuva.accounts")

_KEPT = 1024
# An upper bound, also, of how long another process can still read what was shredded here.
_KEPT_S = 60.0
_APART = "keys"  # the alias of the keys' own database
_LONGER_THAN_A_TRANSACTION = timedelta(minutes=10)
_DOOMED = timedelta(hours=1)  # until an account's deletion that did not end counts as cut off
_NEW = timedelta(days=1)  # of a key whose account may not be committed yet
_FIRST = UUID(int=0)

_opened: OrderedDict[UUID, tuple[crypto.UserCipher, float]] = OrderedDict()
_guard = threading.Lock()
_prepared: set[str] = set()


class NoSuchUser(NotFound):
    """The user was deleted, and with them the key: there is nothing left to read or to write."""

    code = "user_gone"


class KeyUnavailable(Unavailable):
    """The user has a key, and it is not where it should be. Making another would lose what the first one sealed."""

    code = "key_away"

    def __init__(self) -> None:
        super().__init__("the key that opens this account's data is not in the database of the keys")


# ── In use ──────────────────────────────────────────────────────────────────────────────────────────────


def cipher_for(user_id: UUID) -> crypto.UserCipher:
    """The user's data key at work; makes one on first use. Raises NoSuchUser and KeyAway. It may ask the database."""
    now = time.monotonic()
    with _guard:
        found = _opened.get(user_id)
        if found and found[1] > now:
            _opened.move_to_end(user_id)
            return found[0]
    row = _find(user_id) or _make(user_id)
    cipher = crypto.UserCipher(str(user_id), crypto.Cipher(_unwrap(row)))
    if _is_committed(row):
        with _guard:
            _opened[user_id] = cipher, now + _KEPT_S
            _opened.move_to_end(user_id)
            while len(_opened) > _KEPT:
                _opened.popitem(last=False)
    return cipher


@transaction.atomic
def shred(user_id: UUID) -> None:
    """Destroy the key, at the commit of the transaction around. What it sealed stays unreadable for ever, also to us.

    Raises KeyAway when the key is in a database that this process does not know.
    """
    here = UserKey.objects.select_for_update().filter(pk=user_id).first()  # waits for who is moving it
    if here:
        _refuse_strange(here)
        here.delete()
    if has_own_database():
        with _kept() as kept:  # should we die after the commit, the sweep knows that it was meant
            kept.filter(pk=user_id).update(doomed_at=Now())
    forget(user_id)
    transaction.on_commit(lambda: _finish_shredding(user_id))


def forget(user_id: UUID | None = None) -> None:
    """Drop the opened key of one user, or of all, from this process' memory."""
    with _guard:
        if user_id is None:
            _opened.clear()
        else:
            _opened.pop(user_id, None)


def has_own_database() -> bool:
    """Whether the keys have a database of their own."""
    return _APART in connections


def _find(user_id: UUID) -> WrappedKey | None:
    if has_own_database():
        with _kept() as kept:
            return kept.filter(pk=user_id).first()
    here = UserKey.objects.filter(pk=user_id).first()
    return _refuse_strange(here) if here else None


@transaction.atomic
def _make(user_id: UUID) -> WrappedKey:
    # The lock lets one maker through, and none while the user is being deleted.
    if User.objects.select_for_update(no_key=True).filter(pk=user_id).only("pk").first() is None:
        raise NoSuchUser("this account no longer exists")
    here = UserKey.objects.select_for_update().filter(pk=user_id).first()
    if not has_own_database():
        return _refuse_strange(here) if here else UserKey.objects.create(user_id=user_id, **_new(user_id))
    with _kept() as kept:
        if here is None:
            kept.bulk_create([SeparateKey(user_id=user_id, **_new(user_id))], ignore_conflicts=True)
        elif not here.is_apart:
            kept.bulk_create([_copy(here)], ignore_conflicts=True)
        found = kept.filter(pk=user_id).first()
    if found is None:
        raise KeyUnavailable
    if here is None:
        UserKey.objects.create(user_id=user_id, ring_key=UserKey.APART, wrapped=b"")
    elif _is_same(here, found):
        UserKey.objects.filter(pk=user_id).update(ring_key=UserKey.APART, wrapped=b"")
    return found


def _new(user_id: UUID) -> dict[str, Any]:
    ring_key, wrapped = settings.KEY_RING.wrap(crypto.new_key(), str(user_id))
    return {"ring_key": ring_key, "wrapped": wrapped}


def _copy(row: UserKey) -> SeparateKey:
    return SeparateKey(user_id=row.pk, ring_key=row.ring_key, wrapped=row.wrapped, created_at=row.created_at)


def _unwrap(row: WrappedKey) -> bytes:
    ring: crypto.KeyRing = settings.KEY_RING
    return ring.unwrap(row.ring_key, bytes(row.wrapped), str(row.pk))


def _is_same(one: WrappedKey, other: WrappedKey) -> bool:
    """Whether both are the same data key. False, too, where the ring opens only one of them."""
    if (one.ring_key, bytes(one.wrapped)) == (other.ring_key, bytes(other.wrapped)):
        return True
    try:
        return _unwrap(one) == _unwrap(other)
    except crypto.SealBroken:
        return False


def _is_committed(row: WrappedKey) -> bool:
    """False for a key that may go with the transaction we are in: nobody else may use it before it is sure."""
    if isinstance(row, SeparateKey) or not transaction.get_connection().in_atomic_block:
        return True
    return row.created_at < timezone.now() - _LONGER_THAN_A_TRANSACTION


def _refuse_strange(here: UserKey) -> UserKey:
    """Raise KeyAway for a key in a database of its own when we were not told of it."""
    if here.is_apart and not has_own_database():
        raise KeyUnavailable
    return here


def _finish_shredding(user_id: UUID) -> None:
    try:
        if has_own_database():
            with _kept() as kept:
                kept.filter(pk=user_id).delete()
    except DatabaseError as error:
        log.warning("a key waits for the sweep", user_id=str(user_id), error=type(error).__name__)
    # A reader between our delete and our commit may have opened it again.
    forget(user_id)


# ── The ring ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class KeyBatch:
    """What one transaction did."""

    last: UUID
    done: int
    left_alone: list[UUID]


def rewrap(batch: int = 500) -> Iterator[KeyBatch]:
    """Wrap all data keys anew with the ring's newest key, `batch` of them a transaction.

    May run anywhere, any number of times at once, while the keys are in use: what is sealed does not change. One
    that was cut off is taken up by the next. A key that does not open with the ring's key of that name is left alone.
    """
    ring: crypto.KeyRing = settings.KEY_RING
    older = [key_id for key_id in ring.ids if key_id != ring.newest]
    broken: set[UUID] = set()
    patient = False  # what another rotation has in hand is waited for in the end, lest it was cut off
    while True:
        after = _FIRST
        while found := _rewrap(older, after, batch, patient):
            yield found
            broken.update(found.left_alone)
            after = found.last
        with _table() as table:
            if not table.filter(ring_key__in=older).exclude(pk__in=broken).exists():
                return
        patient = True


def _rewrap(older: list[str], after: UUID, batch: int, patient: bool) -> KeyBatch | None:
    with _table() as table, transaction.atomic(using=table.db):
        rows = list(
            table.select_for_update(skip_locked=not patient)
            .filter(ring_key__in=older, pk__gt=after)
            .order_by("pk")[:batch]
        )
        broken = []
        for row in rows:
            try:
                row.ring_key, row.wrapped = settings.KEY_RING.wrap(_unwrap(row), str(row.pk))
            except crypto.SealBroken:
                log.error("a data key does not open", user_id=str(row.pk), ring_key=row.ring_key)
                broken.append(row.pk)
        done = [row for row in rows if row.pk not in broken]
        table.bulk_update(done, ["ring_key", "wrapped"])
    return KeyBatch(rows[-1].pk, len(done), broken) if rows else None


def count_by_ring_key() -> Counter[str]:
    """How many data keys each key of the ring wraps, wherever they are."""
    found: Counter[str] = Counter()
    with _table() as table:
        found.update(_by_ring_key(table))
    if has_own_database():  # those that are still to be moved
        found.update(_by_ring_key(UserKey.objects.all()))
    del found[UserKey.APART]
    return found


def _by_ring_key(table: QuerySet[Any]) -> dict[str, int]:
    return dict(table.order_by().values_list("ring_key").annotate(Count("pk")))


# ── Kept apart ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class KeyAudit:
    """Where accounts and keys do not fit, as after a backup of one of the two databases was brought back."""

    doubled: int = 0  # accounts with two different keys
    lost: list[UUID] = field(default_factory=list)  # accounts without their key
    orphans: list[UUID] = field(default_factory=list)  # keys without their account


def move_to_own_database(batch: int = 500) -> int:
    """Move what the main database still holds into the keys' own; returns how many. May be cut off and repeated."""
    if not has_own_database():
        return 0
    moved, after = 0, _FIRST
    while found := _separate(after, batch):
        moved += found.done
        after = found.last
    return moved


@transaction.atomic
def _separate(after: UUID, batch: int) -> KeyBatch | None:
    here = list(
        UserKey.objects.select_for_update(skip_locked=True)
        .exclude(ring_key=UserKey.APART)
        .filter(pk__gt=after)
        .order_by("pk")[:batch]
    )
    if not here:
        return None
    with _kept() as kept:
        kept.bulk_create([_copy(row) for row in here], ignore_conflicts=True)
        there = kept.in_bulk([row.pk for row in here])
    doubled = [row.pk for row in here if not _is_same(row, there[row.pk])]
    same = [row.pk for row in here if row.pk not in doubled]
    UserKey.objects.filter(pk__in=same).update(ring_key=UserKey.APART, wrapped=b"")
    return KeyBatch(here[-1].pk, len(same), doubled)


def finish_interrupted() -> int:
    """Finish what was cut off between two databases. Returns how many keys of deleted accounts it destroyed.

    A key goes only if its account's deletion had begun: an account that is not there may be in a backup.
    """
    if not has_own_database():
        return 0
    move_to_own_database()
    before = timezone.now() - _DOOMED
    with _kept() as kept:
        doomed = set(kept.filter(doomed_at__lt=before).values_list("pk", flat=True))
    alive = set(User.objects.filter(pk__in=doomed).values_list("pk", flat=True))
    with _kept() as kept:
        kept.filter(pk__in=alive, doomed_at__lt=before).update(doomed_at=None)
        return kept.filter(pk__in=doomed - alive).delete()[0]


def audit(batch: int = 1000) -> KeyAudit:
    """Compare accounts and keys, where they are apart. A key whose account does not say that it has one is noted."""
    found = KeyAudit()
    if not has_own_database():
        return found
    found.doubled = UserKey.objects.exclude(ring_key=UserKey.APART).count()
    after = _FIRST
    while page := _next(SeparateKey, after, batch):
        users = set(User.objects.filter(pk__in=page).values_list("pk", flat=True))
        _note(users)
        with _kept() as kept:
            strangers = kept.filter(pk__in=set(page) - users, created_at__lt=timezone.now() - _NEW)
            found.orphans += strangers.values_list("pk", flat=True)
        after = page[-1]
    after = _FIRST
    while page := _next(UserKey, after, batch):
        with _kept() as kept:
            there = set(kept.filter(pk__in=page).values_list("pk", flat=True))
        found.lost += [pk for pk in page if pk not in there]
        after = page[-1]
    return found


@transaction.atomic
def _note(user_ids: set[UUID]) -> None:
    """Let these accounts say where their key is: a transaction that was rolled back took the word with it."""
    silent = user_ids - set(UserKey.objects.filter(pk__in=user_ids).values_list("pk", flat=True))
    users = User.objects.select_for_update(no_key=True).filter(pk__in=silent).order_by("pk").only("pk")
    words = [UserKey(user_id=user.pk, ring_key=UserKey.APART, wrapped=b"") for user in users]
    UserKey.objects.bulk_create(words, ignore_conflicts=True)


def shred_orphans(user_ids: list[UUID]) -> int:
    """Destroy keys of accounts that do not exist, for ever, as `audit` found them. Returns how many."""
    gone = set(user_ids) - set(User.objects.filter(pk__in=user_ids).values_list("pk", flat=True))
    with _kept() as kept:
        return kept.filter(pk__in=gone).delete()[0]


def _next(model: type[SeparateKey | UserKey], after: UUID, batch: int) -> list[UUID]:
    with _kept() as kept:
        table: QuerySet[Any] = kept if model is SeparateKey else UserKey.objects.all()
        return list(table.filter(pk__gt=after).order_by("pk").values_list("pk", flat=True)[:batch])


@contextmanager
def _table() -> Iterator[QuerySet[Any]]:
    """The table that the keys are used from."""
    if has_own_database():
        with _kept() as kept:
            yield kept
    else:
        yield UserKey.objects.all()


@contextmanager
def _kept() -> Iterator[QuerySet[SeparateKey]]:
    """The table in the keys' own database. The connection goes back to its pool at once: with one in hand nobody
    may wait for another."""
    try:
        _prepare()
        yield SeparateKey.objects.using(_APART)
    finally:
        connections[_APART].close()


def _prepare() -> None:
    """Make the table, the first time."""
    connection = connections[_APART]
    name = str(connection.settings_dict["NAME"])
    if name in _prepared:
        return
    with transaction.atomic(using=_APART), connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext('adiuva userkey'))")
        if SeparateKey._meta.db_table not in connection.introspection.table_names(cursor):
            with connection.schema_editor() as editor:
                editor.create_model(SeparateKey)
            # Django makes no index of a table that it does not manage.
            cursor.execute("CREATE INDEX userkey_ring_key ON userkey (ring_key)")
    _prepared.add(name)
