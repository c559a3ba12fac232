"""Cleaning of every text before a model sees it: one kind of line end, no invisible characters, no encoded data."""

from __future__ import annotations

import re
from typing import Final

from adiuva.documents.errors import Unreadable

# Escape sequences of terminals, such as colours in a log.
_ANSI: Final = re.compile(r"\x1b(?:\[[0-?]{0,30}[ -/]{0,5}[@-~]|[@-_])")
_LINE_ENDS: Final = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
# Controls, bidirectional marks, and characters that are never shown: zero-width space, word joiner, byte order mark,
# soft hyphen, fillers, and the tag characters, which can hide instructions. Joiners (U+200C, U+200D) and variation
# selectors stay, because scripts and emoji need them.
_UNSEEN: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff]"
)
CONTROL_BYTES: Final = bytes(set(range(32)) - set(b"\t\n\r\f\x1b")) + b"\x7f"
# A text with a larger share of control characters is not text.
MAX_CONTROL_SHARE: Final = 0.01
_DATA_URI: Final = re.compile(
    r"data:(?P<type>[a-zA-Z]{1,20})/[\w.+-]{1,80}(?:;[\w=.+-]{1,60}){0,5},[A-Za-z0-9+/=%_.~!$&;:@-]{40,}"
)
# Longer than a word or an address is between two signs, with the lines that go on with it.
_RUN: Final = re.compile(
    r"[A-Za-z0-9+/]{160,}={0,2}(?:\n[ \t]?[A-Za-z0-9+/]{40,}={0,2})*(?:\n[ \t]?[A-Za-z0-9+/]{4,}={1,2})?"
)
# Four lines or more of encoded data, as in mails and address cards.
_LINES: Final = re.compile(
    r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{56,159}(?:\n[ \t]?[A-Za-z0-9+/]{56,159}){3,}"
    r"(?:\n[ \t]?(?:[A-Za-z0-9+/]{2,159}={1,2}|(?=[^\n]{0,159}\d)(?=[^\n]{0,159}[A-Z])(?:[A-Za-z0-9+/]{4}){1,39})"
    r"(?![^\n]))?"
)
# For each byte: whether it belongs to encoded data ("a"), is a control character that is removed (1), or neither.
_MARKS: Final = bytes(
    ord("a")
    if chr(byte).isascii() and (chr(byte).isalnum() or chr(byte) in "+/")
    else 1
    if (byte < 32 and byte not in b"\t\n") or byte == 127
    else 32
    for byte in range(256)
)
_LONG_RUN: Final = b"a" * 56
_ASCII: Final = bytes(range(128))
# All bytes except those that begin the UTF-8 of an unseen character (other than the filler) or of a line end.
_HARMLESS: Final = bytes(set(range(256)) - set(b"\xc2\xcd\xd8\xe1\xe2\xed\xef\xf3"))
_FILLER: Final = "\u3164".encode()
_LOOKED_FOR: Final = re.compile(f"{_UNSEEN.pattern[:-1]}\x85\u2028\u2029]")
_LEFT_OUT: Final = "[encoded data left out]"


def clean(text: str, *, refuse_other_files: bool = False) -> str:
    """Return the text with "\n" as the only line end, without unseen characters, and with encoded data as a word.

    A clean text costs a few passes over its bytes. With `refuse_other_files` it raises Unreadable if control characters
    show that the bytes are no text.
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    raw = text.encode("utf-8", "surrogatepass")
    marks = raw.translate(_MARKS)
    if b"\x01" in marks or (len(raw) != len(text) and _has_unseen(raw)):
        if refuse_other_files:
            _check_is_text(raw)
        if "\x1b" in text:
            text = _ANSI.sub("", text)
        text = _UNSEEN.sub("", _LINE_ENDS.sub("\n", text))
    if "data:" in text:
        text = _DATA_URI.sub(_as_word, text)
    if _LONG_RUN in marks:
        text = _LINES.sub(_if_encoded, _RUN.sub(_if_encoded, text))
    return text


def _has_unseen(raw: bytes) -> bool:
    if not raw.translate(None, _HARMLESS) and _FILLER not in raw:
        return False
    return _LOOKED_FOR.search(raw.translate(None, _ASCII).decode("utf-8", "surrogatepass")) is not None


def _check_is_text(raw: bytes) -> None:
    controls = len(raw) - len(raw.translate(None, CONTROL_BYTES))
    if controls > MAX_CONTROL_SHARE * len(raw) or b"\0" in raw:
        raise Unreadable("it is not text")


def _as_word(found: re.Match[str]) -> str:
    return "[image left out]" if found["type"].lower() == "image" else _LEFT_OUT


def _if_encoded(found: re.Match[str]) -> str:
    """Replace encoded data. It has capitals, small letters and digits in every stretch, unlike long words or rows of
    signs."""
    sample = found[0][:400]
    kinds = (any(map(str.isupper, sample)), any(map(str.islower, sample)), any(map(str.isdigit, sample)))
    return _LEFT_OUT if all(kinds) and len(set(sample)) > 16 else found[0]
