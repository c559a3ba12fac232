"""Sealing: a key ring wraps one data key for each user; the data key seals values and binds them to their place.

Everything is AES-256-GCM with a random 96-bit nonce (NIST SP 800-38D, 8.2.2: at most 2**32 values a key).
A sealed value is `version ‖ nonce ‖ ciphertext ‖ tag`; its associated data is the place it belongs to, so a
value that is moved to another user, table, row or column does not open, and neither does one with a changed bit.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
_NONCE_BYTES = 12
_VERSION = b"\x01"


class SealBroken(Exception):
    """Error for a value that was altered, moved, or sealed with another key. It says no more on purpose."""


def new_key() -> bytes:
    return os.urandom(KEY_BYTES)


def derive_key(key: bytes, purpose: str) -> bytes:
    """Return a key for one purpose alone (HKDF-SHA256, RFC 5869)."""
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=purpose.encode()).derive(key)


def associated_data(*parts: object) -> bytes:
    """Return associated data made of parts, each with its length, so that ("ab", "c") is not ("a", "bc")."""
    found = b""
    for part in parts:
        text = str(part).encode()
        found += len(text).to_bytes(4, "big") + text
    return found


class Cipher:
    """Cipher of one key, kept so that its schedule is computed once."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._aead = AESGCM(key)

    def seal(self, plain: bytes, where: bytes) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return _VERSION + nonce + self._aead.encrypt(nonce, plain, where)

    def unseal(self, sealed: bytes, where: bytes) -> bytes:
        """Return the plain bytes. Raises SealBroken unless `sealed` is unaltered and was sealed for `where`."""
        if sealed[:1] != _VERSION:
            raise SealBroken("unknown format")
        try:
            return self._aead.decrypt(sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :], where)
        except (InvalidTag, ValueError):
            raise SealBroken("the seal is broken") from None

    @cached_property
    def _index(self) -> hmac.HMAC:
        # It is copied for each value: a new one would have OpenSSL look up its algorithm, which costs more than a hash.
        return hmac.new(derive_key(self._key, "adiuva index"), digestmod=hashlib.sha256)

    def fingerprint(self, value: str | bytes, purpose: str) -> bytes:
        """Return a keyed hash (HMAC-SHA256, 32 bytes): equal values can be found without being readable."""
        raw = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        found = self._index.copy()
        found.update(associated_data(purpose) + raw)
        return found.digest()


@dataclass(frozen=True)
class UserCipher:
    """Cipher of a user's opened data key. It binds what it seals to owner, table, row and column.

    Columns are declared with the fields of adiuva.core.sealed, which know their place.
    """

    owner: str
    cipher: Cipher

    def fingerprint(self, value: str | bytes, purpose: str) -> bytes:
        return self.cipher.fingerprint(value, purpose)

    def place(self, table: str, *parts: object) -> bytes:
        """Return the associated data of this user's values at a place."""
        return _table_place(self.owner, table) + associated_data(*parts)


# Most values are unsealed by the dozen, from one table of one user.
_table_place = lru_cache(1_024)(associated_data)


class TransitCipher:
    """Cipher for what passes between processes. Each process writes with a key of its own, named by a salt in front.

    So no key comes near the number of values that random nonces allow, however many messages all processes send.
    """

    _SALT_BYTES = 16
    _KEPT = 1024

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = keys
        self._readers: dict[bytes, list[Cipher]] = {}
        self._mine: tuple[int, bytes, Cipher] | None = (
            None  # process, salt, cipher: any thread reads and sets them as one
        )

    def _ciphers(self, salt: bytes) -> list[Cipher]:
        found = self._readers.get(salt)
        if found is None:
            if len(self._readers) >= self._KEPT:
                self._readers.clear()
            found = [Cipher(derive_key(key, f"adiuva transit {salt.hex()}")) for key in self._keys]
            self._readers[salt] = found
        return found

    def seal(self, plain: bytes, where: bytes) -> bytes:
        mine = self._mine
        if mine is None or mine[0] != os.getpid():  # also after a fork
            salt = os.urandom(self._SALT_BYTES)
            mine = self._mine = os.getpid(), salt, self._ciphers(salt)[0]
        _, salt, cipher = mine
        return salt + cipher.seal(plain, where)

    def unseal(self, sealed: bytes, where: bytes) -> bytes:
        """Return the plain bytes. Raises SealBroken unless a process with this ring sealed them for `where`."""
        for cipher in self._ciphers(sealed[: self._SALT_BYTES]):
            try:
                return cipher.unseal(sealed[self._SALT_BYTES :], where)
            except SealBroken:
                continue
        raise SealBroken("no key of the ring opens this message")


@dataclass(frozen=True)
class RingKey:
    id: str
    cipher: Cipher


class KeyRing:
    """Ring of the keys that wrap data keys, newest first. New wraps use the newest; old ones still open."""

    def __init__(self, keys: Sequence[tuple[str, bytes]]) -> None:
        if not keys:
            raise ValueError("the key ring is empty")
        self._keys = [RingKey(key_id, Cipher(key)) for key_id, key in keys]
        self._by_id = {key.id: key for key in self._keys}
        if len(self._by_id) != len(self._keys):
            raise ValueError("two keys of the ring share an id")
        # This cipher seals what passes through Redis; any process with this ring can open it.
        self.transit = TransitCipher([key for _, key in keys])

    @classmethod
    def parse(cls, entries: Sequence[str]) -> KeyRing:
        """Return the ring of `id:base64` entries of 32 bytes each, newest first. ValueError names the wrong entry."""
        keys = []
        for number, entry in enumerate(entries, 1):
            key_id, _, encoded = entry.partition(":")
            try:
                key = base64.b64decode(encoded, validate=True)
            except (binascii.Error, ValueError):
                key = b""
            if not key_id or len(key) != KEY_BYTES:
                raise ValueError(f"entry {number} is not of the form id:base64 of {KEY_BYTES} bytes")
            keys.append((key_id, key))
        return cls(keys)

    @property
    def ids(self) -> list[str]:
        return [key.id for key in self._keys]

    @property
    def newest(self) -> str:
        return self._keys[0].id

    def wrap(self, data_key: bytes, owner: str) -> tuple[str, bytes]:
        """Seal a user's data key. Returns the ring key's id and the wrapped key."""
        return self.newest, self._keys[0].cipher.seal(data_key, associated_data("data key", owner))

    def unwrap(self, key_id: str, wrapped: bytes, owner: str) -> bytes:
        key = self._by_id.get(key_id)
        if key is None:
            raise SealBroken(f"the ring has no key named {key_id!r}")
        return key.cipher.unseal(wrapped, associated_data("data key", owner))
