"""Seals hold: no changed bit, no other place, no other key, and no other owner opens them."""

from __future__ import annotations

import base64
import hmac
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adiuva.core.crypto import (
    Cipher,
    KeyRing,
    SealBroken,
    TransitCipher,
    UserCipher,
    associated_data,
    derive_key,
    new_key,
)

part = st.text(max_size=12)
parts = st.lists(part, max_size=5)
KEY = new_key()


def place_of(value: tuple[str, str, object, str]) -> bytes:
    owner, *parts = value
    return UserCipher(owner, Cipher(KEY)).place(*parts)


def ring_entry(name: str, key: bytes = KEY) -> str:
    return f"{name}:{base64.b64encode(key).decode()}"


# ── Places ──────────────────────────────────────────────────────────────────────────────────────────────


@given(parts, parts)
def test_two_places_are_the_same_only_if_all_their_parts_are(one: list[str], other: list[str]) -> None:
    assert (associated_data(*one) == associated_data(*other)) == (one == other)


@given(parts, st.integers(min_value=0, max_value=100))
def test_no_way_of_joining_parts_makes_another_place(names: list[str], at: int) -> None:
    if len(names) >= 2:
        at %= len(names) - 1
        joined = [*names[:at], names[at] + names[at + 1], *names[at + 2 :]]
        assert associated_data(*joined) != associated_data(*names)
        moved = [*names[:at], names[at] + names[at + 1][:1], names[at + 1][1:], *names[at + 2 :]]
        assert (associated_data(*moved) == associated_data(*names)) == (moved == names)


# ── Seals ───────────────────────────────────────────────────────────────────────────────────────────────


@given(st.binary(max_size=200), st.binary(max_size=20))
def test_what_was_sealed_opens_where_it_belongs(plain: bytes, where: bytes) -> None:
    cipher = Cipher(KEY)
    sealed = cipher.seal(plain, where)
    assert cipher.unseal(sealed, where) == plain
    assert cipher.seal(plain, where) != sealed


@given(st.binary(max_size=60), st.data())
def test_any_flipped_bit_breaks_the_seal(plain: bytes, data: st.DataObject) -> None:
    sealed = bytearray(Cipher(KEY).seal(plain, b"place"))
    bit = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SealBroken):
        Cipher(KEY).unseal(bytes(sealed), b"place")


@given(st.binary(max_size=60), st.data())
def test_a_seal_that_was_cut_or_lengthened_is_broken(plain: bytes, data: st.DataObject) -> None:
    sealed = Cipher(KEY).seal(plain, b"place")
    cut = sealed[: data.draw(st.integers(0, len(sealed) - 1))]
    for changed in (cut, sealed + b"\0", b""):
        with pytest.raises(SealBroken):
            Cipher(KEY).unseal(changed, b"place")


@given(st.binary(max_size=100))
def test_noise_is_no_seal(noise: bytes) -> None:
    for raw in (noise, b"\x01" + noise):
        with pytest.raises(SealBroken):
            Cipher(KEY).unseal(raw, b"place")


row = st.tuples(part, part, st.one_of(part, st.integers(), st.uuids()), part)


@given(st.text(max_size=40), row, row)
def test_a_users_value_opens_at_its_own_place_only(
    text: str, home: tuple[str, str, object, str], elsewhere: tuple[str, str, object, str]
) -> None:
    sealed = Cipher(KEY).seal(text.encode("utf-8", "surrogatepass"), place_of(home))
    assert Cipher(KEY).unseal(sealed, place_of(home)).decode("utf-8", "surrogatepass") == text
    if [str(each) for each in home] != [str(each) for each in elsewhere]:
        with pytest.raises(SealBroken):
            Cipher(KEY).unseal(sealed, place_of(elsewhere))


def test_another_key_opens_nothing() -> None:
    with pytest.raises(SealBroken):
        Cipher(new_key()).unseal(Cipher(KEY).seal(b"x", b"place"), b"place")


# ── Fingerprints and derived keys ───────────────────────────────────────────────────────────────────────


@given(st.tuples(part, part), st.tuples(part, part))
def test_fingerprints_are_equal_for_equal_values_of_one_purpose_only(
    one: tuple[str, str], other: tuple[str, str]
) -> None:
    cipher = Cipher(KEY)
    assert (cipher.fingerprint(*one) == cipher.fingerprint(*other)) == (one == other)
    assert cipher.fingerprint(*one) != Cipher(bytes(32)).fingerprint(*one)


def test_fingerprints_stay_the_same() -> None:
    cipher = Cipher(KEY)
    said = associated_data("purpose") + b"value"
    for _ in range(2):
        expected = hmac.digest(derive_key(KEY, "adiuva index"), said, "sha256")
        assert cipher.fingerprint("value", "purpose") == cipher.fingerprint(b"value", "purpose") == expected


def test_keys_of_different_purposes_differ_and_stay_the_same() -> None:
    assert len({derive_key(KEY, purpose) for purpose in ("a", "b", "")}) == 3
    # HKDF as RFC 5869 (2.2, 2.3) writes it, for one block.
    extracted = hmac.digest(bytes(32), KEY, "sha256")
    assert derive_key(KEY, "a") == hmac.digest(extracted, b"a\x01", "sha256")


# ── The key ring ────────────────────────────────────────────────────────────────────────────────────────


def test_the_newest_key_wraps_and_older_ones_still_open() -> None:
    old = KeyRing.parse([ring_entry("2026", new_key())])
    data_key = new_key()
    key_id, wrapped = old.wrap(data_key, "owner")
    newer = KeyRing([("2027", new_key()), ("2026", old._keys[0].cipher._key)])
    assert newer.unwrap(key_id, wrapped, "owner") == data_key
    assert newer.wrap(data_key, "owner")[0] == newer.newest == "2027"
    assert newer.ids == ["2027", "2026"]


def test_a_wrap_opens_for_its_owner_and_with_its_ring_key_only() -> None:
    ring = KeyRing.parse([ring_entry("b", new_key()), ring_entry("a", new_key())])
    key_id, wrapped = ring.wrap(new_key(), "owner")
    for wrong_id, owner in [(key_id, "another"), ("a", "owner"), ("gone", "owner")]:
        with pytest.raises(SealBroken):
            ring.unwrap(wrong_id, wrapped, owner)


@pytest.mark.parametrize(
    "entries",
    [
        [],
        ["no colon"],
        [":" + base64.b64encode(KEY).decode()],
        ["short:" + base64.b64encode(b"short").decode()],
        ["odd:!!!!"],
        [ring_entry("same"), ring_entry("same", new_key())],
    ],
)
def test_a_ring_that_is_not_well_formed_is_refused_without_showing_a_key(entries: list[str]) -> None:
    with pytest.raises(ValueError) as refused:
        KeyRing.parse(entries)
    for entry in entries:
        secret = entry.partition(":")[2]
        assert not secret or secret not in str(refused.value)


# ── Between processes ───────────────────────────────────────────────────────────────────────────────────


@given(st.binary(max_size=100))
def test_any_process_of_the_ring_opens_what_another_sent(plain: bytes) -> None:
    old, new = bytes(range(32)), bytes(range(1, 33))
    sent = TransitCipher([old]).seal(plain, b"layer")
    assert TransitCipher([new, old]).unseal(sent, b"layer") == plain
    for transit, where in [(TransitCipher([new]), b"layer"), (TransitCipher([old]), b"elsewhere")]:
        with pytest.raises(SealBroken):
            transit.unseal(sent, where)


def test_a_process_made_by_a_fork_writes_with_a_key_of_its_own() -> None:
    transit = TransitCipher([KEY])
    here = transit.seal(b"x", b"layer")
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, transit.seal(b"y", b"layer"))
        os._exit(0)
    os.waitpid(child, 0)
    there = os.read(read, 1000)
    os.close(read), os.close(write)
    assert here[:16] != there[:16]
    assert transit.unseal(there, b"layer") == b"y"


def test_threads_that_begin_to_write_at_once_are_all_understood() -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # let them get in each other's way
    try:
        for _ in range(100):
            transit, start = TransitCipher([KEY]), threading.Barrier(8)

            def write(
                number: int, transit: TransitCipher = transit, start: threading.Barrier = start
            ) -> bytes:
                start.wait()
                return transit.seal(b"%d" % number, b"layer")

            with ThreadPoolExecutor(8) as threads:
                sent = list(threads.map(write, range(8)))
            assert [transit.unseal(each, b"layer") for each in sent] == [b"%d" % n for n in range(8)]
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize("noise", [b"", b"x" * 16, b"x" * 100])
def test_noise_between_processes_is_refused(noise: bytes) -> None:
    with pytest.raises(SealBroken):
        TransitCipher([KEY]).unseal(noise, b"layer")
