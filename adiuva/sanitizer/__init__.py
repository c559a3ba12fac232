"""What a model says → what its user may see, while it streams.

    sanitizer = Sanitizer(guard, known=desk.seen, private={user_id, request_id})
    async for text in model:
        show(sanitizer.feed(text))   # "" while it is held back
    show(sanitizer.finish())

Text passes through three stages, each of which holds back what it cannot judge yet:

    markup.py   entity tags, charts, and the tool-call markup that models leak; whole, or not at all
    names.py    names of tools become words; ids of rows and of the request go
    leaks.py    eight words in a row of a prompt, and canaries

What comes out does not depend on how the text was cut into pieces: each decision is made at a place in the text,
never at the end of a piece. At most LIMIT characters are held back. Every name here is of a kind of thing; content
is never counted or logged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Container

from adiuva.sanitizer.entity_tags import LIMIT, Markup
from adiuva.sanitizer.identifiers import Names
from adiuva.sanitizer.patterns import Guard
from adiuva.sanitizer.prompt_leaks import Leaks

__all__ = ["LIMIT", "Guard", "Sanitizer"]


class Sanitizer:
    """One answer's filter: text in as it streams, text out that may be shown.

    `known` holds the ids that tools returned in this conversation; it is looked at when an id is complete, so it may
    grow. `private` are strings that never come out. `own(word)` says that a name stands in the user's own words or
    data, so that one like a tool's is the user's there.
    """

    def __init__(
        self,
        guard: Guard,
        *,
        known: Container[str],
        private: Collection[str] = (),
        own: Callable[[str], bool] = lambda word: False,
    ) -> None:
        self.removed: Counter[str] = Counter()
        """How often what kind was taken out, for logs."""
        self._guard, self._known, self._private, self._own = guard, known, private, own
        self._out: list[str] = []
        self._leaks = Leaks(guard, self._out.append, self.removed)
        self._names = Names(guard, self._leaks, known=known, private=private, own=own, removed=self.removed)
        self._markup = Markup(
            guard,
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
        leaks = Leaks(self._guard, out.append, self.removed)
        names = Names(
            self._guard, leaks, known=self._known, private=self._private, own=self._own, removed=self.removed
        )
        names.feed(text)
        names.finish()
        leaks.finish()
        return "".join(out)
