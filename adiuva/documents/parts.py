"""Cutter of a long text into parts for a model: between items, never inside one. Each part knows its document.

An item is a heading, a paragraph, a list item with the lines that belong to it, a row of a table, or a block of code.
The texts of the parts, joined, are the whole text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from adiuva.documents.document import Head, one_line

_MAX_CONTEXT_CHARS: Final = 1_200
_MAX_LINE_CHARS: Final = 200
# At most this many headings and blank lines in a row move to the next part together with what they stand above.
_MOVED_HEADINGS: Final = 12
# A head that stands within this many characters of the text is not repeated in the first part.
_BEGINNING_CHARS: Final = 2_000

_HEADING: Final = re.compile(r"(#{1,6})[ \t]+\S")
_UNDERLINE: Final = re.compile(r"(=+|-+)[ \t]*$")
_ITEM: Final = re.compile(r"([ \t]*)(?:[-*+•◦▪–]|\(?\d{1,4}[.)]|\[[ xX]?\])(?:[ \t]|$)")
_FENCE: Final = re.compile(r"[ \t]{0,3}(`{3,}|~{3,})")
_RULE_ROW: Final = re.compile(r"[ \t]*\|?[ \t]*:?-{3,}:?[ \t]*(?:\|[ \t]*:?-{3,}:?[ \t]*)*\|?[ \t]*$")
_INDENT: Final = re.compile(r"[ \t]*")
_SENTENCE_END: Final = re.compile(r"[.!?…](?=\s)|[。！？]")
_SEPARATED: Final = frozenset({"text/csv", "text/tab-separated-values"})

# The beginnings of a heading, list item, underline, fence or row, besides a digit.
_MARKS: Final = frozenset("#`~-*+•◦▪–([=|")

Shape = Literal["heading", "item", "row", "text", "blank"]
Look = Literal["blank", "plain", "marked"]


@dataclass(frozen=True, slots=True)
class Part:
    """Part of a text. `text` begins at the character `start` of the document. `context` has the lines of the document
    that are needed to understand this part and are not in it; it is empty if none are."""

    number: int
    count: int
    start: int
    text: str
    context: str = ""


class _Unit(NamedTuple):
    """Item of a text. `depth`: a heading's level, or a list item's indentation."""

    start: int
    end: int
    shape: Shape
    depth: int = 0


def cut_into_parts(text: str, *, most_chars: int, head: Head | None = None, kind: str = "") -> list[Part]:
    """Return parts of at most `most_chars`; none for a text without words. It cuts only an item that is longer by
    itself, at the end of a sentence, line or word. `kind`: the media type, which identifies tables of separated
    values."""
    if not text.strip():
        return []
    head = head or Head()
    if len(text) <= most_chars:
        return [Part(1, 1, 0, text, _context(head, text, [], ""))]
    units = _units(text, is_table=kind in _SEPARATED)
    pieces = _pack(text, units, most_chars)
    above = _Above(text, units)
    return [
        Part(number, len(pieces), start, text[start:end], _context(head, text[start:end], *above.at(start)))
        for number, (start, end) in enumerate(pieces, 1)
    ]


# ── Items ───────────────────────────────────────────────────────────────────────────────────────────────


def _units(text: str, *, is_table: bool) -> list[_Unit]:
    """Yield the items in order; together they are the whole text. Blank lines are items of their own."""
    lines, looks = _lines(text)
    if is_table:
        return _records(text, lines)
    units: list[_Unit] = []
    number = 0
    while number < len(lines):
        start, end = lines[number]
        last = number
        look, following = looks[number], looks[number + 1]
        if look == "blank":
            units.append(_Unit(start, end, "blank"))
        elif look == "plain" and following == "blank":  # a paragraph of one line
            units.append(_Unit(start, end, "text"))
        elif look == "marked" and (marked := _marked_unit(text, lines, number)):
            units.append(marked)
            while last + 1 < len(lines) and lines[last + 1][1] <= marked.end:
                last += 1
        else:
            item = _ITEM.match(text, start, end) if look == "marked" else None
            while last + 1 < len(lines) and _continues(text, lines, looks, last + 1):
                last += 1
            underlined = 0
            if item is None and last == number and following == "marked":
                underlined = _underline(text, lines[last + 1])
            if underlined:
                last += 1
                units.append(_Unit(start, lines[last][1], "heading", underlined))
            elif item:
                units.append(_Unit(start, lines[last][1], "item", len(item[1].expandtabs(4))))
            else:
                units.append(_Unit(start, lines[last][1], "text"))
        number = last + 1
    return units


def _lines(text: str) -> tuple[list[tuple[int, int]], list[Look]]:
    """Find where lines begin and end, and what each may be at a glance: most lines are plain, and need no second look.

    A blank that is no line follows the last one.
    """
    found: list[tuple[int, int]] = []
    looks: list[Look] = []
    start = 0
    for line in text.split("\n"):
        end = start + len(line) + 1
        found.append((start, end))
        start = end
        stripped = line.strip()
        if not stripped:
            looks.append("blank")
        elif (first := stripped[0]) in _MARKS or first.isdecimal() or "|" in stripped:
            looks.append("marked")
        else:
            looks.append("plain")
    begin, _ = found.pop()
    if begin < len(text):
        found.append((begin, len(text)))
        looks.append("blank")
    else:
        looks[-1] = "blank"
    return found, looks


def _marked_unit(text: str, lines: list[tuple[int, int]], number: int) -> _Unit | None:
    """Return a block of code, a heading or a table's row that begins with this line."""
    start, end = lines[number]
    line = text[start:end].rstrip("\n")
    if fence := _FENCE.match(line):
        last = number
        while last + 1 < len(lines):
            last += 1
            if text[lines[last][0] : lines[last][1]].strip().startswith(fence[1]):
                break
        return _Unit(start, lines[last][1], "text")
    if heading := _HEADING.match(line):
        return _Unit(start, end, "heading", len(heading[1]))
    return _Unit(start, end, "row") if _is_row(text, lines, number) else None


def _continues(text: str, lines: list[tuple[int, int]], looks: list[Look], number: int) -> bool:
    """Return whether a line belongs to the item of the line before it."""
    if looks[number] != "marked":
        return looks[number] == "plain"
    line = text[lines[number][0] : lines[number][1]].rstrip("\n")
    if _HEADING.match(line) or _FENCE.match(line) or _ITEM.match(line) or _underline(text, lines[number]):
        return False
    return not _is_row(text, lines, number)


def _underline(text: str, line: tuple[int, int]) -> int:
    found = _UNDERLINE.match(text[line[0] : line[1]].rstrip("\n"))
    return (1 if found[1][0] == "=" else 2) if found and len(found[1]) > 2 else 0


def _is_row(text: str, lines: list[tuple[int, int]], number: int) -> bool:
    line = text[lines[number][0] : lines[number][1]]
    if "|" not in line:
        return False
    if line.lstrip().startswith("|"):
        return True
    near = [text[slice(*lines[other])] for other in (number - 1, number + 1) if 0 <= other < len(lines)]
    return " | " in line and any(" | " in other or _RULE_ROW.match(other.rstrip("\n")) for other in near)


def _records(text: str, lines: list[tuple[int, int]]) -> list[_Unit]:
    """Yield the rows of separated values; a quoted value may contain line ends."""
    units: list[_Unit] = []
    start, quotes = 0, 0
    for begin, end in lines:
        quotes += text.count('"', begin, end)
        if quotes % 2 == 0:
            units.append(_Unit(start, end, "row" if text[start:end].strip() else "blank"))
            start = end
    if start < len(text):  # lines of a quote that is never closed are rows
        units += [_Unit(begin, end, "row") for begin, end in lines if begin >= start]
    return units


# ── Parts ───────────────────────────────────────────────────────────────────────────────────────────────


def _pack(text: str, units: list[_Unit], most: int) -> list[tuple[int, int]]:
    """Return the places where the text is cut, as pairs of start and end."""
    pieces: list[tuple[int, int]] = []
    start, first = 0, 0  # the start of the part that is being filled: its character, its first unit
    for place, unit in enumerate(units):
        if unit.end - start <= most:
            continue
        if unit.start > start:
            last = _best_end(units, first, place, start, most)
            pieces.append((start, units[last].start))
            start, first = units[last].start, last
        if unit.end - start > most and unit.start > start:
            pieces.append((start, unit.start))
            start, first = unit.start, place
        while unit.end - start > most:
            end = _sentence_end(text, start + most // 2, start + most)
            pieces.append((start, end))
            start, first = end, place
    pieces.append((start, len(text)))
    return [(begin, end) for begin, end in _without_blank(text, pieces)]


def _best_end(units: list[_Unit], first: int, place: int, start: int, most: int) -> int:
    """Return the unit before which to end a part: a heading if one is in the part's second half, else after a blank
    line in its last quarter, else the one that no longer fits. A heading is never a part's last item."""
    for share, shape in ((2, "heading"), (4, "blank")):
        for number in range(place, first, -1):
            if units[number].start - start < most - most // share:
                break
            is_boundary = (
                units[number].shape == shape if shape == "heading" else units[number - 1].shape == shape
            )
            if is_boundary and units[number].start > start:
                return _before_headings(units, first, number)
    return _before_headings(units, first, place)


def _before_headings(units: list[_Unit], first: int, place: int) -> int:
    """Move an end up over the headings right before it."""
    number = place
    for _ in range(_MOVED_HEADINGS):
        if number - 1 <= first or units[number - 1].shape not in ("heading", "blank"):
            return place
        number -= 1
        if units[number].shape == "heading":
            place = number
    return place


def _without_blank(text: str, pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Add pieces of nothing but space to the one before them, or to the first."""
    found: list[tuple[int, int]] = []
    for start, end in pieces:
        if not text[start:end].strip() and found:
            found[-1] = found[-1][0], end
        elif len(found) == 1 and not text[slice(*found[0])].strip():
            found[0] = found[0][0], end
        elif end > start:
            found.append((start, end))
    return found


def _sentence_end(text: str, least: int, most: int) -> int:
    """Return where to cut an item that is too long: after its last line, sentence or word in this stretch."""
    if (line := text.rfind("\n", least, most)) >= 0:
        return line + 1
    ends = [found.end() for found in _SENTENCE_END.finditer(text, least, most)]
    if ends:
        return ends[-1]
    space = max(text.rfind(sign, least, most) for sign in (" ", "\t", ",", ";", "、", "，"))
    return space + 1 if space >= 0 else most


# ── What stands above a part ────────────────────────────────────────────────────────────────────────────


class _Above:
    """Headings, list items and the table's head row above places of a text. Call it for places in their order."""

    def __init__(self, text: str, units: list[_Unit]) -> None:
        self._text, self._units, self._next = text, units, 0
        self._headings: list[_Unit] = []
        self._items: list[_Unit] = []
        self._row: _Unit | None = None

    def at(self, start: int) -> tuple[list[str], str]:
        place = self._next
        while place < len(self._units) and (unit := self._units[place]).start < start:
            if unit.shape == "blank":
                self._row = None
            else:
                self._pass(unit)
            place += 1
        self._next = place
        while place < len(self._units) and self._units[place].shape == "blank":
            place += 1
        following = self._units[place] if place < len(self._units) else None
        headings, items = self._headings, self._items
        if following is not None and following.shape == "heading":
            headings, items = [unit for unit in headings if unit.depth < following.depth], []
        elif following is not None and following.shape == "item":
            items = [unit for unit in items if unit.depth < following.depth]
        else:
            items = []
        at_row = following is not None and following.shape == "row"
        return [self._line(unit) for unit in [*headings, *items]], self._row_line() if at_row else ""

    def _pass(self, unit: _Unit) -> None:
        if unit.shape == "heading":
            self._headings = [each for each in self._headings if each.depth < unit.depth] + [unit]
            self._items, self._row = [], None
        elif unit.shape == "item":
            self._items = [each for each in self._items if each.depth < unit.depth] + [unit]
            self._row = None
        elif unit.shape == "row":
            self._row = self._row or unit
        else:
            self._row = None
            if unit.shape == "text":
                self._items = []

    def _line(self, unit: _Unit) -> str:
        first = self._text[unit.start : unit.end].strip().split("\n", 1)[0]
        return first[:_MAX_LINE_CHARS].rstrip()

    def _row_line(self) -> str:
        return self._text[self._row.start : self._row.end].strip()[: 2 * _MAX_LINE_CHARS] if self._row else ""


def _context(head: Head, part: str, above: list[str], row: str) -> str:
    beginning = part[:_BEGINNING_CHARS]
    lines = [
        f"{name} of the document: {one_line(value)}" for name, value in head.lines() if value not in beginning
    ]
    lines += [f"Above this part: {line}" for line in above if line not in beginning]
    if row:
        lines.append(f"Columns of the table: {row}")
    return "\n".join(lines)[:_MAX_CONTEXT_CHARS]
