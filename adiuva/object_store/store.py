"""The store of large objects: in files or in S3, as ADIUVA_STORE says.

An object is written once, under a random name that says nothing, and never changed: what replaces it is another
object. A writer (`Sink`) can be left and taken up again in another process: `save` returns how far it is.

    name = new_name()
    with store().sink(name) as sink:
        sink.write(data)
        progress = sink.save()                     # kept in a row: a later sink(name, progress) goes on there
        sink.finish()                              # from now on the object can be read
    for piece in store().read(name, 0, size): ...

All of it blocks: asynchronous code calls it in a thread.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from types import TracebackType
from typing import Any, Final, Protocol, Self
from urllib.parse import urlsplit

from django.conf import settings

from adiuva.core.errors import AdiuvaError, Unavailable

PREFIX: Final = "v1"
PIECE_BYTES: Final = 1024 * 1024  # readers yield pieces of this size
SHARDS: Final = tuple(f"{PREFIX}/{number:02x}" for number in range(256))


class StorageFull(AdiuvaError):
    code, status = "storage_full", 507

    def __init__(self) -> None:
        super().__init__("the server has no room for this just now")


class StorageAway(Unavailable):
    code = "storage_away"

    def __init__(self) -> None:
        super().__init__("the server cannot reach its store just now: try again", retry_after_s=5)


class ObjectMissing(Exception):
    """No such object, or less of it than was saved: the store lost it, or it was deleted."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The number of bytes of an object that are safe, and what its store needs to resume from there (JSON)."""

    offset: int = 0
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Listed:
    """An object as the store lists it; one that is not finished counts too."""

    name: str
    modified: dt.datetime


class Sink(Protocol):
    """Writes one object from front to back, for one thread at a time."""

    def write(self, data: bytes) -> None:
        """Raises StorageFull or StorageAway."""

    def checkpoint(self) -> Progress:
        """Return how many bytes are safe by now: what a crash would leave. Costs little."""

    def save(self) -> Progress:
        """Make all that was written safe."""

    def finish(self) -> None:
        """Make the object readable, whole. It may be called again, by another process too, if the answer was lost."""

    def close(self) -> None:
        """Free what the writer holds. What is not saved is lost."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Store(Protocol):
    def sink(self, name: str, progress: Progress | None = None) -> Sink:
        """Begin an object, or go on from `progress`. Raises ObjectMissing if what was saved is not there any more."""

    def read(self, name: str, start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` to before `end`, in pieces. Raises ObjectMissing or StorageAway, also in between."""

    def delete(self, name: str) -> None:
        """Delete an object, finished or not, and all of its versions. One that is not there is deleted."""

    def list(self, shard: str) -> Iterator[Listed]:
        """All objects of one of SHARDS."""

    def room(self) -> int | None:
        """Return how many more bytes the store takes; None if nobody knows."""


def new_name() -> str:
    """A name for a new object: random, so that it says nothing of whose it is or what."""
    key = uuid.uuid4().hex
    return f"{PREFIX}/{key[:2]}/{key}"


def store() -> Store:
    """The store that ADIUVA_STORE names."""
    return _store_at(settings.STORE["url"], settings.STORE["least_free_bytes"])


@lru_cache(maxsize=4)
def _store_at(url: str, least_free: int) -> Store:
    parts = urlsplit(url)
    if parts.scheme == "file":
        from adiuva.object_store.file_store import FileStore

        return FileStore(parts.path, least_free=least_free)
    from adiuva.object_store.s3_store import S3Store

    return S3Store(bucket=parts.netloc, prefix=parts.path.strip("/"))
