"""Access to files on a device: only below a folder that its owner granted and below a path that the agent names.

Links are resolved before paths are compared, and never followed while walking: a link's target is found at its own
place, or lies outside. Because a folder can change between walking and reading, an opened file is checked again: it
must be the file that its resolved path names at that moment.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

from adiuva.documents import Unreadable
from adiuva.documents.kinds import MAILBOXES
from adiuva.documents.mbox import mail_bytes, mails_of_mbox

MAX_FILE_BYTES: Final = 20 * 1024 * 1024
MAX_MAILBOX_BYTES: Final = 1024 * 1024 * 1024
# A mailbox file with more mails is read from its end, where the newest mails are.
MAX_MAILS: Final = 10_000
_PIECE_BYTES: Final = 256 * 1024
_MAX_PATH_CHARS: Final = 4096  # limit of the protocol
_MAX_NAME_CHARS: Final = 1024
_MAX_SUFFIX_CHARS: Final = 20
# Folders that tools fill, with nothing that the user wrote. They are skipped, like hidden folders.
_TOOL_FOLDERS: Final = frozenset({"CVS", "_darcs", "node_modules", "__pycache__"})
# NOFOLLOW refuses a link as the last component; NONBLOCK keeps a pipe from blocking the reader.
_OPEN_FLAGS: Final = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_OUTSIDE: Final = "it is not in a folder that was granted on this device"
_NO_PERMISSION: Final = "there is no permission to read it"
_NOT_THERE: Final = "it is not there"
_REASONS: Final = {
    errno.EACCES: _NO_PERMISSION,
    errno.EPERM: _NO_PERMISSION,
    errno.ENOENT: _NOT_THERE,
    errno.ENOTDIR: _NOT_THERE,
    errno.ELOOP: "it is a link",
}

Problem = dict[str, str]
T = TypeVar("T")


def unreadable_file(path: str, reason: str) -> Problem:
    """Return a run's report of a file that it could not read. Bytes of its name that are not UTF-8 are replaced."""
    shown = os.fsencode(path).decode("utf-8", "replace")
    return {"path": shown[:_MAX_PATH_CHARS], "reason": reason}


def resolve_grant(folder: Path | str) -> Path:
    """Return the folder that a path leads to now. A grant is for this folder, even if links change later."""
    return Path(os.path.realpath(folder))


@dataclass(frozen=True, slots=True)
class FoundFile:
    """File that may be read. `path` is as the agent's config names it.

    For a mail in a mailbox file, `container` is that file, `start` its place in it, and `sha256` its hash.
    """

    path: str
    size: int
    mtime_ns: int
    container: str = ""
    start: int = 0
    sha256: str = ""

    @property
    def name(self) -> str:
        return Path(self.container or self.path).name

    @property
    def mtime_ms(self) -> int:
        return self.mtime_ns // 1_000_000


@dataclass
class Listing:
    files: list[FoundFile] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    # Files that cannot be read and whose kind nobody asked for by name: suffix → how many.
    passed_over: Counter[str] = field(default_factory=Counter)


class ReadableArea:
    """Intersection of granted folders (see `granted`) and an agent's paths."""

    def __init__(self, grants: Sequence[Path], paths: Iterable[str]) -> None:
        self._grants = list(grants)
        self._paths = list(paths)
        self._named = [Path(os.path.realpath(path)) for path in self._paths if Path(path).is_absolute()]

    def list_files(self, extensions: Iterable[str], readable: frozenset[str]) -> Listing:
        """Find the files, each once and in a stable order, and report those that cannot be read.

        `extensions` may have a dot or not, in any case; without any, all `readable` kinds are meant.
        """
        wanted = {f".{extension.strip().lstrip('.').lower()}" for extension in extensions} - {"."}
        listing = Listing()
        seen: set[Path] = set()
        for path in self._paths:
            for named, real in self._walk(path, wanted or readable, listing, count_others=not wanted):
                if real not in seen:
                    seen.add(real)
                    self._list_file(named, real, readable, listing)
        return listing

    def read(self, found: FoundFile) -> bytes:
        """Return a file's bytes. Raises Unreadable, also if the file has moved outside since the walk."""
        with self._open(found.container or found.path) as file:
            if found.container:
                file.seek(found.start)
                return mail_bytes(file.read(found.size))
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise Unreadable(_too_large(len(content), MAX_FILE_BYTES))
        return content

    def sha256(self, found: FoundFile) -> str:
        """Return the hash of a file's bytes, read piece by piece. Raises Unreadable like `read`."""
        if found.sha256:
            return found.sha256
        with self._open(found.path) as file:
            digest = hashlib.sha256()
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
            return digest.hexdigest()

    def _allows(self, real: Path) -> bool:
        return _is_below(real, self._grants) and _is_below(real, self._named)

    @contextmanager
    def _open(self, path: str) -> Iterator[BinaryIO]:
        real = Path(os.path.realpath(path))
        if not self._allows(real):
            raise Unreadable(_OUTSIDE)
        with _or_unreadable(lambda: os.fdopen(os.open(real, _OPEN_FLAGS), "rb")) as file:
            status = os.fstat(file.fileno())
            # A folder on the way may have become a link after the check, so the open file must be the one that is
            # there.
            now = Path(os.path.realpath(real))
            if not self._allows(now) or not os.path.samestat(status, _or_unreadable(now.lstat)):
                raise Unreadable(_OUTSIDE)
            if not stat.S_ISREG(status.st_mode):
                raise Unreadable("it is not a regular file")
            try:
                yield file
            except OSError as error:
                raise Unreadable(_reason(error)) from error

    def _starts(self, path: str, listing: Listing) -> Iterator[tuple[str, Path]]:
        """Yield where to walk for one path of the agent: itself if it is granted, else the grants inside it."""
        if not Path(path).is_absolute():
            listing.problems.append(unreadable_file(path, "it is not an absolute path"))
            return
        real = Path(os.path.realpath(path))
        if _is_below(real, self._grants):
            yield path.rstrip("/"), real
            return
        inside = sorted(grant for grant in self._grants if grant.is_relative_to(real))
        if not inside:
            listing.problems.append(unreadable_file(path, _OUTSIDE))
        for grant in inside:
            yield f"{path.rstrip('/')}/{grant.relative_to(real)}", grant

    def _walk(
        self, path: str, wanted: Iterable[str], listing: Listing, *, count_others: bool
    ) -> Iterator[tuple[str, Path]]:
        """Yield pairs of the name a file is sent under and its resolved path, depth first, by name."""
        waiting = list(self._starts(path, listing))[::-1]
        while waiting:
            named, real = waiting.pop()
            if real.is_file():
                if real.suffix.lower() in wanted:
                    yield named, real
                elif count_others:
                    listing.passed_over[real.suffix.lower()[:_MAX_SUFFIX_CHARS]] += 1
                continue
            try:
                with os.scandir(real) as scan:
                    entries = sorted(scan, key=lambda entry: entry.name)
            except OSError as error:
                listing.problems.append(unreadable_file(named, _reason(error)))
                continue
            folders = []
            for entry in entries:
                inner, inner_real = f"{named}/{entry.name}", real / entry.name
                is_wanted = inner_real.suffix.lower() in wanted
                if entry.name.startswith(".") or entry.name in _TOOL_FOLDERS:
                    continue
                if entry.is_symlink():
                    self._report_bad_link(inner, inner_real, is_wanted, listing)
                elif entry.is_dir(follow_symlinks=False):
                    folders.append((inner, inner_real))
                elif is_wanted:
                    yield inner, inner_real
                elif count_others:
                    listing.passed_over[inner_real.suffix.lower()[:_MAX_SUFFIX_CHARS]] += 1
            waiting += reversed(folders)

    def _report_bad_link(self, named: str, link: Path, is_wanted: bool, listing: Listing) -> None:
        target = Path(os.path.realpath(link))
        if not self._allows(target):
            if is_wanted or target.is_dir():
                listing.problems.append(
                    unreadable_file(named, "it is a link that leads out of the folders this agent may read")
                )
        elif is_wanted and not target.exists():
            listing.problems.append(unreadable_file(named, "it is a link that leads nowhere"))

    def _list_file(self, named: str, real: Path, readable: frozenset[str], listing: Listing) -> None:
        try:
            status = _or_unreadable(real.lstat)
            if not stat.S_ISREG(status.st_mode):
                raise Unreadable("it is not a regular file")
            if real.suffix.lower() not in readable:
                raise Unreadable("this kind of file cannot be read yet")
            is_mailbox = real.suffix.lower() in MAILBOXES
            most = MAX_MAILBOX_BYTES if is_mailbox else MAX_FILE_BYTES
            if status.st_size > most:
                raise Unreadable(_too_large(status.st_size, most))
            if len(named) > _MAX_PATH_CHARS or len(real.name) > _MAX_NAME_CHARS:
                raise Unreadable("its path is too long")
            if any("\ud800" <= character <= "\udfff" for character in named):
                raise Unreadable("its name is not valid Unicode")
            if is_mailbox:
                self._list_mails(named, status.st_mtime_ns, listing)
                return
        except Unreadable as refused:
            listing.problems.append(unreadable_file(named, refused.message))
        else:
            listing.files.append(FoundFile(named, status.st_size, status.st_mtime_ns))

    def _list_mails(self, named: str, mtime_ns: int, listing: Listing) -> None:
        """List the mails of a mailbox file. Raises Unreadable."""
        with self._open(named) as file:
            mails, left_out = mails_of_mbox(file, MAX_MAILS)
        if not mails:
            raise Unreadable("there is no mail in it")
        if left_out:
            reason = f"its first {left_out} mails were left out: of a mailbox, the last {MAX_MAILS} are read"
            listing.problems.append(unreadable_file(named, reason))
        for mail in mails:
            path = f"{named}/{mail.name}"
            if mail.size > MAX_FILE_BYTES:
                listing.problems.append(unreadable_file(path, _too_large(mail.size, MAX_FILE_BYTES)))
            else:
                listing.files.append(FoundFile(path, mail.size, mtime_ns, named, mail.start, mail.sha256))


def _is_below(path: Path, folders: Iterable[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _or_unreadable(action: Callable[[], T]) -> T:
    try:
        return action()
    except OSError as error:
        raise Unreadable(_reason(error)) from error


def _reason(error: OSError) -> str:
    known = _REASONS.get(error.errno or 0)
    return known or f"it cannot be read ({errno.errorcode.get(error.errno or 0, 'unknown error')})"


def _too_large(size: int, most: int) -> str:
    return f"it is larger than {most // 1024**2} MiB ({size / 1024**2:.1f} MiB)"
