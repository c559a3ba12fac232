"""Context window of a model in tokens, its answer included, and the size of a request in tokens.

ADIUVA_MODEL_CONTEXT_WINDOW gives the window. Without it, the window is the smallest of what the endpoint says of
itself, what a refusal has taught, and, for providers that LiteLLM knows, its list of models. If none of them says
anything, it is unknown, and nothing is fitted into it until a request is refused as too long.

Tokens are estimated from bytes, which follow them closely in all scripts. The bytes of a token are learnt for each
model from the usage that it counts.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import structlog
from django.conf import settings

from adiuva.llm.learnt import LearntFacts
from adiuva.llm.litellm_models import listed_entry
from adiuva.llm.types import Message, ModelRequest, Tool

# Fields by which servers with the OpenAI API give a model's window in their list of models. The loaded window counts
# more than what the model could take.
WINDOW_FIELDS: Final = (
    "loaded_context_length", "n_ctx", "max_model_len", "context_length", "context_window", "max_context_length",
)  # fmt: skip
_LEAST_WINDOW: Final = 512  # a smaller number is no window
_ASK_AGAIN_AFTER_S: Final = 600.0
# English has about 4 bytes a token, code and ids fewer. The first guess is low, so that too much is left out rather
# than refused.
_FIRST_BYTES_PER_TOKEN: Final = 3.0
_BYTES_PER_TOKEN_BOUNDS: Final = (1.5, 6.0)
_LEARNING_RATE: Final = 0.2
_LEAST_COUNTED_TOKENS: Final = 200  # in a shorter request the template's own tokens weigh too much
# If a refusal does not say how large the window is, this part of the refused size is tried next.
_AFTER_REFUSAL: Final = 0.7
_FACT: Final = "window"

log = structlog.get_logger(__name__)


class ContextWindow:
    """Window of one model at one endpoint, as far as it is known. 0 stands for unknown."""

    def __init__(self, facts: LearntFacts) -> None:
        self._facts = facts
        self._told = 0
        self._ask_at = 0.0
        self._bytes_per_token = _FIRST_BYTES_PER_TOKEN

    @property
    def _learnt(self) -> int:
        """Return the window that a refusal has taught this process or another one."""
        return int(self._facts.get(_FACT) or 0)

    @property
    def tokens(self) -> int:
        """Return the window as far as it is known now."""
        told, learnt = int(settings.MODEL_CONTEXT_WINDOW) or self._told, self._learnt
        return min(told, learnt) if told and learnt else told or learnt

    async def find(self, ask: Callable[[], Awaitable[int]]) -> int:
        """Return the window. `ask` is called for it when nothing is known, and not again for ten minutes."""
        if not self.tokens and time.monotonic() >= self._ask_at:
            self._ask_at = time.monotonic() + _ASK_AGAIN_AFTER_S
            self._told = plausible_window(await ask())
            if self._told:
                log.info("model.window_found", **self._names, tokens=self._told)
        return self.tokens

    def tokens_of(self, size: int) -> int:
        """Return about how many tokens this many bytes of a request have."""
        return int(size / self._bytes_per_token) + 1

    def bytes_of(self, tokens: int) -> int:
        """Return how many bytes of a request have at most about this many tokens."""
        return int(tokens * self._bytes_per_token)

    def part(self, share: int, most: int) -> int:
        """Return how many characters a text may have that gets one in `share` parts of the window: at most `most`."""
        return min(most, self.bytes_of(self.tokens) // share) if self.tokens else most

    def note_usage(self, size: int, tokens: int) -> None:
        """Learn from a request of this many bytes that the model has counted."""
        if tokens >= _LEAST_COUNTED_TOKENS:
            least, most = _BYTES_PER_TOKEN_BOUNDS
            seen = min(max(size / tokens, least), most)
            self._bytes_per_token += _LEARNING_RATE * (seen - self._bytes_per_token)

    async def note_refusal(self, size: int, window: int) -> None:
        """Learn from a request of this many bytes that was refused as too long; `window` is 0 if it does not say
        more."""
        known = self._learnt or self.tokens
        found = plausible_window(window)
        if not found or (known and found >= known):
            # The same size was refused again, so our estimate of the tokens is wrong, or the number is.
            found = max(_LEAST_WINDOW, int(_AFTER_REFUSAL * min(self.tokens_of(size), known or 10**9)))
        await self._facts.note({_FACT: str(found)})
        log.info("model.window_learnt", **self._names, tokens=found)

    @property
    def _names(self) -> dict[str, str]:
        return {"endpoint": self._facts.endpoint, "model": self._facts.model}


def request_size(messages: Sequence[Message], tools: Sequence[Tool] | None = None) -> int:
    """Return the bytes of a request's messages and tools."""
    return ModelRequest(messages, tools).size


def plausible_window(value: Any) -> int:
    """Return the number if it can be a window, or else 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= _LEAST_WINDOW else 0


def window_in_models(answer: Any, model: str) -> int:
    """Return the window that a server's list of models (GET /models) gives for a model; 0 if it gives none."""
    rows = answer.get("data") if isinstance(answer, dict) else None
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    row = next((row for row in rows if row.get("id") == model), rows[0] if len(rows) == 1 else {})
    meta = row.get("meta")
    for place in (row, meta if isinstance(meta, dict) else {}):
        for field in WINDOW_FIELDS:
            if found := plausible_window(place.get(field)):
                return found
    return 0


def window_in_props(answer: Any) -> int:
    """Return the window that llama.cpp's server gives for itself (GET /props); 0 if it gives none."""
    settings_of_slots = answer.get("default_generation_settings") if isinstance(answer, dict) else None
    return plausible_window(settings_of_slots.get("n_ctx")) if isinstance(settings_of_slots, dict) else 0


def listed_window(model: str) -> int:
    """Return the window that LiteLLM's list gives for a model by its LiteLLM name; 0 if it is not there."""
    return plausible_window(listed_entry(model).get("max_input_tokens"))
