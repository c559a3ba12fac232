"""Differences between a file and its earlier backup: the blocks that changed, and how to rebuild the file from both.

SQLite writes pages in place, so a file that is copied page by page differs in few blocks. A difference is sealed like a
whole file (`sealed_file`), under the same passphrase. It names its base by the checksum of the sealed bytes, and holds
the checksum of the result, so a rebuilt file always is one that was backed up.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from adiuva.devices.client.sealed_file import DamagedFile

FORMAT: Final = 2  # the format of a difference; a whole backup has sealed_file's
BLOCK: Final = 64 * 1024
_MAGIC: Final = b"ADIUVAD1"
# Magic, size and SHA-256 of the result, time (ms) and SHA-256 of the base, how many blocks follow.
_HEADER: Final = struct.Struct(">8sQ32sQ32sI")
_INDEX: Final = struct.Struct(">I")
_DIGEST: Final = hashlib.sha256().digest_size


@dataclass(frozen=True, slots=True)
class Base:
    """Whole backup: when it was made, the SHA-256 of its sealed bytes, and the digests of its blocks."""

    timestamp_ms: int
    checksum: bytes
    blocks: bytes


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference to a base. `changed`: by a block's number, the position of its bytes in the file."""

    base_ms: int
    base_checksum: bytes
    size: int
    digest: bytes
    changed: dict[int, int]


def digests(file: Path) -> bytes:
    """Return the SHA-256 of each block, one after the other."""
    found = bytearray()
    with file.open("rb") as opened:
        while block := opened.read(BLOCK):
            found += hashlib.sha256(block).digest()
    return bytes(found)


def write(file: Path, digest: bytes, base: Base, target: BinaryIO) -> int:
    """Write the differences of a file, with this SHA-256, from its base. Returns how many blocks differ."""
    now = digests(file)
    places = range(0, len(now), _DIGEST)
    changed = [at // _DIGEST for at in places if now[at : at + _DIGEST] != base.blocks[at : at + _DIGEST]]
    size = file.stat().st_size
    target.write(_HEADER.pack(_MAGIC, size, digest, base.timestamp_ms, base.checksum, len(changed)))
    target.write(b"".join(map(_INDEX.pack, changed)))
    with file.open("rb") as opened:
        for index in changed:
            opened.seek(index * BLOCK)
            target.write(opened.read(BLOCK))
    return len(changed)


def read(file: BinaryIO) -> Difference:
    """Read a difference. Raises DamagedFile if it is none."""
    header = file.read(_HEADER.size)
    if len(header) != _HEADER.size:
        raise DamagedFile
    magic, size, digest, base_ms, base_checksum, count = _HEADER.unpack(header)
    indexes = file.read(count * _INDEX.size) if magic == _MAGIC else b""
    if magic != _MAGIC or len(indexes) != count * _INDEX.size:
        raise DamagedFile
    begin = file.tell()
    changed = {index: begin + number * BLOCK for number, (index,) in enumerate(_INDEX.iter_unpack(indexes))}
    return Difference(base_ms, base_checksum, size, digest, changed)


def put_together(difference: Difference, file: BinaryIO, base: BinaryIO, target: BinaryIO) -> None:
    """Write the file that a difference makes of its base. Raises DamagedFile if it is not the backed-up one."""
    found = hashlib.sha256()
    for at in range(0, difference.size, BLOCK):
        place = difference.changed.get(at // BLOCK)
        source = base if place is None else file
        source.seek(at if place is None else place)
        block = source.read(min(BLOCK, difference.size - at))
        found.update(block)
        target.write(block)
    if found.digest() != difference.digest:
        raise DamagedFile
