"""Readers of OpenDocument texts and presentations (ODT, ODP)."""

from __future__ import annotations

from typing import Final
from xml.etree import ElementTree

from adiuva.documents.archive import Archive, attribute, local_name
from adiuva.documents.cleaning import clean
from adiuva.documents.document import Document, Head, iso_date, one_line
from adiuva.documents.errors import Unreadable

_LEFT_OUT: Final = frozenset({"tracked-changes", "script", "forms", "sequence-decls", "settings"})


def read_open_document(raw: bytes, kind: str) -> Document:
    archive = Archive(raw)
    try:
        root = archive.xml("content.xml")
    except KeyError:
        raise Unreadable("it is damaged") from None
    struck = {
        attribute(style, "name")
        for style in root.iter()
        if local_name(style) == "style"
        and any(attribute(each, "text-line-through-style") not in ("", "none") for each in style)
    }
    lines: list[str] = []
    for body in root.iter():
        if local_name(body) == "body":
            _Writer(struck, lines).block(body, 0)
    text = clean("\n".join(lines)).strip("\n")
    if not text.strip():
        raise Unreadable("there is no text in it")
    return Document(text + "\n", kind, _head(archive))


class _Writer:
    def __init__(self, struck: set[str], lines: list[str]) -> None:
        self._struck, self._lines = struck, lines

    def block(self, element: ElementTree.Element, level: int) -> None:
        """Return the lines of everything inside; `level`: of lists around it. The archive's reader bounds the depth."""
        for child in element:
            name = local_name(child)
            if name in _LEFT_OUT:
                continue
            if name == "h":
                depth = attribute(child, "outline-level")
                marks = "#" * min(6, int(depth)) if depth.isdigit() and int(depth) else "#"
                self._lines += ["", f"{marks} {self.words(child)}", ""]
            elif name == "p":
                text = self.words(child)
                self._lines += [text] if level else [text, ""]
            elif name == "list-item":
                start = len(self._lines)
                self.block(child, level)
                self._bullet(start, level)
            elif name == "list":
                self.block(child, level + 1)
            elif name == "table-row":
                cells = [each for each in child if local_name(each) in ("table-cell", "covered-table-cell")]
                row = " | ".join(self._cell(cell) for cell in cells).rstrip(" |")
                self._lines += [row] if row else []
            elif name == "page":
                self._lines += ["", f"## {attribute(child, 'name')}", ""]
                self.block(child, level)
            else:
                self.block(child, level)

    def _bullet(self, start: int, level: int) -> None:
        if start < len(self._lines) and self._lines[start].strip():
            self._lines[start] = f"{'  ' * (level - 1)}- {self._lines[start].lstrip()}"

    def _cell(self, cell: ElementTree.Element) -> str:
        lines: list[str] = []
        _Writer(self._struck, lines).block(cell, 0)
        return "; ".join(line.strip() for line in lines if line.strip())

    def words(self, element: ElementTree.Element) -> str:
        """Return the text of a paragraph, including frames and notes inside it."""
        pieces = [element.text or ""]
        for child in element:
            name = local_name(child)
            if name == "s":
                count = attribute(child, "c")
                pieces.append(" " * (min(int(count), 100) if count.isdigit() else 1))
            elif name == "tab":
                pieces.append("\t")
            elif name == "line-break":
                pieces.append("\n")
            elif name == "annotation":
                pieces.append(f" [Comment: {' '.join(''.join(child.itertext()).split())}] ")
            elif name not in _LEFT_OUT:
                text = self.words(child)
                if attribute(child, "style-name") in self._struck and text.strip():
                    text = f"~~{text.strip()}~~"
                pieces.append(text + ("\n" if name == "p" else ""))
            pieces.append(child.tail or "")
        text = "".join(pieces)
        if (
            attribute(element, "style-name") in self._struck
            and local_name(element) in ("p", "h")
            and text.strip()
        ):
            return f"~~{text.strip()}~~"
        return text


def _head(archive: Archive) -> Head:
    try:
        root = archive.xml("meta.xml")
    except (KeyError, Unreadable):
        return Head()
    said = {local_name(each): one_line(clean(each.text or "")) for each in root.iter()}
    date = iso_date(said.get("creation-date", "") or said.get("date", ""))
    return Head(said.get("title", ""), date, said.get("initial-creator", "") or said.get("creator", ""))
