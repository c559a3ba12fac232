"""Converter from HTML to Markdown-like text, in time proportional to its length; no input raises an error.

Hidden elements are left out; struck text is ~~struck~~; checkboxes are [ ] or [x]; tables of data are rows with bars,
tables for layout are lines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from adiuva.documents.html_hidden import hidden_names, is_hiding
from adiuva.documents.html_tokens import End, Start, Token, tokens

_SPACE: Final = re.compile(r"[ \t\r\n\v\f]+")
_LINES_ONLY: Final = re.compile(r"\r\n|[\r\v\f]")
_MANY_BREAKS: Final = re.compile(r"\n{3,}")
# Placeholders, which no text contains after _NO_MARKS was applied: the breaks at the start and end of blocks, several
# of which in a row become one; the start and end of quotations and of struck text; a level of a list; a break in a
# cell.
_LINE, _PARAGRAPH = "\v", "\f"
_QUOTE, _UNQUOTE, _STRIKE, _UNSTRIKE = "\x0e", "\x0f", "\x10", "\x11"
_INDENT, _CELL_BREAK = "\x12", "\x13"
_MARKS: Final = re.compile("[\v\f\x0e-\x13]")
_NO_MARKS: Final = str.maketrans(
    "", "", _INDENT + _CELL_BREAK + _LINE + _PARAGRAPH + _QUOTE + _UNQUOTE + _STRIKE + _UNSTRIKE
)
_BREAKS: Final = re.compile(f" ?[{_LINE}{_PARAGRAPH}][ {_LINE}{_PARAGRAPH}]*")
_CELL_BREAKS: Final = re.compile(f"(?:(?<=[|]) )?[ ]*{_CELL_BREAK}[ {_CELL_BREAK}]*")
_CHECKBOXES: Final = str.maketrans({"☐": "[ ]", "☑": "[x]", "☒": "[x]", "🗹": "[x]", "⬜": "[ ]", "✅": "[x]"})
_BOX_ALONE: Final = re.compile(r"^([ \t]*(?:[-*] )?\[[ x]\])[ \t]*\n+[ \t]*(?=\S)", re.MULTILINE)
_BOX_SPACE: Final = re.compile(r"(\[[ x]\])[ \t]{2,}")
_DEEPEST_QUOTE: Final = 5
_DEEPEST_LIST: Final = 8
# A cell with more text is a column of a layout, not a value.
_MAX_CELL_CHARS: Final = 600

_PARAGRAPHS: Final = frozenset(
    "p h1 h2 h3 h4 h5 h6 ul ol dl table blockquote pre article section header footer hr form figure fieldset"  # noqa: SIM905
    "".split()
)
_LINES: Final = frozenset(
    "div li tr dt dd address option caption main nav aside center summary details legend textarea select figcaption "  # noqa: SIM905
    "text en-note".split()
)
_STRUCK_NAMES: Final = frozenset({"s", "del", "strike"})
_QUOTING: Final = re.compile(
    r"\b(?:gmail_quote(?!_attribution)|yahoo_quoted|moz-forward-container|protonmail_quote)\b"
)
_STRIKING: Final = re.compile(r"text-decoration(?:-line)?\s*:[^;]*line-through", re.IGNORECASE)


class Page(NamedTuple):
    title: str
    text: str


def html_to_text(source: str, *, quotes: bool = False) -> str:
    """Return the visible text; see `read_page`."""
    return read_page(source, quotes=quotes).text


def read_page(source: str, *, quotes: bool = False) -> Page:
    """Return a page's title and its visible text in lines. `quotes`: quoted text gets '>'."""
    found = list(tokens(source))
    reader = _Reader(quotes, hidden_names(found), _data_tables(found))
    for token in found:
        reader.take(token)
    text = _tidy("".join(reader.pieces))
    return Page(" ".join(reader.title.split())[:300], _marked(text) if quotes else text)


@dataclass
class _Open:
    """Open element: the marks to write when it ends, and whether hiding ends with it."""

    name: str
    after: str = ""
    hides: bool = False
    in_table: bool = False


@dataclass
class _Table:
    """Open table. `is_data`: shown as rows with bars. `heads`: the row's heading cells; `cells`: all of them."""

    is_data: bool
    cells: int = 0
    heads: int = 0
    rows: int = 0


@dataclass
class _Reader:
    """Reader that collects the pieces of the text."""

    quotes: bool
    hidden_names: frozenset[str]
    data_tables: list[bool]
    pieces: list[str] = field(default_factory=list)
    title: str = ""

    def __post_init__(self) -> None:
        self._open: list[_Open] = []
        self._hidden = 0
        self._preformatted = 0
        self._lists: list[int | None] = []  # each list's next number; None if it has bullets
        self._tables: list[_Table] = []
        self._seen_tables = 0
        self._in_title = self._in_style = False

    def take(self, token: Token) -> None:
        if isinstance(token, str):
            self._text(token)
        elif isinstance(token, Start):
            self._start(token)
        else:
            self._end(token)

    def _text(self, text: str) -> None:
        if self._in_title:
            self.title = self.title or text
        elif not (self._hidden or self._in_style):
            if _MARKS.search(text):
                text = text.translate(_NO_MARKS)
            if not text.isascii():
                text = text.translate(_CHECKBOXES)
            self.pieces.append(_LINES_ONLY.sub("\n", text) if self._preformatted else _SPACE.sub(" ", text))

    def _start(self, tag: Start) -> None:
        name, said = tag
        if name == "title":
            self._in_title = True
        elif name == "style":
            self._in_style = True
        is_table = name == "table"
        if is_table:
            is_data = (
                self.data_tables[self._seen_tables] if self._seen_tables < len(self.data_tables) else False
            )
            self._seen_tables += 1
            self._tables.append(_Table(is_data))
        if self._hidden or (hides := self._hides(name, said)):
            opened = _Open(name, hides=True, in_table=is_table)
            if name not in _VOIDS:
                self._hidden += 1
                self._open.append(opened)
            return
        after = self._shown(name, said)
        if name not in _VOIDS:
            self._open.append(_Open(name, after, hides, is_table))

    def _end(self, tag: End) -> None:
        if tag.name == "title":
            self._in_title = False
        elif tag.name == "style":
            self._in_style = False
        if not self._open:
            return
        opened = self._open.pop()
        if opened.hides:
            self._hidden -= 1
        else:
            if opened.name in ("ul", "ol") and self._lists:
                self._lists.pop()
            elif opened.name == "pre":
                self._preformatted -= 1
            elif opened.name in ("td", "th"):
                self._end_cell()
            elif opened.name == "tr":
                self._end_row()
            self.pieces.append(opened.after)
        if opened.in_table and self._tables:
            self._tables.pop()

    def _hides(self, name: str, said: dict[str, str]) -> bool:
        if name == "head":
            return False
        if "hidden" in said and said["hidden"].lower() != "until-found":
            return True
        names = {f".{each}" for each in said.get("class", "").split()} | {f"#{said.get('id', '')}"}
        if self.hidden_names & names:
            return True
        style = said.get("style", "")
        if name == "input":
            return said.get("type", "").lower() == "hidden"
        return bool(style) and is_hiding(style)

    def _shown(self, name: str, said: dict[str, str]) -> str:
        """Write the beginning of an element. Returns its ending."""
        in_row = bool(self._tables) and self._tables[-1].is_data and self._tables[-1].cells > 0
        line, paragraph = (_CELL_BREAK, _CELL_BREAK) if in_row else (_LINE, _PARAGRAPH)
        before = after = ""
        if name in _PARAGRAPHS:
            before = after = paragraph
        elif name in _LINES:
            before = after = line
        if name == "br":
            before = _CELL_BREAK if in_row else "\n"
        elif name in ("h1", "h2", "h3", "h4", "h5", "h6") and not in_row:
            before += "#" * int(name[1]) + " "
        elif name in ("ul", "ol"):
            nested = bool(self._lists)
            start = said.get("start", "1")
            self._lists.append(None if name == "ul" else int(start) if re.fullmatch(r"\d{1,6}", start) else 1)
            if nested:
                before = after = line
        elif name == "li":
            before += self._bullet(said)
        elif name == "pre":
            self._preformatted += 1
        elif name == "tr" and self._tables:
            self._tables[-1].cells = self._tables[-1].heads = 0
            before, after = _LINE, _LINE
        elif name in ("td", "th"):
            before, after = self._begin_cell(name), ""
        elif self.quotes and (name == "blockquote" or _QUOTING.search(said.get("class", ""))):
            before, after = paragraph + _QUOTE + paragraph, paragraph + _UNQUOTE + paragraph
        elif name == "img":
            before = said.get("alt", "").translate(_NO_MARKS)
        elif (box := _checkbox(name, said)) is not None:
            before += f"[{'x' if box else ' '}] "
        if name in _STRUCK_NAMES or _STRIKING.search(said.get("style", "")):
            before, after = before + _STRIKE, _UNSTRIKE + after
        self.pieces.append(before)
        return after

    def _bullet(self, said: dict[str, str]) -> str:
        indent = _INDENT * min(len(self._lists) - 1, _DEEPEST_LIST)
        if not self._lists or self._lists[-1] is None:
            return f"{indent}- "
        value = said.get("value", "")
        number = int(value) if re.fullmatch(r"\d{1,6}", value) else self._lists[-1]
        self._lists[-1] = number + 1
        return f"{indent}{number}. "

    def _begin_cell(self, name: str) -> str:
        table = self._tables[-1] if self._tables else None
        if table is None or not table.is_data:
            return _LINE
        table.cells += 1
        table.heads += name == "th"
        return " | " if table.cells > 1 else ""

    def _end_cell(self) -> None:
        if self._tables and not self._tables[-1].is_data:
            self.pieces.append(_LINE)

    def _end_row(self) -> None:
        table = self._tables[-1] if self._tables else None
        if table is None or not table.is_data:
            return
        table.rows += 1
        if table.rows == 1 and table.heads == table.cells > 1:
            self.pieces.append(_LINE + " | ".join(["---"] * table.cells))
        table.cells = 0


_VOIDS: Final = frozenset(
    "area base br col embed hr img input link meta param source track wbr en-todo en-media".split()  # noqa: SIM905
)


def _checkbox(name: str, said: dict[str, str]) -> bool | None:
    """Return whether a box is ticked; None for an element that is no box."""
    if name == "input" and said.get("type", "").lower() == "checkbox":
        return "checked" in said
    if name == "en-todo":
        return said.get("checked", "").lower() == "true"
    if said.get("role", "").lower() in ("checkbox", "menuitemcheckbox"):
        return said.get("aria-checked", "").lower() == "true"
    return None


# ── Which tables hold data ───────────────────────────────────────────────────────


def _data_tables(found: list[Token]) -> list[bool]:
    """Return for each table, in order, whether it holds data: several columns, no table inside, no long cells."""
    results: list[bool] = []
    open_tables: list[int] = []
    widths: list[list[int]] = []  # for each open table: the cells of its row, and of its widest row
    chars = 0
    for token in found:
        if isinstance(token, str):
            chars += len(token)
        elif isinstance(token, Start):
            if token.name == "table":
                if open_tables:
                    results[open_tables[-1]] = False
                open_tables.append(len(results))
                results.append(token.attributes.get("role", "").lower() not in ("presentation", "none"))
                widths.append([0, 0])
            elif open_tables and token.name == "tr":
                widths[-1][0] = 0
            elif open_tables and token.name in ("td", "th"):
                widths[-1][0] += 1
                widths[-1][1] = max(widths[-1])
                chars = 0
        elif token.name in ("td", "th") and open_tables and chars > _MAX_CELL_CHARS:
            results[open_tables[-1]] = False
        elif token.name == "table" and open_tables:
            results[open_tables[-1]] &= widths.pop()[1] > 1
            open_tables.pop()
    return results


# ── Lines ───────────────────────────────────────────────────────────────────────────────────────────────


def _tidy(text: str) -> str:
    text = _BREAKS.sub(lambda found: "\n\n" if _PARAGRAPH in found[0] else "\n", text.replace("\xa0", " "))
    lines = []
    is_struck = 0
    for line in text.split("\n"):
        line = line.strip(" \t")
        if _CELL_BREAK in line:
            line = _CELL_BREAKS.sub(_cell_break, line)
        line, is_struck = _struck(line, is_struck)
        lines.append(line.removesuffix(" |").replace(_INDENT, "  "))
    joined = "\n".join(lines)
    if "[" in joined:
        joined = _BOX_SPACE.sub(r"\1 ", _BOX_ALONE.sub(r"\1 ", joined))
    return _MANY_BREAKS.sub("\n\n", joined).strip("\n")


def _cell_break(found: re.Match[str]) -> str:
    line, (start, end) = found.string, found.span()
    if start == 0:
        return ""
    if end == len(line) or line[end] == "|":
        return " " if end < len(line) else ""
    return " " if line[start - 1] == "|" else "; "


def _struck(line: str, depth: int) -> tuple[str, int]:
    """Return a line with struck text between '~~', and how many elements strike out what follows it."""
    if not depth and _STRIKE not in line:
        return line.replace(_UNSTRIKE, ""), 0
    pieces: list[str] = []
    for piece in re.split(f"([{_STRIKE}{_UNSTRIKE}])", line):
        if piece == _STRIKE:
            depth += 1
        elif piece == _UNSTRIKE:
            depth = max(0, depth - 1)
        elif depth and piece.strip(" >|-"):
            bullet = re.match(r"\s*(?:[-*>] |\d{1,6}\. |\[[ x]\] )*\s*", piece)
            head = bullet[0] if bullet else ""
            body = piece[len(head) :]
            core = body.rstrip()
            pieces.append(f"{head}~~{core}~~{body[len(core) :]}" if core else piece)
        else:
            pieces.append(piece)
    return "".join(pieces).replace("~~~~", ""), depth


def _marked(text: str) -> str:
    """Replace the placeholders of quotations: lines inside get '>', with an empty line before and after."""
    depth = 0
    lines: list[str] = []
    for line in text.split("\n"):
        if line.strip() in (_QUOTE, _UNQUOTE):
            depth = max(0, depth + (1 if line.strip() == _QUOTE else -1))
            while lines and not lines[-1].strip("> "):
                lines.pop()
            lines.append("")
        elif line.strip() or (lines and lines[-1].strip("> ")):
            lines.append(f"{'> ' * min(depth, _DEEPEST_QUOTE)}{line.translate(_NO_MARKS)}".rstrip())
    return _MANY_BREAKS.sub("\n\n", "\n".join(lines)).strip("\n")
