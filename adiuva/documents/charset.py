"""Decoder of bytes to text as browsers do it. It guesses if no charset is declared or the declared one is wrong.

Labels are WHATWG's (https://encoding.spec.whatwg.org): "iso-8859-1" is Windows-1252, "gb2312" is GB 18030. A text that
is mostly valid UTF-8 is UTF-8 with a few bad bytes; other texts that are not UTF-8 go to a detector.
"""

from __future__ import annotations

import codecs
import re
from typing import Final, NamedTuple

from adiuva.documents.cleaning import CONTROL_BYTES, MAX_CONTROL_SHARE
from adiuva.documents.errors import Unreadable

_BOMS: Final = (  # longer ones first, because UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Python's charsets that contain those that WHATWG's labels mean.
_SUPERSETS: Final = {"gbk": "gb18030", "big5": "big5hkscs", "iso8859-8": "cp1255"}
# Python codecs that are not charsets of texts; some are slow.
_NO_CHARSETS: Final = frozenset(
    {"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "mbcs", "oem", "palmos"}
)
# Charsets in which a character may have several bytes, some of which look like UTF-8 by chance.
_MULTIBYTE: Final = frozenset(
    {
        "gb18030",
        "gbk",
        "gb2312",
        "big5",
        "big5hkscs",
        "cp932",
        "shift_jis",
        "euc_jp",
        "euc_kr",
        "cp949",
        "cp950",
    }
)
# Seven-bit charsets. Their bytes are valid ASCII.
_ESCAPED: Final = ("iso2022", "utf-7", "hz")
_DETECTED_BYTES: Final = 64 * 1024
# Guesses that need no check.
_COMMON: Final = (
    "windows-",
    "utf-",
    "gb",
    "big5",
    "shift",
    "cp9",
    "cp874",
    "euc-",
    "koi8",
    "iso-8859-2",
    "iso-2022",
)
_WESTERN_LETTERS: Final = frozenset("àáâãäåæçèéêëìíîïñòóôõöøùúûüýßœÀÁÂÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÖØÙÚÛÜŒ")
_WESTERN_SIGNS: Final = frozenset("€„“”‘’–—…•«»°§·¡¿£\xa0")
# The share of a text that may be undecodable in its own charset.
_MAX_BAD_SHARE: Final = 0.02
_UTF8_SEQUENCE: Final = re.compile(
    rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"
)
_BAD: Final = re.compile("[\ufffd]")


class Decoded(NamedTuple):
    """Decoded text. `problem` says in words which part of the text is lost, `note` how it was read if that was not
    plain; both may be empty."""

    text: str
    problem: str = ""
    note: str = ""


def decode(raw: bytes, declared: str = "") -> Decoded:
    """Return the text of some bytes. `declared`: the charset of a header, if any. Raises Unreadable if none fits."""
    for mark, encoding in _BOMS:
        if raw.startswith(mark):
            return Decoded(raw[len(mark) :].decode(encoding, "replace"))
    codec = python_codec(declared)
    if codec and codec != "utf-8":
        if (found := _by_label(raw, codec)) is not None:
            return found
    else:
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            pass
        else:
            if "\0" in text and (wide := _wide(raw)):
                return Decoded(wide)
            known = codec or not declared or text.isascii()
            note = "" if known else f"its charset {declared[:40]!r} is unknown; it was read as UTF-8"
            return Decoded(text, note=note)
    if mended := _mostly_utf8(raw):
        return mended
    return _detected(raw, declared)


def python_codec(label: str) -> str:
    """Return Python's codec for a label of WHATWG's, or for one that only Python knows; empty if there is none."""
    label = label.strip().strip("\"'").lower()
    if not label:
        return ""
    import webencodings

    if (known := webencodings.lookup(label)) and known.name not in ("replacement", "x-user-defined"):
        name = str(known.codec_info.name)
        return _SUPERSETS.get(name, name)
    try:
        name = codecs.lookup(label).name
        b"text".decode(name, "replace")  # Python's own codecs from bytes to bytes are no charsets
    except (LookupError, ValueError, TypeError):
        return ""
    return "" if name.replace("-", "_") in _NO_CHARSETS else name


def _by_label(raw: bytes, codec: str) -> Decoded | None:
    if raw.isascii() and not codec.startswith(_ESCAPED) and not codec.startswith("utf-"):
        return Decoded(raw.decode("ascii"))
    if codec not in _MULTIBYTE and not codec.startswith(("utf-", *_ESCAPED)):
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            pass
        else:
            return Decoded(text, note="it names a charset that it is not in; it was read as UTF-8")
    try:
        return Decoded(raw.decode(codec))
    except (UnicodeDecodeError, ValueError):
        pass
    text = _lenient(raw, codec)
    bad = len(_BAD.findall(text))
    if bad > max(1, _MAX_BAD_SHARE * len(text)):
        return None
    return Decoded(text, f"{bad} of its characters cannot be decoded" if bad else "")


def _lenient(raw: bytes, codec: str) -> str:
    try:
        text = raw.decode(codec, "replace")
    except (ValueError, LookupError):
        return "\ufffd" * len(raw)
    if codec == "cp1252":  # WHATWG maps its five holes to control characters
        text = text.replace("\ufffd", "")
    return text


def _one_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return error.object[error.start : error.end].decode("cp1252", "replace"), error.end


codecs.register_error("adiuva.cp1252", _one_byte)


def _mostly_utf8(raw: bytes) -> Decoded | None:
    """Return a UTF-8 text in which a few bytes are read as Windows-1252; None if it is not mostly UTF-8."""
    sequences = len(_UTF8_SEQUENCE.findall(raw))
    bad = len(raw) - len(raw.decode("utf-8", "ignore").encode())
    if not sequences or bad > sequences:
        return None
    text = raw.decode("utf-8", "adiuva.cp1252")
    note = (
        f"{bad} of its bytes {'is' if bad == 1 else 'are'} not UTF-8, and read as Windows-1252" if bad else ""
    )
    return Decoded(text, note=note)


def _wide(raw: bytes) -> str:
    """Return UTF-16 without a byte order mark, in which every second byte is often zero; empty if it is not that."""
    sample = raw[: 4096 & ~1]
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    most = len(sample) // 2
    if most and max(even, odd) > 0.3 * most and min(even, odd) <= 0.02 * most:
        try:
            return raw.decode("utf-16-le" if odd > even else "utf-16-be")
        except UnicodeDecodeError:
            return ""
    return ""


def _detected(raw: bytes, declared: str) -> Decoded:
    import chardet

    if wide := _wide(raw):
        return Decoded(wide)
    controls = len(raw) - len(raw.translate(None, CONTROL_BYTES))
    if controls > MAX_CONTROL_SHARE * len(raw):
        raise Unreadable("it is not text")
    guess = chardet.detect(raw[:_DETECTED_BYTES])
    name = str(guess.get("encoding") or "")
    if not name.lower().startswith(_COMMON) and _is_plain_western(raw):
        name = "Windows-1252"
    codec = python_codec(name)
    if codec and codec != "utf-8":
        text = _lenient(raw, codec)
        bad = len(_BAD.findall(text))
        if bad <= max(1, _MAX_BAD_SHARE * len(text)):
            said = "it names no charset that fits" if declared else "it is not UTF-8"
            lost = f"{bad} of its characters cannot be decoded" if bad else ""
            return Decoded(text, lost, f"{said}; it was read as {name}")
    raise Unreadable("its characters are in no charset that is known")


def _is_plain_western(raw: bytes) -> bool:
    """Return whether bytes read as Windows-1252 are words of a western language with a few accents. With so few signs,
    a detector's guess at a rare charset is worth less."""
    text = _lenient(raw[:_DETECTED_BYTES], "cp1252")
    letters = sum(map(str.isalpha, text))
    accented = [place for place, sign in enumerate(text) if sign > "\x7f"]
    return len(accented) < 0.5 * letters and all(
        text[place] in _WESTERN_SIGNS
        or (
            text[place] in _WESTERN_LETTERS
            and (text[place].islower() or not text[place - 1 : place].islower())
        )
        for place in accented
    )
