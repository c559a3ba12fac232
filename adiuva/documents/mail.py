"""Reader of mails: the main headers, what the author wrote, forwarded mails, attachments that are text, quotations.

Mails come from strangers and from forty years of programs. Faults in a mail are noted as problems. Reading one raises
nothing but Unreadable, and takes time in proportion to its length.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from email.policy import Compat32, Policy
from pathlib import PurePosixPath
from typing import Final

from adiuva.core.errors import Text
from adiuva.documents.charset import decode
from adiuva.documents.cleaning import clean
from adiuva.documents.content_lines import content_lines_to_text
from adiuva.documents.document import Attachment, Document, Head, iso_date, one_line
from adiuva.documents.errors import Unreadable
from adiuva.documents.html import html_to_text
from adiuva.documents.mail_content import PARSER_ERRORS, content_bytes, unflow, unwrap_signed, without_pgp
from adiuva.documents.mail_headers import MAX_HEADER_CHARS, header_line, message_id, shown_headers
from adiuva.documents.quotation import mark_quoted, split_quotation

KIND: Final = "message/rfc822"
# Bounds on levels of forwarded mails inside forwarded mails, and on the characters of all of them and of attached
# texts.
_MAX_NESTED: Final = 5
_MAX_NESTED_CHARS: Final = 100_000
_MAX_ATTACHMENTS: Final = 100
_MAX_PROBLEMS: Final = 20
# Limits on the standard parser's time and memory: it keeps every line and part as an object, and checks every line once
# for each multipart around it.
_MAX_LINES: Final = 500_000
_MAX_PARTS: Final = 5_000
_MAX_LINE_CHECKS: Final = 50_000_000

_CALENDARS: Final = frozenset(
    {"text/calendar", "application/ics", "text/vcard", "text/x-vcard", "text/directory"}
)
_TEXTS: Final = frozenset(
    {"text/plain", "text/markdown", "text/x-markdown", "text/csv", "text/tab-separated-values", "text/html"}
)
# By suffix, the kinds of attachments with a type that says nothing, or that a program chose without knowing better.
_BY_SUFFIX: Final = {
    ".ics": "text/calendar",
    ".vcf": "text/vcard",
    ".txt": "text/plain",
    ".md": "text/markdown",
    ".csv": "text/csv",
    ".tsv": "text/tab-separated-values",
    ".html": "text/html",
    ".htm": "text/html",
    ".eml": "message/rfc822",
}
_SAYS_NOTHING: Final = frozenset({"application/octet-stream", "application/x-unknown", "binary/octet-stream"})
_SIGNATURES: Final = frozenset(
    {
        "application/pgp-signature",
        "application/pkcs7-signature",
        "application/x-pkcs7-signature",
        "application/pgp-keys",
    }
)
_SIGNED: Final = frozenset({"application/pkcs7-mime", "application/x-pkcs7-mime"})
_TNEF: Final = frozenset({"application/ms-tnef", "application/vnd.ms-tnef"})
_ENCRYPTED: Final = Text("a part of it is encrypted and cannot be read")
_WORD: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+")
_ADDRESS: Final = re.compile(r"https?://\S+")
# A plain part that only says where the real text is.
_STUB: Final = re.compile(r"\b(?:html|browser|navigateur|navegador)\b", re.IGNORECASE)
_MAX_STUB_WORDS: Final = 60
# Two forms of a text say the same if this share of one form's words stands in the other.
_SAME_SHARE: Final = 0.6
_MARKED: Final = re.compile(r"~~\S|^\s*(?:[-*] )?\[x\]", re.MULTILINE)


class _ShortHeaders(Compat32):
    """Policy that truncates headers on reading: extracting a parameter takes time quadratic in the header's length."""

    def header_source_parse(self, sourcelines: list[str]) -> tuple[str, str]:
        name, value = super().header_source_parse(sourcelines)
        return name, value[:MAX_HEADER_CHARS]


@dataclass
class _Found:
    """Texts and attachments that are collected while the parts of one mail are read."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    attachments: list[Attachment] = field(default_factory=list)
    # Forwarded mails and attached texts, each with a line that says what it is.
    inside: list[str] = field(default_factory=list)
    inside_chars: int = 0

    def note(self, problem: str) -> None:
        _add(self.problems, problem)

    def add_inside(self, heading: str, text: str) -> None:
        room = max(0, _MAX_NESTED_CHARS - self.inside_chars)
        if len(text) > room:
            self.note(Text("a long forwarded or attached text was cut"))
            text = text[:room].rstrip() + "\n[The rest of it is left out.]"
        self.inside_chars += len(text)
        if (shown := f"{heading}:\n{text}") not in self.inside:
            self.inside.append(shown)


def _add(said: list[str], sentence: str) -> None:
    if sentence and sentence not in said and len(said) < _MAX_PROBLEMS:
        said.append(sentence)


def read_eml(raw: bytes, kind: str) -> Document:
    return read_mail_bytes(raw)


def read_mail_bytes(raw: bytes) -> Document:
    """Read the bytes of a mail. Raises Unreadable if there is nothing to read."""
    return read_mail(parse_message(raw))


def parse_message(raw: bytes) -> Message:
    """Parse a mail into its parts. Raises Unreadable if that is impossible."""
    if b"\r\r\n" in raw[:10_000]:  # stored once too often as text
        raw = raw.replace(b"\r\r\n", b"\r\n")
    raw = raw.lstrip(b"\r\n")
    lines = raw.count(b"\n") + raw.count(b"\r")
    if lines > _MAX_LINES or lines * raw.lower().count(b"multipart/") > _MAX_LINE_CHECKS:
        raise Unreadable("it has too many lines or parts")
    try:
        return message_from_bytes(raw, _class=_PartFactory(), policy=_ShortHeaders())
    except RecursionError:
        raise Unreadable("it has too many nested parts") from None
    except PARSER_ERRORS as error:
        raise Unreadable("it is too damaged to be parsed") from error


def read_mail(message: Message) -> Document:
    """Read a parsed mail. Raises Unreadable if it is empty or encrypted."""
    found = _Found()
    try:
        headers, body = shown_headers(message), clean(_body(message, found, depth=0, is_root=True))
        identity = message_id(message)
    except RecursionError:
        raise Unreadable("it has too many nested parts") from None
    except PARSER_ERRORS as error:
        raise Unreadable("it is too damaged to be parsed") from error
    subject = headers.get("Subject", "")
    if not body.strip() and not found.inside:
        if _ENCRYPTED in found.problems:
            raise Unreadable("it is encrypted")
        if not subject:
            raise Unreadable("there is no text in this mail")
        if found.attachments:
            found.note(Text("it has no text of its own; its attachments are not read"))
    own, old = split_quotation(body.strip("\n"), subject)
    parts = [_lines(headers), own, *map(clean, found.inside)]
    if old:
        parts.append(f"Quoted from earlier messages:\n{mark_quoted(old)}")
    parts.append(attachments_to_text(found.attachments))
    head = Head(
        title=one_line(subject),
        date=iso_date(headers.get("Date", "")),
        sender=one_line(headers.get("From", "")),
        recipients=one_line(", ".join(filter(None, (headers.get("To"), headers.get("Cc"))))),
        message_id=identity,
    )
    text = "\n\n".join(filter(None, parts)) + "\n"
    return Document(text, KIND, head, tuple(found.attachments), tuple(found.problems), tuple(found.notes))


def is_read(kind: str, name: str) -> bool:
    """Return whether an attachment of this media type and name is read, so that its content has to be fetched."""
    kind = _kind(kind.lower(), name)
    return kind in _TEXTS or kind in _CALENDARS or kind in _SIGNED or kind == KIND


def is_signed(kind: str, name: str) -> bool:
    """Return whether a part with this media type and name holds a mail that is signed, or encrypted."""
    return kind.lower() in (*_SIGNED, "multipart/signed") or name.lower() == "smime.p7m"


def _kind(kind: str, name: str) -> str:
    return _BY_SUFFIX.get(PurePosixPath(name.lower()).suffix, kind) if kind in _SAYS_NOTHING else kind


def attachments_to_text(attachments: Iterable[Attachment]) -> str:
    """Return a list of the attachments as text; empty if there are none."""
    names = "\n".join(f"- {item.name} ({item.type})" for item in attachments)
    return names and f"Attachments:\n{names}"


class _PartFactory:
    """Factory for the parts of one mail. Raises Unreadable for more than _MAX_PARTS."""

    def __init__(self) -> None:
        self._made = 0

    def __call__(self, policy: Policy = _ShortHeaders()) -> Message:  # noqa: B008  # policies do not change
        self._made += 1
        if self._made > _MAX_PARTS:
            raise Unreadable("it has too many parts")
        return Message(policy)


def _lines(headers: dict[str, str]) -> str:
    return "\n".join(f"{name}: {value}" for name, value in headers.items())


# ── Parts ───────────────────────────────────────────────────────────────────────────────────────────────


def _body(part: Message, found: _Found, depth: int, *, is_root: bool = False) -> str:
    for defect in part.defects:
        if type(defect).__name__ in ("StartBoundaryNotFoundDefect", "CloseBoundaryNotFoundDefect"):
            found.note(Text("it may be cut off"))
    kind = part.get_content_type()
    payload = part.get_payload() if part.is_multipart() else None
    if kind == KIND and isinstance(payload, list):
        mails = [inner for inner in payload if isinstance(inner, Message)]
        if not any(inner.items() or inner.get_payload() for inner in mails):
            _list_attachment(
                part, _filename(part, found), kind, found
            )  # a provider's answer does not hold it
            return ""
        for inner in mails:
            _forwarded(inner, found, depth)
        return ""
    if isinstance(payload, list):
        children = [child for child in payload if isinstance(child, Message)]
        if kind == "multipart/encrypted":
            found.note(_ENCRYPTED)
            return ""
        if kind == "multipart/alternative":
            return _alternatives(children, found, depth)
        texts = [_body(child, found, depth).strip("\n") for child in children]
        return "\n\n".join(filter(str.strip, texts))
    return _leaf(part, kind, found, depth, is_root=is_root)


def _leaf(part: Message, kind: str, found: _Found, depth: int, *, is_root: bool) -> str:
    if kind in _SIGNED:
        return _unwrapped(part, found, depth)
    if kind in _SIGNATURES:
        return ""
    name = _filename(part, found)
    kind = _kind(kind, name)
    if kind == KIND:
        return _attached_mail(part, name, found, depth)
    if kind in _TNEF or name.lower() == "winmail.dat":
        found.note(Text("a part in Outlook's own format (winmail.dat) cannot be read"))
    if kind in _CALENDARS:
        if text := content_lines_to_text(_text(part, found)):
            found.add_inside("Calendar" if "vcard" not in kind else "Address card", text)
        return ""
    is_attached = not is_root and _is_attached(part)
    # A multipart without parts is read as text.
    if not kind.startswith(("text/", "multipart/")) or (is_attached and kind not in _TEXTS):
        _list_attachment(part, name, kind, found)
        return ""
    text = _text(part, found)
    if kind == "text/html":
        text = html_to_text(text, quotes=not is_attached)
    if not is_attached:
        return text
    if text.strip():
        found.add_inside(f"Attachment {name or 'without a name'}", text.strip("\n"))
    else:
        _list_attachment(part, name, kind, found)
    return ""


def _alternatives(children: list[Message], found: _Found, depth: int) -> str:
    """Return one of a text's forms: the plain one, unless the other says more; both if each has text of its own."""
    texts = [(child.get_content_type(), _body(child, found, depth)) for child in children]
    said = [(kind, text) for kind, text in texts if text.strip()]
    plain = next((text for kind, text in said if kind == "text/plain"), "")
    rich = next((text for kind, text in reversed(said) if kind != "text/plain"), "")
    if not plain or not rich:
        return plain or rich
    plain_words, rich_words = _words(plain), _words(rich)
    if len(plain_words) < _MAX_STUB_WORDS and _STUB.search(plain):
        return rich
    if _MARKED.search(rich) and not _MARKED.search(plain):
        return rich  # only this form tells what is struck out or ticked
    if not rich_words or len(rich_words & plain_words) >= _SAME_SHARE * len(rich_words):
        return plain
    if len(rich_words & plain_words) >= _SAME_SHARE * len(plain_words):
        return rich
    return f"{rich}\n\n{plain}"


def _words(text: str) -> set[str]:
    return set(_WORD.findall(_ADDRESS.sub(" ", text).casefold()))


def _unwrapped(part: Message, found: _Found, depth: int) -> str:
    raw, problem = content_bytes(part)
    found.note(problem)
    if not raw:  # a provider's answer names it and does not hold it
        found.note(Text("a signed or encrypted part of it cannot be read"))
        return ""
    inner = unwrap_signed(raw)
    if inner is None:
        found.note(_ENCRYPTED)
        return ""
    if depth >= _MAX_NESTED:
        found.note(Text("a part signed too many times over was left out"))
        return ""
    return _body(parse_message(inner), found, depth + 1, is_root=True)


def _forwarded(message: Message, found: _Found, depth: int) -> None:
    if depth >= _MAX_NESTED:
        found.note(Text("a mail forwarded too many times over was left out"))
        return
    inner = _Found(problems=found.problems, notes=found.notes, attachments=found.attachments)
    body = _body(message, inner, depth + 1, is_root=True).strip("\n")
    text = "\n\n".join(filter(None, (_lines(shown_headers(message)), body, *inner.inside)))
    if text:
        found.add_inside("Forwarded mail", text)


def _attached_mail(part: Message, name: str, found: _Found, depth: int) -> str:
    """Return a mail that is attached as a file."""
    raw, problem = content_bytes(part)
    found.note(problem)
    if raw.strip():
        _forwarded(parse_message(raw), found, depth)
    else:  # a provider's answer names it and does not hold it
        _list_attachment(part, name, KIND, found)
    return ""


def _is_attached(part: Message) -> bool:
    disposition = str(part.get("Content-Disposition", "")).strip().lower()
    return disposition.startswith("attachment")


def _filename(part: Message, found: _Found) -> str:
    try:
        return header_line(part.get_filename() or "")[:100]
    except PARSER_ERRORS:
        return ""


def _list_attachment(part: Message, name: str, kind: str, found: _Found) -> None:
    if len(found.attachments) >= _MAX_ATTACHMENTS:
        found.note(Text("some attachments are not listed"))
        return
    found.attachments.append(Attachment(name or "unnamed", header_line(kind)[:100], _size(part)))


def _size(part: Message) -> int | None:
    """Return the approximate bytes of a part: of its content, or else of its `size` parameter (RFC 2183, 2.7)."""
    payload = part.get_payload()
    if isinstance(payload, str) and payload:
        is_base64 = str(part.get("Content-Transfer-Encoding", "")).strip().lower() == "base64"
        return len(payload) * 3 // 4 if is_base64 else len(payload)
    try:
        said = str(part.get_param("size", "", "Content-Disposition"))
    except PARSER_ERRORS:
        return None
    return int(said) if said.isascii() and said.isdigit() and len(said) < 16 else None


def _text(part: Message, found: _Found) -> str:
    raw, problem = content_bytes(part)
    found.note(problem)
    try:
        charset = part.get_content_charset() or ""
        is_flowed = str(part.get_param("format", "")).lower() == "flowed"
        delete_space = str(part.get_param("delsp", "")).lower() == "yes"
    except PARSER_ERRORS:
        charset, is_flowed, delete_space = "", False, False
    try:
        text, problem, how = decode(raw, charset)
    except Unreadable as unreadable:
        found.note(f"a part of it was left out: {unreadable.message}")
        return ""
    found.note(problem and f"of a part: {problem}")
    _add(found.notes, how and f"of a part: {how}")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if is_flowed:
        text = unflow(text, delete_space=delete_space)
    text, problem = without_pgp(text)
    found.note(problem)
    return text
