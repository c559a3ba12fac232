"""Reads EPUB books: their chapters in reading order."""

from __future__ import annotations

import posixpath
from urllib.parse import unquote

from adiuva.documents.archive import Archive, attribute, local_name
from adiuva.documents.charset import decode
from adiuva.documents.cleaning import clean
from adiuva.documents.document import Document, Head, iso_date, one_line
from adiuva.documents.errors import Unreadable
from adiuva.documents.html import read_page


def read_epub(raw: bytes, kind: str) -> Document:
    archive = Archive(raw)
    try:
        container = archive.xml("META-INF/container.xml")
        package = next(
            attribute(each, "full-path") for each in container.iter() if local_name(each) == "rootfile"
        )
        root = archive.xml(package)
    except (KeyError, StopIteration):
        raise Unreadable("it is damaged") from None
    items = {
        attribute(each, "id"): posixpath.normpath(
            posixpath.join(posixpath.dirname(package), unquote(attribute(each, "href")))
        )
        for each in root.iter()
        if local_name(each) == "item"
    }
    chapters = [
        items.get(attribute(each, "idref"), "") for each in root.iter() if local_name(each) == "itemref"
    ]
    shown: list[str] = []
    missing = 0
    for name in chapters:
        try:
            text = read_page(decode(archive.bytes(name)).text).text
        except (KeyError, Unreadable):
            missing += 1
            continue
        if text.strip():
            shown.append(text)
    problems = (f"{missing} of its {len(chapters)} chapters cannot be read",) if missing else ()
    if not shown:
        raise Unreadable(problems[0] if problems else "there is no text in it")
    said: dict[str, str] = {}
    for each in root.iter():
        if local_name(each) in ("title", "creator", "date"):
            said.setdefault(local_name(each), one_line(clean(each.text or "")))
    head = Head(said.get("title", ""), iso_date(said.get("date", "")), said.get("creator", ""))
    return Document(clean("\n\n".join(shown)) + "\n", kind, head, problems=problems)
