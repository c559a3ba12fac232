"""Converts a file's bytes to the text that is sent to the server."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from typing import Any, Final

from adiuva.documents import Unreadable
from adiuva.documents.html import html_to_text
from adiuva.documents.mail import mail_to_text

_TEXT_KINDS: Final = {
    ".md": "text/markdown",
    ".markdown": "text/markdown",
    ".txt": "text/plain",
    ".text": "text/plain",
    ".log": "text/plain",
    ".org": "text/org",
    ".rst": "text/x-rst",
    ".adoc": "text/asciidoc",
    ".csv": "text/csv",
    ".tsv": "text/tab-separated-values",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".toml": "application/toml",
    ".xml": "application/xml",
    ".ics": "text/calendar",
    ".vcf": "text/vcard",
    ".tex": "text/x-tex",
}
_HTML_KINDS: Final = {".html": "text/html", ".htm": "text/html", ".xhtml": "application/xhtml+xml"}
_MAIL_KINDS: Final = {".eml": "message/rfc822"}
READABLE: Final = frozenset(_TEXT_KINDS | _HTML_KINDS | _MAIL_KINDS)

_BOMS: Final = (  # longer ones first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CONTROL_BYTES: Final = bytes(set(range(32)) - set(b"\t\n\r\f\x1b")) + b"\x7f"
# A file with a larger share of control bytes is not text.
_MAX_CONTROL_SHARE: Final = 0.01
_META_CHARSET: Final = re.compile(
    rb"""<meta[^>]{0,200}charset\s*=\s*["']?([a-zA-Z0-9_-]{2,40})""", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class ExtractedText:
    content: str
    metadata: dict[str, Any]


def extract(suffix: str, raw: bytes) -> ExtractedText:
    """The text of a file of this kind (a suffix of READABLE). Raises Unreadable with the reason."""
    suffix = suffix.lower()
    if suffix in _MAIL_KINDS:
        content, metadata = mail_to_text(raw)
        return _document(content, {"type": _MAIL_KINDS[suffix], **metadata})
    if suffix in _HTML_KINDS:
        meta = _META_CHARSET.search(raw[:4096])
        text = html_to_text(_decode(raw, meta[1].decode() if meta else "utf-8"))
        if raw.strip() and not text.strip():
            raise Unreadable("there is no text in this page")
        return _document(text, {"type": _HTML_KINDS[suffix]})
    if suffix in _TEXT_KINDS:
        return _document(_decode(raw, "utf-8"), {"type": _TEXT_KINDS[suffix]})
    raise Unreadable("this kind of file cannot be read yet")


def _document(content: str, metadata: dict[str, Any]) -> ExtractedText:
    """Normalise line ends and replace what JSON cannot carry. Raises Unreadable if it is not text."""
    lines = content.replace("\r\n", "\n").replace("\r", "\n")
    sendable = lines.encode("utf-8", "replace").decode()
    raw = sendable.encode()
    controls = len(raw) - len(raw.translate(None, _CONTROL_BYTES))
    if controls > _MAX_CONTROL_SHARE * len(raw) or b"\0" in raw:
        raise Unreadable("it is not text")
    return ExtractedText(sendable, metadata)


def _decode(raw: bytes, charset: str) -> str:
    """Decode by byte order mark, else by the charset, else as Windows-1252, which accepts nearly any byte."""
    for mark, encoding in _BOMS:
        if raw.startswith(mark):
            return raw[len(mark) :].decode(encoding, "replace")
    for candidate in (charset, "utf-8"):
        try:
            return raw.decode(candidate)
        except (LookupError, ValueError):
            continue
    return raw.decode("cp1252", "replace")
