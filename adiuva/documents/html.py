"""Converts HTML to text in one pass, in linear time; no input raises an error or exceeds the stack.

Mails come from strangers, and the standard library's HTML parser takes quadratic time on some malformed input.
"""

from __future__ import annotations

import html
import re
from typing import Final

_TAG_NAME: Final = re.compile(r"/?([a-zA-Z][a-zA-Z0-9]*)")
_COMMENT_END: Final = re.compile(r"-->|(?<!<!)--!>")  # browsers also accept `<!-->`
_ENTITY: Final = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});?")
_SPACE: Final = re.compile(r"[ \t\r\n\v\f]+")
# Placeholders for the breaks at the start and end of blocks, of which several in a row become one. No text contains
# these characters after _SPACE was applied.
_LINE, _PARAGRAPH = "\v", "\f"
_BREAKS: Final = re.compile(f" ?[{_LINE}{_PARAGRAPH}][ {_LINE}{_PARAGRAPH}]*")
_LINES_ONLY: Final = re.compile(r"\r\n|[\r\v\f]")
_CHECKBOX: Final = re.compile(r"""\btype\s*=\s*["']?checkbox""", re.IGNORECASE)
_CHECKED: Final = re.compile(r"\bchecked\b", re.IGNORECASE)
_ALT: Final = re.compile(r"""\balt\s*=\s*(?:"([^"]*)"|'([^']*)')""", re.IGNORECASE)
_MANY_BREAKS: Final = re.compile(r"\n{3,}")
# Placeholders for the start and end of a quotation.
_QUOTE, _UNQUOTE = "\x0e", "\x0f"
_NO_MARKS: Final = str.maketrans("", "", _QUOTE + _UNQUOTE)
_DEEPEST_QUOTE: Final = 5

# Elements whose content is not shown. A script or style without an end hides the rest, as in browsers.
_UNSEEN: Final = {
    name: re.compile(rf"</{name}\b[^>]*>?", re.IGNORECASE)
    for name in ("script", "style", "template", "title")
} | {"head": re.compile(r"</head\b[^>]*>?|(?=<body\b)", re.IGNORECASE)}
_RAW: Final = frozenset({"script", "style"})
_PARAGRAPHS: Final = frozenset(
    "p h1 h2 h3 h4 h5 h6 ul ol dl table blockquote pre article section header footer hr form"  # noqa: SIM905
    "".split()
)
_LINES: Final = frozenset(
    "div li tr dt dd address option caption main nav aside center".split()  # noqa: SIM905
)
_CELLS: Final = frozenset({"td", "th"})


def html_to_text(source: str, *, quotes: bool = False) -> str:
    """The visible text in lines: list items start with a dash, cells end with a bar, checkboxes are [ ] or [x].

    `quotes`: quoted text is marked with '>'.
    """
    pieces: list[str] = []
    if quotes:
        source = source.translate(_NO_MARKS)
    # Elements without an end tag; searching for it again each time would take quadratic time.
    endless: set[str] = set()
    position, preformatted = 0, 0
    while position < len(source):
        opening = source.find("<", position)
        if opening < 0:
            opening = len(source)
        if opening > position:
            text = _ENTITY.sub(_unescape, source[position:opening])
            pieces.append(_LINES_ONLY.sub("\n", text) if preformatted else _SPACE.sub(" ", text))
        position, tag = _tag(source, opening)
        match = _TAG_NAME.match(tag)
        if match is None:
            if tag == "<":  # a bare one, as in "a < b"
                pieces.append(tag)
            continue
        name, is_end = match[1].lower(), tag[0] == "/"
        if name in _UNSEEN:
            if not is_end and name not in endless:
                if end := _UNSEEN[name].search(source, position):
                    position = end.end()
                elif name in _RAW:
                    break
                else:
                    endless.add(name)
        elif name == "pre":
            preformatted = max(0, preformatted + (-1 if is_end else 1))
            pieces.append(_PARAGRAPH)
        elif quotes and name == "blockquote":
            pieces.append(_PARAGRAPH + (_UNQUOTE if is_end else _QUOTE) + _PARAGRAPH)
        else:
            pieces.append(_shown(name, tag, is_end))
    text = _tidy("".join(pieces))
    return _marked(text) if quotes else text


def _tag(source: str, opening: int) -> tuple[int, str]:
    """The position after a tag, and its content: '<' if it is no tag, '' for a comment."""
    if source.startswith("<!--", opening):
        over = _COMMENT_END.search(source, opening + 2)
        return (over.end() if over else len(source)), ""
    following = source[opening + 1 : opening + 2]
    if not (following.isalpha() or (following and following in "/!?")):
        return opening + 1, "<" if opening < len(source) else ""
    end = source.find(">", opening)
    if end < 0:
        return len(source), ""
    return end + 1, source[opening + 1 : end]


def _shown(name: str, tag: str, is_end: bool) -> str:
    if name == "br":
        return "\n"
    if name in _PARAGRAPHS:
        return _PARAGRAPH
    if name == "li" and not is_end:
        return f"{_LINE}- "
    if name in _LINES:
        return _LINE
    if name in _CELLS and is_end:
        return " | "
    if name == "input" and _CHECKBOX.search(tag):
        return "[x] " if _CHECKED.search(tag) else "[ ] "
    if name == "img" and (alt := _ALT.search(tag)):
        return _ENTITY.sub(_unescape, alt[1] or alt[2] or "")
    return ""


def _unescape(entity: re.Match[str]) -> str:
    return html.unescape(entity[0])


def _tidy(text: str) -> str:
    text = _BREAKS.sub(lambda found: "\n\n" if _PARAGRAPH in found[0] else "\n", text.replace("\xa0", " "))
    lines = (line.strip(" \t").removesuffix(" |").replace("]  ", "] ") for line in text.split("\n"))
    return _MANY_BREAKS.sub("\n\n", "\n".join(lines)).strip("\n")


def _marked(text: str) -> str:
    """Replace the placeholders of quotations: lines inside get '>', and an empty line is put before and after."""
    depth = 0
    lines: list[str] = []
    for line in text.split("\n"):
        if line in (_QUOTE, _UNQUOTE):
            depth = max(0, depth + (1 if line == _QUOTE else -1))
            while lines and not lines[-1].strip("> "):
                lines.pop()
            lines.append("")
        elif line.strip() or (lines and lines[-1].strip("> ")):
            lines.append(f"{'> ' * min(depth, _DEEPEST_QUOTE)}{line.translate(_NO_MARKS)}".rstrip())
    return _MANY_BREAKS.sub("\n\n", "\n".join(lines)).strip("\n")
