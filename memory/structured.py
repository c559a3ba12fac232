"""A question to the model whose answer is data: read strictly, asked for once more, else done without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from adiuva import llm
from adiuva.core.logging import log
from memory import prompts

_MOST_REPEATED: Final = 8_000  # characters of an answer that the model is shown again

T = TypeVar("T")


class Unusable(Exception):
    """An answer that is not what was asked for. The message is for the model and quotes nothing."""


async def ask(
    model: llm.ChatModel,
    *,
    prompt: str,
    material: str,
    name: str,
    schema: Mapping[str, Any],
    read: Callable[[Any], T],
) -> T | None:
    """What `read` makes of the answer; it raises Unusable. None, and a line in the log, if two answers were of no use.

    `prompt` is a file in memory/prompts, `material` is fenced. Raise a ModelError when there was no answer at all.
    """
    messages: list[llm.Message] = [
        {"role": "system", "content": prompts.prompt(prompt).text},
        {"role": "user", "content": material},
    ]
    for _ in range(2):
        try:
            answer = await model.structured(messages, name=name, schema=schema)
            return read(answer.value)
        except llm.BadOutput as bad:
            said, complaint = bad.text, "the answer is not JSON."
        except Unusable as bad:
            said, complaint = answer.text, str(bad)
        messages += [
            {"role": "assistant", "content": said[:_MOST_REPEATED]},
            {"role": "user", "content": f"Repair: {complaint} Answer with the JSON object alone."},
        ]
    log.warning("memory.answer_not_usable", asked_for=name)
    return None
