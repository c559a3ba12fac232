"""Converts a mail to text: the main headers, the best body, forwarded mails, and the names of attachments.

Mails come from strangers and from forty years of programs. Faults in a mail are noted as defects. Reading one raises
nothing but Unreadable, and takes time in proportion to its length.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import quopri
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from email.policy import Compat32, Policy
from typing import Any, Final

from adiuva.documents import Unreadable
from adiuva.documents.html import html_to_text

_SHOWN_HEADERS: Final = ("Date", "From", "To", "Cc", "Subject")
_MAX_HEADER_CHARS: Final = 10_000
# Levels of forwarded mails inside forwarded mails, and the characters of all of them together.
_MAX_NESTED: Final = 5
_MAX_NESTED_CHARS: Final = 100_000
_MAX_ATTACHMENTS: Final = 100
_MAX_DEFECTS: Final = 20
# Limits on the standard parser's time and memory: it keeps every line and part as an object, and checks every line
# once for each multipart that it is in.
_MAX_LINES: Final = 500_000
_MAX_PARTS: Final = 5_000
_MAX_LINE_CHECKS: Final = 50_000_000
# Errors that the standard parser raises for malformed parameters and encodings.
_PARSER_ERRORS: Final = (LookupError, ValueError, TypeError, AttributeError, AssertionError)
# Python codecs that are not charsets of mails; some are slow.
_NO_CHARSETS: Final = frozenset({"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined"})
_ENCODED_WORD: Final = re.compile(r"=\?([^?\s*]{1,60})(?:\*[^?\s]{0,40})?\?([bBqQ])\?([^?]*)\?=")
_BETWEEN_WORDS: Final = re.compile(r"(?<=\?=)\s+(?==\?)")
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

Metadata = dict[str, Any]


class _ShortHeaders(Compat32):
    """Truncates headers on reading: extracting a parameter takes time quadratic in the header's length."""

    def header_source_parse(self, sourcelines: list[str]) -> tuple[str, str]:
        name, value = super().header_source_parse(sourcelines)
        return name, value[:_MAX_HEADER_CHARS]


@dataclass(frozen=True, slots=True)
class Attachment:
    """An attachment, which is not read. `size`: approximate bytes; None if unknown."""

    name: str
    type: str
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Mail:
    """A parsed mail: the shown headers, always in the same order, and the text of its body."""

    headers: dict[str, str]
    body: str
    attachments: tuple[Attachment, ...] = ()
    defects: tuple[str, ...] = ()

    def text(self) -> str:
        """The whole mail as one text."""
        parts = [_compose(self.headers, self.body), attachments_to_text(self.attachments)]
        return "\n\n".join(filter(None, parts)) + "\n"


@dataclass
class _ReadState:
    """Results collected while the parts of one mail are read. `quotes`: mark quoted text of HTML parts."""

    quotes: bool
    defects: list[str] = field(default_factory=list)
    attachments: list[Attachment] = field(default_factory=list)
    nested_chars: int = 0

    def note(self, defect: str) -> None:
        if defect not in self.defects and len(self.defects) < _MAX_DEFECTS:
            self.defects.append(defect)


def mail_to_text(raw: bytes) -> tuple[str, Metadata]:
    """A mail's text, and its defects and attachments. Raises Unreadable if there is nothing to read."""
    mail = read_mail(parse_message(raw))
    metadata: Metadata = {}
    if mail.defects:
        metadata["defects"] = list(mail.defects)
    if mail.attachments:
        metadata["attachments"] = [{"name": each.name, "type": each.type} for each in mail.attachments]
    return mail.text(), metadata


def parse_message(raw: bytes) -> Message:
    """Parse a mail into its parts. Raises Unreadable if that is impossible."""
    lines = raw.count(b"\n") + raw.count(b"\r")
    if lines > _MAX_LINES or lines * raw.lower().count(b"multipart/") > _MAX_LINE_CHECKS:
        raise Unreadable("it has too many lines or parts")
    try:
        return message_from_bytes(raw, _class=_PartFactory(), policy=_ShortHeaders())
    except RecursionError:
        raise Unreadable("it has too many nested parts") from None
    except _PARSER_ERRORS as error:
        raise Unreadable("it is too damaged to be parsed") from error


def read_mail(message: Message, *, quotes: bool = False) -> Mail:
    """Read a parsed mail. Raises Unreadable if it is empty. `quotes`: mark quoted text of HTML parts with '>'."""
    state = _ReadState(quotes)
    try:
        headers, body = _headers(message), _body(message, state, depth=0)
    except RecursionError:
        raise Unreadable("it has too many nested parts") from None
    except _PARSER_ERRORS as error:
        raise Unreadable("it is too damaged to be parsed") from error
    subject = headers.get("Subject", "")
    if not body.strip() and not subject:
        raise Unreadable("there is no text in this mail")
    return Mail(headers, body.strip("\n"), tuple(state.attachments), tuple(state.defects))


def attachments_to_text(attachments: Iterable[Attachment]) -> str:
    """A list of the attachments; empty if there are none."""
    names = "\n".join(f"- {item.name} ({item.type})" for item in attachments)
    return names and f"Attachments:\n{names}"


class _PartFactory:
    """Creates the parts of one mail. Raises Unreadable for more than _MAX_PARTS."""

    def __init__(self) -> None:
        self._made = 0

    def __call__(self, policy: Policy = _ShortHeaders()) -> Message:  # noqa: B008  # policies do not change
        self._made += 1
        if self._made > _MAX_PARTS:
            raise Unreadable("it has too many parts")
        return Message(policy)


def _compose(headers: dict[str, str], body: str) -> str:
    lines = [f"{name}: {value}" for name, value in headers.items()]
    return "\n".join([*lines, "", body.strip("\n")] if lines else [body.strip("\n")])


# ── Parts ───────────────────────────────────────────────────────────────────────────────────────────────


def _body(part: Message, state: _ReadState, depth: int) -> str:
    for defect in part.defects:
        state.note(type(defect).__name__)
    kind = part.get_content_type()
    payload = part.get_payload() if part.is_multipart() else None
    if kind == "message/rfc822" and isinstance(payload, list):
        return "\n\n".join(_forwarded(inner, state, depth) for inner in payload if isinstance(inner, Message))
    if isinstance(payload, list):
        children = [child for child in payload if isinstance(child, Message)]
        if kind == "multipart/alternative":
            return _best(children, state, depth)
        if kind.startswith("multipart/"):
            texts = [_body(child, state, depth).strip("\n") for child in children]
            return "\n\n".join(filter(str.strip, texts))
    # A multipart without parts is read as text.
    if not kind.startswith(("text/", "multipart/")) or kind == "text/calendar" or _is_attached(part):
        _list_attachment(part, kind, state)
        return ""
    text = _text(part, state)
    return html_to_text(text, quotes=state.quotes) if kind == "text/html" else text


def _best(children: list[Message], state: _ReadState, depth: int) -> str:
    """Of the alternatives of a text: the plain one, or else the last that is not empty (RFC 2046, 5.1.4)."""
    texts = [(child.get_content_type(), _body(child, state, depth)) for child in children]
    said = [(kind, text) for kind, text in texts if text.strip()]
    plain = [text for kind, text in said if kind == "text/plain"]
    return plain[0] if plain else said[-1][1] if said else ""


def _forwarded(message: Message, state: _ReadState, depth: int) -> str:
    if depth >= _MAX_NESTED:
        state.note("a mail forwarded too many times over was left out")
        return ""
    room = _MAX_NESTED_CHARS - state.nested_chars
    text = _compose(_headers(message), _body(message, state, depth + 1))
    if len(text) > room:
        state.note("a long forwarded mail was cut")
        text = text[: max(0, room)].rstrip() + "\n[The rest of the forwarded mail is left out.]"
    if depth == 0:
        state.nested_chars += len(text)
    return f"Forwarded mail:\n{text}"


def _is_attached(part: Message) -> bool:
    disposition = str(part.get("Content-Disposition", "")).strip().lower()
    return disposition.startswith("attachment")


def _list_attachment(part: Message, kind: str, state: _ReadState) -> None:
    if len(state.attachments) >= _MAX_ATTACHMENTS:
        state.note("some attachments are not listed")
        return
    try:
        name = _one_line(part.get_filename() or "", state)
    except _PARSER_ERRORS:
        name = ""
    state.attachments.append(Attachment(name[:100] or "unnamed", _one_line(kind)[:100], _size(part)))


def _size(part: Message) -> int | None:
    """The approximate bytes of a part: of its content, or else of its `size` parameter (RFC 2183, 2.7)."""
    payload = part.get_payload()
    if isinstance(payload, str) and payload:
        is_base64 = str(part.get("Content-Transfer-Encoding", "")).strip().lower() == "base64"
        return len(payload) * 3 // 4 if is_base64 else len(payload)
    try:
        said = str(part.get_param("size", "", "Content-Disposition"))
    except _PARSER_ERRORS:
        return None
    return int(said) if said.isascii() and said.isdigit() and len(said) < 16 else None


def _text(part: Message, state: _ReadState) -> str:
    try:
        payload = part.get_payload(decode=True)
    except _PARSER_ERRORS:
        state.note("a part's transfer encoding is broken")
        payload = b""
    for defect in part.defects:  # decoding adds more defects
        state.note(type(defect).__name__)
    try:
        charset = part.get_content_charset()
    except _PARSER_ERRORS:
        charset = None
    text = _decoded(payload if isinstance(payload, bytes) else b"", charset, state)
    return _CONTROLS.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def _decoded(raw: bytes, charset: str | None, state: _ReadState | None) -> str:
    """Decode bytes by their declared charset; if it is unknown or wrong, as UTF-8, or else as Windows-1252."""
    for candidate in (charset or "utf-8", "utf-8"):
        try:
            if codecs.lookup(candidate).name in _NO_CHARSETS:
                raise LookupError(candidate)
            return raw.decode(candidate)
        except (LookupError, ValueError):
            if state is not None:
                state.note("a text's charset is unknown or wrong")
    return raw.decode("cp1252", "replace")


# ── Headers ─────────────────────────────────────────────────────────────────────────────────────────────


def _headers(message: Message) -> dict[str, str]:
    """The shown headers, decoded, each on one line; of repeated ones the first."""
    found: dict[str, str] = {}
    wanted = {name.lower(): name for name in _SHOWN_HEADERS}
    for name, value in message.raw_items():
        shown = wanted.get(name.lower())
        if shown and shown not in found and (line := _one_line(str(value))):
            found[shown] = line
    return {name: found[name] for name in _SHOWN_HEADERS if name in found}


def _one_line(value: str, state: _ReadState | None = None) -> str:
    """A header's value on one line, with encoded words (RFC 2047) and raw bytes decoded."""
    value = value[:_MAX_HEADER_CHARS]
    if not value.isascii():  # raw 8-bit bytes, which the parser keeps as surrogates
        value = _decoded(value.encode("utf-8", "surrogateescape"), None, state)
    if "=?" in value:
        value = _decode_words(_BETWEEN_WORDS.sub("", value))
    return " ".join(_CONTROLS.sub(" ", value).split())


def _decode_words(value: str) -> str:
    """Adjacent words of one charset are joined before decoding, since a character may be split between them."""
    pieces: list[str] = []
    held, held_charset, position = b"", "", 0
    for word in _ENCODED_WORD.finditer(value):
        between, charset = value[position : word.start()], word[1].lower()
        if between or charset != held_charset:
            pieces += [_decoded(held, held_charset or None, None), between]
            held, held_charset = b"", charset
        held += _word_bytes(word[2], word[3])
        position = word.end()
    return "".join([*pieces, _decoded(held, held_charset or None, None), value[position:]])


def _word_bytes(encoding: str, encoded: str) -> bytes:
    raw = encoded.encode()
    if encoding in "qQ":
        return quopri.decodestring(raw, header=True)
    try:
        return base64.b64decode(raw + b"=" * (-len(raw) % 4))
    except binascii.Error:
        return raw
