"""Turns a provider's message into a document. All become mails, read like files: in a process with limits."""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import re
import secrets
from email.message import Message
from typing import Final

from adiuva.core.per_loop import PerLoop
from adiuva.documents import Document, Unreadable, isolation
from integrations.mail.mailbox_types import MailDocument, SkippedMessage

_HEADER_NAME: Final = re.compile(r"[!-9;-~]{1,100}")
# These headers are set anew: the content is never encoded in the way that a provider's headers say, and a boundary
# could be part of a text.
_OURS: Final = frozenset({"content-transfer-encoding", "content-type", "mime-version"})
_BOUNDARY: Final = re.compile(r";\s*boundary\s*=\s*(?:\"[^\"]*\"?|[^;\s]*)", re.IGNORECASE)
# At most as many threads wait for a reader as there are readers.
_readers: PerLoop[asyncio.Semaphore] = PerLoop(lambda: asyncio.Semaphore(isolation.SHARED_PROCESSES))


async def read_document(
    message: Message, *, source_id: str, content_hash: bytes, sent_at: dt.datetime | None
) -> MailDocument | SkippedMessage:
    """Read a message. Never raises because of its content."""
    return await read_raw(to_bytes(message), source_id=source_id, content_hash=content_hash, sent_at=sent_at)


async def read_raw(
    raw: bytes, *, source_id: str, content_hash: bytes, sent_at: dt.datetime | None
) -> MailDocument | SkippedMessage:
    """Read a mail in its original form, as `read_document` does."""
    try:
        return MailDocument(source_id, content_hash, await _read(raw), sent_at)
    except Unreadable as unreadable:
        return SkippedMessage(source_id, unreadable.code, unreadable.message)


async def html_to_text(content: str) -> str:
    """Return the text of a post. Raises Unreadable."""
    subject = "post"  # without one, a post without words would be refused
    message = text_part(content.encode(), "text/html")
    message["Subject"] = subject
    return (await _read(to_bytes(message))).text.removeprefix(f"Subject: {subject}\n").strip("\n")


async def _read(raw: bytes) -> Document:
    async with _readers.get():
        return await asyncio.to_thread(isolation.shared_reader().read, "message.eml", raw)


def to_bytes(message: Message) -> bytes:
    """Return a mail that says the same as `message`, with unencoded texts. An attached mail may be its bytes."""
    kind, payload = message.get_content_type(), message.get_payload()
    lines = [
        f"{name}: {' '.join(str(value).split())}".encode("utf-8", "surrogateescape")
        for name, value in message.items()
        if _HEADER_NAME.fullmatch(name) and name.lower() not in _OURS
    ]
    said = " ".join(str(message.get("Content-Type", kind)).split())
    if isinstance(payload, list) and kind != "message/rfc822":
        boundary = f"part-{secrets.token_hex(16)}"
        said = f'{_BOUNDARY.sub("", said)}; boundary="{boundary}"'
        mark = f"--{boundary}".encode()
        parts = [mark + b"\n" + to_bytes(part) for part in payload if isinstance(part, Message)]
        body = b"\n".join([*parts, mark + b"--\n"])
    elif isinstance(payload, list):
        body = b"\n".join(to_bytes(part) for part in payload if isinstance(part, Message))
    else:
        content = message.get_payload(decode=True)  # this part has no transfer encoding
        body = content if isinstance(content, bytes) else b""
        if kind != "message/rfc822":
            body = base64.b64encode(body)
            lines.append(b"Content-Transfer-Encoding: base64")
    lines.append(f"Content-Type: {said}".encode("utf-8", "surrogateescape"))
    return b"\n".join(lines) + b"\n\n" + body


def text_part(text: bytes, kind: str, charset: str = "utf-8") -> Message:
    """Return a text part whose transfer encoding is already decoded."""
    part = Message()
    part["Content-Type"] = kind
    part.set_param("charset", charset)
    part.set_payload(text.decode("ascii", "surrogateescape"))
    return part


def attachment_part(name: str, kind: str, size: object) -> Message:
    """Return a placeholder for an attachment that was not fetched, with its known properties."""
    part = Message()
    part["Content-Type"] = (
        kind if "/" in kind and kind.isascii() and kind.isprintable() else "application/octet-stream"
    )
    part["Content-Disposition"] = "attachment"
    part.set_param("filename", name, "Content-Disposition")
    if isinstance(size, int):
        part.set_param("size", str(size), "Content-Disposition")
    return part


def clean_text(value: object) -> str:
    """Return a string of an answer without lone surrogates, which JSON may contain; "" if it is not a string."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""
