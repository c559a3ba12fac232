"""Keys in a database of their own, and a ring that is changed under load, by processes that are killed."""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from io import StringIO
from itertools import cycle
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import psycopg
import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connections
from django.test import override_settings

from adiuva.accounts import key_maintenance, keys, services
from adiuva.accounts.models import SeparateKey, User, UserKey
from adiuva.core.crypto import KeyRing, SealBroken
from tests.accounts.installation import Mortal, Told, dump, in_use, new_database, restore, turn_off, turn_on
from tests.factories import seal_text, somebody, unseal_text
from tests.sampling import few

OLD, NEW = (f"{name}:{base64.b64encode(os.urandom(32)).decode()}" for name in ("old", "new"))


@pytest.fixture(scope="module")
def empty(committed_db: str) -> str:
    """The name of a main database with nothing in it, to copy."""
    made = new_database(committed_db)
    restore(made, dump(committed_db, "--schema-only"))
    return urlsplit(made).path[1:]


@pytest.fixture(scope="module")
def mortal() -> Iterator[Mortal]:
    with Mortal() as process:
        yield process


@dataclass
class Place:
    main: str
    keys: str

    def sql(self, statement: str, *values: object, main: bool = False) -> list[Any]:
        """Of the keys' database, or of the main one."""
        with psycopg.connect(self.main if main else self.keys, autocommit=True) as connection:
            found = connection.execute(statement.encode(), values)
            return found.fetchall() if found.description else []


@pytest.fixture
def place(committed_db: str, empty: str) -> Iterator[Place]:
    """An installation with no user and no key, which this process works on; keys are with the data still."""
    made = Place(new_database(committed_db, empty), new_database(committed_db))
    with in_use(made.main), override_settings(KEY_RING=KeyRing.parse([OLD]), KEYS=[OLD]):
        yield made


@pytest.fixture
def apart(place: Place) -> Place:
    """The same with the keys in their own database."""
    turn_on(place.keys)
    return place


def people(count: int) -> list[UUID]:
    users = [User(email=f"{uuid4().hex}@example.com", password="!") for _ in range(count)]
    return [user.pk for user in User.objects.bulk_create(users)]


def seal(user_id: UUID) -> bytes:
    return seal_text(keys.cipher_for(user_id), f"of {user_id}")


def opens(user_id: UUID, sealed: bytes) -> bool:
    """Whether a process that begins anew can read it. Anything but the text itself is an error."""
    keys.forget(user_id)
    return unseal_text(keys.cipher_for(user_id), sealed) == f"of {user_id}"


def rotate(**options: Any) -> str:
    said = StringIO()
    call_command("rotate_keys", stdout=said, **options)
    return said.getvalue()


# ── Kept apart ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_main_database_holds_no_key_once_they_are_apart(place: Place) -> None:
    sealed = {user_id: seal(user_id) for user_id in people(5)}
    wrapped = [bytes(row.wrapped).hex() for row in UserKey.objects.all()]
    assert all(each in dump(place.main) for each in wrapped)
    turn_on(place.keys)
    first = next(iter(sealed))
    assert opens(first, sealed[first])  # who is asked for is moved at once, the others by the command
    assert "Moved 4 data keys" in rotate(batch=3)
    assert "Moved" not in rotate()
    assert all(opens(*each) for each in sealed.items())
    dumped = dump(place.main)
    assert not any(each in dumped for each in wrapped)
    assert {row.ring_key for row in UserKey.objects.all()} == {UserKey.SEPARATE}


def test_a_new_users_key_is_made_once_whoever_asks_and_in_its_own_database_alone(apart: Place) -> None:
    [user_id] = people(1)

    def fingerprint(found: list[bytes]) -> None:
        try:
            keys.forget(user_id)
            found.append(keys.cipher_for(user_id).fingerprint("x", "test"))
        finally:
            connections.close_all()

    found: list[bytes] = []
    threads = [threading.Thread(target=fingerprint, args=(found,)) for _ in range(8)]
    [each.start() for each in threads], [each.join() for each in threads]
    assert (len(found), len(set(found))) == (8, 1)
    assert len(apart.sql("SELECT user_id FROM userkey")) == 1
    assert apart.sql("SELECT user_id, wrapped FROM accounts_userkey", main=True) == [(user_id, b"")]


def test_a_dump_made_before_a_deletion_does_not_open_what_was_the_users(apart: Place) -> None:
    from chat import conversations
    from chat.models import Conversation

    ada, bob = somebody(), somebody()
    for person, title in [(ada, "The boat"), (bob, "The harbour")]:
        conversations.rename(conversation=Conversation.objects.create(user_id=person.id), title=title)
    dumped = dump(apart.main)
    services.delete_account(user=User.objects.get(pk=ada.id))
    assert apart.sql("SELECT user_id FROM userkey") == [(bob.id,)]

    restored = new_database(apart.main)
    restore(restored, dumped)
    with in_use(restored, apart.keys):
        rows = {row.user_id: row for row in Conversation.objects.all()}
        assert services.login(email=ada.email, password=ada.password)  # the dump has all of her but the key
        with pytest.raises(keys.KeyUnavailable):
            conversations.open_titles([rows[ada.id]], keys.cipher_for(ada.id))
        with pytest.raises(SealBroken):
            Conversation.title.unseal_from(keys.cipher_for(bob.id), rows[ada.id])
        assert conversations.open_titles([rows[bob.id]], keys.cipher_for(bob.id)) == {
            rows[bob.id].pk: "The harbour"
        }
        with pytest.raises(CommandError, match="1 accounts have lost their key"):
            rotate()
        services.delete_account(user=User.objects.get(pk=ada.id))  # and she can be deleted again
        assert "lost" not in rotate()
    turn_on(apart.keys)


def test_an_account_whose_deletion_is_killed_anywhere_is_whole_or_gone_with_its_key(
    apart: Place, mortal: Mortal
) -> None:
    ends, n = set(), 0
    while "done" not in ends:
        n += 1
        for when in ("before", "after"):
            [user_id] = people(1)
            sealed = seal(user_id)
            told = Told("delete", str(user_id), apart.main, apart.keys, [OLD], (n, when), of=["keys"])
            code, said = mortal.do(told)
            if User.objects.filter(pk=user_id).exists():
                assert (code, said) == (-9, "")
                assert opens(user_id, sealed)
                ends.add("whole")
            elif SeparateKey.objects.using("keys").filter(pk=user_id).exists():
                ends.add("its key left")
            else:
                ends.add("done" if code == 0 else "killed when all was done")
    assert ends >= {"whole", "its key left", "done"}
    kept = {row[0] for row in apart.sql("SELECT user_id FROM userkey")}
    key_maintenance.finish_interrupted()
    assert {row[0] for row in apart.sql("SELECT user_id FROM userkey")} == kept  # it may still be going on
    apart.sql("UPDATE userkey SET doomed_at = doomed_at - interval '2 hours'")
    assert (
        key_maintenance.finish_interrupted() == len(kept - set(User.objects.values_list("pk", flat=True))) > 0
    )
    assert {row[0] for row in apart.sql("SELECT user_id FROM userkey WHERE doomed_at IS NULL")} == set(
        User.objects.values_list("pk", flat=True)
    )
    assert apart.sql("SELECT user_id FROM userkey WHERE doomed_at IS NOT NULL") == []


def test_a_main_database_that_is_an_older_backup_costs_nobody_the_key(apart: Place) -> None:
    before = dump(apart.main)
    [user_id] = people(1)
    sealed = seal(user_id)
    apart.sql("UPDATE userkey SET created_at = created_at - interval '2 days'")
    older = new_database(apart.main)
    restore(older, before)
    with in_use(older, apart.keys):
        assert key_maintenance.finish_interrupted() == 0
        assert "1 keys have no account" in rotate()
    turn_on(apart.keys)
    assert opens(user_id, sealed)
    assert "no account" not in rotate()


def test_a_backup_of_the_keys_does_not_bring_deleted_accounts_back_for_good(apart: Place) -> None:
    [stays, goes] = people(2)
    sealed = seal(stays), seal(goes)
    backup = dump(apart.keys)
    services.delete_account(user=User.objects.get(pk=goes))
    restored = new_database(apart.keys)
    restore(restored, backup)
    turn_off(), turn_on(restored)
    assert "have no account" not in rotate()  # as new as it is, its account may not be committed yet
    Place(apart.main, restored).sql("UPDATE userkey SET created_at = created_at - interval '2 days'")
    assert "1 keys have no account" in rotate()
    assert "Destroyed 1 keys" in rotate(shred_orphans=True)
    assert Place(apart.main, restored).sql("SELECT user_id FROM userkey") == [(stays,)]
    assert opens(stays, sealed[0])


def test_who_does_not_know_where_the_keys_are_makes_no_other_and_deletes_no_account(apart: Place) -> None:
    [user_id] = people(1)
    sealed = seal(user_id)
    turn_off()
    keys.forget()
    with pytest.raises(keys.KeyUnavailable):
        keys.cipher_for(user_id)
    with pytest.raises(keys.KeyUnavailable):
        services.delete_account(user=User.objects.get(pk=user_id))
    with pytest.raises(CommandError, match="ADIUVA_KEYS_DATABASE_URL"):
        rotate()
    turn_on(new_database(apart.keys))  # an empty one is not the right one either
    with pytest.raises(keys.KeyUnavailable):
        keys.cipher_for(user_id)
    said = StringIO()
    with pytest.raises(CommandError, match="1 accounts have lost their key"):
        call_command("rotate_keys", stdout=said)
    assert f"without its key: account {user_id}" in said.getvalue()
    turn_off(), turn_on(apart.keys)
    assert opens(user_id, sealed)


def test_of_two_keys_of_one_account_none_is_lost(apart: Place) -> None:
    [user_id] = people(1)
    sealed = seal(user_id)
    ring_key, wrapped = settings.KEY_RING.wrap(os.urandom(32), str(user_id))
    UserKey.objects.filter(pk=user_id).update(ring_key=ring_key, wrapped=wrapped)
    with pytest.raises(CommandError, match="1 accounts have two data keys"):
        rotate()
    assert opens(user_id, sealed)
    assert bytes(UserKey.objects.get(pk=user_id).wrapped) == wrapped


# ── The ring ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Load:
    """Readers and a writer that go on, each time as a process that begins anew. Anything that fails is kept."""

    values: dict[UUID, bytes]
    failed: list[Exception] = field(default_factory=list)
    read: int = 0
    ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Load:
        self.threads = [
            threading.Thread(target=self._go_on, args=(each,)) for each in (self._read, self._write)
        ]
        [each.start() for each in self.threads]
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        [each.join() for each in self.threads]

    def _go_on(self, step: Any) -> None:
        who = cycle(list(self.values))
        while not self.ended.is_set():
            try:
                step(next(who))
            except Exception as error:
                self.failed.append(error)
            finally:
                connections.close_all()

    def _read(self, user_id: UUID) -> None:
        assert opens(user_id, self.values[user_id])
        self.read += 1
        self.ended.wait(0.002)  # the processor is for those who are killed, too

    def _write(self, _: UUID) -> None:
        [user_id] = people(1)
        self.values[user_id] = seal(user_id)
        assert opens(user_id, self.values[user_id])
        self.ended.wait(0.01)  # so that those of before are the most


@pytest.mark.parametrize("how", ["with the data", "and moved apart meanwhile"])
def test_a_rotation_under_load_that_is_killed_again_and_again_fails_no_read_and_ends(
    place: Place, mortal: Mortal, how: str
) -> None:
    moved = how != "with the data"
    values = {user_id: seal(user_id) for user_id in people(120)}
    points = few([(n, when) for n in range(3, 13) for when in ("before", "after")], 5)
    with ExitStack() as stack:
        stack.enter_context(override_settings(KEY_RING=KeyRing.parse([NEW, OLD])))
        if moved:
            turn_on(place.keys)
        load = stack.enter_context(Load(dict(list(values.items())[:12])))
        told = Told("rotate", "2", place.main, place.keys if moved else None, [NEW, OLD])
        ended = [mortal.do(replace(told, dies=point)) for point in points]
        assert [code for code, _ in ended] == [-9] * len(points), ended
        seen = key_maintenance.count_by_ring_key()
        assert seen["old"] and seen["new"]  # they were all killed on the way
        code, said = mortal.do(replace(told, argument="50"))
        assert code == 0, said
        assert "No data key needs old any more" in said
    assert load.failed == []
    assert load.read > 0
    with override_settings(KEY_RING=KeyRing.parse([NEW])):
        assert key_maintenance.count_by_ring_key() == {"new": len(values | load.values)}
        assert all(opens(*each) for each in (values | load.values).items())


def test_rotations_at_once_leave_nothing_undone(place: Place) -> None:
    values = {user_id: seal(user_id) for user_id in people(40)}
    done = []

    def go() -> None:
        try:
            done.append(sum(each.done for each in key_maintenance.rewrap(3)))
        finally:
            connections.close_all()

    with override_settings(KEY_RING=KeyRing.parse([NEW, OLD])):
        threads = [threading.Thread(target=go) for _ in range(4)]
        [each.start() for each in threads], [each.join() for each in threads]
    assert sum(done) == len(values)
    with override_settings(KEY_RING=KeyRing.parse([NEW])):
        assert all(opens(*each) for each in values.items())


def test_a_key_that_the_ring_does_not_open_is_told_and_the_others_are_done(place: Place) -> None:
    users = people(4)
    values = {user_id: seal(user_id) for user_id in users}
    UserKey.objects.filter(pk=users[0]).update(ring_key="2019")
    UserKey.objects.filter(pk=users[1]).update(wrapped=UserKey.objects.get(pk=users[2]).wrapped)
    with override_settings(KEY_RING=KeyRing.parse([NEW, OLD])):
        with pytest.raises(CommandError) as told:
            rotate(batch=1)
        assert "1 data keys are wrapped with 2019, which is not in ADIUVA_KEYS" in str(told.value)
        assert "1 data keys do not open" in str(told.value)
        assert key_maintenance.count_by_ring_key() == {"2019": 1, "old": 1, "new": 2}
        assert all(opens(user_id, values[user_id]) for user_id in users[2:])


@pytest.mark.parametrize("batch", ["0", "-1", "many"])
def test_a_batch_of_nothing_is_refused(batch: str) -> None:
    with pytest.raises(CommandError, match="batch"):
        call_command("rotate_keys", f"--batch={batch}")
