"""File sealed with a passphrase: nobody without it can read the file, or change, cut or reorder it unnoticed.

The key comes from the passphrase by scrypt, with a new salt for each file. After a header come chunks of 1 MiB, each
sealed by AES-256-GCM. The nonce is the chunk's number and whether it is the last; the header is authenticated with it.
So the file does not open if a chunk was moved, comes from another file, or is missing at the end.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from adiuva.devices.client.errors import DeviceError

FORMAT: Final = 1
_MAGIC: Final = b"ADIUVAB1"
_HEADER: Final = struct.Struct(">8sB16s")  # magic, logarithm of scrypt's n, salt
_CHUNK: Final = 1024 * 1024
_TAG: Final = 16
_LOG_N: Final = 17  # 128 MiB and about half a second
_ALLOWED_LOG_N: Final = range(14, 21)
BEGINNING: Final = _HEADER.size + _TAG  # these bytes show whether a passphrase is right
# The nonce of the text that shows whether the passphrase is right; no chunk has it.
_CHECK: Final = b"\xff" * 12


class WrongPassphrase(DeviceError):
    code, status = "wrong_passphrase", 403

    def __init__(self) -> None:
        super().__init__(
            "This passphrase does not open the backup. Only the one it was made with does: the server has no key, and "
            "a lost passphrase is lost for good."
        )


class DamagedFile(DeviceError):
    code = "damaged_backup"

    def __init__(self) -> None:
        super().__init__("The backup is damaged, or it is none of this program: it was not restored.")


def seal(source: Path, target: BinaryIO, passphrase: str, *, log_n: int = _LOG_N) -> int:
    """Write a file, sealed, to `target`. Returns the number of chunks."""
    header = _HEADER.pack(_MAGIC, log_n, os.urandom(16))
    cipher = _cipher(passphrase, header)
    target.write(header)
    target.write(cipher.encrypt(_CHECK, b"", header))
    number = 0
    with source.open("rb") as plain:
        chunk = plain.read(_CHUNK)
        while True:
            following = plain.read(_CHUNK)
            target.write(cipher.encrypt(_nonce(number, is_last=not following), chunk, header))
            number += 1
            if not following:
                return number
            chunk = following


def opens(beginning: bytes, passphrase: str) -> bool:
    """Return whether a sealed file with this beginning opens with this passphrase. Raises DamagedFile if it is none."""
    header = beginning[: _HEADER.size]
    try:
        _cipher(passphrase, header).decrypt(_CHECK, beginning[_HEADER.size : BEGINNING], header)
    except InvalidTag:
        return False
    return True


def open_sealed(source: BinaryIO, target: BinaryIO, passphrase: str) -> None:
    """Write the content of a sealed file to `target`; after an error, what was written is worthless.

    Raises WrongPassphrase or DamagedFile.
    """
    header = source.read(_HEADER.size)
    cipher = _cipher(passphrase, header)
    try:
        cipher.decrypt(_CHECK, source.read(_TAG), header)
    except InvalidTag:
        raise WrongPassphrase from None
    number, chunk = 0, source.read(_CHUNK + _TAG)
    while True:
        following = source.read(_CHUNK + _TAG)
        try:
            target.write(cipher.decrypt(_nonce(number, is_last=not following), chunk, header))
        except (InvalidTag, ValueError):
            raise DamagedFile from None
        if not following:
            return
        number, chunk = number + 1, following


def _nonce(number: int, *, is_last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([is_last])


def _cipher(passphrase: str, header: bytes) -> AESGCM:
    """Return the cipher for a header. Raises DamagedFile if `seal` does not write such a header."""
    if len(header) != _HEADER.size:
        raise DamagedFile
    magic, log_n, salt = _HEADER.unpack(header)
    if magic != _MAGIC or log_n not in _ALLOWED_LOG_N:
        raise DamagedFile
    return AESGCM(Scrypt(salt=salt, length=32, n=2**log_n, r=8, p=1).derive(passphrase.encode()))
