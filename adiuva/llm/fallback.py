"""Model with others behind it, for when it cannot answer."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Final, TypeVar

import structlog

from adiuva.core.errors import Text
from adiuva.llm import errors
from adiuva.llm.base import ChatModel
from adiuva.llm.context_window import ContextWindow
from adiuva.llm.types import Delta, Message, OnText, Reply, Schema, Tool

# For this long, a model that could not answer is not the first to be asked.
_AVOIDED_FOR_S: Final = 30.0

T = TypeVar("T")
log = structlog.get_logger(__name__)


def can_another_answer(error: errors.ModelError) -> bool:
    """Return whether the fault lies with the model or its account, and not with the request."""
    if isinstance(error, errors.ModelRejected):
        return not error.about_request and not isinstance(error, errors.ModelContextExceeded)
    return isinstance(error, (errors.ModelUnavailable, errors.ModelRateLimited, errors.ModelTimeout))


class FallbackChat(ChatModel):
    """Model that asks several in order until one begins to answer. Its name is the first one's.

    Its window is that of the model which is asked next. If a fallback refuses a request as too long, the request is
    fitted into the fallback's window, and the first model's stays as it is.

    All belong to one provider, so that a memory policy or a receipt for the first one holds for all.
    """

    def __init__(self, models: Sequence[ChatModel]) -> None:
        first = models[0]
        if other := next((model for model in models if model.provider != first.provider), None):
            raise errors.ModelNotConfigured(
                Text(
                    "ADIUVA_MODEL_FALLBACKS: {model} is of another provider than {first}",
                    model=other.name,
                    first=first.name,
                )
            )
        self.models = models
        self._avoided_until = dict.fromkeys(models, 0.0)
        super().__init__(first.name, first.endpoint)

    @property
    def window(self) -> ContextWindow:
        return next(self._in_order()).window

    async def find_window(self) -> int:
        return await next(self._in_order()).find_window()

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] | None = None,
        schema: Schema | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> Reply:
        async def ask(model: ChatModel) -> Reply:
            return await model.complete(
                messages, tools=tools, schema=schema, max_tokens=max_tokens, temperature=temperature
            )

        return await self._first_that_answers(ask)

    async def stream(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        size: int | None = None,
        on_text: OnText | None = None,
    ) -> AsyncGenerator[list[Delta], None]:
        """Stream as a model does. Another model takes over only before the first delta."""
        is_shown = False

        def show(text: str) -> None:
            nonlocal is_shown
            is_shown = True
            if on_text is not None:
                on_text(text)

        async def begin(model: ChatModel) -> tuple[list[Delta] | None, AsyncGenerator[list[Delta], None]]:
            source = model.stream(
                messages,
                tools=tools,
                max_tokens=max_tokens,
                temperature=temperature,
                size=size,
                on_text=show if on_text is not None else None,
            )
            try:
                return await anext(source, None), source
            except BaseException:
                await source.aclose()
                raise

        first, source = await self._first_that_answers(begin, lambda: is_shown)
        async with aclosing(source):
            if first is not None:
                yield first
            async for deltas in source:
                yield deltas

    async def _first_that_answers(
        self, ask: Callable[[ChatModel], Awaitable[T]], has_begun: Callable[[], bool] = lambda: False
    ) -> T:
        """Return the first stream that begins. Raises the first model's error, or that of one that had begun."""
        failure: errors.ModelError | None = None
        for model in self._in_order():
            try:
                answer = await ask(model)
            except errors.ModelError as error:
                if has_begun() or not can_another_answer(error):
                    raise
                failure = failure or error
                self._avoided_until[model] = time.monotonic() + _AVOIDED_FOR_S
                log.warning("model.fallback", model=model.name, code=error.code)
            else:
                self._avoided_until[model] = 0.0
                return answer
        assert failure is not None
        raise failure

    def _in_order(self) -> Iterator[ChatModel]:
        """Return all models, those that have just failed last."""
        now = time.monotonic()
        yield from sorted(self.models, key=lambda model: self._avoided_until[model] > now)
