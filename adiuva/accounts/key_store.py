"""Storage of wrapped data keys: with their accounts, or in a database that holds nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.conf import settings
from django.db import connections, transaction
from django.db.models import QuerySet

from adiuva.accounts.models import SeparateKey, UserKey, WrappedKey
from adiuva.core import crypto

KEYS_DATABASE = "keys"  # the alias of the keys' own database

_prepared: set[str] = set()  # names of databases that have the table


def has_own_database() -> bool:
    """Return whether the keys have a database of their own."""
    return KEYS_DATABASE in connections


@contextmanager
def keys_in_use() -> Iterator[QuerySet[Any]]:
    """Return the table that keys are read from."""
    if has_own_database():
        with separate_keys() as separate:
            yield separate
    else:
        yield UserKey.objects.all()


@contextmanager
def separate_keys() -> Iterator[QuerySet[SeparateKey]]:
    """Return the table in the keys' own database.

    The connection then returns to its pool, so that no thread holds it while it waits for another database.
    """
    try:
        _prepare()
        yield SeparateKey.objects.using(KEYS_DATABASE)
    finally:
        connections[KEYS_DATABASE].close()


def _prepare() -> None:
    """Create the table if it does not exist."""
    connection = connections[KEYS_DATABASE]
    name = str(connection.settings_dict["NAME"])
    if name in _prepared:
        return
    with transaction.atomic(using=KEYS_DATABASE), connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext('adiuva userkey'))")
        if SeparateKey._meta.db_table not in connection.introspection.table_names(cursor):
            with connection.schema_editor() as editor:
                editor.create_model(SeparateKey)
            # Django creates no index for a model that it does not manage.
            cursor.execute("CREATE INDEX userkey_ring_key ON userkey (ring_key)")
    _prepared.add(name)


def unwrap(row: WrappedKey) -> bytes:
    ring: crypto.KeyRing = settings.KEY_RING
    return ring.unwrap(row.ring_key, bytes(row.wrapped), str(row.pk))


def copy_of(row: UserKey) -> SeparateKey:
    return SeparateKey(user_id=row.pk, ring_key=row.ring_key, wrapped=row.wrapped, created_at=row.created_at)


def is_same_key(one: WrappedKey, other: WrappedKey) -> bool:
    """Return whether both are the same data key. Also False if the ring opens only one of them."""
    if (one.ring_key, bytes(one.wrapped)) == (other.ring_key, bytes(other.wrapped)):
        return True
    try:
        return unwrap(one) == unwrap(other)
    except crypto.SealBroken:
        return False
