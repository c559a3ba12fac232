"""Turns a provider's message into a document. All are converted to mails and read by adiuva.documents.mail."""

from __future__ import annotations

import asyncio
import datetime as dt
from email.message import Message

from adiuva.documents import Unreadable
from adiuva.documents.mail import read_mail
from integrations.mail.documents import MailDocument, SkippedMessage

# Longer mails are read in a thread, off the event loop.
_LARGE_CHARS = 64 * 1024


async def read_document(
    message: Message, *, size: int, source_id: str, content_hash: bytes, sent_at: dt.datetime | None
) -> MailDocument | SkippedMessage:
    """Read a message of about `size` characters. Never raises because of the message's content."""
    if size > _LARGE_CHARS:
        return await asyncio.to_thread(_read, message, source_id, content_hash, sent_at)
    return _read(message, source_id, content_hash, sent_at)


def _read(
    message: Message, source_id: str, content_hash: bytes, sent_at: dt.datetime | None
) -> MailDocument | SkippedMessage:
    try:
        mail = read_mail(message)
    except Unreadable as unreadable:
        return SkippedMessage(source_id, unreadable.code, unreadable.message)
    return MailDocument(source_id, content_hash, mail, sent_at)


def text_part(text: bytes, kind: str, charset: str = "utf-8") -> Message:
    """A text part whose transfer encoding is already decoded."""
    part = Message()
    part["Content-Type"] = kind
    part.set_param("charset", charset)
    part.set_payload(text.decode("ascii", "surrogateescape"))
    return part


def attachment_part(name: str, kind: str, size: object) -> Message:
    """A placeholder for an attachment that was not fetched, with what is known of it."""
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
    """A string of an answer without lone surrogates, which JSON may contain; "" if it is not a string."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""
