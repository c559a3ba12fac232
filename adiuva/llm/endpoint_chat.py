"""Chat model at one endpoint: retries, concurrency, and requests that are adapted to what the endpoint takes."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from django.conf import settings

from adiuva.core import metrics
from adiuva.llm import errors, transport
from adiuva.llm.base import ChatModel
from adiuva.llm.capabilities import Feature, Features, send_adapted
from adiuva.llm.context_window import ContextWindow
from adiuva.llm.learnt import learnt_facts
from adiuva.llm.message_normalization import calls_in_words, in_strict_order
from adiuva.llm.metering import RequestMeter
from adiuva.llm.thoughts import ThoughtHabit
from adiuva.llm.types import (
    Delta,
    Finish,
    Message,
    ModelRequest,
    OnText,
    Reply,
    Schema,
    Text,
    Tool,
    ToolCall,
)

_LEAST_ANSWER_TOKENS = 64
# An answer may take this many times the allowed silence; otherwise a stream of blanks would go on for ever.
_LONGEST_ANSWER = 10


class _BegunStream(NamedTuple):
    """A stream that the endpoint has begun. `first`: its first deltas; None if it has none. `lacks_tools`: the request
    went without its tools.
    """

    first: list[Delta] | None
    rest: AsyncGenerator[list[Delta], None]
    lacks_tools: bool


class EndpointChat(ChatModel):
    """Base of the clients of endpoints. Each makes single attempts: `_complete_once`, `_stream_once`."""

    # True if whole answers are read from a stream too: then only silence ends the wait for a long one.
    reads_whole_answers_from_streams = False

    def __init__(self, name: str, endpoint: str, *, keeps_thoughts_apart: bool) -> None:
        """Make a client. `keeps_thoughts_apart`: this endpoint never sends a model's thoughts as its answer."""
        super().__init__(name, endpoint)
        self._learnt = learnt_facts(endpoint, name)
        self._window = ContextWindow(self._learnt)
        self._requests = RequestMeter(name, self._window)
        self._thoughts = ThoughtHabit(self._learnt, is_unknown_trusted=keeps_thoughts_apart)

    @property
    def window(self) -> ContextWindow:
        return self._window

    async def find_window(self) -> int:
        await self._learnt.read()
        return await self._window.find(self._ask_window)

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] | None = None,
        schema: Schema | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> Reply:
        await self._learnt.read()
        request, size = self._request(messages, tools, schema, max_tokens, temperature)
        try:
            with metrics.model_call(self.name) as call:
                reply = await transport.with_retries(
                    self.name, self.endpoint, partial(self._complete_adapted, request)
                )
                call.usage = reply.usage
        except errors.ModelContextExceeded as refusal:
            await self._window.note_refusal(size, refusal.window)
            raise
        self._window.note_usage(size, reply.usage.input_tokens)
        await self._thoughts.note_whole_answer(reply, is_free=schema is None)
        return Reply(reply.text, reply.tool_calls, reply.finish, reply.usage.by(self.name))

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
        await self._learnt.read()
        request, size = self._request(messages, tools, None, max_tokens, temperature, size)
        tried = 0
        with metrics.model_call(self.name) as call:
            while True:
                has_begun = False
                thoughts = self._thoughts.filter()
                try:
                    async with transport.stream_limit(self.endpoint).slot(transport.caller.get()):
                        begun = await self._begin_stream(request, thoughts.then(on_text))
                        async with aclosing(begun.rest) as rest:
                            deltas = begun.first
                            while deltas is not None:
                                has_begun = True
                                if isinstance(last := deltas[-1] if deltas else None, Finish):
                                    self._window.note_usage(size, last.usage.input_tokens)
                                    call.usage = last.usage
                                    deltas[-1] = last.by(self.name, lacks_tools=begun.lacks_tools)
                                if shown := thoughts.feed(deltas):
                                    yield shown
                                deltas = await anext(rest, None)
                    await self._thoughts.note_stream(thoughts)
                    return
                except errors.ModelError as error:
                    if isinstance(error, errors.ModelContextExceeded):
                        await self._window.note_refusal(size, error.window)
                        if has_begun:
                            raise errors.ModelInterrupted(
                                "the answer did not fit the context window"
                            ) from None
                    if has_begun:
                        raise
                    failure = error
                tried += 1
                await transport.pause_before_retry(failure, tried, self.name)

    def _request(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None,
        schema: Schema | None,
        max_tokens: int | None,
        temperature: float | None,
        size: int | None = None,
    ) -> tuple[ModelRequest, int]:
        """Return the request and its size in bytes. Its answer gets no more than the window has left, because some
        servers refuse a request that could not be answered in full length."""
        ordered = in_strict_order(messages if tools else calls_in_words(messages))
        request = ModelRequest(ordered, tools, schema, max_tokens, temperature)
        if size is None:
            size = request.size
        if max_tokens is not None and (window := self._window.tokens):
            left = min(max_tokens, window - self._window.tokens_of(size))
            request = replace(request, max_tokens=max(_LEAST_ANSWER_TOKENS, left))
        return request, size

    async def _ask_window(self) -> int:
        """Return what the endpoint says of its window; 0 if it says nothing."""
        return 0

    async def _complete_adapted(self, request: ModelRequest, began: Callable[[], None]) -> Reply:
        return await send_adapted(
            self._learnt,
            request,
            streams=self.reads_whole_answers_from_streams,
            send=partial(self._complete, request, began),
        )

    async def _complete(self, request: ModelRequest, began: Callable[[], None], refused: Features) -> Reply:
        if not self.reads_whole_answers_from_streams or Feature.STREAM in refused:
            return await self._requests.reply(request, partial(self._complete_once, request, refused))
        text: list[str] = []
        calls: list[ToolCall] = []
        try:
            async with (
                asyncio.timeout(settings.MODEL_TIMEOUT_S * _LONGEST_ANSWER),
                aclosing(
                    self._requests.stream(request, partial(self._stream_once, request, refused), text.append)
                ) as source,
            ):
                async for deltas in source:
                    began()
                    for delta in deltas:
                        match delta:
                            case Text(piece):
                                text.append(piece)
                            case ToolCall():
                                calls.append(delta)
                            case Finish(reason, usage):
                                return Reply("".join(text), tuple(calls), reason, usage)
        except TimeoutError:
            raise errors.ModelTimeout("the model did not come to the end of its answer") from None
        raise errors.ModelInterrupted("the model's answer broke off")

    async def _begin_stream(self, request: ModelRequest, on_text: OnText | None) -> _BegunStream:
        """Return a stream with its first deltas, which show that the endpoint has taken the request."""

        async def begin(refused: Features) -> _BegunStream:
            source = self._requests.stream(request, partial(self._stream_once, request, refused), on_text)
            try:
                first = await anext(source, None)
            except BaseException:
                await source.aclose()
                raise
            return _BegunStream(first, source, bool(request.tools) and Feature.TOOLS in refused)

        return await send_adapted(self._learnt, request, streams=True, send=begin)

    @abstractmethod
    async def _complete_once(self, request: ModelRequest, refused: Features) -> Reply:
        """Make one attempt at a whole answer, without the features that the endpoint refuses."""

    @abstractmethod
    def _stream_once(
        self, request: ModelRequest, refused: Features, on_text: OnText | None = None
    ) -> AsyncGenerator[list[Delta], None]:
        """Make one attempt at a stream, without the features that the endpoint refuses. Text behind the first deltas
        may go to `on_text` as it arrives, instead of being yielded."""
