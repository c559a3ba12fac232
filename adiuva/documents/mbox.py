"""Splitter of mbox files: each mail is a document of its own, which other modules read."""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

_HEADER: Final = re.compile(rb"[!-9;-~]{1,100}:|From |>From ")
_ESCAPED: Final = re.compile(rb"^>(?=>*From )", re.MULTILINE)
_LINE_BYTES: Final = 1024 * 1024
# Names of mails have no digits, because these could look like a date.
_LETTERS: Final = str.maketrans("0123456789", "ghijklmnop")


@dataclass(frozen=True, slots=True)
class MailInFile:
    """Mail of an mbox file: its place, and the hash of what `mail_bytes` makes of it."""

    start: int
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """Return a name that stays the same for the same mail, wherever in the file it is."""
        return f"{self.sha256[:16].translate(_LETTERS)}.eml"


def mails_of_mbox(file: BinaryIO, most: int) -> tuple[list[MailInFile], int]:
    """Return the last `most` mails, each once, and how many came before. It reads the file once, in pieces."""
    found: deque[MailInFile] = deque(maxlen=most)
    seen: set[str] = set()
    count = 0
    for mail in _mails(file):
        if mail.sha256 not in seen:
            seen.add(mail.sha256)
            found.append(mail)
            count += 1
    return list(found), count - len(found)


def mail_bytes(raw: bytes) -> bytes:
    """Return a mail as it was before it was put into an mbox file, which marks lines that look like the next mail's."""
    return _ESCAPED.sub(b"", raw)


def _mails(file: BinaryIO) -> Iterator[MailInFile]:
    start = place = 0
    digest = hashlib.sha256()
    is_inside = False
    separator = b""  # a line that begins a mail if a header follows
    at_line_start = True
    while line := file.readline(_LINE_BYTES):
        if separator:
            if _HEADER.match(line):
                if is_inside:
                    yield MailInFile(start, place - len(separator) - start, digest.hexdigest())
                start, digest, is_inside = place, hashlib.sha256(), True
            else:
                digest.update(separator)
            separator = b""
        place += len(line)
        if at_line_start and line.startswith(b"From ") and line.endswith(b"\n"):
            separator = line
        else:
            digest.update(mail_bytes(line) if at_line_start else line)
        at_line_start = line.endswith(b"\n")
    if is_inside:
        digest.update(separator)
        yield MailInFile(start, place - start, digest.hexdigest())
