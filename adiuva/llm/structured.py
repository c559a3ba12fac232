"""Questions to a model for data by JSON schema: the answer is checked, and the model may repair it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from adiuva.llm.base import ChatModel
from adiuva.llm.errors import BadOutput
from adiuva.llm.types import Message

T = TypeVar("T")


class UnusableAnswer(Exception):
    """Error for an answer that is JSON, but not what was asked for.

    The message is a sentence for the model that says what is wrong; it quotes nothing.
    """


async def ask_structured(
    model: ChatModel,
    messages: Sequence[Message],
    *,
    name: str,
    schema: Mapping[str, Any],
    read: Callable[[Any], T],
    repair: int = 1,
    max_quoted_chars: int = 8_000,
    on_attempt: Callable[[], None] | None = None,
) -> T:
    """Return what `read` makes of the model's answer to `messages`.

    `read` raises UnusableAnswer for an answer that it cannot use. Such an answer, or one that is not JSON, is shown to
    the model again, up to `max_quoted_chars`, with what is wrong about it; so up to `repair` times. `on_attempt` is
    called before each question to the model.

    Raises the last UnusableAnswer or BadOutput when no answer was usable, ModelError when there was no answer.
    """
    conversation = list(messages)
    failure: Exception
    while True:
        if on_attempt is not None:
            on_attempt()
        try:
            answer = await model.structured(conversation, name=name, schema=schema)
            return read(answer.value)
        except BadOutput as error:
            is_cut = error.cut is not None
            complaint = "the answer breaks off: make it shorter." if is_cut else "the answer is not JSON."
            text, failure = error.text, error
        except UnusableAnswer as error:
            text, complaint, failure = answer.text, str(error), error
        if not repair:
            raise failure
        repair -= 1
        conversation += [
            {"role": "assistant", "content": text[: model.window.part(6, max_quoted_chars)]},
            {"role": "user", "content": f"Repair: {complaint} Answer with the JSON object alone."},
        ]
