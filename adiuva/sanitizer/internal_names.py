"""Second stage: in prose, names of tools become ordinary words; ids are removed, with brackets left empty by that.

It holds back what may still grow: the last token, and an opened `(id: …`. The next stage gets whole words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Container
from typing import Protocol

from adiuva.sanitizer.patterns import UNSPACED, LeakPatterns

MAX_TOKEN_CHARS = 256
"""A longer token is not for people to read, for example base64."""
_MIN_PRIVATE_CHARS = 8
"""A shorter string is not removed: it could be an ordinary word or number."""

# The characters of ids, identifiers and addresses. A token is a longest run of them.
_T = rf"[^\s!-*,;<>?\[\]^`{{|}}~\u2010-\u205f\u3000-\u303f\uff00-\uff0f{UNSPACED}]"
_QUOTE = r"[`\"'*]{0,3}+"
# ASCII only, whatever letters are beside it: text in scripts without spaces may be split there.
_A = r"[A-Za-z0-9_-]"
_ROW = rf"(?<!{_A})(?={_A}*[0-9]){_A}{{8,128}}(?!{_A})"
_NAME = r"[A-Za-z0-9]+(?:\\?_[A-Za-z0-9]+)++"
_SEPARATOR = r"(?:[ \t]{0,4}[,;&])?[ \t]{0,4}"
_ROWS = rf"{_QUOTE}{_ROW}{_QUOTE}(?>{_SEPARATOR}{_QUOTE}{_ROW}{_QUOTE}){{0,99}}"
_KIND = r"(?:task|project|note|timeline|client|row|comment|user|device|conversation|request)[ \t]{1,4}"
_LABEL = r"[Ii][Dd]s?(?![A-Za-z0-9_])[ \t]{0,4}[:=#]?[ \t]{0,4}"

# Short names that the server gives rows, such as t3; they are removed in brackets and behind "id".
_ALIAS = rf"(?<!{_A})[a-z][0-9]{{1,4}}(?!{_A})"
_ALIASES = rf"{_ALIAS}(?>{_SEPARATOR}{_ALIAS}){{0,99}}"

_SPOKEN = rf"`{_NAME}`|(?<![A-Za-z0-9_]){_NAME}(?![A-Za-z0-9_])"
_UNIT = re.compile(
    rf"(?P<aliases>[ \t]?(?:[(\[][ \t]{{0,4}}(?:{_LABEL})?{_ALIASES}[ \t]{{0,4}}[)\]]|(?<!{_T}){_LABEL}{_ALIASES}))"
    rf"|(?P<ids>[ \t]?[(\[][ \t]{{0,4}}(?:(?:{_KIND})?{_LABEL})?{_ROWS}[ \t]{{0,4}}[)\]]"
    rf"|[ \t]?(?<!{_T}){_LABEL}{_ROWS}|(?P<quote>[`\"'*]{{1,3}}){_ROW}(?P=quote)|{_ROW})"
    rf"|{_SPOKEN}"
)
_ROW_ID = re.compile(_ROW)
_ONE_ALIAS = re.compile(_ALIAS)
_TOOL = re.compile(_SPOKEN)
_QUOTES = ("`", '"', "'", "*")
# A possible unit, or the beginning of one, at the end of a text. It may match too much, but never starts inside a
# token. The ids are matched possessively ({0,100}+), because backtracking over them would take exponential time.
_TAIL = re.compile(
    rf"(?:[ \t]|(?<!{_T})|(?!{_T}))"
    rf"(?:(?:[(\[][ \t]{{0,4}}(?:{_KIND})?(?:{_LABEL})?|{_LABEL})"
    rf"(?:(?:{_QUOTE}{_ROW}{_QUOTE}|{_ALIAS}){_SEPARATOR}){{0,100}}+"
    rf"|{_QUOTE}{_ROW}{_QUOTE})?{_QUOTE}{_T}*{_QUOTE}\Z"
)
# Text in which no unit can have started, apart from its last token and the word "id".
_PLAIN = re.compile(rf"[^\d_`(\[\\{UNSPACED}]*\Z")
LABEL = re.compile(r"(?<![A-Za-z])[Ii][Dd]s?(?![A-Za-z])")
_LONG = re.compile(rf"{_T}{{{MAX_TOKEN_CHARS + 1},}}")
_TOKEN_CHARACTERS = re.compile(rf"{_T}*")
_MAY_HOLD_UNIT = re.compile(r"[_0-9]")


class _NextStage(Protocol):
    def feed(self, text: str) -> None: ...
    def opaque(self, text: str) -> None: ...


class InternalNameStage:
    def __init__(
        self,
        patterns: LeakPatterns,
        following: _NextStage,
        *,
        known: Container[str],
        private: Collection[str],
        own: Callable[[str], bool],
        removed: Counter[str],
        id_of: Callable[[str], str | None],
    ) -> None:
        self._spoken, self._known, self._own, self._removed = patterns.spoken_tool_names, known, own, removed
        self._id_of = id_of
        self._next_feed, self._next_opaque = following.feed, following.opaque
        # Longest first, so that of two that start at the same position the longer one is removed.
        self.private = sorted(
            {_lower(p) for p in private if len(p) >= _MIN_PRIVATE_CHARS}, key=len, reverse=True
        )
        self._shortest = min(map(len, self.private), default=0)
        self._longest = max(map(len, self.private), default=1)
        # Private strings that do not look like a row's id; and those of them that span several tokens.
        self._odd = [p for p in self.private if not _ROW_ID.fullmatch(p)]
        self.spaced = [p for p in self._odd if len(p) != _token_end(p, 0)]
        self.held = ""
        self.in_long = False  # inside a token longer than MAX_TOKEN_CHARS

    def feed(self, text: str) -> None:
        held = self.held + text
        if len(held) > MAX_TOKEN_CHARS or self.in_long:
            held = self._without_long_tokens(held)
            if self.in_long:
                self.held = held
                return
        elif _PLAIN.match(held) and not LABEL.search(held):
            cut = max(held.rfind(" "), held.rfind("\n"))
            self._pass(held, max(cut, 0))
            return
        tail = _TAIL.search(held)
        cut = tail.start() if tail else len(held)
        if held[cut : cut + 1] in _QUOTES:  # they may close a unit
            cut = next(
                (unit.start() for unit in _UNIT.finditer(held) if unit.start() < cut < unit.end()), cut
            )
        self._pass(held, cut)

    def finish(self) -> None:
        """Decide on the held text, because the prose ends here."""
        held, self.held = self.held, ""
        if self.in_long:
            self.in_long = False
            self._pass_opaque(held, len(held))
        elif held:
            self._judge(held)

    def _pass(self, held: str, cut: int) -> None:
        if self.spaced:
            cut = self._before_spaced(held, cut)
        if cut:
            self._judge(held[:cut])
        self.held = held[cut:]

    def _judge(self, text: str) -> None:
        """Filter and pass on a text that splits no unit."""
        if self._odd and len(text) >= self._shortest:
            text = self._without(self._odd, text)
        if _MAY_HOLD_UNIT.search(text):
            at = 0
            for unit in _UNIT.finditer(text):
                if (said := self._unit(unit)) != unit[0]:
                    # In pieces: words that become adjacent here are still separate for the next stage.
                    self._pass_prose(text[at : unit.start()])
                    self._pass_prose(said)
                    at = unit.end()
            text = text[at:]
        self._pass_prose(text)

    def _pass_prose(self, text: str) -> None:
        if self._shortest and len(text) >= self._shortest:
            text = self._without(self.private, text)
        if text:
            self._next_feed(text)

    def _unit(self, match: re.Match[str]) -> str:
        if match["aliases"] is not None:
            names = _ONE_ALIAS.findall(match["aliases"])
            if all(self._id_of(name) and not self._own(name) for name in names):
                self._removed["row_id"] += len(names)
                return ""
            return match[0]
        text = match["ids"]
        if text is None:
            return self._spoken_tool(match)
        kinds = [self._kind(row[0]) for row in _ROW_ID.finditer(text)]
        if all(kinds):
            self._removed.update(kinds)
            return ""
        return _TOOL.sub(self._spoken_tool, _ROW_ID.sub(self._without_row, text))

    def _spoken_tool(self, match: re.Match[str]) -> str:
        name = match[0].strip("`").replace("\\", "")
        spoken = self._spoken.get(name.lower())
        if spoken is None or self._own(name):
            return match[0]
        self._removed["tool_name"] += 1
        return spoken

    def _without_row(self, match: re.Match[str]) -> str:
        kind = self._kind(match[0])
        if not kind:
            return match[0]
        self._removed[kind] += 1
        return ""

    def _kind(self, word: str) -> str:
        """Return the kind of a word that must not be shown; "" if it may be shown."""
        if _lower(word) in self.private:
            return "private_id"
        return "row_id" if word in self._known or word.strip("_-") in self._known else ""

    def _without(self, secrets: list[str], text: str) -> str:
        lowered = _lower(text)
        for secret in secrets:
            at = lowered.find(secret)
            while at >= 0:
                self._removed["private_id"] += 1
                text = text[:at] + text[at + len(secret) :]
                lowered = lowered[:at] + lowered[at + len(secret) :]
                # Removing one from within a token may create another.
                at = lowered.find(secret, at if secret in self.spaced else 0)
        return text

    def _before_spaced(self, held: str, cut: int) -> int:
        """Return the cut, moved before a private string of several tokens that it splits or may split."""
        lowered, wanted = _lower(held), -1
        while cut != wanted:
            wanted = cut
            for secret in self.spaced:
                at = lowered.find(secret, max(0, cut - len(secret) + 1))
                if 0 <= at < cut < at + len(secret):
                    cut = at
                for start in range(max(0, len(held) - len(secret) + 1), cut):
                    if secret.startswith(lowered[start:]):
                        cut = start
                        break
            while 0 < cut < len(held) and _token_end(held, cut - 1) > cut:
                cut -= 1
        return cut

    def _without_long_tokens(self, held: str) -> str:
        """Pass on the text up to the end of the last overlong token; return the rest."""
        at = 0
        while True:
            if not self.in_long:
                long = _LONG.search(held, at)
                if long is None:
                    return held[at:]
                if long.start() > at:
                    self._judge(held[at : long.start()])
                at, self.in_long = long.start(), True
            end = _token_end(held, at)
            if end == len(held):
                return self._pass_opaque(held[at:], end - at - self._longest + 1)
            self._pass_opaque(held[at:end], end - at)
            self.in_long, at = False, end

    def _pass_opaque(self, text: str, until: int) -> str:
        """Pass on the text before `until` without private strings; return the rest."""
        lowered = _lower(text)
        at = 0
        while at < until:
            found = [(start, -len(p)) for p in self.private if 0 <= (start := lowered.find(p, at)) < until]
            start, length = min(found, default=(until, 0))
            if start > at:
                self._next_opaque(text[at:start])
            if length:
                self._removed["private_id"] += 1
                self._next_opaque("…")  # so that the text on both sides does not merge
            at = start - length
        return text[at:]


def _lower(text: str) -> str:
    """Return lower case of the same length: İ is the only character that would become two."""
    return text.replace("İ", "i").lower()


def _token_end(text: str, start: int) -> int:
    match = _TOKEN_CHARACTERS.match(text, start)
    assert match  # it may be empty
    return match.end()
