"""All conversations that Adiuva has with models, rendered as chat templates render them: nothing refused, nothing lost.

The small templates here are our own; each makes the demands of one or more families of published ones. To render with
published templates as well, name a folder of them (`*.jinja`): CHAT_TEMPLATES=… make check T=<this file>. The
source package of llama-cpp-python holds some seventy, in vendor/llama.cpp/models/templates.
"""

from __future__ import annotations

import datetime as dt
import json
import os
from functools import cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.ext import loopcontrols
from jinja2.sandbox import SandboxedEnvironment
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

from adiuva import llm
from adiuva.core import prompt_files
from adiuva.core.prompt_delimiting import delimit_untrusted
from adiuva.documents import Part
from adiuva.llm.message_normalization import in_strict_order, without_system_role
from agents.extraction import Extractor
from agents.journeys import interview
from agents.models import AgentType
from agents.record_validation import RecordRules
from chat import prompts
from chat.assistants import HOME as HOME_ASSISTANT
from chat.claimed_turn import ChatMessage
from chat.history import FittedHistory
from chat.langchain_messages import to_wire

ZONE = ZoneInfo("Europe/Rome")
CALL = AIMessage(
    "",
    tool_calls=[{"type": "tool_call", "id": "call12345", "name": "list_tasks", "args": {"status": "open"}}],
)
RESULT = ToolMessage("RESULTWORDS of the device", tool_call_id="call12345")


def history(*said: tuple[str, str]) -> list[Any]:
    return FittedHistory([ChatMessage(role=role, text=text) for role, text in said], "").messages()


@cache
def conversations() -> dict[str, list[llm.Message]]:
    system = SystemMessage(prompts.system_prompt("home").text)
    turn = prompts.turn_prompt(
        now=dt.datetime(2026, 11, 28, 9, 30, tzinfo=ZONE),
        locale="it-IT",
        scope="The user looks at this task: Call Ada",
        memory="- [m1] invoices on Fridays",
        confirmed=['Delete: delete_task {"task_id": "t1"}'],
    )
    asked = HumanMessage(prompts.with_turn_prompt(turn, "and the other one?"))
    extractor = Extractor(None, "Find duties.", RecordRules(("tasks",), {"p-1": "Harbour"}, ZONE))  # type: ignore[arg-type]
    question = extractor.messages("a.md", Part(1, 1, 0, "do call Ada"), [])
    again: list[llm.Message] = [
        {"role": "assistant", "content": '{"records": []}'},
        {"role": "user", "content": "Repair: the answer is not JSON."},
    ]
    brief = interview.InterviewBrief(AgentType.LOCAL_DIRECTORY)
    answered = [interview.AnsweredQuestion(question="What?", answer="Duties")]
    found = {
        "a first message": to_wire([system, asked]),
        "a history": to_wire([system, *history(("user", "one"), ("assistant", "uno")), asked]),
        "a history of failures": to_wire(
            [system, *history(("assistant", "hi"), ("user", "one"), ("user", "two")), asked]
        ),
        "a tool call": to_wire([system, asked, CALL, RESULT]),
        "a steer": to_wire([system, asked, CALL, RESULT, HumanMessage("STEERWORDS")]),
        "two steers": to_wire([system, asked, CALL, RESULT, HumanMessage("ONE"), HumanMessage("STEERWORDS")]),
        "a continuation": to_wire([system, asked, AIMessage("Half an"), HumanMessage("go on")]),
        "a specialist": to_wire([SystemMessage(prompts.system_prompt("tasks").text), asked]),
        "a document": question,
        "a repair": [*question, *again],
        "an interview": [
            {"role": "system", "content": prompt_files.load("agents", "journey").text},
            {
                "role": "user",
                "content": interview._material(brief, answered, dt.date(2026, 3, 2), "name: Ada"),
            },
        ],
        "a summary": [
            {"role": "system", "content": prompts.system_prompt("summary").text},
            {"role": "user", "content": delimit_untrusted("conversation", "user: hi")},
        ],
    }
    for name in ("record", "episode", "condense", "patterns"):
        found[name] = [
            {"role": "system", "content": prompt_files.load("memory", name).text},
            {"role": "user", "content": delimit_untrusted("conversation", "user: hi")},
        ]
    return {name: list(in_strict_order(messages)) for name, messages in found.items()}


_SYSTEM_FIRST = """
{%- for message in messages %}
{%- if message.role == 'system' and not loop.first %}
{{- raise_exception('System message must be at the beginning.') }}{% endif %}
<{{ message.role }}>{{ message.content or '' }}{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}
{%- endfor %}"""
_ALTERNATING = """
{%- set ns = namespace(index=0) %}
{%- if messages[0].role == 'system' %}<system>{{ messages[0].content }}{% set messages = messages[1:] %}{% endif %}
{%- for message in messages %}
{%- if message.role == 'user' or (message.role == 'assistant' and not message.tool_calls) %}
{%- if (message.role == 'user') != (ns.index % 2 == 0) %}
{{- raise_exception('roles must alternate user/assistant') }}{% endif %}
{%- set ns.index = ns.index + 1 %}{% endif %}
{%- if message.role not in ('user', 'assistant', 'tool') %}
{{- raise_exception('Only user, assistant and tool roles are supported') }}{% endif %}
<{{ message.role }}>{{ message.content or '' }}
{%- endfor %}"""
_FIRST_SYSTEM_ONLY = """
{%- if messages[0].role == 'system' %}<system>{{ messages[0].content }}{% endif %}
{%- for message in messages %}
{%- if message.role in ('user', 'assistant', 'tool') %}<{{ message.role }}>{{ message.content or '' }}{% endif %}
{%- endfor %}"""
_ONE_SYSTEM_KEPT = """
{%- set ns = namespace(system='', last='') %}
{%- for message in messages if message.role == 'system' %}{% set ns.system = message.content %}{% endfor %}
{{- ns.system }}
{%- for message in messages if message.role != 'system' %}
{%- if message.role == ns.last and message.role != 'tool' %}{{ raise_exception('two in a row') }}{% endif %}
{%- if message.role == 'user' and ns.last == 'tool' %}{{ raise_exception('a user after a tool') }}{% endif %}
{%- set ns.last = message.role %}<{{ message.role }}>{{ message.content or '' }}
{%- endfor %}"""
_NO_SYSTEM = (
    "{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
)
_OWN = {
    "a system message only at the beginning (Qwen, Phi)": _SYSTEM_FIRST,
    "users and answers by turns (Mistral, Llama)": _ALTERNATING,
    "only the first system message (gpt-oss, SmolLM, MiniMax)": _FIRST_SYSTEM_ONLY,
    "only the last system message (DeepSeek, GLM)": _ONE_SYSTEM_KEPT,
    "no system role (Gemma)": _NO_SYSTEM + _ALTERNATING,
}
_FOLDER = os.environ.get("CHAT_TEMPLATES", "")
_PUBLISHED = (
    {path.stem: path.read_text("utf-8") for path in sorted(Path(_FOLDER).glob("*.jinja"))} if _FOLDER else {}
)


def _refuse(reason: str) -> None:
    raise TemplateError(reason)


def render(template: str, messages: list[llm.Message]) -> str:
    env = SandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    env.filters["tojson"] = lambda value, **given: json.dumps(value, ensure_ascii=False)
    env.globals |= {
        "raise_exception": _refuse,
        "strftime_now": lambda form: dt.date(2026, 11, 28).strftime(form),
    }
    # As servers hand them to templates: arguments as a mapping.
    plain = json.loads(json.dumps(messages))
    for message in plain:
        for call in message.get("tool_calls") or ():
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    tools = HOME_ASSISTANT.schemas[:3]
    return env.from_string(template).render(
        messages=plain,
        tools=tools,
        add_generation_prompt=True,
        bos_token="",
        eos_token="",
        enable_thinking=False,
    )


@pytest.mark.parametrize("name", [*_OWN, *_PUBLISHED])
def test_a_template_neither_refuses_nor_loses_anything(name: str) -> None:
    template = (_OWN | _PUBLISHED)[name]
    for place, messages in conversations().items():
        if "System role not supported" in template:
            messages = list(without_system_role(messages))
        if (
            name in _PUBLISHED
            and "tool_calls" not in template
            and any("tool_calls" in one for one in messages)
        ):
            continue  # a model without tools
        try:
            text = render(template, messages)
        except TemplateSyntaxError as error:
            pytest.skip(f"plain Jinja cannot render this template: {error}")
        for message in messages:
            content = str(message.get("content") or "").strip()
            if message["role"] == "tool":
                content = "RESULTWORDS"
            assert content in text or json.dumps(content, ensure_ascii=False)[1:-1] in text, (name, place)


def test_messages_in_any_order_are_brought_into_one_that_templates_take() -> None:
    wild: list[llm.Message] = [
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "one"},
        {"role": "system", "content": "first"},
        {"role": "user", "content": "two"},
        {"role": "system", "content": "second"},
    ]
    arranged = in_strict_order(wild)
    assert [message["role"] for message in arranged] == ["system", "user", "assistant", "user"]
    assert arranged[0]["content"] == "first\n\nsecond"
    assert arranged[-1]["content"] == "one\n\ntwo"
    assert in_strict_order(arranged) is arranged
