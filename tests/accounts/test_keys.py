"""Users' data keys: one each, whoever asks first; wrapped anew while in use; gone for ever when shredded."""

from __future__ import annotations

import base64
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from uuid import uuid4

import pytest
from django.conf import settings
from django.db import connections, transaction
from django.test import override_settings

from adiuva.accounts import key_maintenance, keys
from adiuva.accounts.models import UserKey
from adiuva.core.crypto import KeyRing, SealBroken, UserCipher
from tests.factories import seal_text, somebody, unseal_text


@pytest.fixture(autouse=True)
def as_in_a_new_process() -> None:
    keys.forget()


def new_ring_key(name: str) -> str:
    return f"{name}:{base64.b64encode(os.urandom(32)).decode()}"


def test_what_is_sealed_opens_in_another_process(db: None) -> None:
    user_id = somebody().id
    sealed = seal_text(keys.cipher_for(user_id), "grüße")
    keys.forget()
    assert unseal_text(keys.cipher_for(user_id), sealed) == "grüße"


def test_no_other_user_opens_it(db: None) -> None:
    sealed = seal_text(keys.cipher_for(somebody().id), "text")
    with pytest.raises(SealBroken):
        unseal_text(keys.cipher_for(somebody().id), sealed)


def test_a_wrapped_key_does_not_open_for_another_user(db: None) -> None:
    one, other = somebody().id, somebody().id
    keys.cipher_for(one), keys.cipher_for(other)
    UserKey.objects.filter(pk=other).update(wrapped=UserKey.objects.get(pk=one).wrapped)
    keys.forget()
    with pytest.raises(SealBroken):
        keys.cipher_for(other)


def test_all_who_ask_first_get_the_same_key(committed_db: str) -> None:
    user_id = somebody().id

    def fingerprint(_: int) -> bytes:
        try:
            keys.forget(user_id)
            return keys.cipher_for(user_id).fingerprint("x", "test")
        finally:
            connections.close_all()

    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(fingerprint, range(16)))) == 1


def test_there_is_no_key_for_nobody(db: None) -> None:
    nobody = uuid4()
    with pytest.raises(keys.NoSuchUser):
        keys.cipher_for(nobody)
    assert not UserKey.objects.filter(pk=nobody).exists()


def test_an_open_key_costs_no_query(
    committed_db: str, django_assert_num_queries: pytest.FixtureRequest
) -> None:
    user_id = somebody().id
    keys.cipher_for(user_id)
    with django_assert_num_queries(0):  # type: ignore[operator]
        keys.cipher_for(user_id)


def test_what_was_shredded_stays_sealed_for_ever(db: None) -> None:
    user_id = somebody().id
    sealed = seal_text(keys.cipher_for(user_id), "text")
    keys.shred(user_id)
    with pytest.raises(SealBroken):  # a user who is still there gets a new key, and it opens nothing old
        unseal_text(keys.cipher_for(user_id), sealed)


def test_a_key_of_a_transaction_that_was_rolled_back_seals_nothing(committed_db: str) -> None:
    user_id = somebody().id
    with suppress(KeyError), transaction.atomic():
        keys.cipher_for(user_id)
        raise KeyError
    sealed = seal_text(keys.cipher_for(user_id), "text")
    keys.forget()
    assert unseal_text(keys.cipher_for(user_id), sealed) == "text"


def test_a_value_that_was_moved_does_not_open(db: None) -> None:
    ada, bob = keys.cipher_for(somebody().id), keys.cipher_for(somebody().id)
    sealed = seal_text(ada, "text")
    assert unseal_text(ada, sealed) == "text"
    for whose, table, row, column in [
        (ada, "tasks", 1, "text"),
        (ada, "notes", 2, "text"),
        (ada, "notes", 1, "title"),
        (bob, "notes", 1, "text"),
        (UserCipher(bob.owner, ada.cipher), "notes", 1, "text"),  # not even under the same key
    ]:
        with pytest.raises(SealBroken):
            whose.cipher.unseal(sealed, whose.place(table, row, column))


@pytest.mark.parametrize("what", ["a value", "a wrapped key"])
def test_each_single_flipped_bit_is_refused(db: None, what: str) -> None:
    user_id = somebody().id
    cipher, row = keys.cipher_for(user_id), UserKey.objects.get(pk=user_id)
    good = seal_text(cipher, "4 o'clock") if what == "a value" else bytes(row.wrapped)
    for bit in range(len(good) * 8):
        changed = bytearray(good)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SealBroken):
            if what == "a value":
                unseal_text(cipher, bytes(changed))
            else:
                settings.KEY_RING.unwrap(row.ring_key, bytes(changed), str(user_id))


def test_keys_are_wrapped_anew_in_batches_until_the_old_ring_key_is_not_needed(db: None) -> None:
    user_ids = [somebody().id for _ in range(3)]
    sealed = [seal_text(keys.cipher_for(user_id), "text") for user_id in user_ids]
    newest = new_ring_key("newest")
    with override_settings(KEY_RING=KeyRing.parse([newest, *settings.KEYS])):
        moved = [each.done for each in key_maintenance.rewrap(2)]
        assert sum(moved) >= 3
        assert max(moved) == 2
        assert set(key_maintenance.count_by_ring_key()) == {"newest"}
        assert list(key_maintenance.rewrap(2)) == []
    keys.forget()
    with override_settings(KEY_RING=KeyRing.parse([newest])):
        for user_id, value in zip(user_ids, sealed, strict=True):
            assert unseal_text(keys.cipher_for(user_id), value) == "text"


def test_the_process_keeps_a_bounded_number_of_keys(
    committed_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "_MAX_OPENED", 2)
    for _ in range(4):
        keys.cipher_for(somebody().id)
    assert len(keys._opened) == 2
