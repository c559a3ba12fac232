"""ZIP archive of an account, written piece by piece from the parts that apps register."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import orjson
from django.db.models import BinaryField, Model
from django.utils.module_loading import autodiscover_modules

from adiuva.core.crypto import SealBroken

ROWS_PER_BATCH: Final = 200  # read from the database, and kept in memory, at once
_PIECE_BYTES: Final = 64 * 1024
_JSON_LINES: Final = orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z


@dataclass(frozen=True)
class ArchivePart:
    """File of the archive, with one JSON object on each line.

    `about` is its line in README.txt; `rows` reads the objects of a user.
    """

    name: str
    about: str
    rows: Callable[[UUID], Iterator[Mapping[str, Any]]]


_parts: list[ArchivePart] = []


def register(*parts: ArchivePart) -> None:
    """Add these files to every account's archive. An app calls this in its `export` module."""
    _parts.extend(parts)


def registered_parts() -> Sequence[ArchivePart]:
    """Return the files of an archive, from the `export` module of each installed app."""
    autodiscover_modules("export")
    return tuple(_parts)


def exported_columns(model: type[Model], *, but: Collection[str] = ()) -> list[str]:
    """Return all columns of a model, also future ones, except binary ones (sealed or hashed) and those in `but`."""
    fields = (field for field in model._meta.concrete_fields if not isinstance(field, BinaryField))
    return [field.attname for field in fields if field.name not in but]


def readable(unseal: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return what `unseal` returns, or `{"unreadable": true}` for a broken seal: the owner still gets the rest."""
    try:
        return unseal()
    except SealBroken:
        return {"unreadable": True}


def zip_pieces(parts: Sequence[ArchivePart], user_id: UUID, *, readme: str) -> Iterator[bytes]:
    """Yield a ZIP archive in pieces of about 64 KiB. Some are empty, so that the caller can act between batches."""
    buffer = _Buffer()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, allowZip64=True) as archive:  # type: ignore[call-overload]
        archive.writestr("README.txt", readme)
        for part in parts:
            with archive.open(part.name, "w", force_zip64=True) as file:
                for number, row in enumerate(part.rows(user_id), 1):
                    file.write(orjson.dumps(row, default=str, option=_JSON_LINES))
                    if number % ROWS_PER_BATCH == 0 or len(buffer.pending) >= _PIECE_BYTES:
                        yield buffer.take()
            yield buffer.take()
    yield buffer.take()


class _Buffer:
    """File that zipfile cannot seek in. `take` returns what has been written since the last call."""

    def __init__(self) -> None:
        self.pending = bytearray()

    def write(self, data: bytes) -> int:
        self.pending += data
        return len(data)

    def flush(self) -> None:
        pass

    def take(self) -> bytes:
        taken = bytes(self.pending)
        self.pending.clear()
        return taken
