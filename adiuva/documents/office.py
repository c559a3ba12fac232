"""Readers of Office's documents: DOCX, PPTX, XLSX and XLS (and ODS, which the same library reads), RTF."""

from __future__ import annotations

import datetime as dt
import io
import re
from collections.abc import Iterator
from typing import Any, Final
from xml.etree import ElementTree

from adiuva.documents.archive import ZIP_ERRORS, Archive, attribute, local_name
from adiuva.documents.charset import decode
from adiuva.documents.cleaning import clean
from adiuva.documents.document import Document, Head, iso_date, one_line
from adiuva.documents.errors import Unreadable
from adiuva.documents.html import html_to_text

_MAX_ROWS: Final = 100_000
_MAX_CHARS: Final = 8 * 1024 * 1024
_NUMBER: Final = re.compile(r"(\d+)\.xml$")
_RTF_INFO: Final = re.compile(r"\{\\title ([^{}]{1,300})\}")


def read_docx(raw: bytes, kind: str) -> Document:
    """Read a DOCX by way of HTML: headings, lists, tables, struck text, notes; no text that tracked changes deleted."""
    import mammoth

    archive = Archive(raw)
    for name in archive.names:  # within bounds, before a library unpacks it
        if name.endswith((".xml", ".rels")):
            archive.xml(name)
    nothing = mammoth.images.img_element(lambda image: {})
    try:
        page = mammoth.convert_to_html(
            io.BytesIO(raw),
            convert_image=nothing,
            style_map="strike => s\ncomment-reference => sup",
            external_file_access=False,
        )
    except (*ZIP_ERRORS, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise Unreadable("it is damaged") from error
    text = clean(html_to_text(page.value))
    if not text.strip():
        raise Unreadable("there is no text in it")
    return Document(text + "\n", kind, _core_head(archive))


def read_pptx(raw: bytes, kind: str) -> Document:
    """Read each slide under a heading, with its tables and its notes."""
    archive = Archive(raw)
    slides = _slides(archive)
    shown: list[str] = []
    for number, name in enumerate(slides, 1):
        lines = list(_drawn(archive.xml(name)))
        notes = [
            line
            for target in archive.related(name).values()
            if "/notesSlides/" in target and target in archive.names
            for line in _drawn(archive.xml(target))
            if not line.strip().isdigit()  # the slide's number
        ]
        if notes:
            lines += ["", "Notes:", *notes]
        if lines:
            shown.append("\n".join([f"## Slide {number}", "", *lines]))
    if not shown:
        raise Unreadable("there is no text in it")
    return Document(clean("\n\n".join(shown)) + "\n", kind, _core_head(archive))


def _slides(archive: Archive) -> list[str]:
    """Return the slides' members in the order of the presentation; those it does not name, by number."""
    found = sorted(
        (name for name in archive.names if re.fullmatch(r"ppt/slides/[^/]+\.xml", name)),
        key=lambda name: (int(match[1]) if (match := _NUMBER.search(name)) else 0, name),
    )
    try:
        related = archive.related("ppt/presentation.xml")
        listed = [
            related.get(attribute_of_relationship(each), "")
            for each in archive.xml("ppt/presentation.xml").iter()
            if local_name(each) == "sldId"
        ]
    except KeyError:
        listed = []
    if not found and not listed:
        raise Unreadable("there are no slides in it")
    return [name for name in listed if name in archive.names] or found


def attribute_of_relationship(element: ElementTree.Element) -> str:
    """Return the `r:id` of an element, which may also have an `id`."""
    return next((value for key, value in element.attrib.items() if key.endswith("relationships}id")), "")


def _drawn(root: ElementTree.Element) -> Iterator[str]:
    """Yield the lines of a slide: paragraphs, and the rows of tables."""
    inside_tables: set[ElementTree.Element] = set()
    for element in root.iter():
        name = local_name(element)
        if name == "tbl":
            inside_tables.update(each for each in element.iter() if local_name(each) == "p")
            for row in element:
                if local_name(row) == "tr":
                    cells = (cell for cell in row if local_name(cell) == "tc")
                    yield " | ".join(" ".join(_paragraphs(cell)).strip() for cell in cells)
        elif name == "p" and element not in inside_tables and (line := _paragraph(element)).strip():
            yield line


def _paragraphs(element: ElementTree.Element) -> Iterator[str]:
    return (_paragraph(each) for each in element.iter() if local_name(each) == "p")


def _paragraph(paragraph: ElementTree.Element) -> str:
    pieces: list[str] = []
    level = 0
    for element in paragraph.iter():
        name = local_name(element)
        if name == "pPr":
            level = int(said) if (said := attribute(element, "lvl")).isdigit() else 0
        elif name in ("r", "fld"):
            text = "".join(each.text or "" for each in element if local_name(each) == "t")
            struck = any(attribute(each, "strike") in ("sngStrike", "dblStrike") for each in element)
            pieces.append(f"~~{text}~~" if struck and text.strip() else text)
        elif name == "br":
            pieces.append("\n")
    line = "".join(pieces)
    return f"{'  ' * (min(level, 8) - 1)}- {line}" if level and line.strip() else line


def read_sheets(raw: bytes, kind: str) -> Document:
    """Read each visible sheet under a heading, its rows with bars between the cells."""
    import python_calamine

    try:
        book = python_calamine.CalamineWorkbook.from_filelike(io.BytesIO(raw))
        names = [
            each.name
            for each in book.sheets_metadata
            if each.typ == python_calamine.SheetTypeEnum.WorkSheet
            and each.visible == python_calamine.SheetVisibleEnum.Visible
        ]
    except python_calamine.PasswordError as error:
        raise Unreadable("it is protected by a password") from error
    except (python_calamine.CalamineError, ValueError, OSError) as error:
        raise Unreadable("it is damaged") from error
    shown: list[str] = []
    problems: list[str] = []
    chars = 0
    for name in names:
        try:
            rows = book.get_sheet_by_name(name).to_python(skip_empty_area=True)
        except (python_calamine.CalamineError, ValueError, OSError):
            problems.append(f"its sheet {name[:60]!r} cannot be read")
            continue
        lines = [line for row in rows[:_MAX_ROWS] if (line := " | ".join(map(_cell, row)).rstrip(" |"))]
        chars += sum(map(len, lines))
        if len(rows) > _MAX_ROWS or chars > _MAX_CHARS:
            problems.append(f"its sheet {name[:60]!r} is too long to be read whole")
            lines = lines[: max(1, _MAX_ROWS // 10)]
        if lines:
            shown.append("\n".join([f"## {name}", "", *lines]))
    if not shown:
        raise Unreadable(problems[0] if problems else "there is no text in it")
    try:
        head = _core_head(Archive(raw))
    except Unreadable:
        head = Head()  # files of the older kind have none
    return Document(clean("\n\n".join(shown)) + "\n", kind, head, problems=tuple(problems))


def _cell(value: Any) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, dt.datetime) and value.time() == dt.time():
        return value.date().isoformat()
    if isinstance(value, dt.datetime):
        return value.isoformat(" ", "minutes")
    return " ".join(str(value).split())


def read_rtf(raw: bytes, kind: str) -> Document:
    from striprtf.striprtf import rtf_to_text

    if not raw.lstrip().startswith(b"{\\rtf"):
        raise Unreadable("it is damaged")
    source = raw.decode("ascii") if raw.isascii() else decode(raw, "windows-1252").text
    title = _RTF_INFO.search(source)
    try:
        text = str(rtf_to_text(source, encoding="cp1252", errors="replace"))  # type: ignore[no-untyped-call]
    except (ValueError, LookupError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise Unreadable("it is damaged") from error
    if not text.strip():
        raise Unreadable("there is no text in it")
    # Cells end with a bar, including the last one of a row.
    lines = "\n".join(line.rstrip().removesuffix("|").replace("|", " | ") for line in text.split("\n"))
    return Document(clean(lines), kind, Head(title=one_line(title[1]) if title else ""))


def _core_head(archive: Archive) -> Head:
    """Return title, author and date of an Office document, from its properties."""
    try:
        root = archive.xml("docProps/core.xml")
    except (KeyError, Unreadable):
        return Head()
    said = {local_name(each): one_line(clean(each.text or "")) for each in root}
    date = iso_date(said.get("created", "") or said.get("modified", ""))
    return Head(said.get("title", ""), date, said.get("creator", ""))
