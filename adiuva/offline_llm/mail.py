"""Parses a mail into its headers and the text its author wrote, from a raw message or a plain-text copy."""

from __future__ import annotations

import base64
import quopri
import re
from dataclasses import dataclass
from email.errors import HeaderParseError
from email.header import decode_header, make_header

_HEADER = re.compile(r"\*{0,2}([A-Za-z][A-Za-z-]{1,40})\*{0,2}:\*{0,2}[ \t]?(.{0,998})")
_KNOWN_HEADERS = {"from", "to", "cc", "subject", "date", "reply-to", "message-id", "received", "return-path"}
_REPLY_PREFIX = re.compile(r"(?:\s*(?:re|fwd?|aw|wg|rif|tr)\s*:)+\s*", re.IGNORECASE)
_QUOTE_INTRO = re.compile(
    r"(?:on|am|le|il)\b.{1,200}\b(?:wrote|schrieb|écrit|scritto)\b.{0,80}:$", re.IGNORECASE
)
_MAX_HEADER_LINES = 200
_MAX_DEPTH = 5


@dataclass(frozen=True)
class Mail:
    subject: str  # without prefixes such as Re: and Fwd:
    sender: str  # the name, or the address if there is no name
    date: str
    body: str


def parse_mail(text: str) -> Mail | None:
    """Return the mail, or None if the text does not begin with two known headers, From or Subject among them."""
    lines = text.lstrip("\ufeff\r\n").split("\n")
    headers, end = _parse_headers(lines)
    if len(_KNOWN_HEADERS & headers.keys()) < 2 or not headers.keys() & {"from", "subject"}:
        return None
    body = _plain_text_body("\n".join(lines[end:]), headers)
    subject = _REPLY_PREFIX.sub("", _decode_header(headers.get("subject", "")), count=1).strip()
    return Mail(
        subject,
        _sender_name(_decode_header(headers.get("from", ""))),
        headers.get("date", ""),
        _without_quotes(body),
    )


def _parse_headers(lines: list[str]) -> tuple[dict[str, str], int]:
    """Return the headers (the first of each name) and the index of the line where the body begins."""
    headers: dict[str, str] = {}
    last = ""
    for number, raw in enumerate(lines[:_MAX_HEADER_LINES]):
        line = raw.rstrip()
        if number == 0 and line.startswith("From ") and ":" not in line[:6]:
            continue  # the envelope line of an mbox file
        if not line:
            return headers, number + 1
        if line[0] in " \t" and last:
            headers[last] = f"{headers[last]} {line.strip()}"[:2000]
            continue
        match = _HEADER.fullmatch(line)
        if match is None:
            return headers, number
        last = match[1].lower()
        if last in headers:
            last = f"{last} again"
        headers[last] = match[2].strip()
    return headers, min(len(lines), _MAX_HEADER_LINES)


def _plain_text_body(body: str, headers: dict[str, str], depth: int = 0) -> str:
    """Return the first plain-text part, decoded, or the body itself if it has no parts."""
    kind = headers.get("content-type", "")
    boundary = re.search(r'boundary="?([^";]{1,70})', kind, re.IGNORECASE)
    if boundary is not None and depth < _MAX_DEPTH:
        for part in body.split(f"--{boundary[1]}")[1:]:
            inner, end = _parse_headers(part.strip("\r\n").split("\n"))
            if inner.get("content-type", "text/plain").lower().startswith(("text/plain", "multipart/")):
                text = _plain_text_body("\n".join(part.strip("\r\n").split("\n")[end:]), inner, depth + 1)
                if text.strip(" -\r\n"):
                    return text
        return ""
    encoding = headers.get("content-transfer-encoding", "").lower()
    if kind.lower().startswith("text/html"):
        return ""
    if encoding not in {"quoted-printable", "base64"}:
        return body
    charset = re.search(r'charset="?([\w.-]{1,40})', kind, re.IGNORECASE)
    try:
        raw = quopri.decodestring(body.encode()) if encoding != "base64" else base64.b64decode(body)
        return raw.decode(charset[1] if charset else "utf-8", "replace")
    except (ValueError, LookupError):  # invalid base64 or an unknown charset
        return ""


def _decode_header(value: str) -> str:
    if "=?" not in value:
        return value
    try:
        return str(make_header(decode_header(value)))
    except (HeaderParseError, LookupError, ValueError):
        return value


def _sender_name(sender: str) -> str:
    name, _, rest = sender.partition("<")
    return name.strip(" \"'") or rest.rstrip("> ")


def _without_quotes(body: str) -> str:
    """Return what the author wrote, without quoted lines, signature or older mails."""
    kept: list[str] = []
    for raw in body.split("\n"):
        line = raw.rstrip()
        if line == "--" or raw.rstrip("\r") == "-- " or line.startswith("-----Original Message"):
            break
        if not line.startswith(">") and not _QUOTE_INTRO.match(line[:400]):
            kept.append(line)
    return "\n".join(kept).strip()
