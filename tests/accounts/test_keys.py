"""Users' data keys: one each, whoever asks first; wrapped anew while in use; gone for ever when shredded."""

from __future__ import annotations

import base64
import os
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from django.conf import settings
from django.db import connections
from django.test import override_settings

from adiuva.accounts import keys
from adiuva.accounts.models import UserKey
from adiuva.crypto import KeyRing, SealBroken
from tests.people import somebody


@pytest.fixture(autouse=True)
def as_in_a_new_process() -> None:
    keys.forget()


def new_ring_key(name: str) -> str:
    return f"{name}:{base64.b64encode(os.urandom(32)).decode()}"


def test_what_is_sealed_opens_in_another_process(db: None) -> None:
    user_id = somebody().id
    sealed = keys.cipher_for(user_id).seal("grüße", "notes", 1, "text")
    keys.forget()
    assert keys.cipher_for(user_id).unseal(sealed, "notes", 1, "text") == "grüße"


def test_no_other_user_opens_it(db: None) -> None:
    sealed = keys.cipher_for(somebody().id).seal("text", "notes", 1, "text")
    with pytest.raises(SealBroken):
        keys.cipher_for(somebody().id).unseal(sealed, "notes", 1, "text")


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


def test_an_open_key_costs_no_query(db: None, django_assert_num_queries: pytest.FixtureRequest) -> None:
    user_id = somebody().id
    keys.cipher_for(user_id)
    with django_assert_num_queries(0):  # type: ignore[operator]
        keys.cipher_for(user_id)


def test_what_was_shredded_stays_sealed_for_ever(db: None) -> None:
    user_id = somebody().id
    sealed = keys.cipher_for(user_id).seal("text", "notes", 1, "text")
    keys.shred(user_id)
    with pytest.raises(SealBroken):  # a user who is still there gets a new key, and it opens nothing old
        keys.cipher_for(user_id).unseal(sealed, "notes", 1, "text")


def test_keys_are_wrapped_anew_in_batches_until_the_old_ring_key_is_not_needed(db: None) -> None:
    user_ids = [somebody().id for _ in range(3)]
    sealed = [keys.cipher_for(user_id).seal("text", "notes", 1, "text") for user_id in user_ids]
    newest = new_ring_key("newest")
    with override_settings(KEY_RING=KeyRing.parse([newest, *settings.KEYS])):
        moved = [keys.rewrap(2)]
        while moved[-1]:
            moved.append(keys.rewrap(2))
        assert sum(moved) >= 3
        assert max(moved) == 2
    keys.forget()
    with override_settings(KEY_RING=KeyRing.parse([newest])):
        for user_id, value in zip(user_ids, sealed, strict=True):
            assert keys.cipher_for(user_id).unseal(value, "notes", 1, "text") == "text"


def test_the_process_keeps_a_bounded_number_of_keys(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_KEPT", 2)
    for _ in range(4):
        keys.cipher_for(somebody().id)
    assert len(keys._opened) == 2
