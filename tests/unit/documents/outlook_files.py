"""Makes Outlook's MSG files: properties in streams of a compound file ([MS-CFB], [MS-OXMSG])."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

_SECTOR: Final = 512
_SMALL: Final = 64
_END, _FREE, _FAT, _NONE = 0xFFFFFFFE, 0xFFFFFFFF, 0xFFFFFFFD, 0xFFFFFFFF
_STRING, _BINARY = 0x001F, 0x0102
# A property's number, and its text or bytes.
Properties = Mapping[int, str | bytes]
_Node = tuple[str, bytes | list["_Node"]]


def msg(properties: Properties, attachments: list[Properties] = []) -> bytes:  # noqa: B006  # is not changed
    """A message; an attachment's name, type and bytes are properties 0x3707, 0x370E and 0x3701."""
    head = struct.pack("<8x4I8x", 0, len(attachments), 0, len(attachments))
    nodes = _streams(head, properties)
    for number, each in enumerate(attachments):
        nodes.append((f"__attach_version1.0_#{number:08X}", _streams(bytes(8), each)))
    return _compound_file(nodes)


def _streams(head: bytes, properties: Properties) -> list[_Node]:
    nodes: list[_Node] = []
    table = head
    for number, value in properties.items():
        kind = _STRING if isinstance(value, str) else _BINARY
        raw = value.encode("utf-16-le") if isinstance(value, str) else value
        table += struct.pack("<HHIII", kind, number, 6, len(raw) + (2 if kind == _STRING else 0), 0)
        nodes.append((f"__substg1.0_{number:04X}{kind:04X}", raw))
    return [*nodes, ("__properties_version1.0", table)]


@dataclass
class _Entry:
    name: str
    kind: int
    right: int = _NONE
    child: int = _NONE
    start: int = _END
    size: int = 0

    def packed(self) -> bytes:
        name = self.name.encode("utf-16-le") + b"\0\0"
        return (
            name.ljust(64, b"\0")
            + struct.pack("<HBB3I", len(name), self.kind, 1, _NONE, self.right, self.child)
            + bytes(36)
            + struct.pack("<IQ", self.start, self.size)
        )


def _compound_file(nodes: list[_Node]) -> bytes:
    """All streams lie in the one for small streams, so each is shorter than 4,096 bytes."""
    entries = [_Entry("Root Entry", 5)]
    small, chains = b"", []

    def add(nodes: list[_Node]) -> int:
        nonlocal small
        places = []
        for name, content in nodes:
            places.append(len(entries))
            entry = _Entry(name, 2 if isinstance(content, bytes) else 1)
            entries.append(entry)
            if isinstance(content, list):
                entry.child = add(content)
            elif content:
                assert len(content) < 4096
                entry.start, entry.size = len(small) // _SMALL, len(content)
                count = -(-len(content) // _SMALL)
                chains.extend([*range(entry.start + 1, entry.start + count), _END])
                small += content.ljust(count * _SMALL, b"\0")
        for place, following in pairwise(places):
            entries[place].right = following
        return places[0] if places else _NONE

    entries[0].child = add(nodes)
    entries[0].size = len(small)
    parts = [small, struct.pack(f"<{len(chains)}I", *chains), b""]
    entries[0].start = 1
    parts[2] = b"".join(entry.packed() for entry in entries)
    counts = [-(-len(part) // _SECTOR) for part in parts]
    starts = [1, 1 + counts[0], 1 + counts[0] + counts[1]]
    fat = [_FAT]
    for start, count in zip(starts, counts, strict=True):
        fat += [*range(start + 1, start + count), _END] if count else []
    assert len(fat) <= _SECTOR // 4
    fat += [_FREE] * (_SECTOR // 4 - len(fat))
    header = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(16)
    header += struct.pack("<5H6x", 0x3E, 3, 0xFFFE, 9, 6)
    header += struct.pack("<9I", 0, 1, starts[2], 0, 4096, starts[1], counts[1], _END, 0)
    header += struct.pack("<109I", 0, *[_FREE] * 108)
    filled = [part.ljust(count * _SECTOR, b"\0") for part, count in zip(parts, counts, strict=True)]
    return header + struct.pack(f"<{len(fat)}I", *fat) + b"".join(filled)
