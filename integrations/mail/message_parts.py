"""A provider's message becomes a document: all of them are read as mails, by the one reader there is."""

from __future__ import annotations

import asyncio
import datetime as dt
from email.message import Message

from adiuva.documents import Unreadable
from adiuva.documents.mail import attachments_to_text, read_mail
from integrations.mail import quotation
from integrations.mail.documents import MailDocument, SkippedMessage

_LARGE_CHARS = 64 * 1024  # characters, beyond which a mail is read off the event loop


async def read_document(
    message: Message, *, size: int, source_id: str, content_hash: bytes, sent_at: dt.datetime | None
) -> MailDocument | SkippedMessage:
    """A message of about `size` characters. It never raises for what is in the message."""
    if size > _LARGE_CHARS:
        return await asyncio.to_thread(_read, message, source_id, content_hash, sent_at)
    return _read(message, source_id, content_hash, sent_at)


def _read(
    message: Message, source_id: str, content_hash: bytes, sent_at: dt.datetime | None
) -> MailDocument | SkippedMessage:
    try:
        mail = read_mail(message, quotes=True)
    except Unreadable as unreadable:
        return SkippedMessage(source_id, unreadable.code, unreadable.message)
    title = mail.headers.get("Subject", "")
    own, old = quotation.split_quotation(mail.body, title)
    parts = ["\n".join(f"{name}: {value}" for name, value in mail.headers.items()), own]
    if old:
        parts.append(f"Quoted from earlier messages:\n{quotation.mark_quoted(old)}")
    parts.append(attachments_to_text(mail.attachments))
    return MailDocument(
        source_id=source_id,
        content_hash=content_hash,
        title=title,
        text="\n\n".join(filter(None, parts)) + "\n",
        sent_at=sent_at,
        sender=mail.headers.get("From", ""),
        recipients=", ".join(filter(None, (mail.headers.get("To"), mail.headers.get("Cc")))),
        attachments=mail.attachments,
        defects=mail.defects,
    )


def text_part(text: bytes, kind: str, charset: str = "utf-8") -> Message:
    """A part with this body, as it is after its transfer encoding was undone."""
    part = Message()
    part["Content-Type"] = kind
    part.set_param("charset", charset)
    part.set_payload(text.decode("ascii", "surrogateescape"))
    return part


def attachment_part(name: str, kind: str, size: object) -> Message:
    """A part that is not here, by what is known of it."""
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
    """A text of an answer, without what cannot be encoded: JSON may hold half a character."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""
