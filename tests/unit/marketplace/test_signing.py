"""A signature holds for what was signed, with the key that it names, and for nothing else."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.marketplace.signing import (
    REVOCATIONS_LIFETIME,
    BadSignature,
    Signed,
    SigningKeys,
    plugin_statement,
    revocation_statement,
    signed_bytes,
    verify,
)

NOW = dt.datetime(2030, 1, 2, 3, 4, 5, 678, dt.UTC)
SEED = base64.b64encode(bytes(range(32))).decode()
KEYS = SigningKeys([f"old:{base64.b64encode(bytes(32)).decode()}", f"new:{SEED}"])
STATEMENT = plugin_statement(
    plugin="weekly-report",
    version="1.2.0",
    sha256="ab" * 32,
    size=1234,
    permissions=["tasks.read"],
    reviewed_at=NOW,
)
SIGNED = KEYS.sign("plugin", STATEMENT)


def test_the_newest_key_signs_and_what_it_signed_is_good() -> None:
    assert SIGNED.key_id == "new"
    verify("plugin", SIGNED, KEYS.public_keys())


def test_what_an_older_key_of_the_ring_signed_stays_good() -> None:
    older = SigningKeys([f"old:{base64.b64encode(bytes(32)).decode()}"])
    verify("plugin", older.sign("plugin", STATEMENT), KEYS.public_keys())


@given(st.sampled_from(sorted(STATEMENT)), st.text(max_size=5))
def test_a_changed_statement_is_refused(name: str, value: str) -> None:
    with pytest.raises(BadSignature):
        verify("plugin", replace(SIGNED, statement={**STATEMENT, name: value}), KEYS.public_keys())


@given(st.integers(0, 63), st.integers(1, 255))
def test_a_changed_byte_of_the_signature_is_refused(at: int, by: int) -> None:
    raw = bytearray(base64.b64decode(SIGNED.signature))
    raw[at] ^= by
    with pytest.raises(BadSignature):
        verify("plugin", replace(SIGNED, signature=base64.b64encode(raw).decode()), KEYS.public_keys())


@pytest.mark.parametrize(
    "signed",
    [
        replace(SIGNED, key_id="old"),
        replace(SIGNED, key_id="unknown"),
        replace(SIGNED, signature=""),
        replace(SIGNED, signature="?"),
    ],
)
def test_another_key_or_no_signature_is_refused(signed: Signed) -> None:
    with pytest.raises(BadSignature):
        verify("plugin", signed, KEYS.public_keys())


def test_a_signature_for_one_purpose_is_none_for_another() -> None:
    with pytest.raises(BadSignature):
        verify("revocations", SIGNED, KEYS.public_keys())


def test_what_is_signed_is_the_same_bytes_however_the_statement_was_written() -> None:
    again = json.loads(json.dumps(dict(reversed(STATEMENT.items()))))
    assert signed_bytes("plugin", again) == signed_bytes("plugin", STATEMENT)
    assert signed_bytes("plugin", STATEMENT).startswith(b'adiuva plugin v1\n{"id":"weekly-report"')


def test_a_list_of_revocations_counts_and_expires() -> None:
    made = revocation_statement(
        counter=7, now=NOW, revoked=[{"plugin": "b", "version": "1.0.0", "reason": "it sent notes away"}]
    )
    assert made["counter"] == 7
    assert made["issued_at"] == "2030-01-02T03:04:05Z"
    assert dt.datetime.fromisoformat(made["expires_at"]) == NOW.replace(microsecond=0) + REVOCATIONS_LIFETIME


@pytest.mark.parametrize(
    "entries", [[], ["a"], ["a:AAAA"], [f":{SEED}"], [f"a:{SEED}", f"a:{SEED}"], ["a:?"]]
)
def test_keys_that_cannot_be_used_are_refused(entries: list[str]) -> None:
    with pytest.raises(ValueError, match="key to sign plugins"):
        SigningKeys(entries)


VECTORS = Path(__file__).parents[3] / "clients/typescript/test/plugin-signatures.json"


def _vectors() -> dict[str, Any]:
    """What the TypeScript client checks. Ed25519 signs the same bytes in the same way each time."""
    package = "A small packäge".encode()
    statement = plugin_statement(
        plugin="weekly-report",
        version="1.2.0",
        sha256=hashlib.sha256(package).hexdigest(),
        size=len(package),
        permissions=["tasks.read", "notes.write"],
        reviewed_at=NOW,
    )
    signed = KEYS.sign("plugin", statement)
    reason = {
        "plugin": "weekly-report",
        "version": "1.2.0",
        "reason": "Es schickt „Notizen“\nnach draußen \\ \u2028",
    }
    lists = [
        KEYS.sign("revocations", revocation_statement(counter=counter, now=NOW, revoked=revoked))
        for counter, revoked in ((7, [reason]), (8, []))
    ]
    shown = {"slug" if name == "id" else name: value for name, value in statement.items()}
    return {
        "keys": KEYS.public_keys(),
        "bytes": base64.b64encode(package).decode(),
        "plugin": {**shown, "signature": signed.signature, "key_id": signed.key_id},
        "lists": [
            {"statement": each.statement, "signature": each.signature, "key_id": each.key_id}
            for each in lists
        ],
    }


def test_the_typescript_client_checks_what_is_signed_here() -> None:
    assert json.loads(VECTORS.read_text()) == _vectors()
