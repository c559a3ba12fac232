"""Compiled patterns of texts that must not be shown: prompts as word runs, canaries as expressions, names of tools."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

MIN_LEAKED_WORDS = 8
"""So many consecutive words of a prompt are a leak; fewer may be a coincidence."""

# In scripts without spaces each character counts as a word, so that text is not held back to the end of a clause.
UNSPACED = r"\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
INVISIBLE = r"\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff"
_ASCII_WORD = re.compile(r"[A-Za-z0-9]+")
_WORD = re.compile(rf"[{UNSPACED}]|(?:[^\W_{UNSPACED}]|[{INVISIBLE}])+")
_INVISIBLE = re.compile(f"[{INVISIBLE}]")

# Characters that may separate the letters of a disguised canary: blanks, markdown, punctuation.
_BETWEEN = rf"[\s{INVISIBLE}*_~`\-'\".,:;|>#+/\\]{{0,8}}"
_CANARY_LETTERS = (8, 64)


def words(text: str, start: int = 0) -> Iterator[re.Match[str]]:
    return (_ASCII_WORD if text.isascii() else _WORD).finditer(text, start)


def normalized(word: str) -> str:
    """Return the form of a word for comparisons."""
    if word.isascii():
        return word.lower()
    return unicodedata.normalize("NFKC", _INVISIBLE.sub("", word)).casefold()


class LeakPatterns:
    """Patterns of texts that models get and users must not see. They are built once per process.

    `prompts` may include descriptions of tools. `canaries` in them have 8 to 64 letters and digits.
    """

    def __init__(self, *, prompts: Iterable[str], canaries: Iterable[str], tool_names: Iterable[str]) -> None:
        self.prompt_runs = WordRuns(prompts)
        self.tool_names = frozenset(tool_names)
        self.spoken_tool_names = {
            name.lower(): name.replace("_", " ") for name in self.tool_names if "_" in name
        }
        """Names that cannot be ordinary words → how they are shown."""
        letters = sorted({_letters(canary) for canary in canaries})
        self.canary = re.compile("|".join(_whole_or_begun(word) for word in letters)) if letters else None
        self.half_canary_chars = min(map(len, letters), default=0) // 2


class WordRuns:
    """Automaton of all word runs of some texts: a suffix automaton over words instead of letters (Blumer et al., 1985).

    A step takes one or two dictionary look-ups; memory is proportional to the texts.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.following: list[dict[str, int]] = [{}]
        self._link = [-1]
        self._length = [0]
        last = 0
        for number, text in enumerate(texts):
            for match in words(text):
                last = self._extended(last, normalized(match[0]))
            last = self._extended(last, f"\0{number}")  # so that no run spans two texts

    def step(self, state: int, length: int, word: str) -> tuple[int, int]:
        """Return state and length of the longest run that ends with `word`, given those before it; (0, 0) if none."""
        following = self.following
        while word not in following[state]:
            if state == 0:
                return 0, 0
            state = self._link[state]
            length = self._length[state]
        return following[state][word], length + 1

    def _extended(self, last: int, word: str) -> int:
        new = self._state(self._length[last] + 1, {}, 0)
        at = last
        while at >= 0 and word not in self.following[at]:
            self.following[at][word] = new
            at = self._link[at]
        if at < 0:
            return new
        found = self.following[at][word]
        if self._length[found] == self._length[at] + 1:
            self._link[new] = found
            return new
        twin = self._state(self._length[at] + 1, dict(self.following[found]), self._link[found])
        while at >= 0 and self.following[at].get(word) == found:
            self.following[at][word] = twin
            at = self._link[at]
        self._link[found] = self._link[new] = twin
        return new

    def _state(self, length: int, following: dict[str, int], link: int) -> int:
        self.following.append(following)
        self._link.append(link)
        self._length.append(length)
        return len(self.following) - 1


def _letters(canary: str) -> str:
    letters = "".join(re.findall(r"[a-z0-9]", canary.lower()))
    least, most = _CANARY_LETTERS
    if not least <= len(letters) <= most:
        raise ValueError(f"a canary has {least} to {most} letters and digits of ASCII, not {len(letters)}")
    return letters


def _whole_or_begun(letters: str) -> str:
    """Return an expression for all letters (then its group matches), or for the first of them at a text's end."""
    pattern = "()"
    for number, letter in reversed(list(enumerate(letters))):
        either = f"[{letter}{letter.upper()}]" if letter.isalpha() else letter
        between = _BETWEEN if number < len(letters) - 1 else ""
        pattern = rf"{either}{between}(?:\Z|{pattern})" if between else either + pattern
    return pattern
