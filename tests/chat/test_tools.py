"""Each device tool once, as the turn loop calls it, on the rows of a real headless device behind a real web process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ValidationError
from pytest_django.fixtures import Settings

from adiuva import llm
from adiuva.core import db
from chat.tools import DEVICE_TOOLS
from tests.chat.device_sessions import (
    ConnectedDevice,
    call_tool,
    connected_device,
    rows,
    scripted_device,
    tool_failure,
)
from tests.factories import somebody
from tests.fakes.provider import Provider


def ms(*when: int) -> int:
    return int(datetime(*when, tzinfo=UTC).timestamp() * 1000)  # type: ignore[misc, arg-type]


@pytest.fixture
async def home(web: str, provider: Provider, settings: Settings) -> AsyncIterator[ConnectedDevice]:
    settings.EMBEDDING_MODEL = provider.settings("embedder")
    async with connected_device(web, await db.run(somebody)) as home:
        yield home
    await llm.aclose()


# ── What the tools are ──────────────────────────────────────────────────────────────────────────────────


def test_the_twenty_two_tools_are_described_for_models_and_for_people() -> None:
    assert len({tool.name for tool in DEVICE_TOOLS}) == len(DEVICE_TOOLS) == 22
    for tool in DEVICE_TOOLS:
        schema = convert_to_openai_tool(tool)["function"]
        properties = schema["parameters"]["properties"]
        assert schema["description"].endswith(".")
        assert "\n" not in schema["description"]
        assert "config" not in properties
        assert all(re.fullmatch(r"[a-z_]+", name) and "anyOf" not in properties[name] for name in properties)
        metadata = tool.metadata or {}
        assert metadata["action"] in {"select", "insert", "update", "delete"}
        assert metadata["label"]
        assert "key" not in metadata or metadata["key"] in properties
        assert ("key" in metadata) >= (metadata["action"] in {"update", "delete"})


def test_the_schemas_stay_lean_since_each_model_call_carries_them() -> None:
    assert len(json.dumps([convert_to_openai_tool(tool) for tool in DEVICE_TOOLS])) < 14_000


def test_an_argument_may_be_null_and_a_name_need_not_be_a_list() -> None:
    schema: Any = {tool.name: tool for tool in DEVICE_TOOLS}["create_task"].tool_call_schema
    assert schema.model_validate({"title": "Call", "priority": None, "assignee": "Ada"}).assignee == ["Ada"]


def test_no_variable_of_the_machine_sends_rows_to_a_tracing_service() -> None:
    code = """if True:
        import django; django.setup()
        import chat.tools
        from langsmith.utils import tracing_is_enabled
        print(tracing_is_enabled())
    """
    variables = ("LANGSMITH_TRACING", "LANGSMITH_TRACING_V2", "LANGCHAIN_TRACING", "LANGCHAIN_TRACING_V2")
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | dict.fromkeys(variables, "true"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"


# ── Tasks ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_tasks_are_listed_open_ones_first_with_their_projects(home: ConnectedDevice) -> None:
    project = home.put("projects", name="Harbour Café")
    old = home.put("tasks", title="Sign", status="done", dueDate=ms(2026, 1, 5))
    new = home.put(
        "tasks",
        title="Call Ada",
        priority="high",
        dueDate=ms(2026, 11, 20, 13, 30),
        projectId=project,
        assignee='["Ada", "Bob"]',
        description="About\nthe menu",
    )
    assert await home.use("list_tasks") == (
        "2 tasks:\n"
        "- Call Ada [t1], todo, high priority, due Fri 2026-11-20 14:30, assigned to Ada, Bob,"
        " project Harbour Café [p1]\n  | About\n  | the menu\n"
        "- Sign [t2], done, due Mon 2026-01-05 01:00"
    )
    assert home.session.titles == {project: "Harbour Café", new: "Call Ada", old: "Sign"}
    assert home.session.mutations == []


async def test_tasks_are_filtered_and_ordered(home: ConnectedDevice) -> None:
    project = home.put("projects", name="Harbour")
    given: dict[str, dict[str, Any]] = {
        "low": {"priority": "low", "dueDate": ms(2026, 11, 20)},
        "high": {"priority": "high", "projectId": project},
        "doing": {"status": "in_progress", "dueDate": ms(2026, 11, 22)},
        "done": {"status": "done", "dueDate": ms(2026, 11, 21)},
    }
    for title, more in given.items():
        home.put("tasks", title=title, **more)

    async def titles(**arguments: Any) -> list[str]:
        return re.findall(r"^- (\w+) \[t", await home.use("list_tasks", **arguments), re.MULTILINE)

    assert await titles() == ["low", "doing", "high", "done"]
    assert await titles(status="open") == ["low", "doing", "high"]
    assert await titles(status="done") == ["done"]
    assert await titles(project_id=project) == ["high"]
    assert await titles(search="OI") == ["doing"]
    assert await titles(due_from="2026-11-21", due_to="2026-11-22") == ["doing", "done"]
    assert await titles(order_by="priority") == ["high", "doing", "done", "low"]
    assert await titles(order_by="title", descending=True) == ["low", "high", "done", "doing"]
    assert await titles(order_by="due_date", descending=True) == ["doing", "done", "low", "high"]
    assert await titles(order_by="created") == ["low", "high", "doing", "done"]
    assert await home.use("list_tasks", search="nowhere") == "No tasks match."


async def test_a_task_is_created_as_the_user_said_and_not_as_a_suggestion(home: ConnectedDevice) -> None:
    said = await home.use(
        "create_task",
        title=" Call\nAda ",
        priority="high",
        due_date="2026-11-20",
        assignee="Ada",
        description="",
    )
    [row] = home.rows("tasks")
    assert said == (
        "Created the task Call Ada [t1], todo, high priority, due Fri 2026-11-20, assigned to Ada."
    )
    assert (row["title"], row["assignee"], row["description"]) == ("Call Ada", '["Ada"]', None)
    assert row["dueDate"] == ms(2026, 11, 19, 23)  # midnight in Rome
    assert row["isAiSuggested"] == 0
    [mutation] = home.session.mutations
    assert (mutation.action, mutation.table, mutation.data) == ("insert", "tasks", row)


async def test_an_update_changes_what_is_given_and_clears_what_is_none(home: ConnectedDevice) -> None:
    key = home.put("tasks", title="Call", description="Soon", assignee='["Ada"]', dueDate=ms(2026, 11, 20))
    said = await home.use(
        "update_task", task_id=key, status="done", due_date="none", assignee=["none"], title=""
    )
    assert said == "Updated the task Call [t1], done."
    [row] = home.rows("tasks")
    assert (row["title"], row["description"], row["dueDate"], row["assignee"]) == ("Call", "Soon", None, None)
    [mutation] = home.session.mutations
    assert (mutation.action, mutation.data) == ("update", row)


async def test_an_update_that_names_nothing_or_nobody_fails(home: ConnectedDevice) -> None:
    key = home.put("tasks", title="Call")
    assert "no field was given" in await tool_failure(home.session, "update_task", task_id=key)
    assert "no field was given" in await tool_failure(
        home.session, "update_task", task_id=key, title=" ", assignee=[]
    )
    refused = await tool_failure(home.session, "update_task", task_id="gone", status="done")
    assert refused == "Failed: the device refused: there is no row with this id in tasks."
    assert home.session.mutations == []


async def test_a_delete_says_what_it_deleted_or_that_there_was_nothing(home: ConnectedDevice) -> None:
    key = home.put("tasks", title="Call")
    assert await home.session.title_of("tasks", key) == "Call"
    assert await home.use("delete_task", task_id=key) == "Deleted the task Call [t1]."
    assert (
        await tool_failure(home.session, "delete_task", task_id=key)
        == "Failed: there is no task with the id t1."
    )
    assert home.rows("tasks") == []
    [mutation] = home.session.mutations
    assert (mutation.action, mutation.table, mutation.data) == (
        "delete",
        "tasks",
        {"title": "Call", "id": key},
    )


async def test_comments_are_added_listed_and_deleted(home: ConnectedDevice) -> None:
    task = home.put("tasks", title="Call")
    assert await home.use("list_task_comments", task_id=task) == "There are no comments on this task."
    await home.use("add_task_comment", task_id=task, content="She is away.\nTry again.")
    [row] = home.rows("taskComments")
    listed = await home.use("list_task_comments", task_id=task)
    assert listed.startswith("1 comment:\n- [k1], ")
    assert listed.endswith("\n  | She is away.\n  | Try again.")
    await home.use("delete_task_comment", comment_id=row["id"])
    assert home.rows("taskComments") == []
    assert [mutation.table for mutation in home.session.mutations] == ["taskComments"] * 2


# ── Projects, timelines, clients ────────────────────────────────────────────────────────────────────────


async def test_projects_are_listed_with_and_without_the_archived(home: ConnectedDevice) -> None:
    client = home.put("clients", name="Ada & Co", industry="Food")
    home.put("projects", name="Harbour", clientId=client, aiSummary="A menu.")
    home.put("projects", name="Attic", status="archived")
    harbour = "- Harbour [p1], active, client Ada & Co [c1]\n  | A menu."
    assert await home.use("list_projects") == f"1 project:\n{harbour}"
    assert await home.use("list_projects", archived=True) == f"2 projects:\n- Attic [p2], archived\n{harbour}"
    assert await home.use("list_projects", archived=True, client_id=client) == f"1 project:\n{harbour}"
    assert await home.use("list_clients") == "1 client:\n- Ada & Co [c1], Food"


async def test_a_project_is_created_read_changed_and_deleted(home: ConnectedDevice) -> None:
    client = home.put("clients", name="Ada & Co")
    await home.use("create_project", name="Harbour", client_id=client, summary="A menu.")
    [row] = home.rows("projects")
    key = row["id"]
    assert await home.use("get_project", project_id=key) == (
        "The project Harbour [p1], active, client Ada & Co [c1].\n| A menu."
    )
    said = await home.use(
        "update_project", project_id=key, status="archived", client_id="none", summary="none"
    )
    assert said == "Updated the project Harbour [p1], archived."
    assert home.rows("projects")[0]["aiSummary"] is None
    assert await home.use("delete_project", project_id=key) == "Deleted the project Harbour [p1]."
    missing = await tool_failure(home.session, "get_project", project_id=key)
    assert missing == f"Failed: there is no project with the id {key}."
    assert [mutation.action for mutation in home.session.mutations] == ["insert", "update", "delete"]


async def test_a_timeline_entry_is_created_listed_changed_and_deleted(home: ConnectedDevice) -> None:
    project = home.put("projects", name="Harbour")
    await home.use("create_timeline", project_id=project, title="Launch", date="2026-11-20T14:30")
    [row] = home.rows("timelines")
    line = "Launch [e1], Fri 2026-11-20 14:30, project Harbour [p1]"
    listed = await home.use(
        "list_timelines", date_from="2026-11-20", date_to="2026-11-20", project_id=project
    )
    assert listed == f"1 timeline entry:\n- {line}"
    assert await home.use("list_timelines", date_from="2026-11-21") == "No timeline entries match."
    said = await home.use("update_timeline", timeline_id=row["id"], date="2026-11-23")
    assert said.startswith("Updated the timeline entry Launch [e1], Mon 2026-11-23,")
    await home.use("delete_timeline", timeline_id=row["id"])
    assert home.rows("timelines") == []


# ── Notes ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_note_is_written_with_its_vector_and_read_behind_a_bar(
    home: ConnectedDevice, provider: Provider
) -> None:
    said = await home.use("create_note", title="Menu", content="# Menu\n\nSoup")
    [row] = home.rows("notes")
    key = row["id"]
    assert said.startswith("Created the note Menu [n1], updated ")
    assert "index" not in said
    assert provider.last["input"] == ["Menu\n\n# Menu\n\nSoup"]
    [found] = (
        await home.session.call("vector_search", vector=provider.vector("Soup"), limit=5)
    ).results or []
    assert found["id"] == key
    assert (await home.use("get_note", note_id=key)).endswith("each line behind a bar:\n| # Menu\n|\n| Soup")
    await home.use("update_note", note_id=key, content="Fish")
    assert provider.last["input"] == ["Menu\n\nFish"]
    assert (await home.use("list_notes")).startswith("1 note:\n- Menu [n1], updated ")
    await home.use("delete_note", note_id=key)
    assert home.rows("notes") == []
    # Vectors are no rows of the user's.
    assert [mutation.action for mutation in home.session.mutations] == ["insert", "update", "delete"]


@pytest.mark.parametrize("model", ["openai/", "openai/nowhere"])
async def test_a_note_without_a_vector_stays_and_the_answer_says_so(
    home: ConnectedDevice, settings: Settings, model: str
) -> None:
    settings.EMBEDDING_MODEL = {"model": model, "api_base": "http://127.0.0.1:9/v1"}
    said = await home.use("create_note", title="Menu", content="Soup")
    assert "It is saved, but not in the semantic index yet" in said
    assert len(home.rows("notes")) == len(home.session.mutations) == 1


async def test_a_search_finds_notes_by_meaning_and_those_that_agents_delivered_by_their_words(
    home: ConnectedDevice,
) -> None:
    await home.use("create_note", title="Menu", content="Soup of the day")
    await home.use("create_note", title="Zzz", content="Zzzzzzzz zzzzzz zzzz")
    home.put("notes", title="From a file", content="x" * 300 + " Soup for\nevery day " + "x" * 300)
    said = await home.use("list_notes", search="soup day")
    titles = re.findall(r"^- (.+?) \[n", said, re.MULTILINE)
    assert said.startswith("3 notes, best first:\n")
    assert titles == ["Menu", "From a file", "Zzz"]  # both ways, by words, by meaning alone
    assert re.search(r"\[n\d\].*\n  \| ….*Soup for every day", said)


async def test_a_search_without_a_model_for_vectors_is_one_for_words(
    home: ConnectedDevice, settings: Settings
) -> None:
    settings.EMBEDDING_MODEL = {"model": ""}
    home.put("notes", title="Menu", content="Soup")
    assert re.fullmatch(
        r"1 note, best first:\n- Menu \[n\d\], .*\n  \| Soup",
        await home.use("list_notes", search="soup"),
    )
    assert await home.use("list_notes", search="fish") == "No notes match."


async def test_a_search_whose_vectors_fail_says_so(home: ConnectedDevice, provider: Provider) -> None:
    await home.use("create_note", title="Menu", content="Soup")
    provider.dimensions = 4  # as after another model was configured: the device refuses
    try:
        said = await home.use("list_notes", search="soup")
    finally:
        provider.dimensions = 8
    assert said.startswith("1 note, best first:")
    assert said.endswith("The search by meaning failed; these are the notes in which all of the words occur.")


async def test_a_vector_that_outlived_its_note_is_not_found(
    home: ConnectedDevice, provider: Provider
) -> None:
    data = {"id": "gone", "projectId": None, "content": "Soup"}
    await home.session.call("vector_upsert", data=data, vector=provider.vector("Soup"))
    assert await home.use("list_notes", search="soup") == "No notes match."


async def test_notes_that_fill_more_than_a_frame_are_all_listed(home: ConnectedDevice) -> None:
    for number in range(30):
        home.put("notes", title=f"Note {number}", content="x" * 40_000)
    said = await home.use("list_notes")
    assert said.startswith("30 notes:\n")


async def test_a_long_note_is_cut_with_a_count_and_can_be_read_on(home: ConnectedDevice) -> None:
    key = home.put("notes", title="Long", content="a" * 20_000 + "b" * 1_234)
    first = await home.use("get_note", note_id=key)
    assert first.endswith("a\n(1,234 more characters are not shown.)")
    assert (await home.use("get_note", note_id=key, start=20_000)).endswith(f"\n| {'b' * 1_234}")


# ── Arguments ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("create_task", {"title": " "}, "title must not be empty"),
        ("create_task", {"title": "x" * 1_001}, "title may have at most 1,000 characters; it has 1,001"),
        ("create_task", {"title": "x", "due_date": "friday"}, "due_date must be a date such as"),
        ("create_task", {"title": "\ud800"}, "characters that are not valid text"),
        ("create_note", {"title": "x", "content": "x" * 100_001}, "content may have at most 100,000"),
        ("create_timeline", {"project_id": "p", "title": "x", "date": "9999-12-31"}, "date must be a date"),
        ("get_note", {"note_id": "nowhere"}, "there is no note with the id nowhere"),
    ],
)
async def test_arguments_that_cannot_be_are_said_to_be_so(
    home: ConnectedDevice, name: str, arguments: dict[str, Any], said: str
) -> None:
    failed = await tool_failure(home.session, name, **arguments)
    assert failed.startswith("Failed: ")
    assert said in failed
    assert home.session.mutations == []


async def test_a_value_that_is_no_choice_is_refused_before_the_device_is_asked(home: ConnectedDevice) -> None:
    with pytest.raises(ValidationError):
        await home.use("create_task", title="x", priority="urgent")


# ── The desk ────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_desk_knows_what_rows_are_called_by_their_table(home: ConnectedDevice) -> None:
    project = home.put("projects", name="Harbour")
    assert await home.session.title_of("projects", project) == "Harbour"
    assert await home.session.title_of("tasks", project) is None
    assert await home.session.title_of("tasks", "no such id") is None


async def test_the_desk_knows_which_words_are_the_users_own(home: ConnectedDevice) -> None:
    home.put("tasks", title="Rename list_tasks to ListTasks")
    assert not home.session.has_recent_word("list_tasks")
    await home.use("list_tasks")
    assert home.session.has_recent_word("list_tasks")
    assert home.session.has_recent_word("listtasks")
    assert not home.session.has_recent_word("list")
    assert not home.session.has_recent_word("")


async def test_names_of_projects_are_read_once_a_turn_and_along_with_the_tasks(committed_db: str) -> None:
    async with scripted_device(await db.run(somebody), rows({"id": "t", "title": "Call"})) as (
        session,
        frames,
    ):
        for _ in range(2):
            await call_tool(session, "list_tasks")
    first, second = frames
    assert [call["table"] for call in first["calls"]] == ["tasks", "projects"]
    assert (second["type"], second["table"]) == ("tool_call", "tasks")


async def test_the_tools_of_a_turn_work_in_the_users_zone(home: ConnectedDevice) -> None:
    home.put("tasks", title="Call", dueDate=ms(2026, 11, 20, 13, 30))
    assert "due Sat 2026-11-21 02:30" in await call_tool(home.at("Pacific/Auckland"), "list_tasks")
    assert "due Fri 2026-11-20 05:30" in await call_tool(home.at("America/Los_Angeles"), "list_tasks")
