"""Requests to models and their answers. Messages and tools have the form of the OpenAI API."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypedDict

import orjson


class FunctionCall(TypedDict):
    name: str
    arguments: str


class WireToolCall(TypedDict):
    id: str
    type: Literal["function"]
    function: FunctionCall


class _Role(TypedDict):
    role: Literal["system", "user", "assistant", "tool"]


class Message(_Role, total=False):
    content: str | list[dict[str, Any]] | None
    name: str
    tool_calls: list[WireToolCall]
    tool_call_id: str


Tool = Mapping[str, Any]
"""`{"type": "function", "function": {"name", "description", "parameters": JSON Schema}}`"""


class Tools(list[Tool]):
    """Tools that many requests offer, and that never change: their JSON is written once."""

    @cached_property
    def json(self) -> bytes:
        return orjson.dumps(self)


def json_of_tools(tools: Sequence[Tool]) -> bytes:
    return tools.json if isinstance(tools, Tools) else orjson.dumps(tools)


class Schema(NamedTuple):
    """JSON Schema for the answer, with a name."""

    name: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts. `cached_tokens` is the part of the input that was in the provider's cache, `written_tokens` the
    part that was put there, if the provider charges for that.

    `model`: the configured name of the model that answered; in a sum, the last one.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    written_tokens: int = 0
    model: str = field(default="", compare=False)

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
            self.written_tokens + other.written_tokens,
            other.model or self.model,
        )

    def by(self, model: str) -> Usage:
        """Return the same usage as this model's."""
        return Usage(
            self.input_tokens, self.output_tokens, self.cached_tokens, self.written_tokens, model=model
        )


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """Tool call of a model. `arguments` is JSON as the model wrote it: untrusted, and possibly invalid."""

    id: str
    name: str
    arguments: str

    def wire(self) -> WireToolCall:
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


@dataclass(frozen=True, slots=True)
class Finish:
    """Last delta. `reason`: stop, length, tool_calls, content_filter or the provider's own.

    `lacks_tools`: the endpoint takes no tools, so the request's tools were left out.
    """

    reason: str
    usage: Usage
    lacks_tools: bool = False

    def by(self, model: str, *, lacks_tools: bool) -> Finish:
        """Return the same finish of an answer of this model. `lacks_tools`: it was asked without its tools."""
        return Finish(self.reason, self.usage.by(model), lacks_tools)


Delta = Text | ToolCall | Finish

OnText = Callable[[str], None]
"""Called with text as it arrives. What it raises ends the answer."""


@dataclass(frozen=True, slots=True)
class Reply:
    text: str
    tool_calls: tuple[ToolCall, ...]
    finish: str
    usage: Usage

    @property
    def finish_delta(self) -> Finish:
        return Finish(self.finish, self.usage)


@dataclass(frozen=True, slots=True)
class StructuredReply:
    """Structured answer. `value` is the JSON in `text`: untrusted, and not checked against the schema.

    `values` are all values in the text, in order. `cut` holds the whole parts of a last value that breaks off, or None.
    """

    value: Any
    text: str
    usage: Usage
    values: tuple[Any, ...] = ()
    cut: Any = None


@dataclass(frozen=True)
class ModelRequest:
    """Request to a chat model. Its messages are written as JSON once, to be measured and to be sent."""

    messages: Sequence[Message]
    tools: Sequence[Tool] | None = None
    schema: Schema | None = None
    max_tokens: int | None = None
    temperature: float | None = None

    @cached_property
    def messages_json(self) -> bytes:
        return orjson.dumps(self.messages)

    @property
    def size(self) -> int:
        """Return the bytes of its messages and tools, as `request_size` gives them."""
        return len(self.messages_json) + (len(json_of_tools(self.tools)) if self.tools else 0)
