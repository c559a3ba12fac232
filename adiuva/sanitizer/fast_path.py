"""Fast path through all four stages for plain words, which are nearly all of an answer.

A word costs more for the code that it passes than for the decisions about it. So this module decides in one place that
no stage would change or hold anything, for ordinary letters and punctuation and while no stage holds anything back.
Text that it is not sure of goes through the stages. It changes the stages' state as the word itself would have done, so
that the output is the same, piece by piece.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from adiuva.sanitizer.internal_names import LABEL, MAX_TOKEN_CHARS, InternalNameStage
from adiuva.sanitizer.links import BARE_BEGUN, TAIL_CHARS, LinkStage
from adiuva.sanitizer.model_markup import MarkupStage
from adiuva.sanitizer.patterns import LeakPatterns
from adiuva.sanitizer.prompt_leaks import PromptLeakStage

# No digits, and no character that opens or closes what a stage looks for.
_PLAIN: Final = re.compile(r"[A-Za-z ,.;:'\"?*|\n-]*")
_WORD: Final = re.compile(r"[a-z]+")
# The only beginning of an address that links.py looks for and that plain characters can write.
_ADDRESS: Final = "www."
# The only word that internal_names.py looks for and that plain characters can write.
_LABEL: Final = "id"
_ENDS_OF_BEGUN: Final = frozenset("htpsfw:")
_MEANS_SOMETHING_BEFORE_A_LETTER: Final = ("]", "!", "<")


class FastPath:
    """Shortcut that reads and sets the state of an answer's stages. `take_output` returns the last stage's output."""

    def __init__(
        self,
        patterns: LeakPatterns,
        markup: MarkupStage,
        names: InternalNameStage,
        leaks: PromptLeakStage,
        links: LinkStage,
        take_output: Callable[[], str],
    ) -> None:
        self._markup, self._names, self._leaks, self._links = markup, names, leaks, links
        self._take_output = take_output
        self._following, self._canary = patterns.prompt_runs.following, patterns.canary
        # Private strings of plain characters, or with plain words at the beginning, would have to be looked for.
        self._is_there = not names.spaced and not any(map(_PLAIN.fullmatch, names.private))
        self._is_open = False
        self.note_state()

    def note_state(self) -> None:
        """Decide whether the path is open, after a text went through the stages."""
        markup = self._markup
        self._is_open = self._is_there and not (
            markup.held or markup.skip_until or markup.has_cut or self._names.in_long
        )

    def take(self, text: str) -> str | None:
        """Return what may be shown once this text has come, or None if it must go through the stages."""
        if not self._is_open or not text:
            return None
        names, markup = self._names, self._markup
        held = names.held + text
        if len(held) > MAX_TOKEN_CHARS or not _PLAIN.fullmatch(held):
            return None
        lowered = held.lower()
        if _LABEL in lowered and LABEL.search(held):
            return None
        markup.last = text[-1]
        markup.has_text = markup.has_text or not text.isspace()
        cut = max(held.rfind(" "), held.rfind("\n"))
        if cut <= 0:
            names.held = held
            return ""
        names.held, passed = held[cut:], held[:cut]
        shown = self._past_leaks_and_links(passed, lowered, cut)
        if shown is None:
            self._leaks.feed(passed)
            shown = self._take_output()
        return shown

    def _past_leaks_and_links(self, passed: str, lowered: str, cut: int) -> str | None:
        """Pass whole words through the last two stages. `lowered` holds them up to `cut`."""
        leaks, links = self._leaks, self._links
        if leaks.held or leaks.dropping or leaks.canary_start or _ADDRESS in lowered:
            return None
        following, state, length = self._following, leaks.state, leaks.length
        for word in _WORD.findall(lowered, 0, cut):
            after = following[state].get(word)
            if after is None:
                state = following[0].get(word, 0)
                length = 1 if state else 0
            elif length:
                return None  # two words of a prompt: the stage holds the second back
            else:
                state, length = after, 1
        if self._canary is not None and self._canary.search(passed):
            return None
        tail, shown, begun = links.tail, passed, ""
        if lowered[cut - 1] in _ENDS_OF_BEGUN and (match := BARE_BEGUN.search(passed)):
            shown, begun = passed[: match.start()], match[0]
        if tail or links.held:
            if passed[0] not in " \n":
                return None
            if links.held:
                # The held text must be letters that could have begun an address, but have not.
                if (
                    not links.held.isalpha()
                    or links.has_cut
                    or tail.endswith(_MEANS_SOMETHING_BEFORE_A_LETTER)
                ):
                    return None
                shown = links.held + shown
        links.held = begun
        if shown:
            links.tail, links.has_cut = (tail + shown)[-TAIL_CHARS:], False
        leaks.state, leaks.length = state, length
        if leaks.just_marked and not passed.isspace():
            leaks.just_marked = False
        return shown
