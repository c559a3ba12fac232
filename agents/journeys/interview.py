"""The interview: ask the model for its next step, and check its answer. The model is treated as untrusted.

An answer is the next question, a proposed agent, or the wish of the user to go back. Unusable parts of a proposal are
dropped with a note if the rest works without them; otherwise the model may repair its answer once.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import orjson
from django.utils.translation import gettext, gettext_noop
from pydantic import BaseModel

from adiuva import llm
from adiuva.core import prompt_files
from adiuva.core.errors import AdiuvaError, Invalid
from adiuva.core.prompt_delimiting import delimit_untrusted
from adiuva.devices.tables import TABLES
from adiuva.llm.structured import UnusableAnswer, ask_structured
from adiuva.sanitizer import LeakPatterns, Sanitizer
from agents.agent_types import DATA_TYPES
from agents.cron import BadCron, Cron
from agents.models import AgentType
from integrations.mail.filters import Filters

MAX_QUESTIONS: Final = 5
# The most characters of an unusable answer that are shown to the model again.
_REPEATED_CHARS: Final = 8_000
_QUESTION_CHARS: Final = 1_000
# The limit of agents' own prompts, because a prompt that is changed a little may be as long as before.
_PROMPT_CHARS: Final = 20_000
_NAME_CHARS: Final = 200
_CRON_CHARS: Final = 200
_MAX_EXTENSIONS: Final = 50
# A question that shares this part of its words with an earlier one counts as the same.
_SAME_WORDS: Final = 0.8
_SENTENCE: Final = re.compile(r".+?(?:[.!?]+(?=\s)\s+|\Z)", re.DOTALL)
# For a proposal without the model, in which nobody names tables.
_DEFAULT_TABLES: Final = ("tasks", "notes")

_PROMPT: Final = prompt_files.load("agents", "journey").text
_SOURCES: Final = {
    AgentType.LOCAL_DIRECTORY: "files in folders on the freelancer's device: texts, notes, tables, PDFs, saved mails",
    AgentType.GMAIL: "mails of a Gmail account",
    AgentType.OUTLOOK: "mails of an Outlook account",
    AgentType.TEAMS: "messages in Teams channels",
}
_EXTENSION: Final = re.compile(r"\.?([A-Za-z0-9]{1,15})")
# Neither our texts nor our forms contain these.
_CONTROL_CHARACTERS: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")

_NO_SCHEDULE: Final = gettext_noop(
    "The schedule that the model proposed is not valid, so the agent would run only by hand."
)
_NO_FILTER: Final = gettext_noop("A filter that the model proposed cannot be used: {name}.")
_NO_TABLE: Final = gettext_noop("The model proposed kinds of records that do not exist; they were left out.")
_FALLBACK_NOTE: Final = gettext_noop(
    "The model did not conclude, so these are your answers as they stand. Please check them."
)


class AnsweredQuestion(BaseModel):
    question: str
    answer: str


class AgentProposal(BaseModel):
    """A checked configuration. `notes` tell the user which parts of the proposal were dropped."""

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
    """The user wants to return to the previous question."""


InterviewStep = Question | AgentProposal | GoBack


@dataclass(frozen=True)
class InterviewBrief:
    """The subject of an interview. `present`: the configuration of the agent that is being changed, if any."""

    agent_type: AgentType
    present: dict[str, Any] = field(default_factory=dict)


class JourneyUnclear(AdiuvaError):
    """The model's answer was unusable twice. Nothing has changed."""

    code, status = "journey_unclear", 502

    def __init__(self) -> None:
        super().__init__("the model's answer could not be used: please send your message again")


class _StillAsking(UnusableAnswer):
    """The model asks a question although it has to conclude, or one that was answered."""


async def next_step(
    model: llm.ChatModel,
    brief: InterviewBrief,
    answered: Sequence[AnsweredQuestion],
    *,
    today: dt.date,
    profile: str = "",
) -> InterviewStep:
    """Return the step that follows these answers. After the last question it is a proposal, whatever the model says.

    `today` is the user's; `profile` says who the user is (memory.profile).

    Raises ModelError if there was no answer at all, JourneyUnclear if it was unusable twice.
    """
    messages: list[llm.Message] = [
        {"role": "system", "content": _PROMPT},
        {"role": "user", "content": _material(brief, answered, today, profile)},
    ]
    try:
        return await ask_structured(
            model,
            messages,
            name="journey",
            schema=_schema(brief, answered),
            read=lambda answer: _read(answer, brief, answered),
            max_quoted_chars=_REPEATED_CHARS,
        )
    except _StillAsking:
        return _fallback_proposal(brief, answered)
    except (UnusableAnswer, llm.BadOutput):
        raise JourneyUnclear from None


def _material(
    brief: InterviewBrief, answered: Sequence[AnsweredQuestion], today: dt.date, profile: str
) -> str:
    parts = [
        f"Today: {today:%A %Y-%m-%d}",
        f"What the agent reads: {_SOURCES[brief.agent_type]}.",
        "The tables:\n" + "\n".join(f"- {table.name}: {table.about}" for table in TABLES.values()),
    ]
    if profile:
        parts.append(f"The freelancer:\n{delimit_untrusted('freelancer', profile)}")
    if brief.present:
        parts.append(f"The agent as it is now:\n{delimit_untrusted('agent', _json(brief.present))}")
    if answered:
        parts.append(
            f"The interview:\n{delimit_untrusted('interview', _json([one.model_dump() for one in answered]))}"
        )
    if not answered:
        parts.append("Nothing was asked yet. Ask the first question.")
    elif len(answered) >= MAX_QUESTIONS:
        parts.append("All questions have been asked. Conclude now.")
    else:
        parts.append(
            f"{len(answered)} of at most {MAX_QUESTIONS} questions have been asked. Conclude, or ask the next."
        )
    return "\n\n".join(parts)


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _schema(brief: InterviewBrief, answered: Sequence[AnsweredQuestion]) -> dict[str, Any]:
    """Return the schema of the present answer: only a question at first, no question at the end."""
    properties: dict[str, Any] = {}
    if len(answered) < MAX_QUESTIONS:
        properties["question"] = {"type": "string", "description": "the next question"}
    if answered:
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


# ── The model's answers ─────────────────────────────────────────────────────────────────────────────────


def _read(answer: Any, brief: InterviewBrief, answered: Sequence[AnsweredQuestion]) -> InterviewStep:
    """Return the step in an answer. Raises UnusableAnswer."""
    if not isinstance(answer, dict):
        raise UnusableAnswer("the answer is no JSON object.")
    if answered and answer.get("back") is True:
        return GoBack()
    if answered and answer.get("agent") is not None:
        return _outcome(answer["agent"], brief)
    question = answer.get("question")
    if not isinstance(question, str):
        expected = "a question" if not answered else 'a "question", or an "agent" to conclude'
        raise UnusableAnswer(f"the answer has to be {expected}.")
    if len(answered) >= MAX_QUESTIONS:
        raise _StillAsking('no more questions: conclude now, with an "agent".')
    if not (text := _text(question, _QUESTION_CHARS)):
        raise UnusableAnswer(
            f"a question has 1 to {_QUESTION_CHARS} characters, and none of your instructions."
        )
    if any(_is_same(text, one.question) for one in answered):
        raise _StillAsking("this was asked and answered already: ask something else, or conclude.")
    return Question(_first_question_of(text))


def _is_same(question: str, other: str) -> bool:
    """Return whether two questions are the same in almost the same words."""
    words, others = (set(re.findall(r"\w+", text.casefold())) for text in (question, other))
    return len(words & others) >= _SAME_WORDS * len(words | others)


def _first_question_of(text: str) -> str:
    """Return the text without the questions after its first one, because the user answers one thing at a time."""
    first, *rest = _SENTENCE.findall(text)
    has_asked = first.rstrip().endswith("?")
    kept = [first]
    for sentence in rest:
        is_question = sentence.rstrip().endswith("?")
        if not (is_question and has_asked):
            kept.append(sentence)
        has_asked = has_asked or is_question
    return "".join(kept).strip()


def _outcome(given: Any, brief: InterviewBrief) -> AgentProposal:
    if not isinstance(given, dict):
        raise UnusableAnswer('"agent" is an object.')
    if not (prompt := _text(given.get("prompt_template"), _PROMPT_CHARS)):
        raise UnusableAnswer(f'"prompt_template" is a text of 1 to {_PROMPT_CHARS} characters of your own.')
    named = given.get("data_types")
    named = named if isinstance(named, list) else []
    tables = [name for name in DATA_TYPES if name in named]
    if not tables:
        raise UnusableAnswer(f'"data_types" is a list of some of {", ".join(DATA_TYPES)}.')
    notes = [] if all(name in DATA_TYPES for name in named) else [gettext(_NO_TABLE)]
    given = brief.present | given  # fields that the proposal does not mention stay
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
    """Return the text as its user may see it, without tool markup; "" if it is none, too long, or quotes our prompt."""
    if not isinstance(given, str) or len(given) > most:
        return ""
    sanitizer = Sanitizer(_guard(), known=())
    text = _CONTROL_CHARACTERS.sub("", sanitizer.feed(given) + sanitizer.finish()).strip()
    return "" if sanitizer.removed["prompt"] else text


def _default_name(brief: InterviewBrief) -> str:
    if brief.present.get("name"):
        return str(brief.present["name"])
    if brief.agent_type == AgentType.LOCAL_DIRECTORY:
        return gettext("Local folders agent")
    return gettext("{provider} agent").format(provider=brief.agent_type.label)


def _cron(given: Any, notes: list[str]) -> str:
    if not given:
        return ""
    if isinstance(given, str) and len(given) <= _CRON_CHARS:
        with suppress(BadCron):
            Cron.parse(given)
            return given.strip()
    notes.append(gettext(_NO_SCHEDULE))
    return ""


def _filter_config(given: dict[Any, Any], notes: list[str]) -> dict[str, Any]:
    """Return the valid filters."""
    kept: dict[str, Any] = {}
    for name in ("labels", "senders", "date_range"):
        if not (value := given.get(name)):
            continue
        if name == "date_range" and isinstance(value, dict):
            value = {key: value[key] for key in ("from", "to") if value.get(key)}
        try:
            Filters.parse({name: value})
        except Invalid:
            notes.append(gettext(_NO_FILTER).format(name=name))
        else:
            kept[name] = value
    return {name: value for name, value in kept.items() if value}


def _extensions(given: Any, notes: list[str]) -> list[str]:
    if not given:
        return []
    listed = given if isinstance(given, list) else []
    found = [_EXTENSION.fullmatch(one) if isinstance(one, str) else None for one in listed[:_MAX_EXTENSIONS]]
    if not found or None in found or len(listed) > _MAX_EXTENSIONS:
        notes.append(gettext(_NO_FILTER).format(name="file_extensions"))
        return []
    return list(dict.fromkeys(f".{match[1].lower()}" for match in found if match))


def _fallback_proposal(brief: InterviewBrief, answered: Sequence[AnsweredQuestion]) -> AgentProposal:
    """Return the configuration for when the model proposes none: the user's answers, word for word."""
    lines = "\n".join(f"- {one.question}\n  {one.answer}" for one in answered)
    words = f"Take out of the document what the freelancer wants, as said in these answers:\n{lines}"
    before = str(brief.present.get("prompt_template") or "")[: max(0, _PROMPT_CHARS - len(words) - 2)]
    return AgentProposal(
        prompt_template="\n\n".join(filter(None, (before, words)))[:_PROMPT_CHARS],
        data_types=list(brief.present.get("data_types") or _DEFAULT_TABLES),
        name=_default_name(brief),
        schedule_cron=str(brief.present.get("schedule_cron") or ""),
        filter_config=dict(brief.present.get("filter_config") or {}),
        file_extensions=list(brief.present.get("file_extensions") or ()),
        notes=[gettext(_FALLBACK_NOTE)],
    )


@cache
def _guard() -> LeakPatterns:
    return LeakPatterns(prompts=[_PROMPT], canaries=[], tool_names=[])
