"""Small, valid files of the kinds that have a container, made from lines of text."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Sequence
from html import escape
from typing import Final

_W: Final = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_R: Final = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_RELS: Final = "http://schemas.openxmlformats.org/package/2006/relationships"
_TYPES: Final = "http://schemas.openxmlformats.org/package/2006/content-types"


def zipped(**members: str | bytes) -> bytes:
    """An archive; "__" in a name stands for a slash, "_dot_" for a dot."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), content)
    return file.getvalue()


def packed(members: dict[str, str]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def core(title: str, created: str) -> str:
    return (
        '<cp:coreProperties xmlns:cp="http://schemas.openxmlformats.org/package/2006/metadata/core-properties"'
        ' xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:dcterms="http://purl.org/dc/terms/">'
        f"<dc:title>{escape(title)}</dc:title><dcterms:created>{created}</dcterms:created></cp:coreProperties>"
    )


def docx(title: str, lines: Sequence[str], body: str = "") -> bytes:
    paragraphs = "".join(
        f'<w:p><w:r><w:t xml:space="preserve">{escape(line)}</w:t></w:r></w:p>' for line in [title, *lines]
    )
    return packed(
        {
            "[Content_Types].xml": f'<Types xmlns="{_TYPES}"/>',
            "_rels/.rels": f'<Relationships xmlns="{_RELS}"><Relationship Id="r1" Type="{_R}/officeDocument"'
            ' Target="word/document.xml"/></Relationships>',
            "docProps/core.xml": core(title, "2026-01-05T09:00:00Z"),
            "word/document.xml": f'<w:document xmlns:w="{_W}"><w:body>{paragraphs}{body}</w:body></w:document>',
        }
    )


def pptx(title: str, lines: Sequence[str]) -> bytes:
    drawing = "http://schemas.openxmlformats.org/drawingml/2006/main"
    presentation = "http://schemas.openxmlformats.org/presentationml/2006/main"

    def slide(texts: Sequence[str]) -> str:
        said = "".join(f"<a:p><a:r><a:t>{escape(text)}</a:t></a:r></a:p>" for text in texts)
        return f'<p:sld xmlns:p="{presentation}" xmlns:a="{drawing}"><p:txBody>{said}</p:txBody></p:sld>'

    half = len(lines) // 2
    return packed(
        {
            "ppt/presentation.xml": f'<p:presentation xmlns:p="{presentation}" xmlns:r="{_R}"><p:sldIdLst>'
            '<p:sldId id="256" r:id="r2"/><p:sldId id="257" r:id="r1"/></p:sldIdLst></p:presentation>',
            "ppt/_rels/presentation.xml.rels": f'<Relationships xmlns="{_RELS}"><Relationship Id="r1" Type="s"'
            ' Target="slides/slide1.xml"/><Relationship Id="r2" Type="s" Target="slides/slide2.xml"/></Relationships>',
            "ppt/slides/slide1.xml": slide(lines[half:]),
            "ppt/slides/slide2.xml": slide([title, *lines[:half]]),
        }
    )


def xlsx(title: str, rows: Sequence[Sequence[str]]) -> bytes:
    sheet = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    cells = "".join(
        f'<row r="{number}">'
        + "".join(
            f'<c r="{chr(65 + column)}{number}" t="inlineStr"><is><t>{escape(text)}</t></is></c>'
            for column, text in enumerate(row)
        )
        + "</row>"
        for number, row in enumerate(rows, 1)
    )
    return packed(
        {
            "[Content_Types].xml": f'<Types xmlns="{_TYPES}"/>',
            "_rels/.rels": f'<Relationships xmlns="{_RELS}"><Relationship Id="r1" Type="{_R}/officeDocument"'
            ' Target="xl/workbook.xml"/></Relationships>',
            "xl/workbook.xml": f'<workbook xmlns="{sheet}" xmlns:r="{_R}"><sheets>'
            f'<sheet name="{escape(title[:30])}" sheetId="1" r:id="r1"/></sheets></workbook>',
            "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{_RELS}"><Relationship Id="r1"'
            f' Type="{_R}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
            "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{sheet}"><sheetData>{cells}</sheetData></worksheet>',
        }
    )


def odt(title: str, lines: Sequence[str]) -> bytes:
    office = "urn:oasis:names:tc:opendocument:xmlns:office:1.0"
    text = "urn:oasis:names:tc:opendocument:xmlns:text:1.0"
    items = "".join(f"<text:list-item><text:p>{escape(line)}</text:p></text:list-item>" for line in lines)
    return packed(
        {
            "mimetype": "application/vnd.oasis.opendocument.text",
            "content.xml": f'<office:document-content xmlns:office="{office}" xmlns:text="{text}"><office:body>'
            f'<office:text><text:h text:outline-level="1">{escape(title)}</text:h><text:list>{items}</text:list>'
            "</office:text></office:body></office:document-content>",
        }
    )


def epub(title: str, lines: Sequence[str]) -> bytes:
    said = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return packed(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": '<container><rootfiles><rootfile full-path="O/a.opf"/></rootfiles></container>',
            "O/a.opf": '<package xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata>'
            f"<dc:title>{escape(title)}</dc:title></metadata><manifest>"
            '<item id="c1" href="one.xhtml"/></manifest><spine><itemref idref="c1"/></spine></package>',
            "O/one.xhtml": f"<html><body><h1>{escape(title)}</h1>{said}</body></html>",
        }
    )


def rtf(title: str, lines: Sequence[str]) -> bytes:
    def words(line: str) -> str:
        return "".join(
            sign
            if sign < "\x80" and sign not in "\\{}"
            else f"\\u{ord(sign) - (65536 if ord(sign) > 32767 else 0)}?"
            for sign in line
        )

    said = "".join(f"{words(line)}\\par\n" for line in [title, *lines])
    return f"{{\\rtf1\\ansi\\ansicpg1252\\uc1\n{said}}}".encode("ascii")


def as_drawn(line: str) -> str:
    """A line of a script that is written from right to left, from its left end: numbers keep their order."""
    if not any("\u0590" <= sign <= "\u05ff" for sign in line):
        return line
    return re.sub(r"\d+", lambda found: found[0][::-1], line[::-1])


def pdf(title: str, lines: Sequence[str]) -> bytes:
    """One page; a font that is not embedded, whose characters a table names, so that any script can be read."""
    lines = [as_drawn(line) for line in lines]
    codes = {sign: number for number, sign in enumerate(sorted(set("".join([title, *lines]))), 1)}
    table = "\n".join(
        f"<{number:04X}> <{sign.encode('utf-16-be').hex().upper()}>" for sign, number in codes.items()
    )
    entries = table.split("\n")
    groups = "\n".join(
        f"{len(group)} beginbfchar\n" + "\n".join(group) + "\nendbfchar"
        for group in (entries[start : start + 100] for start in range(0, len(entries), 100))
    )
    names = (
        "/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /A def /CMapType 2 def\n"
        f"1 begincodespacerange <0000> <FFFF> endcodespacerange\n{groups}\nendcmap end end"
    )
    shown = "\n".join(
        f"BT /F1 10 Tf 20 {800 - 14 * number} Td <{''.join(f'{codes[sign]:04X}' for sign in line)}> Tj ET"
        for number, line in enumerate([title, *lines])
    )
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        "<</Type/Pages/Kids[3 0 R]/Count 1>>",
        "<</Type/Page/Parent 2 0 R/MediaBox[0 0 2000 820]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        f"<</Length {len(shown)}>>stream\n{shown}\nendstream",
        "<</Type/Font/Subtype/Type0/BaseFont/A/Encoding/Identity-H/DescendantFonts[6 0 R]/ToUnicode 7 0 R>>",
        "<</Type/Font/Subtype/CIDFontType2/BaseFont/A/CIDSystemInfo<</Registry(Adobe)/Ordering(Identity)/Supplement 0>>"
        "/DW 600>>",
        f"<</Length {len(names)}>>stream\n{names}\nendstream",
    ]
    out = b"%PDF-1.4\n"
    places = []
    for number, each in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj{each}endobj\n".encode()
    start = len(out)
    rows = "".join(f"{place:010d} 00000 n \n" for place in places)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{rows}".encode()
    return out + f"trailer<</Size {len(objects) + 1}/Root 1 0 R>>\nstartxref\n{start}\n%%EOF\n".encode()
