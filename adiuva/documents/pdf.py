"""Reader of PDF with PDFium, which repairs damaged files. It has no OCR, and reports pages that are pictures."""

from __future__ import annotations

import re
from typing import Final

from adiuva.documents.cleaning import clean
from adiuva.documents.document import Document, Head, iso_date, one_line
from adiuva.documents.errors import Unreadable

_MAX_PAGES: Final = 2_000
_MAX_CHARS: Final = 8 * 1024 * 1024
_DATE: Final = re.compile(r"D:(\d{4})(\d\d)(\d\d)")
# PDFium marks a hyphen at the end of a line with this.
_SOFT_HYPHEN: Final = re.compile("[\ufffe\u0002\u00ad]\\s*\n?")


def read_pdf(raw: bytes, kind: str) -> Document:
    import pypdfium2

    try:
        pdf = pypdfium2.PdfDocument(raw)
        count = len(pdf)
    except pypdfium2.PdfiumError as error:
        secured = "password" in str(error).lower() or "security" in str(error).lower()
        raise Unreadable("it is protected by a password" if secured else "it is damaged") from error
    texts: list[str] = []
    pictures = damaged = 0
    for number in range(min(count, _MAX_PAGES)):
        try:
            page = pdf[number]
            text = page.get_textpage().get_text_bounded()
        except pypdfium2.PdfiumError:
            damaged += 1
            continue
        text = clean(_SOFT_HYPHEN.sub("", text.replace("\r\n", "\n"))).strip()
        pictures += not text and next(page.get_objects(max_depth=2), None) is not None
        if text:
            texts.append(text)
        if sum(map(len, texts)) > _MAX_CHARS:
            damaged += min(count, _MAX_PAGES) - number - 1
            break
    problems = []
    if pictures:
        problems.append(f"{pictures} of its {count} pages are pictures without text")
    if damaged:
        problems.append(f"{damaged} of its {count} pages cannot be read")
    if count > _MAX_PAGES:
        problems.append(f"{count - _MAX_PAGES} pages after the first {_MAX_PAGES} were left out")
    if not texts:
        raise Unreadable(problems[0] if problems else "there is no text in it")
    said = pdf.get_metadata_dict()
    date = _DATE.match(said.get("CreationDate", ""))
    head = Head(
        title=one_line(clean(said.get("Title", ""))),
        date=iso_date("-".join(date.groups())) if date else "",
        sender=one_line(clean(said.get("Author", ""))),
    )
    return Document("\n\n".join(texts) + "\n", kind, head, problems=tuple(problems))
