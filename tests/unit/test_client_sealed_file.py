"""Files sealed with a passphrase: they open as they were, or say that they do not."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from adiuva.devices.client.sealed_file import DamagedFile, WrongPassphrase, open_sealed, seal

MIB = 1024 * 1024
START = 25 + 16  # header, and what says whether the passphrase is right
CHUNK = MIB + 16


def sealed(tmp_path: Path, data: bytes) -> bytes:
    source, target = tmp_path / "plain", io.BytesIO()
    source.write_bytes(data)
    seal(source, target, "correct horse", log_n=14)
    return target.getvalue()


def opened(data: bytes, passphrase: str = "correct horse") -> bytes:
    target = io.BytesIO()
    open_sealed(io.BytesIO(data), target, passphrase)
    return target.getvalue()


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB])
def test_a_file_opens_as_it_was(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    assert opened(sealed(tmp_path, data)) == data


def test_two_seals_of_one_file_have_nothing_in_common(tmp_path: Path) -> None:
    data = b"harbour" * 100
    one, other = sealed(tmp_path, data), sealed(tmp_path, data)
    assert one[9:] != other[9:] and b"harbour" not in one


def test_another_passphrase_is_said_to_be_another(tmp_path: Path) -> None:
    with pytest.raises(WrongPassphrase, match="lost for good"):
        opened(sealed(tmp_path, b"harbour"), "wrong horse")


def test_what_was_changed_cut_or_moved_does_not_open(tmp_path: Path) -> None:
    data = sealed(tmp_path, os.urandom(2 * MIB + 5))
    other = sealed(tmp_path, os.urandom(2 * MIB + 5))
    first, second, last = data[START : START + CHUNK], data[START + CHUNK : START + 2 * CHUNK], data[-21:]
    head = data[:START]
    flipped = bytearray(data)
    flipped[START + CHUNK + 7] ^= 1
    for name, bad in {
        "flipped": bytes(flipped),
        "cut within a chunk": data[:-1],
        "without its last chunk": data[:-21],
        "without a chunk in the middle": head + first + last,
        "chunks swapped": head + second + first + last,
        "a chunk twice": head + first + first + second + last,
        "more after the end": data + last,
        "a chunk of another file": head + other[START : START + CHUNK] + second + last,
        "no chunk": head,
        "none of ours": b"x" * 100,
        "empty": b"",
    }.items():
        with pytest.raises((DamagedFile, WrongPassphrase)):
            opened(bad)
            pytest.fail(name)


def test_a_header_cannot_ask_for_much_memory(tmp_path: Path) -> None:
    data = bytearray(sealed(tmp_path, b"harbour"))
    data[8] = 31
    with pytest.raises(DamagedFile):
        opened(bytes(data))
