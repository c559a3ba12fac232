"""Document readers: files and messages to text, for a device's folders and for mailboxes. Independent of Django."""

from __future__ import annotations

from adiuva.documents.document import Attachment, Document, Head
from adiuva.documents.errors import Unreadable
from adiuva.documents.parts import Part, cut_into_parts

__all__ = ["Attachment", "Document", "Head", "Part", "Unreadable", "cut_into_parts"]
