"""What must not be shown, compiled once a process: prompts as runs of words, canaries as patterns, names of tools."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

MIN_LEAKED_WORDS = 8
"""So many words of a prompt in a row are the prompt, and no longer a coincidence."""

# Scripts that are written without spaces: each character is a word, so that nobody waits for the end of a clause.
UNSPACED = r"\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
INVISIBLE = r"\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff"
_ASCII_WORD = re.compile(r"[A-Za-z0-9]+")
_WORD = re.compile(rf"[{UNSPACED}]|(?:[^\W_{UNSPACED}]|[{INVISIBLE}])+")
_INVISIBLE = re.compile(f"[{INVISIBLE}]")

# What may stand between the letters of a canary that somebody wants to get past us: blanks, markdown, punctuation.
_BETWEEN = rf"[\s{INVISIBLE}*_~`\-'\".,:;|>#+/\\]{{0,8}}"
_CANARY_LETTERS = (8, 64)


def words(text: str, start: int = 0) -> Iterator[re.Match[str]]:
    return (_ASCII_WORD if text.isascii() else _WORD).finditer(text, start)


def normalized(word: str) -> str:
    """The form in which words are compared."""
    if word.isascii():
        return word.lower()
    return unicodedata.normalize("NFKC", _INVISIBLE.sub("", word)).casefold()


class LeakPatterns:
    """Texts that models are given and users are not: `prompts` (the descriptions of tools may be among them), the
    `canaries` in them, which are to have 8 to 64 letters and digits, and the names of tools."""

    def __init__(self, *, prompts: Iterable[str], canaries: Iterable[str], tool_names: Iterable[str]) -> None:
        self.prompt_runs = WordRuns(prompts)
        self.tool_names = frozenset(tool_names)
        self.spoken_tool_names = {
            name.lower(): name.replace("_", " ") for name in self.tool_names if "_" in name
        }
        """Names that cannot be ordinary words, and how they are said."""
        letters = sorted({_letters(canary) for canary in canaries})
        self.canary = re.compile("|".join(_whole_or_begun(word) for word in letters)) if letters else None
        self.half_canary_chars = min(map(len, letters), default=0) // 2


class WordRuns:
    """All runs of words of some texts: a suffix automaton, with words for letters (Blumer et al., 1985).

    A step costs a dictionary look-up or two, and the whole takes memory in proportion to the texts.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._link = [-1]
        self._length = [0]
        last = 0
        for number, text in enumerate(texts):
            for match in words(text):
                last = self._extended(last, normalized(match[0]))
            last = self._extended(last, f"\0{number}")  # no run goes from one text into the next

    def step(self, state: int, length: int, word: str) -> tuple[int, int]:
        """The longest run that ends with this word, after one of `length` words that ended in `state`; (0, 0): none."""
        following = self._next
        while word not in following[state]:
            if state == 0:
                return 0, 0
            state = self._link[state]
            length = self._length[state]
        return following[state][word], length + 1

    def _extended(self, last: int, word: str) -> int:
        new = self._state(self._length[last] + 1, {}, 0)
        at = last
        while at >= 0 and word not in self._next[at]:
            self._next[at][word] = new
            at = self._link[at]
        if at < 0:
            return new
        found = self._next[at][word]
        if self._length[found] == self._length[at] + 1:
            self._link[new] = found
            return new
        twin = self._state(self._length[at] + 1, dict(self._next[found]), self._link[found])
        while at >= 0 and self._next[at].get(word) == found:
            self._next[at][word] = twin
            at = self._link[at]
        self._link[found] = self._link[new] = twin
        return new

    def _state(self, length: int, following: dict[str, int], link: int) -> int:
        self._next.append(following)
        self._link.append(link)
        self._length.append(length)
        return len(self._next) - 1


def _letters(canary: str) -> str:
    letters = "".join(re.findall(r"[a-z0-9]", canary.lower()))
    least, most = _CANARY_LETTERS
    if not least <= len(letters) <= most:
        raise ValueError(f"a canary has {least} to {most} letters and digits of ASCII, not {len(letters)}")
    return letters


def _whole_or_begun(letters: str) -> str:
    """Matches all of the letters, with a group that says so, or the first of them at the text's end."""
    pattern = "()"
    for number, letter in reversed(list(enumerate(letters))):
        either = f"[{letter}{letter.upper()}]" if letter.isalpha() else letter
        between = _BETWEEN if number < len(letters) - 1 else ""
        pattern = rf"{either}{between}(?:\Z|{pattern})" if between else either + pattern
    return pattern
