"""Splits a document into headings, labels, list items and sentences, and undoes line wrapping."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

# Longer lines are split, so that every rule takes time linear in the document's length.
MAX_LINE_CHARS = 2_000

_HEADING = re.compile(r"(#{1,6})\s+(.+)")
_BULLET = re.compile(r"(\s*)(?:[-*+•–]|\d{1,3}[.)])\s+(.*)")
_LABEL = re.compile(r"[\w*#/][\w*#/ -]{0,30}:")
_SENTENCE_END = re.compile(r"(?<=[^\d\s.][.!?])\s+")
_LINK = re.compile(r"!?\[([^\[\]\n]{1,300})\]\([^()\s]{0,500}\)")
_EMPHASIS = re.compile(r"(?<![\w*])\*([^*\n]{1,300})\*(?![\w*])")
_MARKDOWN_CHARS = frozenset("*_~`")
# A shorter line was ended by its author, not by wrapping.
_MIN_WRAPPED_CHARS = 50


@dataclass
class Line:
    kind: str  # heading, label (a short line that ends in a colon), item, text
    text: str
    indent: int = 0

    @cached_property
    def plain(self) -> str:
        """Return the text without Markdown. It is cached, so read it only once the line is complete."""
        return strip_markdown(self.text)


def read_lines(text: str) -> Iterator[Line]:
    """Yield the lines of a text, with wrapped items and paragraphs joined, and paragraphs split into sentences."""
    for line in _unwrapped_lines(text):
        if line.kind == "text":
            for sentence in _SENTENCE_END.split(line.text):
                yield Line("text", sentence, line.indent)
        else:
            yield line


def strip_markdown(text: str) -> str:
    """Return the text with links replaced by their labels, and without the signs of emphasis and code."""
    if "[" in text:
        text = _LINK.sub(r"\1", text)
    if not _MARKDOWN_CHARS.isdisjoint(text):
        for mark in ("**", "__", "~~", "`"):
            text = text.replace(mark, "")
        text = _EMPHASIS.sub(r"\1", text)
    return " ".join(text.split()).strip("*_ ")


def _unwrapped_lines(text: str) -> Iterator[Line]:
    last: Line | None = None
    wrapped = in_code_block = False
    for raw in _split_long_lines(text):
        stripped = raw.strip()
        if stripped.startswith("```"):
            in_code_block = not in_code_block
        line = (
            Line("text", stripped, len(raw) - len(raw.lstrip()))
            if in_code_block
            else _parse_line(raw, stripped)
        )
        joins = (
            last is not None
            and line is not None
            and line.kind == "text"
            and not in_code_block
            and not _LABEL.match(line.text)
            and len(last.text) + len(line.text) < MAX_LINE_CHARS
            and ((last.kind == "item" and line.indent > last.indent) or (last.kind == "text" and wrapped))
        )
        if joins and last is not None:
            last.text = f"{last.text} {stripped}"
        else:
            if last is not None:
                yield last
            last = line
        wrapped = not in_code_block and len(stripped) >= _MIN_WRAPPED_CHARS
    if last is not None:
        yield last


def _split_long_lines(text: str) -> Iterator[str]:
    for raw in text.split("\n"):
        line = raw.rstrip()
        for start in range(0, len(line) or 1, MAX_LINE_CHARS):
            yield line[start : start + MAX_LINE_CHARS]


def _parse_line(raw: str, stripped: str) -> Line | None:
    """Classify one line. Returns None for an empty line or a rule."""
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
