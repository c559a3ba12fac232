"""Kinds of files that are read: by suffix, with the media type and the reader of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Final

from adiuva.documents.document import Document

Reader = Callable[[bytes, str], Document]


@dataclass(frozen=True, slots=True)
class Kind:
    """Kind of file. `reader`: "module:function" in this package, called with the bytes and the media type.

    `isolated`: it is read in a process with limits, because its format is complex enough to harm its reader.
    `shares_process`: the process may have read others before, because its reader is Python of our own, which no file
    takes over.
    """

    type: str
    reader: str
    isolated: bool = True
    shares_process: bool = False

    def load(self) -> Reader:
        module, _, name = self.reader.partition(":")
        found: Reader = getattr(import_module(f"adiuva.documents.{module}"), name)
        return found


def _kinds(reader: str, isolated: bool = True, shares_process: bool = False, **types: str) -> dict[str, Kind]:
    return {f".{suffix}": Kind(media, reader, isolated, shares_process) for suffix, media in types.items()}


_OFFICE: Final = "application/vnd.openxmlformats-officedocument."
KINDS: Final[dict[str, Kind]] = {
    **_kinds(
        "text:read_text",
        isolated=False,
        md="text/markdown",
        markdown="text/markdown",
        txt="text/plain",
        text="text/plain",
        log="text/plain",
        org="text/org",
        rst="text/x-rst",
        adoc="text/asciidoc",
        csv="text/csv",
        tsv="text/tab-separated-values",
        json="application/json",
        jsonl="application/jsonl",
        yaml="application/yaml",
        yml="application/yaml",
        toml="application/toml",
        xml="application/xml",
        tex="text/x-tex",
    ),
    **_kinds("text:read_content_lines", isolated=False, ics="text/calendar", vcf="text/vcard"),
    **_kinds("text:read_subtitles", isolated=False, vtt="text/vtt", srt="application/x-subrip"),
    **_kinds(
        "text:read_html",
        shares_process=True,
        html="text/html",
        htm="text/html",
        xhtml="application/xhtml+xml",
    ),
    **_kinds("text:read_enex", shares_process=True, enex="application/enex+xml"),
    **_kinds("mail:read_eml", shares_process=True, eml="message/rfc822"),
    **_kinds("outlook_message:read_msg", msg="application/vnd.ms-outlook"),
    **_kinds("pdf:read_pdf", pdf="application/pdf"),
    **_kinds("office:read_docx", docx=f"{_OFFICE}wordprocessingml.document"),
    **_kinds("office:read_pptx", pptx=f"{_OFFICE}presentationml.presentation"),
    **_kinds(
        "office:read_sheets",
        xlsx=f"{_OFFICE}spreadsheetml.sheet",
        xls="application/vnd.ms-excel",
        ods="application/vnd.oasis.opendocument.spreadsheet",
    ),
    **_kinds("office:read_rtf", rtf="application/rtf"),
    **_kinds(
        "open_document:read_open_document",
        odt="application/vnd.oasis.opendocument.text",
        odp="application/vnd.oasis.opendocument.presentation",
    ),
    **_kinds("epub:read_epub", epub="application/epub+zip"),
}
# Files that hold documents: listing a folder takes them apart.
MAILBOXES: Final = frozenset({".mbox"})
READABLE: Final = frozenset(KINDS) | MAILBOXES
