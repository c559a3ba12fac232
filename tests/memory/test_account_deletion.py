"""An account that is deleted while its memory is written: one waits for the other, and neither fails."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable

import pytest
from django.db import connection, connections, transaction

from adiuva.accounts import services
from adiuva.accounts.models import User
from memory import entries
from memory.entries import BY_HAND
from memory.models import Entry, Memory, Tier
from memory.recall import RecalledEntry
from memory.receipts import TurnReader, write_turn_receipt
from tests.factories import somebody


def remembered(user: uuid.UUID, entry: Entry) -> None:
    entries.remember(user_id=user, tier=Tier.CORE, key="home", content="Turin", source=BY_HAND)


def noted(user: uuid.UUID, entry: Entry) -> None:
    known = RecalledEntry(entry.pk, Tier.CORE, "tea", "drink", entry.valid_from)
    write_turn_receipt(TurnReader(user, "acme", "acme/x", uuid.uuid4(), None), [known.id], [])


@pytest.mark.parametrize("write", [remembered, noted])
def test_an_account_is_deleted_while_its_memory_is_written(
    committed_db: str, write: Callable[[uuid.UUID, Entry], None]
) -> None:
    user = somebody().id
    entry = entries.remember(user_id=user, tier=Tier.CORE, key="drink", content="tea", source=BY_HAND).entry
    entry.refresh_from_db()
    failed: list[BaseException] = []
    backend: list[int] = []

    def delete() -> None:
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_backend_pid()")
                backend.append(cursor.fetchone()[0])
            services.delete_account(user=User.objects.get(pk=user))
        except BaseException as error:
            failed.append(error)
        finally:
            connections.close_all()

    deleting = threading.Thread(target=delete)
    with transaction.atomic(), connection.cursor() as cursor:
        write(user, entry)
        deleting.start()
        waits = False
        while not waits and deleting.is_alive():
            cursor.execute("SELECT cardinality(pg_blocking_pids(%s)) > 0", [backend[0] if backend else 0])
            waits = cursor.fetchone()[0]
    deleting.join()
    assert failed == []
    assert not User.objects.filter(pk=user).exists()
    assert not Memory.objects.filter(pk=user).exists()
