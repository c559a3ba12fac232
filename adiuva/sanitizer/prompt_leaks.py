"""Third stage: it removes eight consecutive words of a prompt, and canaries. It gets whole words.

A run of a prompt is removed with the rest of its sentence or line. A mark is left in its place, which also keeps the
text on both sides from merging into what was removed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from adiuva.sanitizer.patterns import MIN_LEAKED_WORDS, LeakPatterns, normalized, words

# The end of a sentence, searched for between two words.
_SENTENCE_END = re.compile(r"""[.!?…。！？]+["'”’»)\]*_`]{0,4}(?=\s)|(?=\n)""")
# Words farther apart than this are not consecutive.
_MAX_GAP_CHARS = 256


class PromptLeakStage:
    def __init__(
        self,
        patterns: LeakPatterns,
        emit: Callable[[str], None],
        emit_whole: Callable[[str], None],
        removed: Counter[str],
    ) -> None:
        self._step, self._canary, self._half = (
            patterns.prompt_runs.step,
            patterns.canary,
            patterns.half_canary_chars,
        )
        self._emit, self._emit_whole, self._removed = emit, emit_whole, removed
        # The current run: its state in the automaton, its length, and the text from its second word on.
        self.state = self.length = 0
        self.held = ""
        self._starts: list[int] = []  # where the words after the run's first one begin in the held text
        self._last = 0  # where its last word ends in the held text
        self.dropping = False  # True while the rest of a sentence is dropped
        self.canary_start = ""  # held text that may be the beginning of a canary
        self._marks = 0
        self.just_marked = False

    def feed(self, text: str) -> None:
        """Filter a text that neither starts nor ends inside a word."""
        seen = len(self.held)
        held = self.held + text if seen else text
        shown = 0  # up to where the held text has been shown or dropped
        state, length, starts, last = self.state, self.length, self._starts, self._last
        for match in words(held, seen):
            start, end = match.span()
            if length >= 2 or self.dropping:
                if start - last > _MAX_GAP_CHARS:
                    shown = self._stop_dropping(held, last, shown)
                    state = length = 0
                elif self.dropping and (stop := _SENTENCE_END.search(held, last, start)):
                    self.dropping, shown = False, stop.end()
            state, length = self._step(state, length, normalized(match[0]))
            last = end
            if length < 2:
                if starts:
                    starts.clear()
            else:
                starts.append(start)
                del starts[: 1 - min(length, MIN_LEAKED_WORDS)]
                if length >= MIN_LEAKED_WORDS and not self.dropping:
                    self._removed["prompt"] += 1
                    self._say(held[shown : max(shown, starts[0])])
                    self._mark("[…]" if not self._marks else "…")
                    self.dropping = True
            if self.dropping:
                shown = end
        if (length >= 2 or self.dropping) and len(held) - last > _MAX_GAP_CHARS:
            shown = self._stop_dropping(held, last, shown)
            state = length = 0
            starts.clear()
        if self.dropping:
            kept = shown
        elif starts:
            kept = max(shown, starts[0])
        else:
            kept = len(held)
        if kept > shown:
            self._say(held[shown:kept])
        self.state, self.length = state, length
        self.held = held[kept:]
        self._last = max(0, last - kept) if self.held else 0
        if starts:
            self._starts = [max(0, start - kept) for start in starts]

    def opaque(self, text: str) -> None:
        """Pass on a piece of text without words, like base64; no run continues across it."""
        self._stop()
        self._say(text)

    def show(self, text: str) -> None:
        """Pass on text that was checked elsewhere."""
        self.just_marked = False
        self._emit_whole(text)

    def finish(self) -> None:
        """Decide on all held text: nothing that follows belongs to it."""
        self._stop()
        start, self.canary_start = self.canary_start, ""
        if not start:
            return
        if sum(map(str.isalnum, start)) > self._half:
            self._removed["canary"] += 1
            self._emit("[…]")
        else:
            self._emit(start)

    def _stop(self) -> None:
        if self.held:
            rest = self.held[self._stop_dropping(self.held, self._last, 0) if self.dropping else 0 :]
            self.held = ""
            self._say(rest)
        self.dropping = False
        self.state = self.length = self._last = 0
        self._starts = []

    def _stop_dropping(self, held: str, last: int, shown: int) -> int:
        """Return where the shown text continues after the last word, if a sentence was being dropped."""
        if not self.dropping:
            return shown
        self.dropping = False
        stop = _SENTENCE_END.search(held, last, last + _MAX_GAP_CHARS)
        return stop.end() if stop else min(len(held), last + _MAX_GAP_CHARS)

    def _mark(self, mark: str) -> None:
        if self.just_marked and not self.canary_start:
            return
        self._say(mark)
        self._marks += 1
        self.just_marked = True

    def _say(self, text: str) -> None:
        """Pass on a text without canaries; hold back a possible beginning of one."""
        if not text:
            return
        if self.canary_start:
            text, self.canary_start = self.canary_start + text, ""
        shown = 0
        for match in self._canary.finditer(text) if self._canary else ():
            self._emit_words(text[shown : match.start()])
            if match.lastindex is None:
                self.canary_start = match[0]
                return
            self._removed["canary"] += 1
            self._emit("[…]")
            self._marks += 1
            self.just_marked = True
            shown = match.end()
        self._emit_words(text[shown:] if shown else text)

    def _emit_words(self, text: str) -> None:
        if text:
            if self.just_marked and not text.isspace():
                self.just_marked = False
            self._emit(text)
