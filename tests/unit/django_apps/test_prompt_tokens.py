"""Size of prompts: the tokens of everyday requests, counted with a real tokenizer (o200k, which LiteLLM ships)."""

from __future__ import annotations

import datetime as dt
import importlib.util
import json
import os
import uuid
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import tiktoken
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

from adiuva.core import prompt_files
from adiuva.documents import Part
from agents.extraction import Extractor
from agents.record_validation import RecordRules
from chat import assistants, prompts
from chat.device_session import DeviceSession, Selected
from chat.langchain_messages import to_wire
from chat.models import AssistantKind
from chat.tool_calls import Assistant
from chat.tools import formatting

ZONE = ZoneInfo("Europe/Rome")
NOW = dt.datetime(2026, 11, 28, 9, 30, tzinfo=ZONE)


@cache
def encoding() -> tiktoken.Encoding:
    litellm = importlib.util.find_spec("litellm")
    assert litellm is not None and litellm.origin is not None
    folder = Path(litellm.origin).parent / "litellm_core_utils" / "tokenizers"
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
    try:
        return tiktoken.get_encoding("o200k_base")
    finally:
        if before is None:
            del os.environ["TIKTOKEN_CACHE_DIR"]
        else:
            os.environ["TIKTOKEN_CACHE_DIR"] = before


def tokens(value: Any) -> int:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return len(encoding().encode(text))


def of_request(assistant: Assistant, messages: list[Any]) -> int:
    wire = to_wire(messages)
    return tokens(assistant.schemas) + sum(
        tokens(message["content"] or "") + tokens(message.get("tool_calls") or "") + 4 for message in wire
    )


def session() -> DeviceSession:
    return DeviceSession(SimpleNamespace(), zone=ZONE, now=NOW)  # type: ignore[arg-type]


def turn_text(**more: Any) -> str:
    return prompts.turn_prompt(now=NOW, locale="en-GB", **more)


def test_a_list_of_86_tasks_costs_little() -> None:
    """12,427 tokens with ids and without merged tools."""
    device = session()
    projects = {
        str(uuid.uuid4()): f"{name} website" for name in ("Harbour Café", "Villa Rossi", "Attic", "Bakery")
    }
    device.titles |= projects
    names = list(projects)
    rows = [
        {
            "id": str(uuid.uuid4()),
            "title": f"Send the {word} for {month}",
            "status": ("todo", "in_progress", "done")[number % 3],
            "priority": ("medium", "high", "low")[number % 3],
            "dueDate": 1795129200000 + number * 86_400_000,
            "projectId": names[number % 4],
        }
        for number, (word, month) in enumerate(
            [
                (word, month)
                for word in ("offer", "invoice", "draft", "report", "survey", "plan", "budget", "contract")
                for month in (
                    "May",
                    "June",
                    "July",
                    "August",
                    "March",
                    "April",
                    "October",
                    "winter",
                    "summer",
                    "autumn",
                    "Easter",
                )
            ][:86]
        )
    ]
    listed = formatting.list_text(
        device, "tasks", Selected(rows, is_cut=False), narrow="project_id, status, search or due_from"
    )
    aliases = [device.aliases.alias("tasks", row["id"]) for row in rows[: formatting.MAX_ROWS]]
    answer = f"You have 86 tasks; here are the first {len(aliases)}.\n<task>[{','.join(aliases)}]</task>"
    call = AIMessage("", tool_calls=[{"type": "tool_call", "id": "call_1", "name": "list_tasks", "args": {}}])
    asked = [
        SystemMessage(assistants.HOME.prompt.text),
        HumanMessage(prompts.with_turn_prompt(turn_text(), "list my tasks")),
    ]
    first = of_request(assistants.HOME, asked)
    second = of_request(assistants.HOME, [*asked, call, ToolMessage(listed, tool_call_id="call_1")])
    total = first + second + 20 + tokens(answer)
    print(f"first {first}, second {second}, list {tokens(listed)}, answer {tokens(answer)}: {total}")
    assert total <= 6_500


def test_a_first_call_beside_any_row_costs_little() -> None:
    scope = (
        "The user looks at this task:\n"
        "- Call Ada about the menu [t1], todo, due Fri 2026-11-20, project Harbour Café [p1]"
    )
    text = prompts.with_turn_prompt(turn_text(scope=scope), "move this to Friday")
    for table in ("tasks", "projects", "notes", "timelines", None):
        assistant = assistants.supervisor(AssistantKind.FLOATING, table)
        found = of_request(assistant, [SystemMessage(assistant.prompt.text), HumanMessage(text)])
        print(table, found)
        assert found <= 1_800, table


def test_extraction_has_a_prefix_that_providers_cache_and_little_beside_it() -> None:
    rules = RecordRules(
        ("tasks", "timelines", "notes"), {str(uuid.uuid4()): f"Project {n}" for n in range(10)}, ZONE
    )
    extractor = Extractor(None, "What is to be done, by whom and until when.", rules)  # type: ignore[arg-type]
    system, asked = extractor.messages("minutes.md", Part(1, 1, 0, ""), [])
    prefix = tokens(prompt_files.load("agents", "extraction").text) + tokens(rules.schema())
    print(f"prefix {prefix}, a document {tokens(asked['content'])}")
    assert system["content"] == prompt_files.load("agents", "extraction").text
    assert prefix >= 1_024  # from here on OpenAI caches
    assert tokens(asked["content"]) <= 350
