"""Splitter of HTML into texts and tags in one pass, in linear time. It says which tag closes which element.

Pages and mails come from strangers. The standard library's parser takes quadratic time on some malformed input, and so
do Lexbor and html5lib on deeply nested formatting.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

_TAG_NAME: Final = re.compile(r"/?([a-zA-Z][a-zA-Z0-9:-]{0,40})")
_COMMENT_END: Final = re.compile(r"-->|(?<!<!)--!>")  # browsers also accept `<!-->`
_ENTITY: Final = re.compile(r"&(?:#[0-9]{1,10}|#[xX][0-9a-fA-F]{1,8}|[a-zA-Z][a-zA-Z0-9]{1,31});?")
_ATTRIBUTE: Final = re.compile(
    r"""([a-zA-Z_:@][\w:.-]{0,60})(?:\s{0,20}=\s{0,20}(?:"([^"]*)"|'([^']*)'|([^\s"'>]+)))?"""
)
_MAX_TAG_CHARS: Final = 100_000
_MAX_DEPTH: Final = 400
# Elements whose content is text up to their end tag, and not shown. A script or style without an end hides the rest.
_RAW: Final = {
    name: re.compile(rf"</{name}\b[^>]*>?", re.IGNORECASE)
    for name in ("script", "style", "title", "template")
}
_VOID: Final = frozenset(
    "area base br col embed hr img input link meta param source track wbr en-todo en-media".split()  # noqa: SIM905
)
# An element that ends where one of these begins; the search for it stops at its container.
_CLOSED_BY: Final = {
    "li": (frozenset({"li"}), frozenset({"ul", "ol", "menu"})),
    "dt": (frozenset({"dt", "dd"}), frozenset({"dl"})),
    "dd": (frozenset({"dt", "dd"}), frozenset({"dl"})),
    "option": (frozenset({"option"}), frozenset({"select"})),
    "tr": (frozenset({"tr", "td", "th"}), frozenset({"table"})),
    "td": (frozenset({"td", "th"}), frozenset({"table"})),
    "th": (frozenset({"td", "th"}), frozenset({"table"})),
    "thead": (frozenset({"tr", "td", "th", "thead", "tbody"}), frozenset({"table"})),
    "tbody": (frozenset({"tr", "td", "th", "thead", "tbody"}), frozenset({"table"})),
}
_BLOCKS: Final = frozenset(
    "address article aside blockquote center details dir div dl fieldset figure footer form h1 h2 h3 h4 h5 h6 header "  # noqa: SIM905
    "hr main menu nav ol p pre section table ul".split()
)
# End tags inside these do not close what is around them.
_SCOPES: Final = frozenset({"table", "td", "th"})


class Start(NamedTuple):
    name: str
    attributes: dict[str, str]


class End(NamedTuple):
    name: str


Token = str | Start | End


def tokens(source: str) -> Iterator[Token]:
    """Yield texts (entities decoded), starts and ends of elements; every start that is no void element has its end.

    The texts of style sheets and of the title come between their start and end; those of scripts and comments do not.
    """
    open_names: list[str] = []
    # How often each name is open, so that a stray end tag is recognised without a search.
    counts: dict[str, int] = {}
    for token in _raw_tokens(source):
        if isinstance(token, str):
            yield token
            continue
        name = token.name
        if isinstance(token, Start):
            for closed in _implied(open_names, counts, name):
                yield End(closed)
            if name in _VOID:
                yield token
            elif len(open_names) < _MAX_DEPTH:
                open_names.append(name)
                counts[name] = counts.get(name, 0) + 1
                yield token
            continue
        if name == "p" and not counts.get("p"):
            yield Start("p", {})
            yield End("p")
        if name == "br":
            yield Start("br", {})
        if not counts.get(name):
            continue
        place = len(open_names) - 1
        while open_names[place] != name and (
            open_names[place] not in _SCOPES or name in ("tr", "table", "tbody")
        ):
            place -= 1
        if open_names[place] == name:
            yield from _closed(open_names, counts, place)
    yield from _closed(open_names, counts, 0)


def _closed(open_names: list[str], counts: dict[str, int], place: int) -> Iterator[End]:
    while len(open_names) > place:
        name = open_names.pop()
        counts[name] -= 1
        yield End(name)


def _implied(open_names: list[str], counts: dict[str, int], name: str) -> list[str]:
    """Return the elements that a start tag ends, taken from the open ones."""
    if name in _BLOCKS:
        closes, stops = frozenset({"p"}), _SCOPES
        if not counts.get("p"):
            return []
    elif name in _CLOSED_BY:
        closes, stops = _CLOSED_BY[name]
    else:
        return []
    last = None
    for place in range(len(open_names) - 1, -1, -1):
        if open_names[place] in stops:
            break
        if open_names[place] in closes:
            last = place
            if name in _BLOCKS:
                break
    return [] if last is None else [end.name for end in _closed(open_names, counts, last)]


def _raw_tokens(source: str) -> Iterator[Token]:
    """Yield texts and tags as they are written, before it is known which tag closes which element."""
    # Elements without an end tag; searching for it again each time would take quadratic time.
    endless: set[str] = set()
    position = 0
    while position < len(source):
        opening = source.find("<", position)
        if opening < 0:
            opening = len(source)
        if opening > position:
            yield _ENTITY.sub(_unescape, source[position:opening])
        position, tag = _tag(source, opening)
        if tag == "<":  # a bare one, as in "a < b"
            yield tag
            continue
        match = _TAG_NAME.match(tag)
        if match is None:
            continue
        name, is_end = match[1].lower(), tag[0] == "/"
        if is_end:
            yield End(name)
            continue
        start = Start(name, _attributes(tag[match.end() : match.end() + _MAX_TAG_CHARS]))
        if name not in _RAW:
            yield start
            if tag.endswith("/") and ("-" in name or ":" in name):  # self-closing, of some other XML
                yield End(name)
        elif name not in endless:
            if end := _RAW[name].search(source, position):
                if name in ("style", "title"):
                    yield start
                    yield source[position : end.start()]
                    yield End(name)
                position = end.end()
            elif name in ("script", "style"):
                return
            else:
                endless.add(name)


def _tag(source: str, opening: int) -> tuple[int, str]:
    """Return the position after a tag, and its content: '<' if it is no tag, '' for a comment."""
    if source.startswith("<!--", opening):
        over = _COMMENT_END.search(source, opening + 2)
        return (over.end() if over else len(source)), ""
    if source.startswith("<![CDATA[", opening):
        end = source.find("]]>", opening)
        return (end + 3 if end >= 0 else len(source)), ""
    following = source[opening + 1 : opening + 2]
    if not (following.isalpha() or (following and following in "/!?")):
        return opening + 1, "<" if opening < len(source) else ""
    end = source.find(">", opening)
    if end < 0:
        return len(source), ""
    # A '>' inside a quoted value does not end the tag; one that is never closed does.
    if '="' in source[opening:end] or "='" in source[opening:end]:
        end = _quoted_end(source, opening, end)
    return end + 1, source[opening + 1 : end]


def _quoted_end(source: str, opening: int, end: int) -> int:
    tag = source[opening:end]
    for quote in ('"', "'"):
        if tag.count(f"={quote}") and tag.count(quote) % 2:
            close = source.find(quote, end, end + 2_000)
            after = source.find(">", close, close + 2_000) if close >= 0 else -1
            return after if after >= 0 else end
    return end


def _attributes(tag: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for match in _ATTRIBUTE.finditer(tag):
        value = match[2] or match[3] or match[4] or ""
        found.setdefault(match[1].lower(), _ENTITY.sub(_unescape, value) if "&" in value else value)
    return found


def _unescape(entity: re.Match[str]) -> str:
    return html.unescape(entity[0])
