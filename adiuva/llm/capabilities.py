"""Capabilities of an endpoint for a model, learnt from its refusals and remembered by all processes.

Endpoints with the OpenAI API differ in what they take: schemas, JSON mode, streams, usage in streams, a temperature,
tools. A refused request (400 or 422) is sent again without the features that the refusal names, in whatever words, or
without all of them if it names none. Tools are left out only if that does not help, and never once the endpoint has
taken some. A feature that was left out without being named is a suspect: later requests try it again, one feature at a
time, so that a working feature is not lost for good.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from typing import Any, Final, TypeVar

import structlog

from adiuva.llm.errors import ModelRejected
from adiuva.llm.json_extraction import with_schema_in_prompt
from adiuva.llm.learnt import LearntFacts
from adiuva.llm.message_normalization import told_of_no_tools, without_system_role
from adiuva.llm.types import Message, ModelRequest, Tool

T = TypeVar("T")
log = structlog.get_logger(__name__)


class Feature(StrEnum):
    """Part of a request that some endpoints refuse, and that a request can do without."""

    STREAM = "stream"
    STREAM_USAGE = "stream_options"
    SCHEMA = "json_schema"
    JSON_MODE = "json_object"
    TEMPERATURE = "temperature"
    MAX_TOKENS = "max_tokens"
    SYSTEM_ROLE = "system"
    TOOLS = "tools"


Features = frozenset[Feature]
_ALL: Final = frozenset[str](Feature)

# Words by which a refusal names a feature. The first feature that is named and in use is left out first.
_WORDS: Final = {
    Feature.STREAM_USAGE: ("stream_options", "include_usage"),
    Feature.SCHEMA: ("response_format", "json_schema", "structured output", "grammar"),
    Feature.JSON_MODE: ("response_format", "json_object", "json mode"),
    Feature.TEMPERATURE: ("temperature",),
    Feature.MAX_TOKENS: ("max_tokens", "max_completion_tokens"),
    Feature.STREAM: ("stream",),
    Feature.SYSTEM_ROLE: ("system role", "system message", "system prompt"),
    Feature.TOOLS: ("tool", "function call"),
}
# The values of a fact about a feature. A suspect is left out like a refused feature, and tried again.
_REFUSED: Final = "refused"
_SUSPECT: Final = "suspect"
_TAKEN: Final = "taken"
_UNKNOWN: Final = ""


def used_features(request: ModelRequest, *, streams: bool, refused: Features) -> Features:
    """Return the features of a request without the refused ones."""
    used: set[Feature] = set()
    if streams and Feature.STREAM not in refused:
        used |= {Feature.STREAM, Feature.STREAM_USAGE}
    if request.schema is not None:
        used.add(Feature.JSON_MODE if Feature.SCHEMA in refused else Feature.SCHEMA)
    if request.temperature is not None:
        used.add(Feature.TEMPERATURE)
    if request.max_tokens is not None:
        used.add(Feature.MAX_TOKENS)
    if request.messages and request.messages[0]["role"] == "system":
        used.add(Feature.SYSTEM_ROLE)
    if request.tools:
        used.add(Feature.TOOLS)
    return frozenset(used) - refused


async def send_adapted(
    learnt: LearntFacts, request: ModelRequest, *, streams: bool, send: Callable[[Features], Awaitable[T]]
) -> T:
    """Send a request with the features that the endpoint takes. `send` gets those to leave out.

    Raises ModelRejected with the first refusal if the request is refused whatever is left out.
    """
    suspects = _known_as(learnt, _SUSPECT)
    refused = known = _known_as(learnt, _REFUSED) | suspects
    on_trial = None
    if suspects:
        wanted = used_features(request, streams=streams, refused=frozenset())
        if on_trial := next(iter(sorted(suspects & wanted)), None):
            refused -= {on_trial}
    found: dict[str, str] = {}
    first: ModelRejected | None = None
    while True:
        try:
            result = await send(refused)
        except ModelRejected as refusal:
            if not refusal.about_request:
                raise
            first = first or refusal
            used, taken = (
                used_features(request, streams=streams, refused=refused),
                _known_as(learnt, _TAKEN),
            )
            sheddable = used - ({Feature.TOOLS} & taken)
            if on_trial in used:
                more, why = frozenset({on_trial}), _REFUSED  # refused again, so it was the reason
            elif named := next(
                (each for each in _WORDS if each in sheddable and _names(refusal, each)), None
            ):
                more, why = frozenset({named}), _REFUSED
            else:
                more, why = used - taken - {Feature.TOOLS} or sheddable & {Feature.TOOLS}, _SUSPECT
            if not more:
                raise first from None
            refused |= more
            found |= dict.fromkeys(more, why)
        else:
            if on_trial is not None and on_trial not in refused:
                found[on_trial] = (
                    _UNKNOWN  # unless it was used: it may need another feature, which is refused
                )
            found |= dict.fromkeys(used_features(request, streams=streams, refused=refused), _TAKEN)
            if refused != known:
                log.info(
                    "model.features_refused",
                    endpoint=learnt.endpoint,
                    model=learnt.model,
                    features=sorted(refused),
                )
            await learnt.note(found)
            return result


def _known_as(learnt: LearntFacts, what: str) -> Features:
    return frozenset(map(Feature, learnt.named(what) & _ALL))


def _names(refusal: ModelRejected, feature: Feature) -> bool:
    return any(word in refusal.named for word in _WORDS[feature])


def messages_for(request: ModelRequest, refused: Features) -> Sequence[Message]:
    """Return the request's messages. For an endpoint that takes no schemas, system messages or calls of tools, they
    have the schema in the prompt, no system message, or no calls."""
    messages = request.messages
    if request.tools and Feature.TOOLS in refused:
        messages = told_of_no_tools(messages)
    if request.schema is not None and Feature.SCHEMA in refused:
        messages = with_schema_in_prompt(list(messages), request.schema)
    return without_system_role(messages) if Feature.SYSTEM_ROLE in refused else messages


def response_format_for(request: ModelRequest, refused: Features) -> dict[str, Any] | None:
    """Return the API's response_format: the schema, or JSON mode, or nothing."""
    if request.schema is None:
        return None
    if Feature.SCHEMA not in refused:
        schema = {"name": request.schema.name, "schema": dict(request.schema.body)}
        return {"type": "json_schema", "json_schema": schema}
    return None if Feature.JSON_MODE in refused else {"type": "json_object"}


def tools_for(request: ModelRequest, refused: Features) -> Sequence[Tool] | None:
    """Return the tools that the request may offer; None without any."""
    return request.tools if request.tools and Feature.TOOLS not in refused else None
