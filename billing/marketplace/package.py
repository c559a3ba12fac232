"""A package: a ZIP file that is read within bounds, and refused if two readers could see different things in it."""

from __future__ import annotations

import hashlib
import itertools
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Final

from adiuva.core.errors import Text
from billing.marketplace.findings import Finding
from billing.marketplace.manifest import (
    MANIFEST_NAME,
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    BadManifest,
    Manifest,
    parse_manifest,
)

MAX_PACKAGE_BYTES: Final = 20 * 1024 * 1024
MAX_UNPACKED_BYTES: Final = 100 * 1024 * 1024
MAX_FILE_BYTES: Final = 16 * 1024 * 1024
# Packed data that grows by more is made to fill a disk; small files of one repeated sign are exempt.
MAX_RATIO: Final = 100
_RATIO_FROM_BYTES: Final = 256 * 1024
MAX_PATH: Final = 200

_LOCAL_HEADER_BYTES: Final = 30
# The most bytes that may follow a file's data: its checksum and sizes, with a signature.
_DESCRIPTOR_BYTES: Final = 24
_READ_BYTES: Final = 256 * 1024
_LOCAL_SIGNATURE: Final = b"PK\x03\x04"
# Times and owners take less. An extra field of this number holds another name, which some readers prefer.
_MOST_EXTRA_BYTES: Final = 64
_OTHER_NAME: Final = b"\x75\x70"
_ENCRYPTED: Final = 0x1 | 0x40 | 0x2000
_UTF8_NAME: Final = 0x800
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DEVICE_NAME: Final = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
# Signs that some system forbids in a name, or gives a meaning to.
_FORBIDDEN_SIGN: Final = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\]')

ZIP_ERRORS: Final = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    UnicodeDecodeError,
    ValueError,
)


class BadPackage(Exception):
    """The package cannot be opened. `findings` say why."""

    def __init__(self, *findings: Finding) -> None:
        super().__init__("; ".join(finding.problem for finding in findings))
        self.findings = findings


@dataclass(frozen=True)
class PackageFile:
    path: str
    content: bytes


class Package:
    """A package whose structure was checked, with its manifest. `files` reads one file after the other.

    Raises BadPackage. `size` is in bytes, `sha256` of the whole package.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.size, self.sha256 = _measure(file)
        try:
            self._zip = zipfile.ZipFile(file)
        except ZIP_ERRORS:
            raise _bad(Text("it is not a ZIP file, or it is damaged")) from None
        infos = self._zip.infolist()
        _check_layout(file, self._zip, infos)
        self._members = _checked_members(infos)
        if MANIFEST_NAME not in self._members:
            raise _bad(Text("there is no manifest.json at its root"))
        raw = self._read(self._members[MANIFEST_NAME], MAX_MANIFEST_BYTES)
        try:
            self.manifest: Manifest = parse_manifest(raw)
        except BadManifest as error:
            raise BadPackage(
                *(Finding("manifest", problem, MANIFEST_NAME) for problem in error.problems)
            ) from None
        self._check_listing()

    @property
    def paths(self) -> list[str]:
        return sorted(self._members)

    def files(self) -> Iterator[PackageFile]:
        """Yield all files except the manifest, each with its hash from the manifest. Raises BadPackage."""
        total = 0
        for path, member in sorted(self._members.items()):
            if path == MANIFEST_NAME:
                continue
            content = self._read(member, MAX_FILE_BYTES)
            total += len(content)
            if total > MAX_UNPACKED_BYTES:
                raise _too_much()
            if hashlib.sha256(content).hexdigest() != self.manifest.files[path]:
                raise _bad(Text("its content has another hash than the manifest says"), path)
            yield PackageFile(path, content)

    def _read(self, member: zipfile.ZipInfo, most: int) -> bytes:
        """Return a file's content, counted while it is unpacked: its header may lie about the size."""
        path = member.filename
        content = bytearray()
        try:
            with self._zip.open(member) as file:
                while piece := file.read(_READ_BYTES):
                    content += piece
                    if len(content) > most:
                        raise _bad(Text("it is larger than {most} MiB", most=max(1, most >> 20)), path)
                    if len(content) > _RATIO_FROM_BYTES and len(content) > MAX_RATIO * max(
                        1, member.compress_size
                    ):
                        raise _too_much(path)
        except ZIP_ERRORS:
            raise _bad(Text("it is damaged"), path) from None
        return bytes(content)

    def _check_listing(self) -> None:
        listed, found = set(self.manifest.files), set(self._members) - {MANIFEST_NAME}
        wrong = [
            *(_finding(Text("the manifest does not name it"), path) for path in sorted(found - listed)),
            *(
                _finding(Text("the manifest names it, and it is not there"), path)
                for path in sorted(listed - found)
            ),
        ]
        if wrong:
            raise BadPackage(*wrong[:MAX_FILES])


def _measure(file: IO[bytes]) -> tuple[int, str]:
    file.seek(0)
    size, digest = 0, hashlib.sha256()
    while piece := file.read(_READ_BYTES):
        size += len(piece)
        if size > MAX_PACKAGE_BYTES:
            raise _bad(Text("it is larger than {most} MiB", most=MAX_PACKAGE_BYTES >> 20))
        digest.update(piece)
    return size, digest.hexdigest()


def _check_layout(file: IO[bytes], archive: zipfile.ZipFile, infos: list[zipfile.ZipInfo]) -> None:
    """Refuse data outside of the files: before, between or behind them, and files that share data.

    Such places hide unchecked data, and readers of ZIP files differ in what they take for the truth.
    """
    if archive.comment or any(info.comment for info in infos):
        raise _bad(Text("it has a comment, in which data could be hidden"))
    if len(infos) > MAX_FILES + 1:
        raise _bad(Text("it has more than {most} files", most=MAX_FILES))
    expected = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        gap = info.header_offset - expected
        if gap < 0 or gap > (_DESCRIPTOR_BYTES if expected else 0):
            raise _bad(Text("it has data that belong to no file, or to several"), info.filename)
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER_BYTES)
        if len(header) < _LOCAL_HEADER_BYTES or header[:4] != _LOCAL_SIGNATURE:
            raise _bad(Text("it is damaged"), info.filename)
        flags, method = struct.unpack_from("<HH", header, 6)
        name_length, extra_length = struct.unpack_from("<HH", header, 26)
        extra = file.read(name_length + extra_length)[name_length:]
        if (flags, method) != (info.flag_bits, info.compress_type) or any(
            map(_is_strange, (extra, info.extra))
        ):
            raise _bad(Text("its two headers do not agree, or hold more than is needed"), info.filename)
        expected = info.header_offset + _LOCAL_HEADER_BYTES + name_length + extra_length + info.compress_size
    if not 0 <= archive.start_dir - expected <= _DESCRIPTOR_BYTES:
        raise _bad(Text("it has data that belong to no file, or to several"))


def _is_strange(extra: bytes) -> bool:
    """Return whether the extra fields of a file could hide something, or give it another name."""
    return len(extra) > _MOST_EXTRA_BYTES or _OTHER_NAME in extra


def _checked_members(infos: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """Return the archive's files by path. Folders are left out."""
    found: dict[str, zipfile.ZipInfo] = {}
    seen: dict[str, str] = {}
    for info in infos:
        if problem := _problem_of(info):
            raise _bad(problem, info.filename[:MAX_PATH])
        # Some systems take upper and lower case, or composed and decomposed letters, for the same.
        key = unicodedata.normalize("NFC", info.filename).casefold().rstrip("/")
        if key in seen:
            raise _bad(Text("it has the same name as {other}", other=seen[key]), info.filename)
        seen[key] = info.filename
        if not info.is_dir():
            found[info.filename] = info
    files = {key for key, path in seen.items() if path in found}
    for key, path in seen.items():
        for folder in itertools.accumulate(key.split("/")[:-1], "{}/{}".format):
            if folder in files:
                raise _bad(Text("{other} is a file and a folder", other=seen[folder]), path)
    if sum(info.file_size for info in infos) > MAX_UNPACKED_BYTES:
        raise _too_much()
    return found


def _problem_of(info: zipfile.ZipInfo) -> str | None:
    path, mode = info.orig_filename, info.external_attr >> 16
    if info.flag_bits & _ENCRYPTED:
        return Text("it is encrypted")
    if info.compress_type not in _METHODS:
        return Text("it is packed by a method other than deflate")
    if not path.isascii() and not info.flag_bits & _UTF8_NAME:
        return Text("its name is not UTF-8")
    if unicodedata.normalize("NFC", path) != path:
        return Text("its name is not in the usual form of Unicode (NFC)")
    if len(path.encode()) > MAX_PATH:
        return Text("its name is too long")
    if (
        path.startswith("/")
        or _FORBIDDEN_SIGN.search(path)
        or re.search(r"(^|/)(\.{1,2}|)(/|$)", path.rstrip("/"))
    ):
        return Text("its name leads elsewhere, or has signs that no file should have")
    if any(
        part != part.strip() or part.endswith(".") or _DEVICE_NAME.fullmatch(part)
        for part in path.split("/")
        if part
    ):
        return Text("its name cannot be kept on every system")
    if stat.S_IFMT(mode) not in (0, stat.S_IFDIR if info.is_dir() else stat.S_IFREG):
        return Text("it is a link or a device")
    if info.is_dir() and info.file_size:
        return Text("it is a folder with content")
    return None


def _finding(problem: str, path: str = "") -> Finding:
    return Finding("structure", problem, path)


def _bad(problem: str, path: str = "") -> BadPackage:
    return BadPackage(_finding(problem, path))


def _too_much(path: str = "") -> BadPackage:
    return _bad(Text("it unpacks to too much"), path)
