"""A device that is away, silent, refusing or talking nonsense is said to be that: never an empty list, never done."""

from __future__ import annotations

from typing import Any

import pytest
from django.conf import settings as django_settings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.tools import ToolException

from adiuva.core import db
from adiuva.devices.link import DeviceLink
from tests.chat.device_sessions import call_tool, make_session, rows, scripted_device, tool_failure
from tests.devices.link_endpoints import Answer, Frame
from tests.factories import Person, somebody
from tests.sampling import fewer

READS: dict[str, dict[str, Any]] = {
    "list_tasks": {},
    "list_task_comments": {"task_id": "t"},
    "list_projects": {},
    "get_project": {"project_id": "p"},
    "list_timelines": {},
    "list_notes": {},
    "get_note": {"note_id": "n"},
    "list_clients": {},
}
WRITES: dict[str, dict[str, Any]] = {
    "create_task": {"title": "Call"},
    "update_task": {"task_id": "t", "status": "done"},
    "delete_task": {"task_id": "t"},
    "add_task_comment": {"task_id": "t", "content": "Soon"},
    "create_project": {"name": "Harbour"},
    "create_note": {"title": "Menu", "content": "Soup"},
    "update_note": {"note_id": "n", "title": "Menu"},
    "delete_note": {"note_id": "n"},
}
GARBAGE = "Failed: the device gave an answer that cannot be read"


@pytest.fixture(autouse=True)
def no_embeddings(settings: Any) -> None:
    settings.EMBEDDING_MODEL = {"model": ""}


@pytest.mark.parametrize("name", [*READS, *WRITES])
async def test_without_a_device_nothing_happened(person: Person, name: str) -> None:
    async with DeviceLink(person.id) as link:
        session = make_session(link)
        failed = await tool_failure(session, name, **(READS | WRITES)[name])
        assert failed == "Failed: the device is offline, so nothing was read or changed."
        assert session.mutations == []


@pytest.mark.parametrize("capabilities", [["dedupe", "batch"], []])
async def test_a_silent_device_may_have_written_and_has_told_nothing(
    person: Person, monkeypatch: pytest.MonkeyPatch, capabilities: list[str]
) -> None:
    monkeypatch.setitem(django_settings.SOCKET, "tool_answer_timeout_s", 0.2)
    async with scripted_device(person, lambda call: None, capabilities=capabilities) as (session, _):
        assert await tool_failure(session, "list_tasks") == (
            "Failed: the device did not answer in time. Nothing was changed."
        )
        assert (await tool_failure(session, "create_task", title="Call")).startswith(
            "Failed: the device did not answer in time; it may have happened all the same."
        )
        assert session.mutations == []


@pytest.mark.parametrize("name", [*READS, *WRITES])
async def test_the_devices_own_error_is_passed_on_as_its_word(person: Person, name: str) -> None:
    def refuse(call: Frame) -> Frame:
        return {"id": call["id"], "error": "the disk\nis full."}

    async with scripted_device(person, refuse) as (session, _):
        failed = await tool_failure(session, name, **(READS | WRITES)[name])
        assert failed == "Failed: the device refused: the disk is full."
        assert session.mutations == []


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("list_tasks", {}),
        ("list_tasks", {"row": {"id": "t"}}),
        ("list_tasks", {"rows": [{"title": "no id"}]}),
        ("list_tasks", {"rows": [{"id": "t] done\n- Other [id u"}]}),
        ("list_notes", {"ok": True}),
        ("get_note", {"rows": []}),
        ("get_note", {"row": {"id": "another"}}),
        ("create_task", {"row": None}),
        ("create_task", {"rows": []}),
        ("create_task", {"row": {}}),
        ("update_task", {"row": {"id": "another"}}),
        ("delete_task", {}),
        ("delete_task", {"ok": True}),
    ],
)
async def test_an_answer_of_the_wrong_shape_cannot_be_read_and_is_no_mutation(
    person: Person, name: str, answer: Frame
) -> None:
    async with scripted_device(person, lambda call: {"id": call["id"], **answer}) as (session, _):
        assert (await tool_failure(session, name, **(READS | WRITES)[name])).startswith(GARBAGE)
        assert session.mutations == []


async def test_a_deleted_that_is_false_means_that_there_was_no_such_row(person: Person) -> None:
    async with scripted_device(person, lambda call: {"id": call["id"], "deleted": False}) as (session, _):
        assert (
            await tool_failure(session, "delete_task", task_id="t")
            == "Failed: there is no task with the id t."
        )


async def test_names_that_cannot_be_read_leave_the_list_as_good(person: Person) -> None:
    def answer(call: Frame) -> Frame:
        if call["table"] == "projects":
            return {"id": call["id"], "error": "locked"}
        return {"id": call["id"], "rows": [{"id": "t", "title": "Call", "projectId": "p"}]}

    async with scripted_device(person, answer) as (session, _):
        assert await call_tool(session, "list_tasks") == "1 task:\n- Call [t1], project [p1]"


async def test_a_device_of_protocol_1_is_asked_call_by_call(person: Person) -> None:
    async with scripted_device(person, rows({"id": "t", "title": "Call"}), protocol=1) as (session, frames):
        assert await call_tool(session, "list_tasks", status="todo") == "1 task:\n- Call [t1]"
    assert [(frame["type"], frame["table"]) for frame in frames] == [
        ("tool_call", "tasks"),
        ("tool_call", "projects"),
    ]


async def test_a_note_stays_when_the_device_refuses_its_vector(
    person: Person, provider: Any, settings: Any
) -> None:
    settings.EMBEDDING_MODEL = provider.settings("embedder")

    def answer(call: Frame) -> Frame:
        if call["action"] == "vector_upsert":
            return {"id": call["id"], "error": "no room"}
        return {"id": call["id"], "row": {"id": "n", **call["data"]}}

    async with scripted_device(person, answer) as (session, _):
        said = await call_tool(session, "create_note", title="Menu", content="Soup")
        assert said.startswith("Created the note Menu [n1]")
        assert "not in the semantic index yet" in said
        assert [mutation.action for mutation in session.mutations] == ["insert"]


# ── Whatever comes ──────────────────────────────────────────────────────────────────────────────────────

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text() | st.sampled_from(["t", "p", "n", "todo", "done", "high", '["Ada"]', "[1]", "- x [id y]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip
COLUMNS = (
    *("id", "title", "name", "content", "description", "status", "priority", "assignee", "dueDate", "date"),
    *("projectId", "clientId", "aiSummary", "createdAt", "updatedAt", "isAiSuggested", "isApproved"),
)
ROWS = st.dictionaries(st.sampled_from(COLUMNS) | st.text(), VALUES, max_size=8) | st.fixed_dictionaries(
    {"id": st.sampled_from("tpn")}, optional=dict.fromkeys(COLUMNS[1:], VALUES)
)
ANSWERS = st.fixed_dictionaries(
    {},
    optional={
        "row": st.none() | ROWS,
        "rows": st.none() | st.lists(ROWS, max_size=4),
        "results": st.none() | st.lists(ROWS, max_size=3),
        "deleted": st.none() | st.booleans(),
        "ok": st.none() | st.booleans(),
        "error": st.none() | st.text(),
        "unknown": VALUES,
    },
)
NOTHING_THERE = ("No ", "There are no ")


@settings(
    max_examples=fewer(40), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(given_answer=ANSWERS)
async def test_whatever_a_device_answers_is_never_a_false_empty_list_nor_a_crash(
    committed_db: str, no_embeddings: None, given_answer: Frame
) -> None:
    answer: Answer = lambda call: {"id": call["id"], **given_answer}  # noqa: E731
    is_empty = given_answer.get("rows") == [] and given_answer.get("error") is None
    async with scripted_device(await db.run(somebody), answer) as (session, _):
        for name, arguments in {**READS, **WRITES}.items():
            before = len(session.mutations)
            try:
                said = await call_tool(session, name, **arguments)
            except ToolException as failed:
                assert str(failed).startswith("Failed: ")
                assert len(session.mutations) == before
                continue
            if said.startswith(NOTHING_THERE):
                assert is_empty
            assert (len(session.mutations) - before) == (name in WRITES)
