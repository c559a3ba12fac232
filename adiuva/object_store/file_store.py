"""Objects as files in a folder of this machine, or one that all of its processes mount.

Bytes go to `<name>.part` beside the object's final place, because renaming needs one file system; no byte lies anywhere
else. The object appears under its name once the object and its folder's entry are on the disk.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from adiuva.object_store.store import PIECE_BYTES, Listed, ObjectMissing, Progress, StorageAway, StorageFull

_PART: Final = ".part"
_ASK_BYTES: Final = 16 << 20
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turn errors of the system into errors of a store."""
    try:
        yield
    except FileNotFoundError:
        raise ObjectMissing from None
    except OSError as error:
        raise (StorageFull if error.errno in _NO_ROOM else StorageAway)() from error


class FileStore:
    """Store in files. `least_free`: bytes of the disk that it leaves to others."""

    def __init__(self, root: str, *, least_free: int = 0) -> None:
        self._root, self._least_free = Path(root), least_free

    def sink(self, name: str, progress: Progress | None = None) -> FileSink:
        with _told():
            return FileSink(self._root / name, progress or Progress(), self._least_free)

    def room(self) -> int:
        folder = next(each for each in (self._root, *self._root.parents) if each.exists())
        with _told():
            return _free(os.statvfs(folder)) - self._least_free

    def read(self, name: str, start: int, end: int) -> Iterator[bytes]:
        with _told(), (self._root / name).open("rb", buffering=0) as file:
            file.seek(start)
            left = end - start
            while left > 0:
                piece = file.read(min(PIECE_BYTES, left))
                if not piece:
                    raise ObjectMissing
                left -= len(piece)
                yield piece

    def delete(self, name: str) -> None:
        place = self._root / name
        with _told():
            for file in (place, place.with_name(place.name + _PART)):
                file.unlink(missing_ok=True)

    def list(self, shard: str) -> Iterator[Listed]:
        with contextlib.suppress(FileNotFoundError), os.scandir(self._root / shard) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    modified = dt.datetime.fromtimestamp(entry.stat().st_mtime, dt.UTC)
                    yield Listed(f"{shard}/{entry.name.removesuffix(_PART)}", modified)


class FileSink:
    def __init__(self, place: Path, progress: Progress, least_free: int) -> None:
        self._place, self._part = place, place.with_name(place.name + _PART)
        self._offset, self._least_free = progress.offset, least_free
        self._unasked = _ASK_BYTES  # bytes written since the disk was asked for its room
        self._file: int | None = None
        if place.exists():
            # The object was finished already. Either the answer was lost, or the database is older than the store. It
            # is written only once.
            if place.stat().st_size != progress.offset:
                raise FileNotFoundError(self._part)
        elif progress.offset == 0:
            _make_folder(place.parent)
            self._file = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        else:
            self._file = os.open(self._part, os.O_WRONLY | os.O_CLOEXEC)
        if self._file is not None:
            if os.fstat(self._file).st_size < progress.offset:
                self.close()
                raise FileNotFoundError(self._part)
            os.ftruncate(self._file, progress.offset)
            os.lseek(self._file, progress.offset, os.SEEK_SET)

    def write(self, data: bytes) -> None:
        assert self._file is not None
        left = memoryview(data)
        with _told():
            self._leave_room(len(left))
            while left:
                written = os.write(self._file, left)
                self._offset += written
                left = left[written:]

    def _leave_room(self, size: int) -> None:
        self._unasked += size
        if self._unasked >= _ASK_BYTES and self._file is not None:
            self._unasked = 0
            if _free(os.fstatvfs(self._file)) < self._least_free + size:
                raise StorageFull

    def checkpoint(self) -> Progress:
        return self.save()

    def save(self) -> Progress:
        if self._file is not None:
            with _told():
                os.fsync(self._file)
        return Progress(self._offset)

    def finish(self) -> None:
        if self._file is None:
            return
        self.save()
        with _told():
            os.rename(self._part, self._place)  # noqa: PTH104  # nothing is there: the name is random
            _sync_folder(self._place.parent)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _free(disk: os.statvfs_result) -> int:
    return disk.f_bavail * disk.f_frsize


def _make_folder(folder: Path) -> None:
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Make the entries of a folder survive a loss of power."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
