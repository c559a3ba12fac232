"""Readers of the kinds that are text already: plain text, calendars, subtitles, HTML, Evernote's export."""

from __future__ import annotations

import re
from typing import Final, TypedDict

from adiuva.documents.charset import Decoded, decode
from adiuva.documents.cleaning import clean
from adiuva.documents.content_lines import content_lines_to_text
from adiuva.documents.document import Document, Head, iso_date
from adiuva.documents.errors import Unreadable
from adiuva.documents.html import read_page

_META_CHARSET: Final = re.compile(
    rb"""<meta[^>]{0,200}charset\s*=\s*["']?([a-zA-Z0-9_-]{2,40})|<\?xml[^>]{0,200}encoding=["']([a-zA-Z0-9_-]{2,40})""",
    re.IGNORECASE,
)
_META_DATE: Final = re.compile(
    r"""<meta[^>]{0,200}(?:name|property)=["']?(?:date|dcterms\.created|article:published_time)["'][^>]{0,100}"""
    r"""content=["']([^"'>]{4,60})""",
    re.IGNORECASE,
)
_CUE_TIME: Final = re.compile(
    r"(?:\d{1,4}:)?\d{1,2}:\d\d[.,]\d{3}[ \t]*-->[ \t]*(?:\d{1,4}:)?\d{1,2}:\d\d[.,]\d{3}.*"
)
_VOICE: Final = re.compile(r"<v(?:\.[\w.]{1,60})?[ \t]+([^>]{1,100})>")
_CUE_TAG: Final = re.compile(
    r"</?(?:[bciuv]|ruby|rt|lang|font)(?:[. ][^>]{0,200})?>|<\d[\d:.]{4,14}>|\{\\[^}]{0,40}\}"
)
_BLOCKS_BESIDE: Final = re.compile(r"(?:NOTE|STYLE|REGION)(?:[ \t]|$)")
_NOTE: Final = re.compile(r"<note\b[^>]*>(.*?)(?:</note>|\Z)", re.DOTALL | re.IGNORECASE)
_ENEX_TITLE: Final = re.compile(r"<title>(.*?)</title>", re.DOTALL)
_ENEX_CREATED: Final = re.compile(r"<created>(\d{8})")
_ENEX_CONTENT: Final = re.compile(
    r"<content>(?:\s*<!\[CDATA\[)?(.*?)(?:\]\]>\s*)?(?:</content>|\Z)", re.DOTALL
)
_PROLOGUE: Final = re.compile(r"\A\s*(?:<\?xml[^>]*\?>\s*)?(?:<!DOCTYPE[^>]*>)?", re.IGNORECASE)


def read_text(raw: bytes, kind: str) -> Document:
    decoded = _decoded(raw)
    return Document(decoded.text, kind, **_about(decoded))


def read_content_lines(raw: bytes, kind: str) -> Document:
    decoded = _decoded(raw)
    # Encoded photos are left out first, so that they cost nothing.
    return _not_empty(Document(clean(content_lines_to_text(decoded.text)), kind, **_about(decoded)), raw)


def read_subtitles(raw: bytes, kind: str) -> Document:
    """Return captions and transcripts: what is said, one cue a line, with the speaker's name if it is given."""
    decoded = _decoded(raw)
    lines: list[str] = []
    for block in re.split(r"\n[ \t]*\n", decoded.text):
        cue = [line.strip() for line in block.strip("\n").split("\n")]
        if not cue or not cue[0] or _BLOCKS_BESIDE.match(cue[0]):
            continue
        timed = next((number for number, line in enumerate(cue) if _CUE_TIME.fullmatch(line)), -1)
        if cue[0].startswith("WEBVTT"):
            head = cue[0].removeprefix("WEBVTT").strip(" -")
            lines += [head] if head else []
            if timed < 0:
                continue  # the rest of the file's header, such as "Kind: captions"
        said = " ".join(_CUE_TAG.sub("", _VOICE.sub(r"\1: ", line)) for line in cue[timed + 1 :]).strip()
        if said and (not lines or lines[-1] != said):
            lines.append(said)
    return _not_empty(Document("\n".join(lines) + "\n" if lines else "", kind, **_about(decoded)), raw)


def read_html(raw: bytes, kind: str) -> Document:
    declared = _META_CHARSET.search(raw[:4096])
    label = (declared[1] or declared[2]).decode() if declared else ""
    decoded = _decoded(raw, label)
    page = read_page(decoded.text)
    date = _META_DATE.search(decoded.text[:20_000])
    head = Head(title=clean(page.title), date=iso_date(date[1]) if date else "")
    return _not_empty(Document(clean(page.text), kind, head, **_about(decoded)), raw)


def read_enex(raw: bytes, kind: str) -> Document:
    """Return notes exported from Evernote, each under its title."""
    decoded = _decoded(raw)
    shown: list[str] = []
    titles: list[tuple[str, str]] = []
    for note in _NOTE.finditer(decoded.text):
        head = note[1].partition("<content>")[0]
        title = read_page(found[1]).text.strip() if (found := _ENEX_TITLE.search(head)) else ""
        date = iso_date(found[1]) if (found := _ENEX_CREATED.search(note[1])) else ""
        content = _ENEX_CONTENT.search(note[1])
        body = read_page(_PROLOGUE.sub("", content[1])).text if content else ""
        if title or body:
            titles.append((title, date))
            dated = f"Date: {date}\n\n" if date else ""
            shown.append(f"# {title or 'Without a title'}\n\n{dated}{body}")
    first = titles[0] if len(titles) == 1 else ("", "")
    document = Document(clean("\n\n".join(shown)), kind, Head(*first), **_about(decoded))
    return _not_empty(document, raw)


def _decoded(raw: bytes, label: str = "") -> Decoded:
    """Return the decoded and cleaned text. Raises Unreadable if it is not text."""
    decoded = decode(raw, label)
    return decoded._replace(text=clean(decoded.text, refuse_other_files=True))


class _About(TypedDict):
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def _about(decoded: Decoded) -> _About:
    """Return the document of a text, with problems and notes."""
    return {
        "problems": (decoded.problem,) if decoded.problem else (),
        "notes": (decoded.note,) if decoded.note else (),
    }


def _not_empty(document: Document, raw: bytes) -> Document:
    if raw.strip() and not document.text.strip():
        raise Unreadable("there is no text in it")
    return document
