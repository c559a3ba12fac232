"""Headers of mails, as they are shown: decoded, each on one line."""

from __future__ import annotations

import base64
import binascii
import quopri
import re
from email.message import Message
from typing import Final

from adiuva.documents.charset import decode
from adiuva.documents.cleaning import clean
from adiuva.documents.errors import Unreadable

SHOWN: Final = ("Date", "From", "To", "Cc", "Subject")
MAX_HEADER_CHARS: Final = 10_000
_ENCODED_WORD: Final = re.compile(r"=\?([^?\s*]{1,60})(?:\*[^?\s]{0,40})?\?([bBqQ])\?([^?]*)\?=")
_BETWEEN_WORDS: Final = re.compile(r"(?<=\?=)\s+(?==\?)")
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f]")
_MESSAGE_ID: Final = re.compile(r"<?([^<>\s]{1,250}@[^<>\s]{1,250}|[^<>\s@]{8,250})>?")


def shown_headers(message: Message) -> dict[str, str]:
    """Return the shown headers, always in the same order; of repeated ones the first."""
    found: dict[str, str] = {}
    wanted = {name.lower(): name for name in SHOWN}
    for name, value in message.raw_items():
        shown = wanted.get(name.lower())
        if shown and shown not in found and (line := header_line(str(value))):
            found[shown] = line
    return {name: found[name] for name in SHOWN if name in found}


def message_id(message: Message) -> str:
    """Return the mail's own id without angle brackets; empty if it has none that differs from other mails'."""
    for name, value in message.raw_items():
        if name.lower() == "message-id":
            found = _MESSAGE_ID.search(header_line(str(value)))
            return found[1] if found else ""
    return ""


def header_line(value: str) -> str:
    """Return a header's value on one line, with encoded words (RFC 2047) and raw bytes decoded."""
    value = value[:MAX_HEADER_CHARS]
    if not value.isascii():  # raw 8-bit bytes, which the parser keeps as surrogates
        value = _text(value.encode("utf-8", "surrogateescape"), "")
    if "=?" in value:
        value = _decode_words(_BETWEEN_WORDS.sub("", value))
    return " ".join(clean(_CONTROLS.sub(" ", value)).split())


def _decode_words(value: str) -> str:
    """Decode encoded words. Adjacent words of one charset are joined first, as a character may be split between
    them."""
    pieces: list[str] = []
    held, held_charset, position = b"", "", 0
    for word in _ENCODED_WORD.finditer(value):
        between, charset = value[position : word.start()], word[1].lower()
        if between or charset != held_charset:
            pieces += [_text(held, held_charset), between]
            held, held_charset = b"", charset
        held += _word_bytes(word[2], word[3])
        position = word.end()
    return "".join([*pieces, _text(held, held_charset), value[position:]])


def _text(raw: bytes, charset: str) -> str:
    try:
        return decode(raw, charset).text
    except Unreadable:
        return raw.decode("ascii", "replace")


def _word_bytes(encoding: str, encoded: str) -> bytes:
    raw = encoded.encode("utf-8", "surrogateescape")
    if encoding in "qQ":
        return quopri.decodestring(raw, header=True)
    try:
        return base64.b64decode(raw + b"=" * (-len(raw) % 4))
    except binascii.Error:
        return raw
