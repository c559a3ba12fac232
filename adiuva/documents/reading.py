"""Reader of a file to a document, by its suffix: text in this process, every other kind in a process of its own."""

from __future__ import annotations

from pathlib import PurePosixPath

from adiuva.documents import isolation
from adiuva.documents.document import Document
from adiuva.documents.errors import Unreadable
from adiuva.documents.kinds import KINDS


def read_document(name: str, raw: bytes) -> Document:
    """Read a document. Blocks for at most isolation.MAX_SECONDS. Raises Unreadable with the reason."""
    kind = KINDS.get(PurePosixPath(name).suffix.lower())
    if kind is None:
        raise Unreadable("this kind of file cannot be read yet")
    if kind.isolated:
        if not raw.strip():
            raise Unreadable("it is empty")
        return isolation.shared_reader().read(name, raw)
    return kind.load()(raw, kind.type)
