"""Differences between files: small where little changed, and put together to exactly what they were made from."""

from __future__ import annotations

import hashlib
import io
import os
import random
from pathlib import Path

import pytest

from adiuva.devices.client import backup_delta
from adiuva.devices.client.backup_delta import BLOCK, Base
from adiuva.devices.client.sealed_file import DamagedFile


def difference(folder: Path, before: bytes, now: bytes) -> bytes:
    (folder / "before").write_bytes(before)
    (folder / "now").write_bytes(now)
    base = Base(7, b"c" * 32, backup_delta.digests(folder / "before"))
    written = io.BytesIO()
    backup_delta.write(folder / "now", hashlib.sha256(now).digest(), base, written)
    return written.getvalue()


def put_together(sent: bytes, before: bytes) -> bytes:
    file, target = io.BytesIO(sent), io.BytesIO()
    found = backup_delta.read(file)
    assert (found.base_ms, found.base_checksum) == (7, b"c" * 32)
    backup_delta.put_together(found, file, io.BytesIO(before), target)
    return target.getvalue()


@pytest.mark.parametrize("seed", range(20))
def test_any_change_comes_back(tmp_path: Path, seed: int) -> None:
    chosen = random.Random(seed)
    before = os.urandom(chosen.choice([0, 1, BLOCK, 5 * BLOCK, 5 * BLOCK + 100]))
    now = bytearray(before[: chosen.choice([len(before), len(before) // 2])])
    for _ in range(chosen.randrange(4)):
        if now:
            now[chosen.randrange(len(now))] ^= 1
    now += os.urandom(chosen.choice([0, 0, 10, 2 * BLOCK]))
    assert put_together(difference(tmp_path, before, bytes(now)), before) == now


def test_one_byte_costs_one_block(tmp_path: Path) -> None:
    before = os.urandom(50 * BLOCK)
    now = bytearray(before)
    now[20 * BLOCK + 3] ^= 1
    assert len(difference(tmp_path, before, before)) < 100
    assert len(difference(tmp_path, before, bytes(now))) < BLOCK + 200


def test_what_is_cut_or_built_on_something_else_is_damaged(tmp_path: Path) -> None:
    before = os.urandom(4 * BLOCK)
    now = os.urandom(BLOCK) + before[BLOCK:]
    sent = difference(tmp_path, before, now)
    assert put_together(sent, before) == now
    for wrong in (b"", sent[:50], sent[:90], sent[:-1], b"X" + sent[1:]):
        with pytest.raises(DamagedFile):
            put_together(wrong, before)
    for other in (os.urandom(4 * BLOCK), before[:-1], b""):
        with pytest.raises(DamagedFile):
            put_together(sent, other)
