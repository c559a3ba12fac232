"""Ask the model for data with one of memory's prompts, and do without it if no answer is usable."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import structlog

from adiuva import llm
from adiuva.core import prompt_files
from adiuva.llm.structured import UnusableAnswer, ask_structured
from memory import grounding

T = TypeVar("T")

# The model may count up to this by itself; the material need not hold such numbers.
_MAX_COUNT: Final = 20

SUMMARY_SCHEMA: Final = {
    "type": "object",
    "properties": {"summary": {"type": "string"}},
    "required": ["summary"],
    "additionalProperties": False,
}

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
    """Return what `read` makes of the answer. None, and a log event, if neither the answer nor its repair was usable.

    `prompt` names a file in memory/prompts; `material` is delimited; `read` raises UnusableAnswer. Raises ModelError if
    there was no answer.
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


def read_summary(
    value: Any, *, material: str, max_chars: int, may_be_empty: bool = False, day: dt.date | None = None
) -> str:
    """Return the text of a `{"summary": …}`. Raises UnusableAnswer, also if it holds numbers or addresses of its own.

    `day`: when it happened, so that "tomorrow" may become a date (memory.grounding).
    """
    summary = value.get("summary") if isinstance(value, dict) else None
    summary = summary.replace("\0", "").strip() if isinstance(summary, str) else None
    if summary is None or not (summary or may_be_empty):
        raise UnusableAnswer("`summary` must be a text.")
    if len(summary) > max_chars:
        raise UnusableAnswer(f"`summary` is too long: a few short sentences, at most {max_chars} characters.")
    own = grounding.foreign_facts(summary, material, day=day)
    if own := [fact for fact in own if not (fact.isdigit() and int(fact) <= _MAX_COUNT)]:
        raise UnusableAnswer(f"the material does not say “{own[0]}”.")
    return summary
