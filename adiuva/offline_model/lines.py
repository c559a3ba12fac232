"""A document as headings, list items and sentences, each on one line, whatever way it was wrapped."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

MOST_CHARS = 2_000  # of one line; longer ones are read in pieces, so that every rule takes linear time

_HEADING = re.compile(r"(#{1,6})\s+(.+)")
_BULLET = re.compile(r"(\s*)(?:[-*+•–]|\d{1,3}[.)])\s+(.*)")
_LABEL = re.compile(r"[\w*#/][\w*#/ -]{0,30}:")
_SENTENCE_END = re.compile(r"(?<=[^\d\s.][.!?])\s+")
_LINK = re.compile(r"!?\[([^\[\]\n]{1,300})\]\([^()\s]{0,500}\)")
_EMPHASIS = re.compile(r"(?<![\w*])\*([^*\n]{1,300})\*(?![\w*])")
_MARKS = frozenset("*_~`")
_WRAPPED = 50  # a line shorter than this ended on purpose


@dataclass
class Line:
    kind: str  # heading, label (a short line that ends in a colon), item, text
    text: str
    indent: int = 0

    @cached_property
    def plain(self) -> str:
        """The text without Markdown's marks. Asked for when the line is whole."""
        return plain(self.text)


def read(text: str) -> Iterator[Line]:
    """The lines of a text. Wrapped items and paragraphs are joined again; text comes sentence by sentence."""
    for line in _joined(text):
        if line.kind == "text":
            for sentence in _SENTENCE_END.split(line.text):
                yield Line("text", sentence, line.indent)
        else:
            yield line


def plain(text: str) -> str:
    """Without Markdown's marks: links become their text, emphasis and code lose their signs."""
    if "[" in text:
        text = _LINK.sub(r"\1", text)
    if not _MARKS.isdisjoint(text):
        for mark in ("**", "__", "~~", "`"):
            text = text.replace(mark, "")
        text = _EMPHASIS.sub(r"\1", text)
    return " ".join(text.split()).strip("*_ ")


def _joined(text: str) -> Iterator[Line]:
    last: Line | None = None
    wrapped = fenced = False
    for raw in _pieces(text):
        stripped = raw.strip()
        if stripped.startswith("```"):
            fenced = not fenced
        line = Line("text", stripped, len(raw) - len(raw.lstrip())) if fenced else _line(raw, stripped)
        joins = (
            last is not None
            and line is not None
            and line.kind == "text"
            and not fenced
            and not _LABEL.match(line.text)
            and len(last.text) + len(line.text) < MOST_CHARS
            and ((last.kind == "item" and line.indent > last.indent) or (last.kind == "text" and wrapped))
        )
        if joins and last is not None:
            last.text = f"{last.text} {stripped}"
        else:
            if last is not None:
                yield last
            last = line
        wrapped = not fenced and len(stripped) >= _WRAPPED
    if last is not None:
        yield last


def _pieces(text: str) -> Iterator[str]:
    for raw in text.split("\n"):
        line = raw.rstrip()
        for start in range(0, len(line) or 1, MOST_CHARS):
            yield line[start : start + MOST_CHARS]


def _line(raw: str, stripped: str) -> Line | None:
    """The line by itself; None for an empty one."""
    if not stripped or stripped.strip("-=*_ ") == "":
        return None
    if stripped[0] == "#" and (match := _HEADING.fullmatch(stripped)):
        return Line("heading", match[2].rstrip("# "))
    if (stripped[0] in "-*+•–" or stripped[0].isdigit()) and (match := _BULLET.fullmatch(raw)):
        return Line("item", match[2].strip(), len(match[1]))
    bold = stripped.startswith("**") and stripped.endswith("**")
    if len(stripped) <= 60 and (stripped.rstrip("*_ ").endswith(":") or bold):
        return Line("label", stripped.strip("*_: "))
    return Line("text", stripped, len(raw) - len(raw.lstrip()))
