"""SHA-256 on the wire: 64 hexadecimal digits, as an ETag in quotes."""

from __future__ import annotations

import re
from typing import Final

from adiuva.vault.errors import InvalidChecksum

_HEX: Final = re.compile(r"[0-9a-fA-F]{64}")


def parse(text: str, name: str = "checksum") -> bytes:
    """Parse a checksum. Raises InvalidChecksum; `name` is the field or header that held it."""
    if not _HEX.fullmatch(text):
        raise InvalidChecksum(name)
    return bytes.fromhex(text)


def etag(checksum: bytes | memoryview) -> str:
    return f'"{bytes(checksum).hex()}"'
