"""Store of large objects: in files or in S3, as ADIUVA_STORE says.

An object is written once, under a random name that says nothing, and never changed: another object replaces it. Another
process can resume a writer (`Sink`): `save` returns how far it is.

    name = new_name()
    with store().sink(name) as sink:
        sink.write(data)
        progress = sink.save()                     # kept in a row: a later sink(name, progress) goes on there
        sink.finish()                              # from now on the object can be read
    for piece in store().read(name, 0, size): ...

All calls block, so asynchronous code makes them in a thread.
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
    """Error for an object that is not there, or smaller than was saved: the store lost it, or it was deleted."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Number of bytes of an object that are safe, and the facts its store needs to resume from there (JSON)."""

    offset: int = 0
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Listed:
    """Object as the store lists it; one that is not finished counts too."""

    name: str
    modified: dt.datetime


class Sink(Protocol):
    """Writer of one object from front to back, for one thread at a time."""

    def write(self, data: bytes) -> None:
        """Write bytes. Raises StorageFull or StorageAway."""

    def checkpoint(self) -> Progress:
        """Return how many bytes a crash would leave by now. Costs little."""

    def save(self) -> Progress:
        """Make all written bytes safe."""

    def finish(self) -> None:
        """Make the object readable, whole. It may be called again, also by another process, if the answer was lost."""

    def close(self) -> None:
        """Free the writer's resources. Bytes that are not saved are lost."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Store(Protocol):
    def sink(self, name: str, progress: Progress | None = None) -> Sink:
        """Begin an object, or go on from `progress`. Raises ObjectMissing if the saved bytes are no longer there."""

    def read(self, name: str, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes from `start` to before `end`, in pieces. ObjectMissing or StorageAway may come in between."""

    def delete(self, name: str) -> None:
        """Delete an object, finished or not, and all of its versions. A missing one counts as deleted."""

    def list(self, shard: str) -> Iterator[Listed]:
        """Yield all objects of one of SHARDS."""

    def room(self) -> int | None:
        """Return how many more bytes the store takes; None if nobody knows."""


def new_name() -> str:
    """Return a name for a new object: random, so that it does not say whose it is or what it holds."""
    key = uuid.uuid4().hex
    return f"{PREFIX}/{key[:2]}/{key}"


def store() -> Store:
    """Return the store that ADIUVA_STORE names."""
    return _store_at(settings.STORE["url"], settings.STORE["least_free_bytes"])


@lru_cache(maxsize=4)
def _store_at(url: str, least_free: int) -> Store:
    parts = urlsplit(url)
    if parts.scheme == "file":
        from adiuva.object_store.file_store import FileStore

        return FileStore(parts.path, least_free=least_free)
    from adiuva.object_store.s3_store import S3Store

    return S3Store(bucket=parts.netloc, prefix=parts.path.strip("/"))
