"""Decoder of one part of a mail: the transfer encoding, flowed text, and the wrapping of PGP and S/MIME signatures."""

from __future__ import annotations

import base64
import binascii
import quopri
import re
from email.message import Message
from typing import Final

# Errors that the standard parser raises for malformed parameters and encodings.
PARSER_ERRORS: Final = (LookupError, ValueError, TypeError, AttributeError, AssertionError)
_NO_BASE64: Final = re.compile(rb"[^A-Za-z0-9+/=\s]")
_BASE64_LINE: Final = re.compile(rb"[A-Za-z0-9+/=]+\s*$")
_PGP_BLOCK: Final = re.compile(
    r"-----BEGIN PGP (?P<what>MESSAGE|PUBLIC KEY BLOCK)-----.*?(?:-----END PGP (?P=what)-----|\Z)", re.DOTALL
)
_PGP_SIGNED: Final = re.compile(
    r"^-----BEGIN PGP SIGNED MESSAGE-----\n(?:[A-Z][\w-]*: .*\n)*\n?", re.MULTILINE
)
_PGP_SIGNATURE: Final = re.compile(
    r"^-----BEGIN PGP SIGNATURE-----.*?(?:^-----END PGP SIGNATURE-----$|\Z)", re.DOTALL | re.MULTILINE
)
_CONTENT_OID: Final = bytes.fromhex("2a864886f70d010701")  # PKCS #7 data
_SIGNED_OID: Final = bytes.fromhex("2a864886f70d010702")  # PKCS #7 signedData
_MAX_DER_ITEMS: Final = 10_000


def content_bytes(part: Message) -> tuple[bytes, str]:
    """Return a part's bytes, and a problem in words ("" if none). A broken encoding gives as much as can be decoded."""
    encoding = str(part.get("Content-Transfer-Encoding", "")).strip().strip("\"'").lower()
    if encoding == "base64":
        payload = part.get_payload()
        return _base64(payload.encode("utf-8", "replace")) if isinstance(payload, str) else (b"", "")
    try:
        found = part.get_payload(decode=True)
    except PARSER_ERRORS:
        return b"", "a part's transfer encoding is broken"
    raw = found if isinstance(found, bytes) else b""
    if encoding == "quoted-printable" and str(part["Content-Transfer-Encoding"]).lower() != encoding:
        raw = quopri.decodestring(raw)  # written in a way that the standard library does not know
    return raw, ""


def _base64(raw: bytes) -> tuple[bytes, str]:
    """Decode base64 up to a line that is something else, such as a mailing list's footer, which stays as it is."""
    encoded, rest = raw, b""
    if _NO_BASE64.search(raw):
        lines = raw.split(b"\n")
        end = next(
            (number for number, line in enumerate(lines) if line.strip() and not _BASE64_LINE.match(line)), 0
        )
        # A blank line before the footer belongs to it; a lone word after a blank line may look like base64.
        while end and not lines[end - 1].strip():
            end -= 1
        if end:  # otherwise it is damaged, and other characters in it count for nothing
            encoded, rest = b"\n".join(lines[:end]), b"\n".join(lines[end:]).strip()
    encoded = re.sub(rb"[^A-Za-z0-9+/]", b"", encoded)
    encoded = encoded[: len(encoded) - (len(encoded) % 4 == 1)]
    try:
        found = base64.b64decode(encoded + b"=" * (-len(encoded) % 4))
    except binascii.Error:
        return rest, "a part's transfer encoding is broken"
    return found + (b"\n\n" + rest if rest else b""), ""


def without_pgp(text: str) -> tuple[str, str]:
    """Return a text without the wrapping of a signature, and a problem if a part of it is encrypted."""
    if "-----BEGIN PGP" not in text:
        return text, ""
    plain = _PGP_SIGNATURE.sub("", _PGP_SIGNED.sub("", text))
    kept = _PGP_BLOCK.sub("", plain)
    problem = "a part of it is encrypted and cannot be read" if "BEGIN PGP MESSAGE-----" in plain else ""
    return kept, problem


def unflow(text: str, *, delete_space: bool) -> str:
    """Return a text of `format=flowed` (RFC 3676) with each paragraph on one line."""
    lines: list[str] = []
    joins, last_depth = False, 0
    for line in text.split("\n"):
        depth = len(line) - len(line.lstrip(">"))
        body = line[depth:].removeprefix(" ")
        if joins and depth == last_depth and line != "-- ":
            lines[-1] += body
        else:
            lines.append(line if not depth else f"{'>' * depth} {body}")
        joins, last_depth = body.endswith(" ") and body != "-- ", depth
        if joins and delete_space:
            lines[-1] = lines[-1][:-1]
    return "\n".join(lines)


def unwrap_signed(der: bytes) -> bytes | None:
    """Return the content of S/MIME signed data (RFC 5652), not verified; None if it is encrypted or something else."""
    try:
        outer = _children(der, 0, len(der))
        if len(outer) != 1:
            return None
        info = _children(der, *outer[0][1:])
        if len(info) < 2 or der[slice(*info[0][1:])] != _SIGNED_OID:
            return None
        signed = _children(der, *_children(der, *info[1][1:])[0][1:])
        content = next(
            found
            for tag, start, end in signed
            if tag == 0x30
            and (found := _children(der, start, end))
            and der[slice(*found[0][1:])] == _CONTENT_OID
        )
        if len(content) < 2:
            return None
        return _octets(der, _children(der, *content[1][1:]))
    except (IndexError, StopIteration, ValueError):
        return None


def _octets(der: bytes, items: list[tuple[int, int, int]]) -> bytes:
    pieces: list[bytes] = []
    for tag, start, end in items:
        if tag == 0x24:  # the string comes in pieces
            pieces += [der[begin:stop] for inner, begin, stop in _children(der, start, end) if inner == 0x04]
        elif tag == 0x04:
            pieces.append(der[start:end])
    return b"".join(pieces)


def _children(der: bytes, start: int, end: int) -> list[tuple[int, int, int]]:
    """Yield the items between two places: tag, start and end of the content. Raises ValueError or IndexError."""
    found: list[tuple[int, int, int]] = []
    place = start
    while place < end and len(found) < _MAX_DER_ITEMS:
        tag, length = der[place], der[place + 1]
        place += 2
        if length == 0x80:  # indefinite: up to the end mark of this level
            stop = _end_of_contents(der, place, end)
            found.append((tag, place, stop))
            place = stop + 2
            continue
        if length & 0x80:
            count = length & 0x7F
            if count > 4:
                raise ValueError("a length is too long")
            length = int.from_bytes(der[place : place + count])
            place += count
        if place + length > end:
            raise ValueError("it is cut off")
        if tag == 0 and length == 0:
            break
        found.append((tag, place, place + length))
        place += length
    return found


def _end_of_contents(der: bytes, place: int, end: int) -> int:
    depth = 0
    for _ in range(_MAX_DER_ITEMS):
        tag, length = der[place], der[place + 1]
        if tag == 0 and length == 0:
            if depth == 0:
                return place
            depth -= 1
            place += 2
            continue
        place += 2
        if length == 0x80:
            depth += 1
            continue
        if length & 0x80:
            count = length & 0x7F
            length = int.from_bytes(der[place : place + min(count, 8)])
            place += count
        place += length
        if place >= end:
            break
    raise ValueError("it is cut off")
