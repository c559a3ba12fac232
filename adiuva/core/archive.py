"""What each room gives for an account's archive, and the archive made of it, piece by piece."""

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

ROWS_PER_BATCH: Final = 200  # rows that are in memory at once
_PIECE: Final = 64 * 1024
_LINES: Final = orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z


@dataclass(frozen=True)
class ArchivePart:
    """A file of the archive, one JSON object a line: its name, what README.txt says of it, and a user's rows."""

    name: str
    about: str
    rows: Callable[[UUID], Iterator[Mapping[str, Any]]]


_parts: list[ArchivePart] = []


def register(*parts: ArchivePart) -> None:
    """Put these files into every account's archive. An app calls this in its `export` module."""
    _parts.extend(parts)


def registered_parts() -> Sequence[ArchivePart]:
    """The files of an archive, from the `export` module of each installed app."""
    autodiscover_modules("export")
    return tuple(_parts)


def exported_columns(model: type[Model], *, but: Collection[str] = ()) -> list[str]:
    """The columns of a model, those included that it will have one day: save what is sealed or hashed, and `but`."""
    fields = (field for field in model._meta.concrete_fields if not isinstance(field, BinaryField))
    return [field.attname for field in fields if field.name not in but]


def readable(unseal: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    """What was sealed in a row. A broken one says so in its place, and does not keep the rest from its owner."""
    try:
        return unseal()
    except SealBroken:
        return {"unreadable": True}


def zip_pieces(parts: Sequence[ArchivePart], user_id: UUID, *, readme: str) -> Iterator[bytes]:
    """A ZIP archive in pieces of some 64 KiB. It also gives an empty piece now and then, while it goes on."""
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED, allowZip64=True) as archive:  # type: ignore[call-overload]
        archive.writestr("README.txt", readme)
        for part in parts:
            with archive.open(part.name, "w", force_zip64=True) as file:
                for number, row in enumerate(part.rows(user_id), 1):
                    file.write(orjson.dumps(row, default=str, option=_LINES))
                    if number % ROWS_PER_BATCH == 0 or len(sink.waiting) >= _PIECE:
                        yield sink.take()
            yield sink.take()
    yield sink.take()


class _Sink:
    """A file for zipfile that cannot seek: it keeps what was written until that is taken."""

    def __init__(self) -> None:
        self.waiting = bytearray()

    def write(self, data: bytes) -> int:
        self.waiting += data
        return len(data)

    def flush(self) -> None:
        pass

    def take(self) -> bytes:
        taken = bytes(self.waiting)
        self.waiting.clear()
        return taken
