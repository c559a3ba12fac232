"""Counts what every request to a model uses, however it ends, for the piece of work that makes it.

The code that begins a piece of work (a turn, a run, a step of a journey, work of the memory) sets a Meter for its task
and the tasks it starts. Each request adds to it the usage that the provider counts. It adds an estimate if the request
was cancelled, if its answer broke off, or if the provider sends no usage. Requests that the provider refused cost
nothing.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from math import ceil
from typing import Final
from uuid import UUID

import structlog

from adiuva.llm import errors
from adiuva.llm.context_window import ContextWindow
from adiuva.llm.prices import Price, find_price
from adiuva.llm.types import Delta, Finish, ModelRequest, OnText, Reply, Text, ToolCall, Usage

# The first guess of an answer's bytes for each token. The ratio for requests is learnt separately
# (adiuva.llm.context_window).
_FIRST_BYTES_PER_TOKEN: Final = 4.0
_BYTES_PER_TOKEN_BOUNDS: Final = (1.0, 8.0)
_LEARNING_RATE: Final = 0.2
_LEAST_COUNTED_TOKENS: Final = 20
# The assumed maximum of an answer if its request does not say.
_UNBOUNDED_ANSWER_TOKENS: Final = 8_192
# After these errors the provider has answered nothing, and bills nothing.
_UNBILLED: Final = (errors.ModelRejected, errors.ModelRateLimited, errors.ModelUnavailable)

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class ModelUse:
    """Use of one model. `estimated_micro` is the part of the cost that we estimated; requests to a model without a
    price are `unpriced` and cost nothing here."""

    model: str
    calls: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_micro: int = 0
    estimated_micro: int = 0
    estimated_calls: int = 0
    unpriced_calls: int = 0

    def add(self, usage: Usage, price: Price | None, *, is_estimated: bool) -> int:
        """Add a request. Returns its cost."""
        cost = price.cost_micro(usage) if price else 0
        self.calls += 1
        self.input_tokens += usage.input_tokens
        self.cached_tokens += usage.cached_tokens
        self.output_tokens += usage.output_tokens
        self.cost_micro += cost
        self.unpriced_calls += price is None
        if is_estimated:
            self.estimated_micro += cost
            self.estimated_calls += 1
        return cost

    def join(self, other: ModelUse) -> None:
        for each in fields(self)[1:]:
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


@dataclass(eq=False)
class Meter:
    """Meter of what a piece of work uses. `purpose` and `agent` say what for; `is_last`: the next request is the last.

    Threads may read `uses` while requests of the work are still in progress.
    """

    user_id: UUID
    purpose: str
    agent: UUID | None = None
    is_last: bool = False
    _uses: dict[str, ModelUse] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    async def admit(self, model: str, most_micro: int | None) -> None:
        """Admit a request that may cost at most this, None if unknown. Called before each request. Raises
        BudgetSpent."""

    def add(
        self, model: str, usage: Usage, price: Price | None, *, is_estimated: bool, most_micro: int | None
    ) -> None:
        """Count a request that has ended. `most_micro` is what `admit` was told."""
        with self._lock:
            self._uses.setdefault(model, ModelUse(model)).add(usage, price, is_estimated=is_estimated)

    def dismiss(self, most_micro: int | None) -> None:
        """Note that an admitted request has ended and cost nothing."""

    def uses(self) -> list[ModelUse]:
        """Return all use so far, by model."""
        with self._lock:
            return [replace(use) for use in self._uses.values()]

    def take(self) -> list[ModelUse]:
        """Return the use since the last call."""
        with self._lock:
            taken, self._uses = list(self._uses.values()), {}
        return taken

    def give_back(self, uses: Sequence[ModelUse]) -> None:
        """Count again the use that was taken and could not be written."""
        with self._lock:
            for use in uses:
                self._uses.setdefault(use.model, ModelUse(use.model)).join(use)


_meter: ContextVar[Meter | None] = ContextVar("meter", default=None)


@contextmanager
def counting_into(meter: Meter) -> Iterator[None]:
    """Count into the meter the requests to models of the running task, and of those that it starts."""
    token = _meter.set(meter)
    try:
        yield
    finally:
        _meter.reset(token)


def current_meter() -> Meter | None:
    return _meter.get()


class AnswerRatio:
    """Ratio of bytes to tokens in a model's answers, learnt from the answers that it counts."""

    def __init__(self) -> None:
        self._bytes_per_token = _FIRST_BYTES_PER_TOKEN

    def tokens_of(self, size: int) -> int:
        return ceil(size / self._bytes_per_token)

    def note(self, size: int, tokens: int) -> None:
        if tokens >= _LEAST_COUNTED_TOKENS and size:
            least, most = _BYTES_PER_TOKEN_BOUNDS
            seen = min(max(size / tokens, least), most)
            self._bytes_per_token += _LEARNING_RATE * (seen - self._bytes_per_token)


class RequestMeter:
    """Meter of the requests to one chat model at one endpoint."""

    def __init__(self, model: str, window: ContextWindow) -> None:
        self._model, self._window = model, window
        self._answers = AnswerRatio()

    async def stream(
        self,
        request: ModelRequest,
        begin: Callable[[OnText | None], AsyncGenerator[list[Delta], None]],
        on_text: OnText | None = None,
    ) -> AsyncGenerator[list[Delta], None]:
        """Yield the deltas of a request that `begin` makes. Text that the request gives to its function goes to
        `on_text` instead. Raises BudgetSpent."""
        attempt = await self._begin(request)

        def count(text: str) -> None:
            attempt.size += _bytes_of(text)
            if on_text is not None:
                on_text(text)

        try:
            async with aclosing(begin(count if on_text is not None else None)) as source:
                async for deltas in source:
                    attempt.saw(deltas)
                    yield deltas
        except BaseException as error:
            attempt.end(error)
            raise
        attempt.end()

    async def reply(self, request: ModelRequest, ask: Callable[[], Awaitable[Reply]]) -> Reply:
        """Meter a request as `stream` does, for an answer that comes as a whole."""
        attempt = await self._begin(request)
        try:
            found = await ask()
        except BaseException as error:
            attempt.end(error)
            raise
        attempt.saw([Text(found.text), *found.tool_calls, found.finish_delta])
        attempt.end()
        return found

    async def _begin(self, request: ModelRequest) -> _Attempt:
        meter = _meter.get()
        attempt = _Attempt(meter, self._model, request, self._window, self._answers)
        if meter is None:
            log.debug("model.request_unmetered", model=self._model)
        else:
            attempt.price = await find_price(self._model)
            attempt.most_micro = attempt.estimate_most()
            await meter.admit(self._model, attempt.most_micro)
        return attempt


@dataclass(slots=True)
class _Attempt:
    """Request, from its beginning to its end."""

    meter: Meter | None
    model: str
    request: ModelRequest
    window: ContextWindow
    answers: AnswerRatio
    price: Price | None = None
    most_micro: int | None = None
    usage: Usage | None = None
    size: int = 0  # the answer's bytes

    def estimate_most(self) -> int | None:
        if self.price is None:
            return None
        output = self.request.max_tokens or _UNBOUNDED_ANSWER_TOKENS
        return self.price.most_micro(self._input_tokens(), output)

    def saw(self, deltas: Sequence[Delta]) -> None:
        for delta in deltas:
            match delta:
                case Text(text):
                    self.size += _bytes_of(text)
                case ToolCall(_, name, arguments):
                    self.size += len(name) + len(arguments)
                case Finish(_, usage):
                    self.usage = usage

    def end(self, error: BaseException | None = None) -> None:
        if self.usage is not None and (self.usage.input_tokens or self.usage.output_tokens):
            self.answers.note(self.size, self.usage.output_tokens)
            self._count(self.usage, is_estimated=False)
        elif isinstance(error, _UNBILLED) and not self.size:
            if self.meter is not None:
                self.meter.dismiss(self.most_micro)
        else:
            usage = Usage(self._input_tokens(), self.answers.tokens_of(self.size))
            self._count(usage, is_estimated=True)

    def _count(self, usage: Usage, *, is_estimated: bool) -> None:
        if self.meter is not None:
            self.meter.add(
                self.model, usage, self.price, is_estimated=is_estimated, most_micro=self.most_micro
            )

    def _input_tokens(self) -> int:
        request = self.request
        schema = len(str(request.schema.body)) if request.schema else 0
        return self.window.tokens_of(request.size + schema)


def _bytes_of(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


async def count_embedding(model: str, texts: Sequence[str], tokens: int) -> None:
    """Count a request for vectors. `tokens` is the provider's count, 0 if it says nothing."""
    if (meter := _meter.get()) is None:
        log.debug("model.request_unmetered", model=model)
        return
    size = sum(len(text.encode("utf-8", "replace")) for text in texts)
    usage = Usage(tokens or int(size / _FIRST_BYTES_PER_TOKEN) + 1)
    price = await find_price(model, is_chat=False)
    meter.add(model, usage, price, is_estimated=not tokens, most_micro=None)
