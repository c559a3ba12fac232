"""Tests the offline model as a separate process, called over HTTP like any other provider."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from adiuva import llm
from adiuva.core.prompt_delimiting import delimit_untrusted

FIELDS = {
    "tasks": (["projectId", "title", "description", "status", "priority", "assignee", "dueDate"], ["title"]),
    "timelines": (["projectId", "title", "date"], ["projectId", "title", "date"]),
    "notes": (["projectId", "title", "content"], ["title", "content"]),
    "projects": (["name", "status"], ["name"]),
    "clients": (["name"], ["name"]),
}
PROJECTS = {"p1": "Northwind site", "p2": "Tax 2026"}
TODAY = "2026-03-11"  # a Wednesday


def start() -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "adiuva.offline_llm", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("listening on http://127.0.0.1:"), line
    return process, line.split()[-1]


def stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.wait(60)
    assert process.stdout is not None
    process.stdout.close()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    process, found = start()
    yield found
    stop(process)


@pytest.fixture
async def model(address: str) -> AsyncIterator[llm.ChatModel]:
    yield llm.chat_model({"model": "openai/adiuva-offline", "api_base": f"{address}/v1"})
    await llm.aclose()


def schema(*tables: str, leave_out: str = "") -> dict[str, Any]:
    branches = []
    for table in tables:
        fields, required = FIELDS[table]
        data = {
            "type": "object",
            "properties": {field: {"type": "string"} for field in fields if field != leave_out},
            "required": required,
        }
        branches.append(
            {
                "type": "object",
                "properties": {"table": {"const": table}, "data": data},
                "required": ["table", "data"],
            }
        )
    records = {"type": "array", "items": {"anyOf": branches}}
    return {"type": "object", "properties": {"records": records}, "required": ["records"]}


def messages(
    text: str, name: str = "notes.md", part: str = "1 of 1", projects: Any = PROJECTS
) -> list[llm.Message]:
    return [
        {"role": "system", "content": "Take out what is to be done."},
        {
            "role": "user",
            "content": f"Look for what matters.\n\nProjects: {json.dumps(projects)}\nToday: Friday {TODAY}\n\n"
            + delimit_untrusted("document", f"Document: {name}\nPart: {part}\n\n{text}"),
        },
    ]


async def extract(
    model: llm.ChatModel, text: str, *tables: str, **more: Any
) -> list[tuple[str, dict[str, Any]]]:
    answer = await model.structured(
        messages(text, **more), name="records", schema=schema(*(tables or ("tasks", "timelines", "notes")))
    )
    return [(record["table"], record["data"]) for record in answer.value["records"]]


async def tasks(model: llm.ChatModel, text: str, **more: Any) -> list[dict[str, Any]]:
    return [data for _, data in await extract(model, text, "tasks", **more)]


# ── Extraction ──────────────────────────────────────────────────────────────────────────────────────────


async def test_open_checkboxes_are_tasks_and_ticked_ones_are_not(model: llm.ChatModel) -> None:
    text = "# List\n- [ ] Order the paper\n- [x] Pay the rent\n  * [ ] Call the *printer*\n1. [ ] Ship it"
    assert [task["title"] for task in await tasks(model, text)] == [
        "Order the paper",
        "Call the printer",
        "Ship it",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "TODO: renew the domain",
        "x = 1  # TODO renew the domain",
        "# TODO: renew the domain",
        "FIXME: renew the domain",
        "Action item: renew the domain",
        "ACTION: renew the domain",
        "* AI: renew the domain",
        "TODO(Ada): renew the domain",
    ],
)
async def test_a_marked_line_is_a_task(model: llm.ChatModel, line: str) -> None:
    (task,) = await tasks(model, f"Some words.\n\n{line}\n\nMore words.")
    assert task["title"] == "Renew the domain" and task["status"] == "todo"


@pytest.mark.parametrize(
    "heading",
    [
        "## Action items",
        "Next steps:",
        "**To do**",
        "# Follow-ups",
        "## Aktionspunkte",
        "Nächste Schritte:",
        "À faire:",
        "### Azioni",
    ],
)
async def test_items_below_such_a_heading_are_tasks(model: llm.ChatModel, heading: str) -> None:
    text = (
        f"# Weekly\n- we talked\n\n{heading}\n\n- Send the offer\n  - with the new prices\n"
        "* Book a room\n\n# Other\n- not this"
    )
    found = await tasks(model, text)
    assert [task["title"] for task in found] == ["Send the offer", "Book a room"]
    assert found[0]["description"] == "- with the new prices"


@pytest.mark.parametrize(
    ("item", "names", "title"),
    [
        ("@ada send the offer", ["ada"], "Send the offer"),
        ("Ada: send the offer", ["Ada"], "Send the offer"),
        ("Ada to send the offer", ["Ada"], "Send the offer"),
        ("Ada Byron will send the offer", ["Ada Byron"], "Send the offer"),
        ("Ada and Bo to send the offer", ["Ada", "Bo"], "Send the offer"),
        ("Žofie should send the offer", ["Žofie"], "Send the offer"),
        ("Talk to the client", None, "Talk to the client"),
        ("Note: nothing else", None, "Note: nothing else"),
        ("Send the deck to Bo", None, "Send the deck to Bo"),
    ],
)
async def test_the_one_who_is_to_do_it_is_found(
    model: llm.ChatModel, item: str, names: list[str] | None, title: str
) -> None:
    (task,) = await tasks(model, f"## Action items\n- {item}")
    assert (task.get("assignee"), task["title"]) == (names, title)


@pytest.mark.parametrize(
    ("phrase", "day"),
    [
        ("by 2026-04-02", "2026-04-02"),
        ("until 12 March 2026", "2026-03-12"),
        ("(due March 12, 2027)", "2027-03-12"),
        ("due: 12.03.2026", "2026-03-12"),
        ("before March 12th", "2026-03-12"),
        ("by Friday", "2026-03-13"),
        ("by next Wednesday", "2026-03-18"),
        ("by tomorrow", "2026-03-12"),
        ("by the end of the month", "2026-03-31"),
        ("by 3 January", "2026-01-03"),
        ("by 3 November", "2026-11-03"),
        ("bis zum 12. März 2026", "2026-03-12"),
        ("avant le 12 mars", "2026-03-12"),
        ("entro il 12 marzo 2026", "2026-03-12"),
    ],
)
async def test_a_due_date_is_found_and_leaves_the_title(model: llm.ChatModel, phrase: str, day: str) -> None:
    (task,) = await tasks(model, f"- [ ] Send the offer {phrase}")
    assert (task.get("dueDate"), task["title"]) == (day, "Send the offer")


@pytest.mark.parametrize(
    "phrase", ["by 2026-02-31", "by 31.02.2026", "by 0001-01-01", "by 30 February", "by 99 May", "by heart"]
)
async def test_what_is_no_date_is_ignored(model: llm.ChatModel, phrase: str) -> None:
    (task,) = await tasks(model, f"- [ ] Send the offer {phrase}")
    assert "dueDate" not in task


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("2025-06-02-weekly.md", "- [ ] Send it by Friday"),
        ("weekly.md", "# Weekly, 2 June 2025\n- [ ] Send it by Friday"),
        ("weekly.md", "# Weekly\n\nDate: 2025-06-02\n\n- [ ] Send it by Friday"),
        (
            "a.eml",
            "From: Bo <bo@example.com>\nSubject: x\nDate: Mon, 2 Jun 2025 10:00:00 +0200\n\n- [ ] Send it by Friday",
        ),
    ],
)
async def test_relative_dates_count_from_the_documents_own_date(
    model: llm.ChatModel, name: str, text: str
) -> None:
    assert [task["dueDate"] for task in await tasks(model, text, name=name)] == ["2025-06-06"]


async def test_urgent_work_has_a_high_priority(model: llm.ChatModel) -> None:
    text = "- [ ] URGENT: call the bank\n- [ ] Fix the form asap\n- [ ] Answer Bo!!\n- [ ] Water the plants"
    found = await tasks(model, text)
    assert [task.get("priority") for task in found] == ["high", "high", "high", None]
    assert found[0]["title"] == "Call the bank"


async def test_a_named_project_gives_its_id(model: llm.ChatModel) -> None:
    text = "# Northwind site\n- [ ] Choose colours\n- [ ] File the receipts for Tax 2026\n"
    assert [task["projectId"] for task in await tasks(model, text)] == ["p1", "p2"]
    assert "projectId" not in (await tasks(model, "- [ ] Choose northwind sitemaps"))[0]


async def test_a_deadline_is_a_timeline_of_its_project(model: llm.ChatModel) -> None:
    text = "# Northwind site\n\nMilestone: beta launch on 3 April 2026\n\nThe deadline for the texts is 20 March."
    assert await extract(model, text, "tasks", "timelines") == [
        ("timelines", {"projectId": "p1", "title": "Beta launch", "date": "2026-04-03"}),
        ("timelines", {"projectId": "p1", "title": "Deadline for the texts", "date": "2026-03-20"}),
    ]


async def test_a_deadline_of_no_known_project_is_a_task(model: llm.ChatModel) -> None:
    text = "Deadline: 2026-04-03 the site goes live"
    assert await extract(model, text, "tasks", "timelines") == [
        ("tasks", {"title": "Site goes live", "status": "todo", "dueDate": "2026-04-03"})
    ]
    assert await extract(model, text, "timelines") == []


MAIL = """From: Bo Lund <bo@example.com>
To: me@example.com
Subject: {subject}
Date: Wed, 11 Mar 2026 09:00:00 +0000

Hello,

{body}

On Tue, 10 Mar 2026 somebody wrote:
> - [ ] an old task
--
Bo Lund
TODO: a signature
"""


async def test_a_mail_whose_subject_asks_is_a_task(model: llm.ChatModel) -> None:
    text = MAIL.format(
        subject="Re: Fwd: Can you send the invoice by Friday?", body="It is for our books. Thanks."
    )
    ((table, task),) = await extract(model, text)
    assert table == "tasks"
    assert (task["title"], task["dueDate"]) == ("Can you send the invoice by Friday?", "2026-03-13")
    assert "for our books" in task["description"] and "old task" not in task["description"]


async def test_a_mail_that_tells_is_a_note(model: llm.ChatModel) -> None:
    text = MAIL.format(
        subject="=?utf-8?q?Gr=C3=BC=C3=9Fe?= from the fair", body="It was a good day for all of us."
    )
    ((table, note),) = await extract(model, text)
    assert (table, note["title"]) == ("notes", "Grüße from the fair")
    assert (
        "Bo Lund" in note["content"]
        and "a good day" in note["content"]
        and "signature" not in note["content"]
    )


async def test_what_a_mail_asks_for_in_its_text_is_a_task(model: llm.ChatModel) -> None:
    body = "the offer arrived. Could you please check the second page\nby 20 March? It has the prices."
    ((table, task),) = await extract(model, MAIL.format(subject="Offer", body=body))
    assert (table, task["title"], task["dueDate"]) == ("tasks", "Check the second page", "2026-03-20")


async def test_a_raw_mail_of_several_parts_is_read(model: llm.ChatModel) -> None:
    text = (
        'From: Bo <bo@example.com>\nSubject: parts\nContent-Type: multipart/alternative; boundary="b"\n\n--b\n'
        "Content-Type: text/html\n\n<p>TODO: markup</p>\n--b\nContent-Type: text/plain; charset=utf-8\n"
        "Content-Transfer-Encoding: quoted-printable\n\nTODO: caf=C3=A9 buchen\n--b--\n"
    )
    assert [task["title"] for task in await tasks(model, text)] == ["Café buchen"]


async def test_a_note_has_the_first_heading_and_the_decisions_first(model: llm.ChatModel) -> None:
    text = "# Kick-off\n\nPresent:\n- Ada\n\nWe met in Bern.\n\nWe agreed on four pages.\n\n- [ ] Draw them"
    (note,) = [data for table, data in await extract(model, text) if table == "notes"]
    assert note == {"title": "Kick-off", "content": "- We agreed on four pages.\n- We met in Bern."}
    later = await extract(model, text, "notes", part="2 of 2")
    assert later == []


async def test_projects_and_clients_are_taken_from_their_lines(model: llm.ChatModel) -> None:
    text = "Project: Harbour map\nClient: Harbour Ltd\nProject: Tax 2026\n"
    assert await extract(model, text, "projects", "clients") == [
        ("projects", {"name": "Harbour map", "status": "active"}),
        ("clients", {"name": "Harbour Ltd"}),
    ]


async def test_only_fields_of_the_schema_are_given(model: llm.ChatModel) -> None:
    answer = await model.structured(
        messages("# Northwind site\n- [ ] Ada: go by Friday"),
        name="records",
        schema=schema("tasks", leave_out="dueDate"),
    )
    (record,) = answer.value["records"]
    assert set(record["data"]) == {"projectId", "title", "status", "assignee"}


async def test_a_repair_is_answered_with_the_same_rules(model: llm.ChatModel) -> None:
    first = messages("- [ ] Send it")
    again: list[llm.Message] = [
        *first,
        {"role": "assistant", "content": "{}"},
        {"role": "user", "content": "Repair: records is missing."},
    ]
    asked: dict[str, Any] = {"name": "records", "schema": schema("tasks")}
    assert (await model.structured(again, **asked)).value == (await model.structured(first, **asked)).value


async def test_the_same_document_gives_the_same_records_and_none_twice(model: llm.ChatModel) -> None:
    text = "- [ ] Send it\n\nTODO: send it\n\n- [ ] Send it\n- [ ] Pay it"
    found = await tasks(model, text)
    assert [task["title"] for task in found] == ["Send it", "Pay it"]
    assert found == await tasks(model, text)


@pytest.mark.parametrize(
    "unit",
    [
        "[",
        "- [ ] [a](",
        "TODO: ",
        "by 1 ",
        "deadline 12 March ",
        "Ada and ",
        "From: a\nSubject: b\n",
        "*_`",
        "]: \t",
        "#",
        "\n- a\n  b",
    ],
)
async def test_a_long_hostile_document_is_answered(model: llm.ChatModel, unit: str) -> None:
    await extract(model, unit * (200_000 // len(unit)), "tasks", "timelines", "notes", "projects", "clients")


async def test_a_schema_without_rules_gets_the_least_value(model: llm.ChatModel) -> None:
    wish = {
        "type": "object",
        "properties": {
            "domain": {"enum": ["tasks", "notes"]},
            "items": {"type": "array"},
            "more": {"anyOf": [{"type": "integer"}]},
            "not asked": {"type": "string"},
        },
        "required": ["domain", "items", "more"],
    }
    answer = await model.structured([{"role": "user", "content": "hello"}], name="other", schema=wish)
    assert answer.value == {"domain": "tasks", "items": [], "more": 0}


# ── Chat ────────────────────────────────────────────────────────────────────────────────────────────────


def tool(name: str, *required: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}


TEXT = {"type": "string"}
TOOLS = [
    tool("list_tasks", status=TEXT, search=TEXT),
    tool("list_tasks_due_today"),
    tool("create_task", "title", title=TEXT, dueDate={"type": "integer"}, priority=TEXT),
    tool("update_task", "id", "updates", id=TEXT, updates={"type": "object"}),
    tool("delete_task", "task_id", task_id=TEXT),
    tool("list_projects"),
    tool("list_timelines"),
    tool("list_notes"),
    tool("search_notes", "query", query=TEXT),
    tool("list_clients"),
    tool("remember", "fact", fact=TEXT),
]
ROWS = [
    {"id": "t-1", "title": "Call Ada", "status": "todo", "dueDate": 1773273600000},
    {"id": "t-2", "title": "Send the offer to Bo", "status": "in_progress"},
]


class Conversation:
    """A chat with prepared tool results."""

    def __init__(
        self, model: llm.ChatModel, results: dict[str, Any], tools: list[dict[str, Any]] | None = None
    ) -> None:
        self.model, self.results, self.tools = model, results, TOOLS if tools is None else tools
        self.calls: list[tuple[str, Any]] = []

    async def ask(self, text: str) -> str:
        told: list[llm.Message] = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": text},
        ]
        for _ in range(4):
            reply = await self.model.complete(told, tools=self.tools)
            if not reply.tool_calls:
                assert reply.finish == "stop"
                return reply.text
            told.append(
                {"role": "assistant", "content": None, "tool_calls": [c.wire() for c in reply.tool_calls]}
            )
            for call in reply.tool_calls:
                self.calls.append((call.name, json.loads(call.arguments)))
                result = self.results[call.name]
                content = result if isinstance(result, str) else json.dumps(result)
                told.append({"role": "tool", "tool_call_id": call.id, "content": content})
        raise AssertionError("the model calls tools without end")


@pytest.mark.parametrize(
    ("request_", "calls"),
    [
        ("list my tasks", [("list_tasks", {})]),
        ("Show me the open tasks", [("list_tasks", {"status": "todo"})]),
        ("How many projects do I have?", [("list_projects", {})]),
        ("what are my milestones?", [("list_timelines", {})]),
        ("which clients do I have", [("list_clients", {})]),
        ("list my tasks and projects", [("list_tasks", {}), ("list_projects", {})]),
        ("what is due today?", [("list_tasks_due_today", {})]),
        ("What do my notes say about the harbour?", [("search_notes", {"query": "the harbour"})]),
        ("remember that I bill monthly", [("remember", {"fact": "I bill monthly"})]),
        ("add a task to buy paper", [("create_task", {"title": "Buy paper"})]),
    ],
)
async def test_a_request_calls_the_tool_for_it_once(
    model: llm.ChatModel, request_: str, calls: list[tuple[str, Any]]
) -> None:
    talk = Conversation(model, {t["function"]["name"]: {"rows": []} for t in TOOLS})
    await talk.ask(request_)
    assert talk.calls == calls


async def test_rows_are_told_with_their_number_and_ids(model: llm.ChatModel) -> None:
    said = await Conversation(model, {"list_tasks": {"rows": ROWS}}).ask("Which tasks do I have?")
    assert said.startswith("2 tasks:")
    assert "- Call Ada (todo, due 2026-03-12)" in said and "<task>[t-1,t-2]</task>" in said


async def test_a_result_that_is_other_text_is_repeated(model: llm.ChatModel) -> None:
    said = await Conversation(model, {"list_tasks": "2 tasks\n[t-1] Call Ada\n[t-2] Send it"}).ask(
        "list my tasks"
    )
    assert said == "2 tasks\n[t-1] Call Ada\n[t-2] Send it"


async def test_a_task_for_tomorrow_has_that_date(model: llm.ChatModel) -> None:
    talk = Conversation(model, {"create_task": {"row": {"id": "t-9", "title": "Call Ada"}}})
    before = datetime.now(UTC).date()
    said = await talk.ask("add a task to call Ada tomorrow, urgent")
    after = datetime.now(UTC).date()
    ((_, arguments),) = talk.calls
    day = datetime.fromtimestamp(arguments["dueDate"] / 1000, UTC).date()
    assert arguments["title"].startswith("Call Ada") and arguments["priority"] == "high"
    assert before <= day - timedelta(days=1) <= after
    assert "Call Ada" in said and "<task>[t-9]</task>" in said


@pytest.mark.parametrize("listed", [{"rows": ROWS}, "[t-1] Call Ada\n[t-2] Send the offer to Bo"])
async def test_a_task_is_completed_in_two_rounds(model: llm.ChatModel, listed: Any) -> None:
    talk = Conversation(model, {"list_tasks": listed, "update_task": {"row": ROWS[1]}})
    said = await talk.ask("mark the offer to Bo as done")
    assert [name for name, _ in talk.calls] == ["list_tasks", "update_task"]
    assert talk.calls[1][1] == {"id": "t-2", "updates": {"status": "done"}}
    assert said == "Marked “Send the offer to Bo” as done. <task>[t-2]</task>"


async def test_a_task_is_deleted_by_its_id(model: llm.ChatModel) -> None:
    talk = Conversation(model, {"list_tasks": ROWS, "delete_task": {"deleted": True}})
    assert await talk.ask("delete the task call Ada") == "Deleted “Call Ada”."
    assert talk.calls[1] == ("delete_task", {"task_id": "t-1"})


async def test_nothing_is_changed_where_nothing_fits(model: llm.ChatModel) -> None:
    talk = Conversation(model, {"list_tasks": {"rows": ROWS}})
    assert "changed nothing" in await talk.ask("mark paint the fence as done")
    assert [name for name, _ in talk.calls] == ["list_tasks"]


async def test_a_failed_tool_is_told(model: llm.ChatModel) -> None:
    talk = Conversation(model, {"create_task": {"error": "the device is offline"}})
    assert await talk.ask("add a task to buy paper") == "That did not work: the device is offline"


@pytest.mark.parametrize("said", ["hello", "who are you?", "sing me a song", "list my tasks"])
async def test_without_a_tool_for_it_the_model_says_what_it_is(model: llm.ChatModel, said: str) -> None:
    answer = await Conversation(model, {}, tools=[]).ask(said)
    assert "adiuva-offline" in answer and "no language model" in answer


async def test_an_answer_streams_in_small_chunks_with_usage(address: str) -> None:
    body = {
        "model": "adiuva-offline",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{address}/v1/chat/completions", json=body) as answer,
    ):
        raw = await answer.text()
    events = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith("data: {")]
    pieces = [event["choices"][0]["delta"].get("content", "") for event in events if event["choices"]]
    assert len(pieces) > 10 and max(map(len, pieces)) < 80
    assert events[-1]["usage"]["total_tokens"] > 0 and raw.endswith("data: [DONE]\n\n")


async def test_a_streamed_tool_call_arrives_whole(model: llm.ChatModel) -> None:
    ask: list[llm.Message] = [{"role": "user", "content": "what do my notes say about tea"}]
    deltas = [delta async for some in model.stream(ask, tools=TOOLS) for delta in some]
    assert [(d.name, d.arguments) for d in deltas if isinstance(d, llm.ToolCall)] == [
        ("search_notes", '{"query":"tea"}')
    ]
    assert isinstance(deltas[-1], llm.Finish) and deltas[-1].reason == "tool_calls"


# ── Errors, the process ─────────────────────────────────────────────────────────────────────────────────


CHAT = {"model": "adiuva-offline", "messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("chat/completions", b"{", 400, None),
        ("chat/completions", [], 400, None),
        ("chat/completions", {"messages": []}, 400, "model"),
        ("chat/completions", {**CHAT, "model": "gpt-9"}, 404, "model"),
        ("chat/completions", {**CHAT, "messages": []}, 400, "messages"),
        ("chat/completions", {**CHAT, "messages": ["x"]}, 400, "messages[0].role"),
        (
            "chat/completions",
            {**CHAT, "messages": [{"role": "user", "content": 5}]},
            400,
            "messages[0].content",
        ),
        ("chat/completions", {**CHAT, "tools": {}}, 400, "tools"),
        ("chat/completions", {**CHAT, "response_format": {"type": "json_schema"}}, 400, "response_format"),
        ("nothing", {}, 404, None),
    ],
)
async def test_a_bad_request_is_refused_in_openais_shape(
    address: str, path: str, body: Any, status: int, param: str | None
) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with aiohttp.ClientSession() as session, session.post(f"{address}/v1/{path}", data=raw) as answer:
        assert answer.status == status
        error = (await answer.json())["error"]
    assert error["message"] and error["param"] == param and error["type"] == "invalid_request_error"


async def test_models_and_health_name_what_it_is(address: str) -> None:
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{address}/v1/models") as answer:
            assert [row["id"] for row in (await answer.json())["data"]] == ["adiuva-offline"]
        async with session.get(f"{address}/health") as answer:
            health = await answer.json()
    assert health["status"] == "ok" and "no language model" in health["about"]


def test_the_process_is_small_and_ends_when_told() -> None:
    process, _ = start()
    status = Path(f"/proc/{process.pid}/status")
    if status.exists():
        resident = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        assert int(resident.split()[1]) < 60_000
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert process.stdout is not None
    process.stdout.close()


def test_nothing_heavy_is_imported() -> None:
    code = "import adiuva.offline_llm.server, sys; print({'django', 'litellm', 'numpy'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "set()"


def test_a_taken_port_is_one_line() -> None:
    process, address = start()
    port = address.rsplit(":", 1)[1]
    done = subprocess.run(
        [sys.executable, "-m", "adiuva.offline_llm", "--port", port],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    stop(process)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and port in done.stderr
