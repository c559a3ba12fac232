"""Filter of a model's streamed answer: removes everything that its user must not see.

    sanitizer = Sanitizer(patterns, known=session.seen_ids, private={user_id, request_id})
    async for text in model:
        show(sanitizer.feed(text))   # "" while the text is held back
    show(sanitizer.finish())

Text passes through three stages. Each holds back what it cannot judge yet:

    entity_tags.py    entity tags and charts pass only whole; tool-call markup that models leak is removed
    identifiers.py    names of tools become ordinary words; ids of rows and of the request are removed
    prompt_leaks.py   eight consecutive words of a prompt, and canaries, are removed

The result does not depend on how the text was cut into pieces: every decision is made at a position in the text, never
at the end of a piece. At most MAX_HELD_CHARS characters are held back. Counters name kinds of findings; content is
never counted or logged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Container

from adiuva.sanitizer.entity_tags import MAX_HELD_CHARS, MarkupStage
from adiuva.sanitizer.identifiers import IdentifierStage
from adiuva.sanitizer.patterns import LeakPatterns
from adiuva.sanitizer.prompt_leaks import PromptLeakStage

__all__ = ["MAX_HELD_CHARS", "LeakPatterns", "Sanitizer"]


class Sanitizer:
    """One answer's filter: text in as it streams, text out that may be shown.

    `known` holds the ids that tools returned in this conversation; it is looked at when an id is complete, so it may
    grow. `private` are strings that never come out. `own(word)` says that a name stands in the user's own words or
    data, so that one like a tool's is the user's there.
    """

    def __init__(
        self,
        patterns: LeakPatterns,
        *,
        known: Container[str],
        private: Collection[str] = (),
        own: Callable[[str], bool] = lambda word: False,
    ) -> None:
        self.removed: Counter[str] = Counter()
        """How often what kind was taken out, for logs."""
        self._patterns, self._known, self._private, self._own = patterns, known, private, own
        self._out: list[str] = []
        self._leaks = PromptLeakStage(patterns, self._out.append, self.removed)
        self._names = IdentifierStage(
            patterns, self._leaks, known=known, private=private, own=own, removed=self.removed
        )
        self._markup = MarkupStage(
            patterns,
            prose=self._names.feed,
            whole=self._show_whole,
            allowed=lambda row: row in known and row not in private,
            clean=self._clean,
            removed=self.removed,
        )

    def feed(self, text: str) -> str:
        """What may go out now."""
        self._markup.feed(text)
        return self._taken()

    def finish(self) -> str:
        """The rest, at the end of the answer."""
        self._markup.finish()
        self._names.finish()
        self._leaks.finish()
        return self._taken()

    def _taken(self) -> str:
        out = self._out
        if not out:
            return ""
        said = out[0] if len(out) == 1 else "".join(out)
        out.clear()
        return said

    def _show_whole(self, text: str) -> None:
        """A tag or chart, judged already: what is held before it is decided first."""
        self._names.finish()
        self._leaks.finish()
        self._leaks.show(text)

    def _clean(self, text: str) -> str:
        """A text inside of a chart, as prose would come out."""
        out: list[str] = []
        leaks = PromptLeakStage(self._patterns, out.append, self.removed)
        names = IdentifierStage(
            self._patterns,
            leaks,
            known=self._known,
            private=self._private,
            own=self._own,
            removed=self.removed,
        )
        names.feed(text)
        names.finish()
        leaks.finish()
        return "".join(out)
