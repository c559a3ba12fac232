"""ZIP archives with XML in them, which many documents are, read within bounds."""

from __future__ import annotations

import io
import posixpath
import zipfile
import zlib
from typing import Final
from xml.etree import ElementTree

from adiuva.documents.errors import Unreadable

MAX_MEMBERS: Final = 20_000
# Bounds on the bytes that are read of all members, and of one. A document that somebody wrote has no more.
MAX_TOTAL_BYTES: Final = 200 * 1024 * 1024
MAX_MEMBER_BYTES: Final = 64 * 1024 * 1024
MAX_DEPTH: Final = 250

ZIP_ERRORS: Final = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)


class Archive:
    """Archive within bounds. Raises Unreadable if it is damaged, encrypted, or expands beyond bounds."""

    def __init__(self, raw: bytes) -> None:
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(raw))
        except ZIP_ERRORS as error:
            encrypted = raw.startswith(b"\xd0\xcf\x11\xe0")
            raise Unreadable(
                "it is protected by a password, or of an older kind" if encrypted else "it is damaged"
            ) from error
        infos = self._zip.infolist()
        if len(infos) > MAX_MEMBERS or sum(info.file_size for info in infos) > 4 * MAX_TOTAL_BYTES:
            raise Unreadable("it unpacks to too much")
        self._read = 0
        self.names = {info.filename for info in infos}

    def bytes(self, name: str) -> bytes:
        """Return a member's content. Raises KeyError if there is no member of this name."""
        try:
            with self._zip.open(name) as file:
                content = file.read(MAX_MEMBER_BYTES + 1)
        except KeyError:
            raise
        except ZIP_ERRORS as error:
            reason = "it is protected by a password" if "encrypt" in str(error) else "it is damaged"
            raise Unreadable(reason) from error
        self._read += len(content)
        if len(content) > MAX_MEMBER_BYTES or self._read > MAX_TOTAL_BYTES:
            raise Unreadable("it unpacks to too much")
        return content

    def xml(self, name: str) -> ElementTree.Element:
        """Return a member's root. Raises KeyError, or Unreadable if it is damaged or declares entities."""
        return parse_xml(self.bytes(name))

    def related(self, name: str) -> dict[str, str]:
        """Return the members that an Office member refers to: id → name."""
        folder, base = posixpath.split(name)
        try:
            root = self.xml(f"{folder}/_rels/{base}.rels".lstrip("/"))
        except KeyError:
            return {}
        return {
            each.get("Id", ""): posixpath.normpath(posixpath.join(folder, each.get("Target", ""))).lstrip("/")
            for each in root
            if each.get("TargetMode") != "External"
        }


def parse_xml(raw: bytes) -> ElementTree.Element:
    """Parse XML. Raises Unreadable if it is damaged, too deep, or declares entities, which a document never needs."""
    if any("<!ENTITY".encode(charset) in raw for charset in ("ascii", "utf-16-le", "utf-16-be")):
        raise Unreadable("it declares XML entities")
    parser = ElementTree.XMLParser(target=_BoundedBuilder())  # noqa: S314  # without entities, and bounded
    try:
        parser.feed(raw)
        root = parser.close()
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise Unreadable("it is damaged") from error
    assert isinstance(root, ElementTree.Element)
    return root


class _BoundedBuilder(ElementTree.TreeBuilder):
    """Tree builder that raises Unreadable below MAX_DEPTH, so that recursion can walk the tree."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0

    def start(self, tag: str, attrs: dict[str, str], /) -> ElementTree.Element:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise Unreadable("it is nested too deeply")
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> ElementTree.Element:
        self._depth -= 1
        return super().end(tag)


def local_name(element: ElementTree.Element) -> str:
    """Return the name without its namespace."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def attribute(element: ElementTree.Element, name: str) -> str:
    """Return an attribute by its name without namespace; empty if there is none."""
    return next((value for key, value in element.attrib.items() if key.rpartition("}")[2] == name), "")
