"""Filter of a model's streamed answer: removes everything that its user must not see.

    sanitizer = Sanitizer(patterns, known=session.seen_ids, private={user_id, request_id})
    async for text in model:
        show(sanitizer.feed(text))   # "" while the text is held back
    show(sanitizer.finish())

Text passes through four stages. Each holds back what it cannot judge yet:

    model_markup.py   entity tags and charts pass only whole; tool-call markup that models leak is removed
    internal_names.py names of tools become ordinary words; ids of rows and of the request are removed
    prompt_leaks.py   eight consecutive words of a prompt, and canaries, are removed
    links.py          images and HTML are removed; links pass if their address is known

Plain words mostly skip the stages (fast_path.py), with the same result.

The result does not depend on how the text was cut into pieces: every decision is made at a position in the text, never
at the end of a piece. At most MAX_HELD_CHARS characters are held back. Counters name kinds of findings; content is
never counted or logged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Container

from adiuva.sanitizer.fast_path import FastPath
from adiuva.sanitizer.internal_names import InternalNameStage
from adiuva.sanitizer.links import LinkStage, addresses_in
from adiuva.sanitizer.model_markup import MAX_HELD_CHARS, MarkupStage
from adiuva.sanitizer.patterns import LeakPatterns
from adiuva.sanitizer.prompt_leaks import PromptLeakStage

__all__ = ["MAX_HELD_CHARS", "LeakPatterns", "Sanitizer", "addresses_in"]


class Sanitizer:
    """Filter of one answer: takes its text as it streams, and returns the text that may be shown.

    `known`: the ids that tools returned in this conversation. It is looked up when an id is complete, so it may grow.
    `private`: strings that are never shown. `own(word)`: whether a word occurs in the user's own messages or data; then
    it is kept even if it is also the name of a tool. `knows_address(address)`: whether exactly this address was in the
    user's words or in what this turn has read, so that a link may lead there. `id_of(alias)`: the id that a model's
    short name for a row stands for. In tags the id is shown; in prose such names are removed where they stand in
    brackets.
    """

    def __init__(
        self,
        patterns: LeakPatterns,
        *,
        known: Container[str],
        private: Collection[str] = (),
        own: Callable[[str], bool] = lambda word: False,
        knows_address: Callable[[str], bool] = lambda address: False,
        id_of: Callable[[str], str | None] = lambda alias: None,
    ) -> None:
        self.removed: Counter[str] = Counter()
        """How often each kind was removed, for logs."""
        self._patterns, self._known, self._private, self._own = patterns, known, private, own
        self._id_of = id_of
        self._out: list[str] = []
        self._knows_address = knows_address
        self._links = LinkStage(self._out.append, is_known=knows_address, removed=self.removed)
        self._prompt_leaks = PromptLeakStage(patterns, self._links.feed, self._links.show, self.removed)
        self._identifiers = InternalNameStage(
            patterns,
            self._prompt_leaks,
            known=known,
            private=private,
            own=own,
            removed=self.removed,
            id_of=id_of,
        )
        self._markup = MarkupStage(
            patterns,
            prose=self._identifiers.feed,
            whole=self._show_whole,
            allowed=lambda row: row in known and row not in private,
            id_of=id_of,
            clean=self._clean,
            removed=self.removed,
        )
        self._fast_path = FastPath(
            patterns, self._markup, self._identifiers, self._prompt_leaks, self._links, self._take_output
        )

    def feed(self, text: str) -> str:
        """Take more text; return the part that may be shown now."""
        shown = self._fast_path.take(text)
        if shown is None:
            self._markup.feed(text)
            self._fast_path.note_state()
            shown = self._take_output()
        return shown

    def finish(self) -> str:
        """End the answer, once; return the rest that may be shown."""
        self._markup.finish()
        self._identifiers.finish()
        self._prompt_leaks.finish()
        self._links.finish()
        shown = self._take_output()
        # They refer back to this object, which would stay until a garbage collection.
        del self._markup, self._fast_path
        return shown

    def _take_output(self) -> str:
        out = self._out
        if not out:
            return ""
        text = out[0] if len(out) == 1 else "".join(out)
        out.clear()
        return text

    def _show_whole(self, text: str) -> None:
        """Show a checked tag or chart, after deciding on all text that is held before it."""
        self._identifiers.finish()
        self._prompt_leaks.finish()
        self._prompt_leaks.show(text)

    def _clean(self, text: str) -> str:
        """Return a text inside a chart, filtered like prose."""
        out: list[str] = []
        links = LinkStage(out.append, is_known=self._knows_address, removed=self.removed)
        leaks = PromptLeakStage(self._patterns, links.feed, links.show, self.removed)
        names = InternalNameStage(
            self._patterns,
            leaks,
            known=self._known,
            private=self._private,
            own=self._own,
            removed=self.removed,
            id_of=self._id_of,
        )
        names.feed(text)
        names.finish()
        leaks.finish()
        links.finish()
        return "".join(out)
