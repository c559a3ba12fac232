"""Signatures (Ed25519, RFC 8032) of reviewed versions, and of the list of revocations.

A client knows the public keys, and checks both before it installs or keeps a plugin. So a package is what the reviewers
saw, whoever delivers it; and an older list of revocations is not taken for the newest, since it has a number and
expires. A signature covers a line that names its purpose and the JSON of the statement, with sorted keys and without
spaces.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

Purpose = Literal["plugin", "revocations"]

_SEED_BYTES: Final = 32
# A list of revocations that is older than this no longer counts: somebody may hold newer ones back.
REVOCATIONS_LIFETIME: Final = dt.timedelta(days=3)


class BadSignature(Exception):
    """The statement was not signed with this key, or was changed since. It says no more on purpose."""


@dataclass(frozen=True)
class Signed:
    """A statement with the signature of its JSON (base64) and the id of the key."""

    statement: Mapping[str, Any]
    signature: str
    key_id: str


class SigningKeys:
    """The keys by their ids. The newest, which is last, signs; the others' signatures are still good.

    Entries are `id:seed`, where the seed is 32 random bytes in base64. Raises ValueError for others.
    """

    def __init__(self, entries: Sequence[str]) -> None:
        if not entries:
            raise ValueError("there is no key to sign plugins with")
        self._keys: dict[str, Ed25519PrivateKey] = {}
        for entry in entries:
            key_id, _, encoded = entry.partition(":")
            try:
                seed = base64.b64decode(encoded, validate=True)
            except binascii.Error:
                seed = b""
            if not key_id or len(seed) != _SEED_BYTES or key_id in self._keys:
                raise ValueError("a key to sign plugins with is id:seed, 32 bytes in base64, each id once")
            self._keys[key_id] = Ed25519PrivateKey.from_private_bytes(seed)
        self.newest = next(reversed(self._keys))

    def public_keys(self) -> dict[str, str]:
        """Return the raw public keys in base64, by id."""
        return {
            key_id: base64.b64encode(key.public_key().public_bytes_raw()).decode()
            for key_id, key in self._keys.items()
        }

    def sign(self, purpose: Purpose, statement: Mapping[str, Any]) -> Signed:
        signature = self._keys[self.newest].sign(signed_bytes(purpose, statement))
        return Signed(statement, base64.b64encode(signature).decode(), self.newest)


def signed_bytes(purpose: Purpose, statement: Mapping[str, Any]) -> bytes:
    """Return the bytes to sign. The purpose stands in front, so that no statement
    can be taken for one of another kind."""
    text = json.dumps(statement, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return f"adiuva {purpose} v1\n{text}".encode()


def verify(purpose: Purpose, signed: Signed, public_keys: Mapping[str, str]) -> None:
    """Verify a signature. Raises BadSignature."""
    try:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public_keys[signed.key_id], validate=True))
        key.verify(base64.b64decode(signed.signature, validate=True), signed_bytes(purpose, signed.statement))
    except (KeyError, ValueError, InvalidSignature):
        raise BadSignature from None


def plugin_statement(
    *,
    plugin: str,
    version: str,
    sha256: str,
    size: int,
    permissions: Iterable[str],
    reviewed_at: dt.datetime,
) -> dict[str, Any]:
    """Return the statement that reviewers vouch for. Times are UTC, to the second, since a client compares text."""
    return {
        "id": plugin,
        "version": version,
        "sha256": sha256,
        "size": size,
        "permissions": sorted(permissions),
        "reviewed_at": _said(reviewed_at),
    }


def revocation_statement(
    *, counter: int, now: dt.datetime, revoked: Iterable[Mapping[str, str]]
) -> dict[str, Any]:
    """Return the list of revocations: `plugin`, `version` and `reason` of each. `counter` grows with each change."""
    return {
        "counter": counter,
        "issued_at": _said(now),
        "expires_at": _said(now + REVOCATIONS_LIFETIME),
        "revoked": sorted(
            (dict(entry) for entry in revoked), key=lambda entry: (entry["plugin"], entry["version"])
        ),
    }


def _said(time: dt.datetime) -> str:
    return time.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
