"""A turn's changes are taken back on the device; what was edited since is left and named."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import httpx
import pytest
from django.utils import timezone

from adiuva.accounts.keys import cipher_for
from adiuva.core import db
from chat.models import Turn
from memory import entries, entry_content
from memory.entries import BY_HAND
from memory.models import Entry, Exchange, Tier
from tests.chat.chat_client import ChatClient, DeviceRows, connect, conversation_of, end_frame, wait_for
from tests.chat.device_sessions import connected_device
from tests.chat.factories import make_conversation
from tests.factories import Person, somebody
from tests.fakes.provider import Call, Hold, Provider, Say


async def post_undo(base: str, person: Person, key: str) -> httpx.Response:
    def post() -> httpx.Response:
        with person.rest(base) as rest:
            return rest.post(f"/chat/turns/{key}/undo")

    return await asyncio.to_thread(post)


async def undo(base: str, person: Person, key: str) -> dict[str, Any]:
    answer = await post_undo(base, person, key)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def ask(base: str, person: Person, message: str, key: str) -> dict[str, Any]:
    def post() -> dict[str, Any]:
        with person.rest(base) as rest:
            answer = rest.post("/chat", json={"message": message, "request_id": key})
            body: dict[str, Any] = answer.json()
            return body

    return await asyncio.to_thread(post)


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    made = ("id", "createdAt", "updatedAt")
    return [{name: value for name, value in row.items() if name not in made} for row in rows]


async def test_inserts_updates_and_deletes_are_taken_back(
    chat_web: str, person: Person, provider: Provider
) -> None:
    async with connected_device(chat_web, person) as connected:
        project = connected.put("projects", name="Harbour")
        ada = connected.put("tasks", title="Call Ada", description="about the quay", projectId=project)
        bob = connected.put("tasks", title="Call Bob", status="todo")
        before = {table: plain(connected.rows(table)) for table in ("tasks", "projects", "notes")}
        provider.script(
            Say(
                calls=[
                    Call("create_task", {"title": "Call Cleo", "project_id": project}),
                    Call("create_note", {"title": "Menu", "content": "Soup"}),
                    Call("update_task", {"task_id": bob, "status": "done", "title": "Call Robert"}),
                    Call("delete_task", {"task_id": ada}),
                ]
            ),
            "It waits for your yes.",
        )
        first = await ask(chat_web, person, "create, update and delete", "r1")
        assert len(first["mutations"]) == 3
        provider.script(Call("delete_task", {"task_id": ada}), "Gone.")
        second = await ask(chat_web, person, "yes", "r2")
        assert len(second["mutations"]) == 1
        assert (await undo(chat_web, person, "r2"))["undone"] == 1
        done = await undo(chat_web, person, "r1")
        assert (done["undone"], done["kept"]) == (3, [])
        assert done["undone_at"] is not None
        after = {table: plain(connected.rows(table)) for table in before}
        key = lambda row: str(row.get("title") or row.get("name"))  # noqa: E731
        assert {table: sorted(rows, key=key) for table, rows in after.items()} == {
            table: sorted(rows, key=key) for table, rows in before.items()
        }
        again = await undo(chat_web, person, "r1")
        assert (again["undone"], again["kept"]) == (3, [])


async def test_what_was_edited_or_is_used_since_is_left_and_named(
    chat_web: str, person: Person, provider: Provider
) -> None:
    async with connected_device(chat_web, person) as connected:
        bob = connected.put("tasks", title="Call Bob", status="todo")
        provider.script(
            Say(
                calls=[
                    Call("create_task", {"title": "Call Cleo"}),
                    Call("create_task", {"title": "Call Dan"}),
                    Call("create_project", {"name": "Harbour"}),
                    Call("update_task", {"task_id": bob, "status": "done"}),
                ]
            ),
            "Done.",
        )
        made = (await ask(chat_web, person, "create them", "r1"))["mutations"]
        ids = {m["data"].get("title") or m["data"].get("name"): m["data"]["id"] for m in made}
        cleo = {"id": ids["Call Cleo"], "updates": {"title": "Call Cleo!"}}
        plan = {"title": "Plan", "content": "x", "projectId": ids["Harbour"]}
        urgent = {"id": bob, "updates": {"priority": "high"}}
        connected.device.store.apply(
            [
                {"id": "e1", "action": "update", "table": "tasks", "data": cleo},
                {"id": "e2", "action": "update", "table": "tasks", "data": urgent},
                {"id": "e3", "action": "insert", "table": "notes", "data": plan},
            ]
        )
        done = await undo(chat_web, person, "r1")
        assert done["undone"] == 1
        assert {(kept["title"], kept["reason"]) for kept in done["kept"]} == {
            ("Call Cleo", "edited"),
            ("Call Bob", "edited"),
            ("Harbour", "in_use"),
        }
        assert {row["title"] for row in connected.rows("tasks")} == {"Call Cleo!", "Call Bob"}
        assert next(row for row in connected.rows("tasks") if row["id"] == bob)["status"] == "done"


async def test_an_interrupted_undo_goes_on_with_the_new_ids_of_rows_that_are_back(
    chat_web: str, person: Person, provider: Provider
) -> None:
    harbour = {"id": "p1", "name": "Harbour"}
    rows = DeviceRows(projects=[harbour], tasks=[{"id": "t1", "title": "Call Ada", "projectId": "p1"}])
    provider.script(
        Say(calls=[Call("delete_task", {"task_id": "t1"}), Call("delete_project", {"project_id": "p1"})]),
        "Gone.",
    )
    async with connect(chat_web, person, rows, capabilities=["dedupe", "batch", "approval"]) as client:
        key = await client.ask("delete the task and the project")
        for place in range(2):
            await client.decide((await client.asked_for(key, place))["id"], True)
        end_frame(await client.ended(key))
        assert rows.tables == {"projects": [], "tasks": []}
        client.rows = SilentAfterInsert(client, rows)
        stopping = asyncio.create_task(post_undo(chat_web, person, key))
        await client.until(lambda: client.unanswered != [])
    stopped = (await stopping).json()
    assert (stopped["undone"], stopped["undone_at"]) == (1, None)
    async with connect(chat_web, person, rows, capabilities=["dedupe", "batch", "approval"]):
        done = await undo(chat_web, person, key)
    assert (done["undone"], done["kept"]) == (2, [])
    [project], [task] = rows.tables["projects"], rows.tables["tasks"]
    assert project["id"] != "p1" and task["projectId"] == project["id"]


class SilentAfterInsert(DeviceRows):
    """The rows of a client that answers no call after the first insert."""

    def __init__(self, client: ChatClient, rows: DeviceRows) -> None:
        self.client, self.tables, self.calls, self.applied = client, rows.tables, rows.calls, rows.applied

    def answer(self, call: dict[str, Any]) -> dict[str, Any]:
        self.client.silent = call["action"] == "insert"
        return super().answer(call)


async def test_whose_turn_it_is_and_when_it_can_be_undone(
    chat_web: str, person: Person, provider: Provider
) -> None:
    hold = Hold("Hello.")
    provider.script(hold)
    stranger = await db.run(somebody)
    async with connect(chat_web, person, DeviceRows()) as client:
        key = await client.ask("hello")
        await wait_for(hold.reached)
        running = await post_undo(chat_web, person, key)
        assert (running.status_code, running.json()["code"]) == (409, "turn_is_running")
        assert (await post_undo(chat_web, stranger, key)).status_code == 404
        assert (await post_undo(chat_web, person, "never")).status_code == 404
        hold.release()
        end_frame(await client.ended(key))
        nothing = {"undone": 0, "kept": [], "undone_at": None, "memory": {"deleted": 0, "restored": 0}}
        assert await undo(chat_web, person, key) == nothing
        provider.script(Call("create_task", {"title": "Call"}), "Done.")
        changed = await client.ask("create a task: call")
        end_frame(await client.ended(changed))
    unsaid = await Turn.objects.acreate(
        user_id=person.id,
        request_id="never/begun",  # a slash in it hides nothing
        conversation=await db.run(make_conversation, person.id),
        state=Turn.State.CANCELLED,
        ended_at=timezone.now(),
    )
    assert await undo(chat_web, person, unsaid.request_id) == nothing
    gone = await post_undo(chat_web, person, changed)
    assert (gone.status_code, gone.json()["code"]) == (503, "device_offline")


async def test_a_client_of_protocol_1_is_undone_too(
    chat_web: str, person: Person, provider: Provider
) -> None:
    rows = DeviceRows(tasks=[{"id": "t1", "title": "Call Ada", "status": "todo"}])
    async with connect(chat_web, person, rows, protocol=1) as client:
        provider.script(Call("update_task", {"task_id": "t1", "status": "done"}), "Done.")
        key = await client.ask("call ada is done")
        await client.ended(key)
        assert rows.tables["tasks"][0]["status"] == "done"
        assert (await undo(chat_web, person, key))["undone"] == 1
    assert rows.tables["tasks"][0]["status"] == "todo"


@pytest.mark.parametrize("protocol", [1, 2])
async def test_what_a_turn_did_to_the_memory_is_taken_back_with_it(
    chat_web: str, person: Person, provider: Provider, protocol: int
) -> None:
    """Of two turns, one of which changed a row as well; in a conversation, and without one."""
    rows = DeviceRows()
    rate, town = Call("remember", {"content": "80 euros", "key": "hourly rate"}), "I live in Bremen."
    await db.run(
        partial(
            entries.remember, user_id=person.id, tier=Tier.CORE, key="name", content="Ada", source=BY_HAND
        )
    )
    async with connect(chat_web, person, rows, protocol=protocol) as client:
        provider.script(Say(calls=[rate, Call("create_task", {"title": "Call"})]), "Done.")
        both = await client.ask("my hourly rate is 80 euros; create a task: call")
        where = await client.ended(both)
        more = {"conversation_id": conversation_of(where)} if protocol == 2 else {}
        provider.script(Call("remember", {"content": town}), "Noted.")
        alone = await client.ask(f"remember: {town}", **more)
        await client.ended(alone)
        assert await db.run(remembered, person) == {"Ada", "80 euros", town}
        done = await undo(chat_web, person, alone)
        assert (done["undone"], done["memory"]) == (0, {"deleted": 1, "restored": 0})
        assert await db.run(remembered, person) == {"Ada", "80 euros"}
        done = await undo(chat_web, person, both)
        assert (done["undone"], done["memory"]) == (1, {"deleted": 1, "restored": 0})
        assert rows.tables["tasks"] == [] and await db.run(remembered, person) == {"Ada"}
        assert (await undo(chat_web, person, both))["memory"] == {"deleted": 0, "restored": 0}
    assert not await Exchange.objects.filter(user_id=person.id).aexists()  # nor is it learnt again


def remembered(person: Person) -> set[str]:
    cipher = cipher_for(person.id)
    return {entry_content.unseal_entry(row, cipher).content for row in Entry.objects.of(person.id).current()}
