"""What an endpoint does for a model, learnt from its refusals and remembered for the life of the process.

Endpoints with the OpenAI API differ in what they take: schemas, JSON mode, streams, usage in streams, a temperature. A
refused request (400 or 422) is sent again without what the refusal names, in whatever words, or without all of it if it
names nothing. What was left out without being named is a suspect: later requests try it again, one thing at a time, so
that a feature that works is not lost for good.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypeVar

import structlog

from adiuva.llm.errors import ModelRejected
from adiuva.llm.json_extraction import with_schema_in_prompt
from adiuva.llm.messages import without_system_role
from adiuva.llm.types import ChatRequest, Message

T = TypeVar("T")
log = structlog.get_logger(__name__)


class Feature(StrEnum):
    """A part of a request that some endpoints refuse, and that a request can do without."""

    STREAM = "stream"
    STREAM_USAGE = "stream_options"
    SCHEMA = "json_schema"
    JSON_MODE = "json_object"
    TEMPERATURE = "temperature"
    MAX_TOKENS = "max_tokens"
    SYSTEM_ROLE = "system"


Features = frozenset[Feature]

# Words by which a refusal names a feature. The first feature that is named and in use is left out first.
_WORDS: Final = {
    Feature.STREAM_USAGE: ("stream_options", "include_usage"),
    Feature.SCHEMA: ("response_format", "json_schema", "structured output", "grammar"),
    Feature.JSON_MODE: ("response_format", "json_object", "json mode"),
    Feature.TEMPERATURE: ("temperature",),
    Feature.MAX_TOKENS: ("max_tokens", "max_completion_tokens"),
    Feature.STREAM: ("stream",),
    Feature.SYSTEM_ROLE: ("system role", "system message", "system prompt"),
}


@dataclass
class _Learnt:
    """`refused` is left out of requests; those of it that are in `suspects` are tried again. `taken` has worked."""

    refused: Features = frozenset()
    suspects: Features = frozenset()
    taken: Features = frozenset()


_learnt: dict[tuple[str, str], _Learnt] = {}


def used_features(request: ChatRequest, *, streams: bool, refused: Features) -> Features:
    """The features of a request once the refused ones are left out."""
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
    return frozenset(used) - refused


async def send_adapted(
    key: tuple[str, str], request: ChatRequest, *, streams: bool, send: Callable[[Features], Awaitable[T]]
) -> T:
    """Send a request with what the endpoint takes. `key` names endpoint and model; `send` gets what to leave out.

    Raises ModelRejected with the first refusal if the request is refused whatever is left out.
    """
    learnt = _learnt.setdefault(key, _Learnt())
    refused, suspects = learnt.refused, learnt.suspects
    wanted = used_features(request, streams=streams, refused=frozenset())
    if on_trial := next(iter(sorted(suspects & wanted)), None):
        refused -= {on_trial}
    first: ModelRejected | None = None
    while True:
        try:
            result = await send(refused)
        except ModelRejected as refusal:
            if not refusal.about_request:
                raise
            first = first or refusal
            used = used_features(request, streams=streams, refused=refused)
            if on_trial in used:
                more = frozenset({on_trial})
                suspects -= more  # refused a second time: it was the reason
            elif named := next((each for each in _WORDS if each in used and _names(refusal, each)), None):
                more = frozenset({named})
            else:
                more = used - learnt.taken
                suspects |= more
            if not more:
                raise first from None
            refused |= more
        else:
            used = used_features(request, streams=streams, refused=refused)
            if refused != learnt.refused:
                endpoint, model = key
                log.info("model.features_refused", endpoint=endpoint, model=model, features=sorted(refused))
            learnt.refused, learnt.suspects = refused, suspects & refused
            learnt.taken |= used
            return result


def forget() -> None:
    """Forget all that was learnt."""
    _learnt.clear()


def _names(refusal: ModelRejected, feature: Feature) -> bool:
    return any(word in refusal.named for word in _WORDS[feature])


def messages_for(request: ChatRequest, refused: Features) -> Sequence[Message]:
    """The request's messages, with the schema in the prompt for an endpoint that takes none, and likewise without a
    system message."""
    messages = request.messages
    if request.schema is not None and Feature.SCHEMA in refused:
        messages = with_schema_in_prompt(list(messages), request.schema)
    return without_system_role(messages) if Feature.SYSTEM_ROLE in refused else messages


def response_format_for(request: ChatRequest, refused: Features) -> dict[str, Any] | None:
    """The API's response_format: the schema, or JSON mode, or nothing."""
    if request.schema is None:
        return None
    if Feature.SCHEMA not in refused:
        schema = {"name": request.schema.name, "schema": dict(request.schema.body)}
        return {"type": "json_schema", "json_schema": schema}
    return None if Feature.JSON_MODE in refused else {"type": "json_object"}
