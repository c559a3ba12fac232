"""Reads documents: files and messages to text, for a device's folders and for mailboxes. Independent of Django."""

from __future__ import annotations

from adiuva.core.errors import AdiuvaError
from adiuva.documents.document import Attachment, Document, Head
from adiuva.documents.parts import Part, cut_into_parts

__all__ = ["Attachment", "Document", "Head", "Part", "Unreadable", "cut_into_parts"]


class Unreadable(AdiuvaError):
    """A file or message cannot be read. The error's message is the reason, in a few words, for the run's journal."""

    code = "unreadable"
