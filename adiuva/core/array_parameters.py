"""Lists and vectors as parameters of prepared statements, in PostgreSQL's own form.

psycopg sends a list as text, with bytes as hexadecimal digits, and looks at each value several times. This module sends
lists of UUIDs and of bytes as they are, and vectors, whose numbers would have to be written and read as decimals; and
it quotes lists of texts without looking at each. None of them names its type, so that a statement stays the same, and
is planned once, whether a list is empty or not.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import psycopg
from pgvector import HalfVector
from psycopg.adapt import Dumper
from psycopg.postgres import types
from psycopg.pq import Format


class _Binary(bytes):
    """Value in the form that the receiving function of its type takes."""


class _TextArray(bytes):
    """List in the form that PostgreSQL's array_in takes."""


class _BinaryDumper(Dumper):
    format = Format.BINARY
    oid = 0

    def dump(self, obj: bytes) -> bytes:
        return obj


class _TextDumper(_BinaryDumper):
    format = Format.TEXT


psycopg.adapters.register_dumper(_Binary, _BinaryDumper)
psycopg.adapters.register_dumper(_TextArray, _TextDumper)

_UUID_OID: Final = types["uuid"].oid
_BYTES_OID: Final = types["bytea"].oid
# Dimensions, whether some are NULL, type of the values; then how many values, and the number of the first.
_head = struct.Struct("!iiIii").pack
_size = struct.Struct("!i").pack
_NULL: Final = _size(-1)
_UUID_SIZE: Final = _size(16)
_NONE: Final = type(None)


def half_vector(components: Sequence[float]) -> Any:
    """Return what to send for a vector in half precision. The statement must name the type."""
    return _Binary(HalfVector(list(components)).to_binary())


def array(values: list[Any]) -> Any:
    """Return what to send for a list; the list itself if psycopg handles its type. The statement must name the type."""
    kinds = set(map(type, values))
    has_null = _NONE in kinds
    kinds.discard(_NONE)
    if not kinds:
        return _TextArray(b"{%s}" % b",".join([b"NULL"] * len(values)))
    kind = kinds.pop()
    if kinds:
        return values
    if kind is str:
        text = ",".join([_quoted(value) for value in values])
        return values if "\0" in text else _TextArray(b"{%s}" % text.encode())
    if kind is UUID:
        oid, found = _UUID_OID, [_NULL if value is None else _UUID_SIZE + value.bytes for value in values]
    elif kind is bytes:
        oid, found = _BYTES_OID, [_NULL if value is None else _size(len(value)) + value for value in values]
    else:
        return values
    return _Binary(b"".join([_head(1, has_null, oid, len(values), 1), *found]))


def _quoted(value: str | None) -> str:
    if value is None:
        return "NULL"
    if "\\" in value or '"' in value:
        value = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{value}"'
