"""Only kinds of files that a plugin needs, each with the content that its name promises."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Final

from adiuva.core.errors import Text
from billing.marketplace.checks.text_files import CODE, PLAIN_NAMES, TEXT, suffix_of
from billing.marketplace.findings import Finding
from billing.marketplace.manifest import WITHOUT_CODE, Manifest
from billing.marketplace.package import PackageFile

CHECK: Final = "kinds"
# Images and fonts, and the bytes with which each begins.
_BEGINNINGS: Final[dict[str, tuple[bytes, ...]]] = {
    ".png": (b"\x89PNG\r\n\x1a\n",),
    ".jpg": (b"\xff\xd8\xff",),
    ".jpeg": (b"\xff\xd8\xff",),
    ".gif": (b"GIF87a", b"GIF89a"),
    ".webp": (b"RIFF",),
    ".ico": (b"\x00\x00\x01\x00",),
    ".woff": (b"wOFF",),
    ".woff2": (b"wOF2",),
    ".ttf": (b"\x00\x01\x00\x00", b"true"),
    ".otf": (b"OTTO",),
}
# The beginnings of files that a system runs or unpacks, even under the name of a text.
_PROGRAMS: Final = (
    b"MZ", b"\x7fELF", b"\xca\xfe\xba\xbe", b"\xfe\xed\xfa", b"\xce\xfa\xed\xfe", b"\xcf\xfa\xed\xfe", b"\x00asm",
    b"#!", b"dex\n", b"\xd0\xcf\x11\xe0", b"!<arch>",
)  # fmt: skip
_ARCHIVES: Final = (
    b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf\x27\x1c", b"Rar!", b"\x28\xb5\x2f\xfd",
    b"MSCF", b"xar!",
)  # fmt: skip
_TAR_AT: Final = 257


def look(manifest: Manifest, file: PackageFile) -> Iterator[Finding]:
    suffix, name, content = suffix_of(file.path), PurePosixPath(file.path).name, file.content
    if any(part.startswith(".") for part in PurePosixPath(file.path).parts):
        yield Finding(CHECK, Text("hidden files and folders are not taken"), file.path)
    if content.startswith(_PROGRAMS):
        yield Finding(CHECK, Text("it is a program"), file.path)
    elif (
        content.startswith(_ARCHIVES)
        or content[_TAR_AT : _TAR_AT + 5] == b"ustar"
        or b"PK\x05\x06" in content
    ):
        yield Finding(
            CHECK, Text("it is an archive, or has one in it: put its files into the package"), file.path
        )
    elif suffix in _BEGINNINGS:
        if not content.startswith(_BEGINNINGS[suffix]):
            yield Finding(CHECK, Text("its content is not what its name says"), file.path)
    elif suffix not in TEXT or (not suffix and name not in PLAIN_NAMES):
        yield Finding(CHECK, Text("a plugin has no files of this kind"), file.path)
    elif b"\0" in content or not _is_utf8(content):
        yield Finding(CHECK, Text("it is not text in UTF-8"), file.path)
    if manifest.kind in WITHOUT_CODE and suffix in CODE | {".html"}:
        yield Finding(CHECK, Text("a plugin of this kind has no code"), file.path)


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
