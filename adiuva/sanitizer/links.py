"""Last stage: links, images and HTML. The output is Markdown, which a client may render.

Images are never shown, because fetching one tells its server whatever the address holds. HTML is never shown. A link is
shown only if its exact address was in the user's words or in what this turn has read; otherwise only its text is shown,
or the host of a bare address. So a misled model can carry nothing away in an address that it made up.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Final

# A construct that has not ended after this many characters does not count as one.
_MAX_CHARS: Final = 2_048
_WAIT: Final = -1
_NEVER: Final = -2

_SCHEME = r"[A-Za-z][A-Za-z0-9+.\-]{1,31}"
# Addresses that clients turn into links without any markup.
_BARE = r"https?://|ftp://|www\."
_BARE_START = re.compile(_BARE, re.IGNORECASE)
BARE_BEGUN = re.compile(r"(?:h(?:t(?:t(?:ps?(?::/?)?)?)?)?|f(?:t(?:p(?::/?)?)?)?|ww?w?)\Z", re.IGNORECASE)
_ADDRESS = re.compile(r"[^\s<>`\"”“]*")
# Markdown's bare addresses end before these.
_TRAILING: Final = ".,;:!?'\"*_~)]}»”’"
_HOST = re.compile(rf"(?:{_SCHEME}:)?/{{0,2}}(?:[^/?#\\@\s]*@)?(?:www\.)?([\w.\-]{{1,80}})", re.IGNORECASE)
_UNSAFE_IN_ADDRESS = re.compile(r"[\s<>\"()\\]")
_LEFT_OUT: Final = "(link left out)"
_TRIGGER = re.compile(rf"[!\[\]<]|{_BARE}", re.IGNORECASE)
_HTML_NAMES: Final = frozenset(
    """
    a abbr acronym address animate animatetransform applet area article aside audio b base basefont bdi
    bdo bgsound big blink blockquote body br button canvas caption center cite code col colgroup command
    content data datalist dd del details dfn dialog dir div dl dt element em embed fieldset figcaption
    figure font footer foreignobject form frame frameset g h1 h2 h3 h4 h5 h6 head header hgroup hr html
    i iframe image img input ins isindex kbd keygen label legend li link listing main map mark marquee
    math menu menuitem meta meter mglyph multicol nav nextid nobr noembed noframes noscript object ol
    optgroup option output p param path picture plaintext portal pre progress q rb rp rt rtc ruby s samp
    script search section select set shadow slot small source spacer span strike strong style sub
    summary sup svg table tbody td template textarea tfoot th thead time title tr track tt u ul use var
    video wbr xmp
    """.split()  # noqa: SIM905  # readable as a paragraph
)
_TAG_START = re.compile(r"</?([A-Za-z][A-Za-z0-9:\-]*)|<[!?]")
_TAG_BEGUN = re.compile(r"<(?:/?|!-?)\Z")
_AUTOLINK = re.compile(rf"<({_SCHEME}:[^\s<>]*)>")
# As in “Mara <mara@example.com>”. Clients turn these into links without brackets, too; they open nothing by themselves.
_MAIL_ADDRESS = re.compile(r"<[\w.+\-]{1,64}@(?!www\.)[\w\-]+(?:\.[\w\-]+)+>", re.ASCII)
# The longest start of a bare address.
TAIL_CHARS: Final = 8


def addresses_in(text: str) -> set[str]:
    """Return the addresses in a text, each as it is and without the punctuation that may follow it."""
    found: set[str] = set()
    for start in _ANY_ADDRESS.finditer(text):
        # In Markdown, a bracket may end the address or be a part of it.
        for one in (start[0], *(start[0].split(end)[0] for end in ")]|")):
            found |= {one, one.rstrip(_TRAILING)}
    return found


_ANY_ADDRESS = re.compile(rf"(?:{_SCHEME}:/{{0,2}}|www\.)[^\s<>`\"”“]+", re.IGNORECASE)


class LinkStage:
    """Stage for links. `is_known(address)`: whether an address may be shown. `emit` gets the text that may be shown."""

    def __init__(
        self, emit: Callable[[str], None], *, is_known: Callable[[str], bool], removed: Counter[str]
    ) -> None:
        self._emit, self._is_known, self._removed = emit, is_known, removed
        self.held = ""
        self.tail = ""  # the last characters that were shown
        self.has_cut = False  # whether something was left out behind them

    def feed(self, text: str) -> None:
        self._process(self.held + text, final=False)

    def show(self, text: str) -> None:
        """Pass on text that was checked elsewhere, after deciding on all text that is held before it."""
        self.finish()
        self.tail, self.has_cut = text[-1:], True
        self._emit(text)

    def finish(self) -> None:
        self._process(self.held, final=True)

    def _process(self, held: str, *, final: bool) -> None:
        at = 0
        while at < len(held):
            trigger = _TRIGGER.search(held, at)
            if trigger is None:
                begun = None if final else BARE_BEGUN.search(held, at)
                end = begun.start() if begun else len(held)
                self._say(held[at:end])
                at = end
                break
            self._say(held[at : trigger.start()])
            at = trigger.start()
            following = self._construct(held, at, final)
            if following == _WAIT:
                break
            at = following
        self.held = held[at:]

    def _construct(self, held: str, at: int, final: bool) -> int:
        """Judge what may start at `at`; return where to continue, or _WAIT for more text."""
        match held[at]:
            case "!":
                return self._image(held, at, final)
            case "[":
                return self._link(held, at, final)
            case "]":
                return self._literal(held, at)
            case "<":
                return self._tag(held, at, final)
        return self._bare_address(held, at, final)

    def _image(self, held: str, at: int, final: bool) -> int:
        """Turn an image into a link, which is judged next."""
        if at + 1 == len(held) and not final:
            return _WAIT
        if held.startswith("[", at + 1):
            self._removed["image"] += 1
        else:
            self._say("!")
        return at + 1

    def _link(self, held: str, at: int, final: bool) -> int:
        stop = at + _MAX_CHARS
        end = _closing(held, at, stop)
        if end == _WAIT and not final:
            return _WAIT
        if end < 0:
            return self._literal(held, at)
        after = held[end + 1 : end + 2]
        if not after and not final:
            return _WAIT
        if after == ":":
            # A definition would lend its address to a link elsewhere; without brackets it is none.
            self._cut("link", self._cleaned(held[at + 1 : end]))
            return end + 1
        if after != "(":
            return self._literal(held, at)
        close = _closing(held, end + 1, stop)
        if close == _WAIT and not final:
            return _WAIT
        if close < 0:
            return self._literal(held, at)
        text, target = self._cleaned(held[at + 1 : end]), held[end + 2 : close].strip()
        address = target[1:].partition(">")[0] if target.startswith("<") else (target.split() or [""])[0]
        if text.strip() and not re.search(r"[\[\]]", text) and self._allows(address):
            self._say(f"[{text}]({address})")
        else:
            self._cut("link", text)
        return close + 1

    def _tag(self, held: str, at: int, final: bool) -> int:
        stop = at + _MAX_CHARS
        start = _TAG_START.match(held, at)
        if not final and (_TAG_BEGUN.match(held, at) or (start and start.end() == len(held) < stop)):
            return _WAIT
        if start is None:
            return self._literal(held, at)
        ending = "-->" if held.startswith("<!--", at) else ">"
        end = held.find(ending, at, stop)
        if end < 0:
            return _WAIT if not final and len(held) < stop else self._literal(held, at)
        end += len(ending)
        tag, name = held[at:end], (start[1] or "").lower()
        if link := _AUTOLINK.fullmatch(tag):
            if self._allows(link[1]):
                self._say(tag)
            else:
                self._cut("link", _host(link[1]))
        elif _MAIL_ADDRESS.fullmatch(tag):
            self._say(tag)
        elif not name or name in _HTML_NAMES or not name.isalnum() or "=" in tag or "/" in tag:
            self._cut("html", "")
        else:
            return self._literal(held, at)  # such as List<String>, or a placeholder
        return end

    def _bare_address(self, held: str, at: int, final: bool) -> int:
        stop = at + _MAX_CHARS
        whole = _ADDRESS.match(held, at, stop)
        assert whole is not None
        if whole.end() == len(held) < stop and not final:
            return _WAIT
        trimmed = whole[0].rstrip(_TRAILING)
        for address in (whole[0], trimmed):
            if self._allows(address, is_bare=True):
                self._say(address)
                return at + len(address)
        start = _BARE_START.match(held, at)
        assert start is not None
        self._cut("link", _host(trimmed))
        return max(at + len(trimmed), start.end())

    def _literal(self, held: str, at: int) -> int:
        self._say(held[at])
        return at + 1

    def _allows(self, address: str, *, is_bare: bool = False) -> bool:
        unsafe = not is_bare and _UNSAFE_IN_ADDRESS.search(address)
        return bool(address) and not unsafe and self._is_known(address)

    def _cleaned(self, text: str) -> str:
        """Return the text of a link, without links, images and HTML of its own."""
        out: list[str] = []
        inner = LinkStage(out.append, is_known=lambda address: False, removed=self._removed)
        inner.feed(text)
        inner.finish()
        return "".join(out)

    def _cut(self, kind: str, said_instead: str) -> None:
        self._removed[kind] += 1
        self.has_cut = True
        self._say(said_instead)
        self.has_cut = True

    def _say(self, text: str) -> None:
        """Show a text. Parts that were judged separately must not become a link, an image or a tag where they meet."""
        if not text:
            return
        first, tail = text[0], self.tail
        if tail.endswith("]"):
            apart = first in "(:"
        elif tail.endswith("!"):
            apart = first == "["
        elif tail.endswith("<"):
            apart = first.isalpha() or first in "/!?"
        else:
            apart = self.has_cut and not first.isspace() and BARE_BEGUN.search(tail) is not None
        if apart:
            text = f" {text}"
        self.has_cut = False
        self.tail = (tail + text)[-TAIL_CHARS:]
        self._emit(text)


def _closing(held: str, at: int, stop: int) -> int:
    """Return where the bracket that opens at `at` is closed, at most at `stop`; _WAIT if that is still open, else -2.

    A blank line ends every construct of Markdown within a line.
    """
    opening, closing = held[at], ")" if held[at] == "(" else "]"
    depth, place = 0, at
    while place < min(len(held), stop):
        letter = held[place]
        if letter == "\\":
            place += 1
        elif letter == opening:
            depth += 1
        elif letter == closing:
            depth -= 1
            if depth == 0:
                return place
        elif letter == "\n" and held.startswith("\n\n", place):
            return _NEVER
        place += 1
    return _WAIT if len(held) < stop else _NEVER


def _host(address: str) -> str:
    """Return what is shown of an address that may not be shown: its host, which can carry little."""
    found = _HOST.match(address)
    return found[1].strip(".") if found and found[1].strip(".") else _LEFT_OUT
