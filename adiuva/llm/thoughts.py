"""Filter for reasoning that an answer closes with a tag without having opened it.

Some chat templates open a thought in the prompt (`<think>`), so the answer holds only its end (`</think>`). While it
arrives, nothing separates its thought from its answer. So all processes learn a model's habit from its answers. The
answers of a model with this habit are held back until the thought has ended, and so is the first text of a model with
an unknown habit. If that one has no thought, all of it was held back, and that is learnt.
"""

from __future__ import annotations

import re
from typing import Final

import structlog

from adiuva.llm.learnt import LearntFacts
from adiuva.llm.types import Delta, Finish, OnText, Reply, Text

_OPENING: Final = re.compile(r"\s*<think(?:ing)?>")
_END: Final = re.compile(r"</think(?:ing)?>\s*")
_LONGEST_TAG: Final = len("</thinking>")
_FACT: Final = "thoughts"
_UNOPENED: Final = "unopened"
_NONE: Final = "none"

log = structlog.get_logger(__name__)


class ThoughtHabit:
    """Observed habit of one model at one endpoint: whether its answers begin within a thought."""

    def __init__(self, facts: LearntFacts, *, is_unknown_trusted: bool = False) -> None:
        """Begin with what is known. `is_unknown_trusted`: the endpoint is known to keep thoughts apart, so nothing has
        to be learnt first."""
        self._facts = facts
        self._is_unknown_trusted = is_unknown_trusted

    def filter(self) -> ThoughtFilter:
        """Return the filter for the next answer."""
        return ThoughtFilter(is_expected=self.is_expected, is_certain=self._facts.get(_FACT) == _UNOPENED)

    @property
    def is_expected(self) -> bool:
        """Return whether the next answer may begin within a thought."""
        known = self._facts.get(_FACT)
        return known == _UNOPENED or (not known and not self._is_unknown_trusted)

    async def note_stream(self, answer: ThoughtFilter) -> None:
        """Learn from an answer that has ended. One that was cut off may be a thought without its end."""
        if answer.is_unopened:
            await self._note(_UNOPENED)
        elif answer.has_text and not answer.is_cut_off:
            await self._note(_NONE)

    async def note_whole_answer(self, reply: Reply, *, is_free: bool) -> None:
        """Learn from an answer that was not streamed. One that had to be JSON shows nothing if it has no thought."""
        if ends_unopened_thought(reply.text):
            await self._note(_UNOPENED)
        elif is_free and reply.text.strip() and reply.finish != "length":
            await self._note(_NONE)

    async def _note(self, habit: str) -> None:
        if habit != self._facts.get(_FACT):
            log.info("model.thoughts_learnt", model=self._facts.model, habit=habit)
        await self._facts.note({_FACT: habit})


def ends_unopened_thought(text: str) -> bool:
    """Return whether a text begins within a thought: it holds an end of one before any beginning."""
    end = _END.search(text)
    return end is not None and "<think" not in text[: end.start()]


class ThoughtFilter:
    """Filter that takes an unopened thought out of a streamed answer if expected, and notices an unexpected one.

    `is_certain`: the model is known for such thoughts, so an answer that was cut off before the end of one is a
    thought.
    """

    def __init__(self, *, is_expected: bool, is_certain: bool = False) -> None:
        self.is_unopened = self.has_text = self.is_cut_off = False
        self._is_certain = is_certain
        self._holds = is_expected
        self._held: list[str] = []
        self._watches = True
        self._tail = ""

    def feed(self, deltas: list[Delta]) -> list[Delta]:
        """Return the deltas that may be shown by now."""
        if not self._watches:
            return deltas
        shown: list[Delta] = []
        for delta in deltas:
            if isinstance(delta, Text):
                if text := self.take(delta.text):
                    shown.append(Text(text))
            else:  # calls and the finish come last
                if isinstance(delta, Finish) and delta.reason == "length":
                    self.is_cut_off = True
                    if self._is_certain:
                        self._drop_unfinished_thought()
                if text := self._release():
                    shown.append(Text(text))
                shown.append(delta)
        return shown

    def take(self, text: str) -> str:
        """Return the text that may be shown by now; "" while it is held."""
        if not self._watches:
            return text
        self.has_text = self.has_text or not text.isspace()
        if not self._holds:
            window = self._tail + text
            if "<" not in window:
                pass
            elif "<think" in window:
                self._watches = (
                    False  # a thought with a beginning, or a text about one, is the sanitizer's task
                )
            elif _END.search(window):
                self.is_unopened, self._watches = True, False
            self._tail = window[-_LONGEST_TAG:]
            return text
        self._held.append(text)
        whole = "".join(self._held)
        if _OPENING.match(whole):
            return self._release()
        if end := _END.search(whole):
            if end.end() == len(whole):
                return ""  # more blanks may follow
            self.is_unopened, self._watches = True, False
            self._held.clear()
            return whole[end.end() :]
        return ""

    def then(self, on_text: OnText | None) -> OnText | None:
        """Return a function that takes text and gives `on_text` the part that may be shown."""
        if on_text is None:
            return None

        def show(text: str) -> None:
            if shown := self.take(text):
                on_text(shown)

        return show

    def _drop_unfinished_thought(self) -> None:
        whole = "".join(self._held)
        if whole and not _END.search(whole) and not _OPENING.match(whole):
            self._held.clear()

    def _release(self) -> str:
        """Return the held text, at the end of the answer or because it is no unopened thought."""
        whole, self._watches = "".join(self._held), False
        self._held.clear()
        if (end := _END.search(whole)) and not _OPENING.match(whole):
            self.is_unopened = True
            return whole[end.end() :]
        return whole
