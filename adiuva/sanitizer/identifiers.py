"""The second stage: in prose, names of tools become words, and ids go, with the brackets that would stay empty.

It holds back what may still become longer: the last token, and an opened `(id: …`. The next stage gets whole words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Container
from typing import Protocol

from adiuva.sanitizer.patterns import UNSPACED, LeakPatterns

MAX_TOKEN_CHARS = 256
"""A longer token is nothing that a person reads."""
_MIN_PRIVATE_CHARS = 8
"""A shorter string cannot be told from an ordinary word or number."""

# What ids, identifiers and addresses are made of; a token has no such character on either side.
_T = rf"[^\s!-*,;<>?\[\]^`{{|}}~\u2010-\u205f\u3000-\u303f\uff00-\uff0f{UNSPACED}]"
_QUOTE = r"[`\"'*]{0,3}+"
# Of ASCII, whatever letters stand beside it: a text without spaces may be cut there.
_A = r"[A-Za-z0-9_-]"
_ROW = rf"(?<!{_A})(?={_A}*[0-9]){_A}{{8,128}}(?!{_A})"
_NAME = r"[A-Za-z0-9]+(?:\\?_[A-Za-z0-9]+)++"
_SEPARATOR = r"(?:[ \t]{0,4}[,;&])?[ \t]{0,4}"
_ROWS = rf"{_QUOTE}{_ROW}{_QUOTE}(?>{_SEPARATOR}{_QUOTE}{_ROW}{_QUOTE}){{0,99}}"
_KIND = r"(?:task|project|note|timeline|client|row|comment|user|device|conversation|request)[ \t]{1,4}"
_LABEL = r"[Ii][Dd]s?(?![A-Za-z0-9_])[ \t]{0,4}[:=#]?[ \t]{0,4}"

_SPOKEN = rf"`{_NAME}`|(?<![A-Za-z0-9_]){_NAME}(?![A-Za-z0-9_])"
_UNIT = re.compile(
    rf"(?P<ids>[ \t]?[(\[][ \t]{{0,4}}(?:(?:{_KIND})?{_LABEL})?{_ROWS}[ \t]{{0,4}}[)\]]"
    rf"|[ \t]?(?<!{_T}){_LABEL}{_ROWS}|(?P<quote>[`\"'*]{{1,3}}){_ROW}(?P=quote)|{_ROW})"
    rf"|{_SPOKEN}"
)
_ROW_ID = re.compile(_ROW)
_TOOL = re.compile(_SPOKEN)
_QUOTES = ("`", '"', "'", "*")
# How a unit may begin at the end of a text, or what may be one: more than that, but never from inside of a token.
# The ids are taken for good ({0,100}+), or a list of them would be tried in exponentially many ways.
_TAIL = re.compile(
    rf"(?:[ \t]|(?<!{_T})|(?!{_T}))"
    rf"(?:(?:[(\[][ \t]{{0,4}}(?:{_KIND})?(?:{_LABEL})?|{_LABEL})(?:{_QUOTE}{_ROW}{_QUOTE}{_SEPARATOR}){{0,100}}+"
    rf"|{_QUOTE}{_ROW}{_QUOTE})?{_QUOTE}{_T}*{_QUOTE}\Z"
)
# Text in which no unit can have begun, but for its last token and for the word "id".
_PLAIN = re.compile(rf"[^\d_`(\[\\{UNSPACED}]*\Z")
_ID = re.compile(r"(?<![A-Za-z])[Ii][Dd]s?(?![A-Za-z])")
_LONG = re.compile(rf"{_T}{{{MAX_TOKEN_CHARS + 1},}}")
_TOKEN_CHARACTERS = re.compile(rf"{_T}*")
_TELLING = re.compile(r"[_0-9]")


class _NextStage(Protocol):
    def feed(self, text: str) -> None: ...
    def opaque(self, text: str) -> None: ...


class IdentifierStage:
    def __init__(
        self,
        patterns: LeakPatterns,
        following: _NextStage,
        *,
        known: Container[str],
        private: Collection[str],
        own: Callable[[str], bool],
        removed: Counter[str],
    ) -> None:
        self._spoken, self._known, self._own, self._removed = patterns.spoken_tool_names, known, own, removed
        self._say, self._say_opaque = following.feed, following.opaque
        # Longest first, so that of two that begin at one place the longer goes.
        self._private = sorted(
            {_lower(p) for p in private if len(p) >= _MIN_PRIVATE_CHARS}, key=len, reverse=True
        )
        self._shortest = min(map(len, self._private), default=0)
        self._longest = max(map(len, self._private), default=1)
        # Those that do not look like a row's id; and of them those that are more than one token.
        self._odd = [p for p in self._private if not _ROW_ID.fullmatch(p)]
        self._spaced = [p for p in self._odd if len(p) != _token_end(p, 0)]
        self._held = ""
        self._in_long = False  # in a token that is too long to be read

    def feed(self, text: str) -> None:
        held = self._held + text
        if len(held) > MAX_TOKEN_CHARS or self._in_long:
            held = self._without_long_tokens(held)
            if self._in_long:
                self._held = held
                return
        elif _PLAIN.match(held) and not _ID.search(held):
            cut = max(held.rfind(" "), held.rfind("\n"))
            self._pass(held, max(cut, 0))
            return
        tail = _TAIL.search(held)
        cut = tail.start() if tail else len(held)
        if held[cut : cut + 1] in _QUOTES:  # perhaps those that close a unit
            cut = next(
                (unit.start() for unit in _UNIT.finditer(held) if unit.start() < cut < unit.end()), cut
            )
        self._pass(held, cut)

    def finish(self) -> None:
        """Decide on what is held: the prose ends here."""
        held, self._held = self._held, ""
        if self._in_long:
            self._in_long = False
            self._pass_opaque(held, len(held))
        elif held:
            self._judge(held)

    def _pass(self, held: str, cut: int) -> None:
        if self._spaced:
            cut = self._before_spaced(held, cut)
        if cut:
            self._judge(held[:cut])
        self._held = held[cut:]

    def _judge(self, text: str) -> None:
        """Pass on a text in which no unit is cut."""
        if self._odd and len(text) >= self._shortest:
            text = self._without(self._odd, text)
        if _TELLING.search(text):
            at = 0
            for unit in _UNIT.finditer(text):
                if (said := self._unit(unit)) != unit[0]:
                    # In pieces: what grows together here is still two words to the next stage.
                    self._say_public(text[at : unit.start()])
                    self._say_public(said)
                    at = unit.end()
            text = text[at:]
        self._say_public(text)

    def _say_public(self, text: str) -> None:
        if self._shortest and len(text) >= self._shortest:
            text = self._without(self._private, text)
        if text:
            self._say(text)

    def _unit(self, match: re.Match[str]) -> str:
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
        """What a word is that must not be shown; "" if it may be."""
        if _lower(word) in self._private:
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
                # Within a token what stays may be one again.
                at = lowered.find(secret, at if secret in self._spaced else 0)
        return text

    def _before_spaced(self, held: str, cut: int) -> int:
        """The cut, or one before a private string of more than a token that it would divide, or may divide."""
        lowered, wanted = _lower(held), -1
        while cut != wanted:
            wanted = cut
            for secret in self._spaced:
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
        """Pass on what goes up to the end of the last token that is too long, and return what is left."""
        at = 0
        while True:
            if not self._in_long:
                long = _LONG.search(held, at)
                if long is None:
                    return held[at:]
                if long.start() > at:
                    self._judge(held[at : long.start()])
                at, self._in_long = long.start(), True
            end = _token_end(held, at)
            if end == len(held):
                return self._pass_opaque(held[at:], end - at - self._longest + 1)
            self._pass_opaque(held[at:end], end - at)
            self._in_long, at = False, end

    def _pass_opaque(self, text: str, until: int) -> str:
        """Pass on what begins before `until` but for private strings, and return the rest."""
        lowered = _lower(text)
        at = 0
        while at < until:
            found = [(start, -len(p)) for p in self._private if 0 <= (start := lowered.find(p, at)) < until]
            start, length = min(found, default=(until, 0))
            if start > at:
                self._say_opaque(text[at:start])
            if length:
                self._removed["private_id"] += 1
                self._say_opaque("…")  # so that what stays on both sides does not become one
            at = start - length
        return text[at:]


def _lower(text: str) -> str:
    """In lower case, and of the same length: of all characters only İ becomes two."""
    return text.replace("İ", "i").lower()


def _token_end(text: str, start: int) -> int:
    match = _TOKEN_CHARACTERS.match(text, start)
    assert match  # it may be empty
    return match.end()
