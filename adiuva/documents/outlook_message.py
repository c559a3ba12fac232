"""Reader of Outlook's MSG files. It composes a mail, and reads that like every other."""

from __future__ import annotations

import struct
from dataclasses import replace
from email.message import Message
from email.parser import HeaderParser
from email.utils import format_datetime
from typing import TYPE_CHECKING, Final

from adiuva.core.errors import Text
from adiuva.documents.document import Document
from adiuva.documents.errors import Unreadable
from adiuva.documents.mail import KIND, is_read, read_mail
from adiuva.documents.mail_content import PARSER_ERRORS

if TYPE_CHECKING:
    import oxmsg
    from oxmsg.attachment import Attachment

_HEADERS: Final = ("From", "To", "Cc", "Subject", "Date", "Message-ID")
# Properties, by their numbers in [MS-OXPROPS].
_TRANSPORT_HEADERS: Final = 0x007D
_DISPLAY_TO: Final = 0x0E04
_COMPRESSED_RTF: Final = 0x1009
_MESSAGE_ID: Final = 0x1035
_MAX_ATTACHED_BYTES: Final = 1024 * 1024
_MAX_ATTACHED: Final = 10


def read_msg(raw: bytes, kind: str) -> Document:
    """Read an MSG file. Raises Unreadable."""
    import oxmsg

    try:
        found = oxmsg.Message.load(raw)
        document = read_mail(_as_mail(found))
        if found.body or found.html_body or not found.properties.binary_prop_value(_COMPRESSED_RTF):
            return document
    except (*PARSER_ERRORS, OSError, struct.error, RecursionError) as error:
        raise Unreadable("it is damaged") from error
    return replace(document, problems=(Text("its text is in Outlook's own format, which cannot be read"),))


def _as_mail(found: oxmsg.Message) -> Message:
    """Make a mail of a message. Its properties fill in what the sender's headers lack."""
    headers = HeaderParser().parsestr(found.properties.str_prop_value(_TRANSPORT_HEADERS) or "")
    said = {name: str(headers[name]) for name in _HEADERS if headers[name]}
    sent = found.sent_date
    known = {
        "From": found.sender,
        "To": found.properties.str_prop_value(_DISPLAY_TO),
        "Subject": found.subject,
        "Date": format_datetime(sent) if sent else "",
        "Message-ID": found.properties.str_prop_value(_MESSAGE_ID),
    }
    mail = Message()
    for name in _HEADERS:
        if value := said.get(name) or known.get(name):
            mail[name] = " ".join(value.split())
    mail["Content-Type"] = "multipart/mixed"
    body = Message()
    body["Content-Type"] = "multipart/alternative"
    for kind, words in (("plain", found.body), ("html", found.html_body)):
        if words and words.strip("\0 \r\n"):
            body.attach(_part(f"text/{kind}; charset=utf-8", words.encode("utf-8", "replace")))
    mail.attach(body)
    for number, attachment in enumerate(found.attachments):
        mail.attach(_attached(attachment, number))
    return mail


def _attached(attachment: Attachment, number: int) -> Message:
    """Make a part of an attachment: its content if its kind is read, up to other mails' bounds; else name and size."""
    name = " ".join((attachment.file_name or "").split())
    said = attachment.mime_type or ""
    kind = said if "/" in said else "application/octet-stream"
    content = attachment.file_bytes or b""
    wanted = number < _MAX_ATTACHED and len(content) <= _MAX_ATTACHED_BYTES
    if wanted and kind != KIND and is_read(kind, name):
        part = _part(kind, content)
    else:
        part = _part("application/octet-stream", b"")
        part.replace_header(
            "Content-Type", kind if kind.isascii() and kind != KIND else "application/octet-stream"
        )
        part["Content-Disposition"] = "attachment"
        part.set_param("size", str(len(content)), "Content-Disposition")
    if "Content-Disposition" not in part:
        part["Content-Disposition"] = "attachment"
    part.set_param("filename", name, "Content-Disposition")
    return part


def _part(kind: str, content: bytes) -> Message:
    part = Message()
    part["Content-Type"] = kind
    part.set_payload(content.decode("ascii", "surrogateescape"))
    return part
