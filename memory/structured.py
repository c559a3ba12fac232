"""Ask the model for data with one of memory's prompts, and do without it if no answer is usable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import structlog

from adiuva import llm
from adiuva.core import prompt_files
from adiuva.llm.structured import UnusableAnswer, ask_structured

T = TypeVar("T")

log = structlog.get_logger(__name__)


async def ask_or_none(
    model: llm.ChatModel,
    *,
    prompt: str,
    material: str,
    name: str,
    schema: Mapping[str, Any],
    read: Callable[[Any], T],
) -> T | None:
    """What `read` makes of the answer. None, and a log event, if neither the answer nor its repair was usable.

    `prompt` names a file in memory/prompts; `material` is delimited; `read` raises UnusableAnswer. Raises ModelError
    when there was no answer.
    """
    messages: list[llm.Message] = [
        {"role": "system", "content": prompt_files.load("memory", prompt).text},
        {"role": "user", "content": material},
    ]
    try:
        return await ask_structured(model, messages, name=name, schema=schema, read=read)
    except (llm.BadOutput, UnusableAnswer):
        log.warning("memory.answer_unusable", asked_for=name)
        return None
