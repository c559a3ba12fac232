"""What the model is asked about an agent that is to be made, and what it answers. The model is an untrusted user.

An answer is one of three: the next question, the whole configuration, or that the user wants to go back. What of a
configuration cannot be used is dropped with a note, where the rest stands without it; else the model is told once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import orjson
from pydantic import BaseModel

from adiuva import llm
from adiuva.core.errors import AdiuvaError, Invalid
from adiuva.core.prompt_delimiting import delimit_untrusted
from adiuva.devices.tables import TABLES
from adiuva.sanitizer import LeakPatterns, Sanitizer
from agents.catalog import DATA_TYPES
from agents.cron import BadCron, Cron
from agents.models import AgentType
from integrations.mail.filters import Filters

MAX_QUESTIONS: Final = 5
_REPEATED_CHARS: Final = 8_000  # characters of an answer that the model is shown again
_QUESTION_CHARS: Final = 1_000
_PROMPT_CHARS: Final = 20_000  # as agents take them: one that is to be changed a little may be as long
_NAME_CHARS: Final = 200
_CRON_CHARS: Final = 200
_MAX_EXTENSIONS: Final = 50
_DEFAULT_TABLES: Final = ("tasks", "notes")  # where nobody said what is to be made of what is found

_PROMPT: Final = (Path(__file__).parents[1] / "prompts" / "journey.md").read_text("utf-8")
_SOURCES: Final = {
    AgentType.LOCAL_DIRECTORY: "files in folders on the freelancer's device: texts, notes, tables, PDFs, saved mails",
    AgentType.GMAIL: "mails of a Gmail account",
    AgentType.OUTLOOK: "mails of an Outlook account",
    AgentType.TEAMS: "messages in Teams channels",
}
_EXTENSION: Final = re.compile(r"\.?([A-Za-z0-9]{1,15})")
# What no text of ours holds, and no form of ours takes.
_CONTROL_CHARACTERS: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")

_NO_SCHEDULE: Final = "The schedule that the model proposed is none, so the agent would run by hand only."
_NO_FILTER: Final = "A filter that the model proposed cannot be used: {}."
_NO_TABLE: Final = "The model proposed kinds of records that do not exist; they were left out."
_FALLBACK_NOTE: Final = (
    "The model came to no end, so these are your answers as they stand. Please check them."
)


class AnsweredQuestion(BaseModel):
    question: str
    answer: str


class AgentProposal(BaseModel):
    """A configuration, checked. `notes` say what was left out of it."""

    prompt_template: str
    data_types: list[str]
    name: str
    schedule_cron: str = ""
    filter_config: dict[str, Any] = {}
    file_extensions: list[str] = []
    notes: list[str] = []


@dataclass(frozen=True)
class Question:
    text: str


@dataclass(frozen=True)
class GoBack:
    """The user wants to return to the question before."""


InterviewStep = Question | AgentProposal | GoBack


@dataclass(frozen=True)
class InterviewBrief:
    """What an interview is about. `present`: the configuration that is to be changed, if there is one."""

    agent_type: AgentType
    present: dict[str, Any] = field(default_factory=dict)


class JourneyUnclear(AdiuvaError):
    """The model twice gave no answer that could be used. Nothing has changed."""

    code, status = "journey_unclear", 502

    def __init__(self) -> None:
        super().__init__("the model's answer could not be used: please send your message again")


class _UnusableAnswer(Exception):
    """The message is for the model and quotes nothing. `asks`: it goes on asking when it is to conclude."""

    def __init__(self, complaint: str, *, asks: bool = False) -> None:
        super().__init__(complaint)
        self.asks = asks


async def next_step(
    model: llm.ChatModel, brief: InterviewBrief, said: Sequence[AnsweredQuestion]
) -> InterviewStep:
    """The next step of an interview in which this was said. After the last question it is an outcome, whatever the
    model says. Raise a ModelError when there was no answer at all, JourneyUnclear when it was twice of no use."""
    messages: list[llm.Message] = [
        {"role": "system", "content": _PROMPT},
        {"role": "user", "content": _material(brief, said)},
    ]
    for _ in range(2):
        asks = False
        try:
            answer = await model.structured(messages, name="journey", schema=_schema(brief, said))
            return _read(answer.value, brief, said)
        except llm.BadOutput as bad:
            text, complaint = bad.text, "the answer is not JSON."
        except _UnusableAnswer as unusable:
            text, complaint, asks = answer.text, str(unusable), unusable.asks
        messages += [
            {"role": "assistant", "content": text[:_REPEATED_CHARS]},
            {"role": "user", "content": f"Repair: {complaint} Answer with the JSON object alone."},
        ]
    if asks:
        return _fallback_proposal(brief, said)
    raise JourneyUnclear


def _material(brief: InterviewBrief, said: Sequence[AnsweredQuestion]) -> str:
    parts = [
        f"What the agent reads: {_SOURCES[brief.agent_type]}.",
        "The tables:\n" + "\n".join(f"- {table.name}: {table.about}" for table in TABLES.values()),
    ]
    if brief.present:
        parts.append(f"The agent as it is now:\n{delimit_untrusted('agent', _json(brief.present))}")
    if said:
        parts.append(
            f"The interview:\n{delimit_untrusted('interview', _json([one.model_dump() for one in said]))}"
        )
    if not said:
        parts.append("Nothing was asked yet. Ask the first question.")
    elif len(said) >= MAX_QUESTIONS:
        parts.append("All questions have been asked. Conclude now.")
    else:
        parts.append(
            f"{len(said)} of at most {MAX_QUESTIONS} questions have been asked. Conclude, or ask the next."
        )
    return "\n\n".join(parts)


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _schema(brief: InterviewBrief, said: Sequence[AnsweredQuestion]) -> dict[str, Any]:
    """Only what may be answered now: at first a question, in the end none."""
    properties: dict[str, Any] = {}
    if len(said) < MAX_QUESTIONS:
        properties["question"] = {"type": "string", "description": "the next question"}
    if said:
        properties["agent"] = _agent_schema(brief)
        properties["back"] = {"const": True, "description": "the user wants the question before again"}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _agent_schema(brief: InterviewBrief) -> dict[str, Any]:
    names = {"type": "array", "items": {"type": "string"}}
    if brief.agent_type == AgentType.LOCAL_DIRECTORY:
        filters: dict[str, Any] = {
            "file_extensions": names | {"description": 'such as ".md"; left out: all that can be read'}
        }
    else:
        day = {"type": "string", "description": "YYYY-MM-DD"}
        filters = {
            "labels": names | {"description": "labels, folders or channels by name"},
            "senders": names | {"description": "addresses, domains or names"},
            "date_range": {"type": "object", "properties": {"from": day, "to": day}},
        }
    return {
        "type": "object",
        "properties": {
            "prompt_template": {"type": "string"},
            "data_types": {"type": "array", "items": {"enum": list(DATA_TYPES)}, "minItems": 1},
            "name": {"type": "string"},
            "schedule_cron": {"type": "string"},
            "filters": {"type": "object", "properties": filters, "additionalProperties": False},
        },
        "required": ["prompt_template", "data_types", "name"],
        "additionalProperties": False,
    }


# ── What the model answers ──────────────────────────────────────────────────────────────────────────────


def _read(answer: Any, brief: InterviewBrief, said: Sequence[AnsweredQuestion]) -> InterviewStep:
    """Raise _Unusable."""
    if not isinstance(answer, dict):
        raise _UnusableAnswer("the answer is no JSON object.")
    if said and answer.get("back") is True:
        return GoBack()
    if said and answer.get("agent") is not None:
        return _outcome(answer["agent"], brief)
    question = answer.get("question")
    if not isinstance(question, str):
        expected = "a question" if not said else 'a "question", or an "agent" to conclude'
        raise _UnusableAnswer(f"the answer has to be {expected}.")
    if len(said) >= MAX_QUESTIONS:
        raise _UnusableAnswer('no more questions: conclude now, with an "agent".', asks=True)
    if not (text := _text(question, _QUESTION_CHARS)):
        raise _UnusableAnswer(
            f"a question has 1 to {_QUESTION_CHARS} characters, and none of your instructions."
        )
    return Question(text)


def _outcome(given: Any, brief: InterviewBrief) -> AgentProposal:
    if not isinstance(given, dict):
        raise _UnusableAnswer('"agent" is an object.')
    if not (prompt := _text(given.get("prompt_template"), _PROMPT_CHARS)):
        raise _UnusableAnswer(f'"prompt_template" is a text of 1 to {_PROMPT_CHARS} characters of your own.')
    named = given.get("data_types")
    named = named if isinstance(named, list) else []
    tables = [name for name in DATA_TYPES if name in named]
    if not tables:
        raise _UnusableAnswer(f'"data_types" is a list of some of {", ".join(DATA_TYPES)}.')
    notes = [] if all(name in DATA_TYPES for name in named) else [_NO_TABLE]
    given = brief.present | given  # what is not said of an agent that is there stays
    wanted = given.get("filters")
    filters = dict(brief.present.get("filter_config") or {})
    filters["file_extensions"] = brief.present.get("file_extensions")
    filters |= wanted if isinstance(wanted, dict) else {}
    is_local = brief.agent_type == AgentType.LOCAL_DIRECTORY
    return AgentProposal(
        prompt_template=prompt,
        data_types=tables,
        name=" ".join(_text(given.get("name"), _NAME_CHARS).split()) or _default_name(brief),
        schedule_cron=_cron(given.get("schedule_cron"), notes),
        filter_config={} if is_local else _filter_config(filters, notes),
        file_extensions=_extensions(filters["file_extensions"], notes) if is_local else [],
        notes=notes,
    )


def _text(given: Any, most: int) -> str:
    """As its user may see it, without markup of tools; "" for what is no text, too long, or tells our own prompt."""
    if not isinstance(given, str) or len(given) > most:
        return ""
    sanitizer = Sanitizer(_guard(), known=())
    text = _CONTROL_CHARACTERS.sub("", sanitizer.feed(given) + sanitizer.finish()).strip()
    return "" if sanitizer.removed["prompt"] else text


def _default_name(brief: InterviewBrief) -> str:
    return str(brief.present.get("name") or f"{brief.agent_type.label} agent")


def _cron(given: Any, notes: list[str]) -> str:
    if not given:
        return ""
    try:
        if not isinstance(given, str) or len(given) > _CRON_CHARS:
            raise BadCron
        Cron.parse(given)
    except BadCron:
        notes.append(_NO_SCHEDULE)
        return ""
    return given.strip()


def _filter_config(given: dict[Any, Any], notes: list[str]) -> dict[str, Any]:
    """Those of the filters that a cloud agent takes."""
    kept: dict[str, Any] = {}
    for name in ("labels", "senders", "date_range"):
        if not (value := given.get(name)):
            continue
        if name == "date_range" and isinstance(value, dict):
            value = {key: value[key] for key in ("from", "to") if value.get(key)}
        try:
            Filters.parse({name: value})
        except Invalid:
            notes.append(_NO_FILTER.format(name))
        else:
            kept[name] = value
    return {name: value for name, value in kept.items() if value}


def _extensions(given: Any, notes: list[str]) -> list[str]:
    if not given:
        return []
    listed = given if isinstance(given, list) else []
    found = [_EXTENSION.fullmatch(one) if isinstance(one, str) else None for one in listed[:_MAX_EXTENSIONS]]
    if not found or None in found or len(listed) > _MAX_EXTENSIONS:
        notes.append(_NO_FILTER.format("file_extensions"))
        return []
    return list(dict.fromkeys(f".{match[1].lower()}" for match in found if match))


def _fallback_proposal(brief: InterviewBrief, said: Sequence[AnsweredQuestion]) -> AgentProposal:
    """The configuration where the model makes none: what the user said, in the user's words."""
    lines = "\n".join(f"- {one.question}\n  {one.answer}" for one in said)
    words = f"Take out of the document what the freelancer wants, as said in these answers:\n{lines}"
    before = str(brief.present.get("prompt_template") or "")[: max(0, _PROMPT_CHARS - len(words) - 2)]
    return AgentProposal(
        prompt_template="\n\n".join(filter(None, (before, words)))[:_PROMPT_CHARS],
        data_types=list(brief.present.get("data_types") or _DEFAULT_TABLES),
        name=_default_name(brief),
        schedule_cron=str(brief.present.get("schedule_cron") or ""),
        filter_config=dict(brief.present.get("filter_config") or {}),
        file_extensions=list(brief.present.get("file_extensions") or ()),
        notes=[_FALLBACK_NOTE],
    )


@cache
def _guard() -> LeakPatterns:
    return LeakPatterns(prompts=[_PROMPT], canaries=[], tool_names=[])
