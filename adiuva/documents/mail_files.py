"""Files with mails in them: one mail, or a mailbox of many."""

from __future__ import annotations

import re
from typing import Final

from adiuva.documents.document import Document, Head
from adiuva.documents.errors import Unreadable
from adiuva.documents.mail import read_mail_bytes

_SEPARATOR: Final = re.compile(rb"(?:\A|(?<=\n))From [^\r\n]{1,200}\r?\n(?=[!-9;-~]{1,100}:|From )")
_ESCAPED: Final = re.compile(rb"^>(>*From )", re.MULTILINE)
_MAX_MAILS: Final = 2_000


def read_eml(raw: bytes, kind: str) -> Document:
    return read_mail_bytes(raw)


def read_mbox(raw: bytes, kind: str) -> Document:
    """Each mail under a heading with its subject. A mail that cannot be read costs that mail, and is said."""
    starts = [found.start() for found in _SEPARATOR.finditer(raw)]
    if not starts:
        raise Unreadable("there is no mail in it")
    ends = [*starts[1:], len(raw)]
    shown: list[str] = []
    problems: list[str] = []
    seen: set[str] = set()
    last = Head()
    for number, (start, end) in enumerate(zip(starts[:_MAX_MAILS], ends, strict=False), 1):
        piece = raw[start:end]
        try:
            mail = read_mail_bytes(_ESCAPED.sub(rb"\1", piece[piece.index(b"\n") + 1 :]))
        except Unreadable as unreadable:
            problems.append(f"mail {number} of it: {unreadable.message}")
            continue
        problems += [f"mail {number} of it: {problem}" for problem in mail.problems]
        if mail.head.message_id and mail.head.message_id in seen:
            continue
        seen.add(mail.head.message_id)
        shown.append(f"# Mail {number}: {mail.head.title}\n\n{mail.text}")
        last = mail.head
    if len(starts) > _MAX_MAILS:
        problems.append(f"{len(starts) - _MAX_MAILS} mails after the first {_MAX_MAILS} were left out")
    if not shown:
        raise Unreadable(problems[0] if problems else "there is no mail in it")
    head = last if len(shown) == 1 else Head()
    return Document("\n".join(shown), kind, head, problems=tuple(problems))
