"""A run is taken back: what it created goes, what the user has made their own stays, and each is said."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace
from typing import Any

import pytest

from adiuva.accounts.keys import cipher_for
from adiuva.core import db
from adiuva.devices import outbox
from adiuva.devices.link import DeviceLink
from adiuva.devices.models import Device, OutboxRecord
from adiuva.devices.protocol import ToolResultBody
from agents import run_release, source_changes
from agents.claimed_runs import ClaimedRun
from agents.local_folders import DeviceSilent
from agents.models import Agent, FoundRecord, Run
from tests.agents.device_owner import DeviceOwner, connected, tasks_from_lines
from tests.agents.document_reader import Item, Reader
from tests.agents.factories import claim_run, commit_answers, commit_tasks, create_run
from tests.fakes.provider import Provider
from tests.socket_client import Socket


async def take_back(desk: DeviceOwner, run: str, status: int = 200) -> dict[str, Any]:
    answer = await desk.rest.post(f"/agents/runs/{run}/undo")
    assert answer.status_code == status, answer.text
    return dict(answer.json())


async def offers_undo(desk: DeviceOwner, run: str) -> bool:
    page = await desk.rest.get(f"/agents/runs/{run}", headers={"Accept": "text/html"})
    return f'/agents/runs/{run}/undo" data-action="undo"' in page.text


def by_hand(desk: DeviceOwner, action: str, table: str, **fields: Any) -> dict[str, Any]:
    """What the user does on the device."""
    call = {"id": uuid.uuid4().hex, "action": action, "table": table, **fields}
    (result,) = desk.device.store.apply([call])
    assert "error" not in result, result
    return result


def titles(desk: DeviceOwner, table: str = "tasks") -> set[str]:
    return {row["title"] for row in desk.rows(table)}


def task(desk: DeviceOwner, title: str) -> dict[str, Any]:
    (row,) = [row for row in desk.rows("tasks") if row["title"] == title]
    return row


def reasons(undone: dict[str, Any]) -> dict[str, str]:
    return {record["title"] or record["table"]: record["reason"] for record in undone["kept"]}


async def test_an_undo_deletes_what_the_run_created_and_nothing_else(
    desk: DeviceOwner, provider: Provider
) -> None:
    provider.default = tasks_from_lines
    desk.write("one.md", "do call Ada\ndo write the offer\n")
    async with connected(desk):
        by_hand(desk, "insert", "tasks", data={"title": "my own"})
        agent = await desk.agent()
        run = (await desk.run(agent))["id"]
        (told,) = (await desk.rest.get("/memory/episodic")).json()
        assert "found 2 tasks." in told["content"]
        undone = await take_back(desk, run)
        assert (undone["deleted"], undone["never_sent"], undone["kept"]) == (2, 0, [])
        assert (await desk.rest.get("/memory/episodic")).json() == []
        assert titles(desk) == {"my own"}
        seen = await desk.see(run)
        assert seen["undone_at"] == undone["undone_at"] is not None
        assert (seen["journal"][-1]["code"], seen["journal"][-1]["count"]) == ("undone", 2)
        assert not await offers_undo(desk, run)
        assert await take_back(desk, run) == undone  # and again, the same
        assert (await desk.see(run))["journal"] == seen["journal"]
        again = await desk.run(agent)
    assert (again["files_unchanged"], again["items_created"]) == (1, 0)
    assert titles(desk) == {"my own"}


async def test_rows_that_the_user_edited_approved_or_deleted_are_kept_and_named(
    desk: DeviceOwner, provider: Provider
) -> None:
    provider.default = tasks_from_lines
    desk.write("one.md", "do edit\ndo approve\ndo delete\ndo leave\ndo look at\n")
    async with connected(desk):
        run = (await desk.run(await desk.agent()))["id"]
        edited, approved, deleted = (task(desk, title)["id"] for title in ("edit", "approve", "delete"))
        by_hand(desk, "update", "tasks", data={"id": edited, "updates": {"priority": "high"}})
        by_hand(desk, "update", "tasks", data={"id": approved, "updates": {"isApproved": 1}})
        by_hand(desk, "delete", "tasks", data={"id": deleted})
        by_hand(desk, "insert", "taskComments", data={"taskId": task(desk, "look at")["id"], "content": "hm"})
        undone = await take_back(desk, run)
        assert undone["deleted"] == 1
        assert {(each["table"], each["id"], each["title"], each["reason"]) for each in undone["kept"]} == {
            ("tasks", edited, "edit", "edited"),
            ("tasks", approved, "approve", "approved"),
            ("tasks", deleted, None, "gone"),
            ("tasks", task(desk, "look at")["id"], "look at", "in_use"),
        }
        assert titles(desk) == {"edit", "approve", "look at"}
        assert [event["code"] for event in (await desk.see(run))["journal"]][-2:] == [
            "undone",
            "records_kept",
        ]
        again = await take_back(desk, run)
    assert (again["deleted"], reasons(again)) == (undone["deleted"], reasons(undone))


async def test_an_undo_takes_back_what_the_run_updated_and_withdrew(
    desk: DeviceOwner, provider: Provider
) -> None:
    provider.default = Reader()
    offer, call, room = (
        Item("offer", "send the offer"),
        Item("call", "call the printer", date="2026-12-03"),
        Item("room", "book a room"),
    )
    desk.write("plan.md", "\n".join(each.line for each in (offer, call, room)))

    def rows() -> dict[str, tuple[Any, ...]]:
        return {
            row["title"].rpartition("(")[2]: (row["title"], row["dueDate"], row["status"])
            for row in desk.rows("tasks")
        }

    async with connected(desk):
        agent = await desk.agent()
        first = (await desk.run(agent))["id"]
        before = rows()
        lines = [replace(offer, is_done=True), replace(call, date="2026-12-10"), Item("new", "pay the bill")]
        desk.write("plan.md", "\n".join(each.line for each in lines))
        second = (await desk.run(agent))["id"]
        assert rows().keys() == {"offer)", "call)", "new)"}
        undone = await take_back(desk, second)
        assert (undone["deleted"], undone["restored"], undone["kept"]) == (1, 3, [])
        assert rows() == before
        assert await take_back(desk, second) == undone
        # The rows are known as they are now: the next run doubles nothing, and the undo of the first
        # takes its records for what they are.
        assert (await desk.run(agent))["items_created"] == 0
        undone = await take_back(desk, first)
    assert (undone["deleted"], undone["kept"], desk.rows("tasks")) == (3, [], [])


async def test_an_undo_leaves_a_followed_row_that_the_user_has_edited_since(
    desk: DeviceOwner, provider: Provider
) -> None:
    provider.default = Reader()
    call = Item("call", "call the printer", date="2026-12-03")
    desk.write("plan.md", call.line)
    async with connected(desk):
        agent = await desk.agent()
        await desk.run(agent)
        desk.write("plan.md", replace(call, date="2026-12-10").line)
        run = (await desk.run(agent))["id"]
        assert await offers_undo(desk, run)  # it has created nothing
        (row,) = desk.rows("tasks")
        by_hand(desk, "update", "tasks", data={"id": row["id"], "updates": {"priority": "high"}})
        edited = desk.rows("tasks")
        undone = await take_back(desk, run)
    assert (undone["restored"], [each["reason"] for each in undone["kept"]]) == (0, ["edited"])
    assert desk.rows("tasks") == edited


async def test_another_row_under_the_same_id_is_not_deleted(desk: DeviceOwner, provider: Provider) -> None:
    provider.default = tasks_from_lines
    desk.write("one.md", "do call Ada")
    async with connected(desk):
        run = (await desk.run(await desk.agent()))["id"]
        row = task(desk, "call Ada")
        by_hand(desk, "delete", "tasks", data={"id": row["id"]})
        desk.device.store._db.execute("INSERT INTO tasks (id, title) VALUES (?, 'restored')", (row["id"],))
        undone = await take_back(desk, run)
    assert (undone["deleted"], reasons(undone)) == (0, {"restored": "edited"})
    assert titles(desk) == {"restored"}


async def test_a_project_in_use_is_kept_and_an_empty_one_is_deleted(
    desk: DeviceOwner, provider: Provider
) -> None:
    provider.default = {
        "records": [
            {"table": "projects", "data": {"name": "Villa"}},
            {"table": "projects", "data": {"name": "Harbour"}},
            {"table": "clients", "data": {"name": "Rossi"}},
            {"table": "clients", "data": {"name": "Bianchi"}},
            {"table": "notes", "data": {"title": "remark", "content": "text"}},
        ]
    }
    desk.write("one.md", "text")
    async with connected(desk):
        tables = ["tasks", "projects", "clients", "notes"]
        run = (await desk.run(await desk.agent(data_types=tables)))["id"]
        villa = next(row["id"] for row in desk.rows("projects") if row["name"] == "Villa")
        rossi = next(row["id"] for row in desk.rows("clients") if row["name"] == "Rossi")
        by_hand(desk, "insert", "tasks", data={"title": "mine", "projectId": villa})
        by_hand(desk, "insert", "clients", data={"name": "Rossi's son", "parentId": rossi})
        undone = await take_back(desk, run)
        assert (undone["deleted"], reasons(undone)) == (3, {"Villa": "in_use", "Rossi": "in_use"})
        assert [row["name"] for row in desk.rows("projects")] == ["Villa"]
        assert {row["name"] for row in desk.rows("clients")} == {"Rossi", "Rossi's son"}
        by_hand(desk, "delete", "tasks", data={"id": task(desk, "mine")["id"]})
        undone = await take_back(desk, run)
    assert (undone["deleted"], reasons(undone)) == (4, {"Rossi": "in_use"})


async def test_without_its_device_nothing_is_undone(desk: DeviceOwner, provider: Provider) -> None:
    provider.default = tasks_from_lines
    desk.write("one.md", "do call Ada")
    async with connected(desk):
        run = (await desk.run(await desk.agent()))["id"]
    before = await desk.see(run)
    async with Socket(desk.web, desk.person.access_token) as other:
        await other.hello(device_id="another")
        refused = await take_back(desk, run, 503)
    assert refused["code"] == "device_offline" and "deleted" not in refused
    assert await desk.see(run) == before
    assert titles(desk) == {"call Ada"}


async def test_a_run_in_progress_cannot_be_undone(desk: DeviceOwner) -> None:
    run = await desk.start(await desk.agent())
    await desk.until(run, lambda seen: seen["state"] == "waiting_device")
    assert (await take_back(desk, run, 409))["code"] == "run_is_live"
    await desk.rest.post(f"/agents/runs/{run}/cancel")
    undone = await take_back(desk, run)  # it created nothing, so no device is needed
    assert (undone["deleted"], undone["kept"]) == (0, [])


async def test_undone_records_are_created_again_when_their_source_changes(
    desk: DeviceOwner, provider: Provider
) -> None:
    provider.default = tasks_from_lines
    desk.write("one.md", "do call Ada\ndo keep this\n")
    async with connected(desk):
        agent = await desk.agent()
        run = (await desk.run(agent))["id"]
        kept_id = task(desk, "keep this")["id"]
        by_hand(desk, "update", "tasks", data={"id": kept_id, "updates": {"isApproved": 1}})
        for number in range(2):
            desk.write("one.md", f"do call Ada\ndo keep this\nversion {number}\n")
            await take_back(desk, run)
            assert titles(desk) == {"keep this"}
            seen = await desk.run(agent)
            assert seen["items_created"] == 1  # what stayed is not doubled
            run = seen["id"]
            assert sorted(row["title"] for row in desk.rows("tasks")) == ["call Ada", "keep this"]


@pytest.mark.parametrize(
    "options", [{"protocol": 1}, {"capabilities": ["dedupe"]}], ids=["protocol 1", "no batch"]
)
async def test_an_older_device_gets_the_same_undo(
    desk: DeviceOwner, provider: Provider, options: dict[str, Any]
) -> None:
    provider.default = tasks_from_lines
    desk.write("one.md", "".join(f"do step {number}\n" for number in range(100)))
    desk.device = desk.new_device(**options)
    async with connected(desk):
        run = (await desk.run(await desk.agent()))["id"]
        row = task(desk, "step 7")["id"]
        by_hand(desk, "update", "tasks", data={"id": row, "updates": {"title": "mine"}})
        undone = await take_back(desk, run)
    assert (undone["deleted"], reasons(undone)) == (99, {"mine": "edited"})


async def test_a_run_of_a_deleted_agent_can_be_undone(desk: DeviceOwner, provider: Provider) -> None:
    provider.default = tasks_from_lines
    desk.write("one.md", "do call Ada")
    async with connected(desk):
        agent = await desk.agent()
        run = (await desk.run(agent))["id"]
        await desk.rest.delete(f"/agents/local/{agent}")
        assert (await take_back(desk, run))["deleted"] == 1
    assert desk.rows("tasks") == []


# ── Where it breaks off ─────────────────────────────────────────────────────────────────────────────────


def create_cancelled_run(agent: str, *found: str) -> tuple[str, list[uuid.UUID]]:
    """A run that found tasks, and was cancelled before anybody wrote what the device said."""
    claimed = claim_run(create_run(Agent.objects.get(pk=agent)))
    ids = commit_tasks(claimed, *found)
    run_release.finish(claimed, Run.State.CANCELLED, "cancelled")
    return str(claimed.run_id), ids


async def test_waiting_records_are_withheld_and_unconfirmed_ones_deleted(
    desk: DeviceOwner, provider: Provider
) -> None:
    provider.default = {"records": []}
    agent = await desk.agent()
    async with connected(desk):
        run, (heard, *_) = await db.run(create_cancelled_run, agent, "arrived", "in line")
        call = {"id": str(heard), "action": "insert", "table": "tasks"}
        desk.device.store.apply([{**call, "data": {"title": "arrived", "isAiSuggested": 1, "isApproved": 0}}])
        assert (await desk.see(run))["records_waiting"] == 2 and await offers_undo(desk, run)
        undone = await take_back(desk, run)
        assert (undone["deleted"], undone["kept"]) == (2, [])
        assert desk.rows("tasks") == []
        assert (await desk.run(agent))["items_created"] == 0
    assert desk.rows("tasks") == []


async def test_a_device_that_does_not_dedupe_is_not_sent_what_it_may_have(
    desk: DeviceOwner, provider: Provider
) -> None:
    agent = await desk.agent()
    desk.device = desk.new_device(capabilities=["batch", "manifest"])
    async with connected(desk):
        run, (sent, *_) = await db.run(create_cancelled_run, agent, "sent", "in line")
        await db.run(outbox.mark_sent, [sent])
        undone = await take_back(desk, run)
        assert (undone["deleted"], undone["never_sent"]) == (0, 1)
        assert undone["kept"] == [{"table": "tasks", "id": None, "title": "sent", "reason": "unknown"}]
        assert undone["undone_at"]
    assert desk.rows("tasks") == []


class Answers:
    """A device played by hand: it knows the rows that it is given, and may go before it answers a write.

    `full`: the action that fails because its disk is full.
    """

    def __init__(self, rows: dict[str, dict[str, Any]]) -> None:
        self.rows, self.full = rows, ""
        self.deletes: list[list[str]] = []
        self._deleted: dict[str, bool] = {}  # call id → the first answer

    async def serve(self, socket: Socket, *, until_delete: int | None = None) -> None:
        while True:
            frame = await socket.receive("tool_batch")
            calls = frame["calls"]
            if calls[0]["action"] == "delete":
                self.deletes.append([call["id"] for call in calls])
                if len(self.deletes) == until_delete:
                    return
            await socket.send({"type": "tool_batch_result", "results": [self.answer(call) for call in calls]})

    def answer(self, call: dict[str, Any]) -> dict[str, Any]:
        if call["action"] == self.full:
            return {"id": call["id"], "error": "database or disk is full", "code": "not_saved"}
        match call["action"]:
            case "get":
                return {"id": call["id"], "row": self.rows.get(call["data"]["id"])}
            case "delete":
                there = self.rows.pop(call["data"]["id"], None) is not None
                return {"id": call["id"], "deleted": self._deleted.setdefault(call["id"], there)}
            case "update":
                self.rows[call["data"]["id"]] |= call["data"]["updates"]
                return {"id": call["id"], "row": self.rows[call["data"]["id"]]}
            case "insert":
                row = call["data"] | {"id": "new"}
                return {"id": call["id"], "row": self.rows.setdefault("new", row)}
        return {"id": call["id"], "rows": []}

    async def apply_and_go(self, socket: Socket, *, applies: bool = True) -> None:
        """Serve until a write is applied, or lost, that has no answer."""
        while True:
            frame = await socket.receive("tool_batch")
            is_write = frame["calls"][0]["action"] in {"update", "delete"}
            answers = [self.answer(call) for call in frame["calls"] if applies or not is_write]
            if is_write:
                return
            await socket.send({"type": "tool_batch_result", "results": answers})


def create_run_with_rows(agent: str, *found: str) -> tuple[str, dict[str, dict[str, Any]]]:
    """A run that ended well, and the rows as its device has them."""
    found_agent = Agent.objects.get(pk=agent)
    Device.objects.get_or_create(user_id=found_agent.user_id, device_id=found_agent.device_id)
    claimed = claim_run(create_run(found_agent))
    rows = {}
    for key, title in zip(commit_tasks(claimed, *found), found, strict=True):
        row = {"id": f"row of {title}", "title": title, "isApproved": 0}
        rows[str(row["id"])] = row
        commit_answers(claimed, {key: ToolResultBody(id=str(key), row=row)})
    run_release.finish(claimed)
    return str(claimed.run_id), rows


async def test_an_interrupted_undo_says_how_far_it_came_and_can_be_continued(desk: DeviceOwner) -> None:
    run, rows = await db.run(create_run_with_rows, await desk.agent(), *(f"step {n}" for n in range(100)))
    device = Answers(rows)
    async with Socket(desk.web, desk.person.access_token) as socket:
        await socket.hello(device_id="desk")
        asked = asyncio.create_task(desk.rest.post(f"/agents/runs/{run}/undo"))
        await device.serve(socket, until_delete=2)
    answer = await asked
    assert (answer.status_code, answer.json()["code"]) == (504, "outcome_unknown")
    assert (answer.json()["deleted"], answer.json()["undone_at"]) == (64, None)
    assert {record["reason"] for record in answer.json()["kept"]} == {"unknown"}
    assert len(answer.json()["kept"]) == 36
    assert (await desk.see(run))["journal"][-1]["code"] == "undo_stopped"
    async with Socket(desk.web, desk.person.access_token) as socket:
        await socket.hello(device_id="desk")
        serving = asyncio.create_task(device.serve(socket))
        undone = await take_back(desk, run)
        serving.cancel()
    assert (undone["deleted"], undone["kept"]) == (100, [])
    assert device.deletes[1] == device.deletes[2]  # the same calls
    assert device.rows == {}
    assert (await desk.see(run))["undone_at"]


async def test_an_undo_on_a_full_disk_stops_and_can_be_continued(desk: DeviceOwner) -> None:
    run, rows = await db.run(create_run_with_rows, await desk.agent(), "call Ada")
    device = Answers(rows)
    device.full = "delete"
    async with Socket(desk.web, desk.person.access_token) as socket:
        await socket.hello(device_id="desk")
        serving = asyncio.create_task(device.serve(socket))
        stopped = await take_back(desk, run, 503)
        assert (stopped["code"], stopped["undone_at"]) == ("device_cannot_save", None)
        assert (stopped["deleted"], stopped["kept"]) == (0, [])
        device.full = ""
        undone = await take_back(desk, run)
        serving.cancel()
    assert (undone["deleted"], undone["kept"], device.rows) == (1, [], {})


def create_waiting_change(
    agent: str, updates: dict[str, Any] | None
) -> tuple[ClaimedRun, Answers, uuid.UUID]:
    """A run in progress that is to tell the device a change of the row that an earlier run created there."""
    created, rows = create_run_with_rows(agent, "call Ada")
    record = OutboxRecord.objects.get(source_run=created)
    claimed = claim_run(create_run(Agent.objects.get(pk=agent)))
    found = FoundRecord.objects.get(pk=record.pk)
    change = {"updates": updates, "before": {"status": None}, "title": "call Ada", "source": "/a.md"}
    FoundRecord.pending.seal_into(claimed.cipher, found, change)
    found.save()
    assert record.device_id is not None
    return claimed, Answers(rows), record.device_id


@pytest.mark.parametrize("updates", [{"status": "done"}, None])
async def test_a_change_whose_answer_was_lost_is_undone_as_well(
    desk: DeviceOwner, updates: dict[str, Any] | None
) -> None:
    claimed, device, pk = await db.run(create_waiting_change, await desk.agent(), updates)
    async with DeviceLink(desk.person.id, pk) as link:
        async with Socket(desk.web, desk.person.access_token) as socket:
            await socket.hello(device_id="desk")
            following = asyncio.create_task(source_changes.follow_sources(claimed, link, pk))
            await device.apply_and_go(socket)
        with pytest.raises(DeviceSilent):
            await following
    assert [row["status"] for row in device.rows.values() if "status" in row] == (["done"] if updates else [])
    async with Socket(desk.web, desk.person.access_token) as socket, DeviceLink(desk.person.id, pk) as link:
        await socket.hello(device_id="desk")
        serving = asyncio.create_task(device.serve(socket))
        await source_changes.follow_sources(claimed, link, pk)
        await db.run(run_release.finish, claimed)
        undone = await take_back(desk, str(claimed.run_id))
        serving.cancel()
    assert (undone["restored"], undone["kept"]) == (1, [])
    assert [(row["title"], row.get("status")) for row in device.rows.values()] == [("call Ada", None)]


def set_waiting(claimed: ClaimedRun, updates: dict[str, Any] | None) -> None:
    """Its source has changed once more."""
    found = FoundRecord.objects.get(agent_id=claimed.agent_id)
    said = FoundRecord.pending.unseal_from(claimed.cipher, found)
    FoundRecord.pending.seal_into(claimed.cipher, found, said | {"updates": updates})
    found.save()


@pytest.mark.parametrize("updates", [{"status": "done"}, None])
async def test_a_change_whose_answer_was_lost_is_known_again_after_the_next_one_was_lost(
    desk: DeviceOwner, updates: dict[str, Any] | None
) -> None:
    claimed, device, pk = await db.run(create_waiting_change, await desk.agent(), {"status": "in_progress"})
    for applies in (True, False):
        async with DeviceLink(desk.person.id, pk) as link:
            async with Socket(desk.web, desk.person.access_token) as socket:
                await socket.hello(device_id="desk")
                following = asyncio.create_task(source_changes.follow_sources(claimed, link, pk))
                await device.apply_and_go(socket, applies=applies)
            with pytest.raises(DeviceSilent):
                await following
        assert [row["status"] for row in device.rows.values()] == ["in_progress"]
        await db.run(set_waiting, claimed, updates)
    async with Socket(desk.web, desk.person.access_token) as socket, DeviceLink(desk.person.id, pk) as link:
        await socket.hello(device_id="desk")
        serving = asyncio.create_task(device.serve(socket))
        await source_changes.follow_sources(claimed, link, pk)
        assert [row["status"] for row in device.rows.values()] == (["done"] if updates else [])
        await db.run(run_release.finish, claimed)
        undone = await take_back(desk, str(claimed.run_id))
        serving.cancel()
    assert (undone["restored"], undone["kept"]) == (1, [])
    assert [(row["title"], row.get("status")) for row in device.rows.values()] == [("call Ada", None)]


async def test_of_two_undos_at_once_one_is_refused(desk: DeviceOwner) -> None:
    run, rows = await db.run(create_run_with_rows, await desk.agent(), "call Ada")
    device = Answers(rows)
    async with Socket(desk.web, desk.person.access_token) as socket:
        await socket.hello(device_id="desk")
        first = asyncio.create_task(desk.rest.post(f"/agents/runs/{run}/undo"))
        frame = await socket.receive("tool_batch")
        assert (await take_back(desk, run, 409))["code"] == "undo_under_way"
        answers = [device.answer(call) for call in frame["calls"]]
        await socket.send({"type": "tool_batch_result", "results": answers})
        serving = asyncio.create_task(device.serve(socket))
        assert (await first).json()["deleted"] == 1
        serving.cancel()


async def test_a_delete_that_the_device_refuses_is_reported(desk: DeviceOwner, provider: Provider) -> None:
    provider.default = tasks_from_lines
    desk.write("one.md", "do call Ada")
    async with connected(desk):
        run = (await desk.run(await desk.agent()))["id"]
        desk.device.store._db.execute(
            "CREATE TRIGGER no BEFORE DELETE ON tasks BEGIN SELECT RAISE(ABORT, 'not this one'); END"
        )
        undone = await take_back(desk, run)
    assert (undone["deleted"], reasons(undone)) == (0, {"call Ada": "refused"})


# ── What a row says ─────────────────────────────────────────────────────────────────────────────────────


def test_a_row_is_the_same_however_a_device_writes_it(db: None) -> None:
    from tests.factories import somebody

    cipher = cipher_for(somebody().id)
    row = {"id": "1", "title": "call Ada", "isAiSuggested": 1, "isApproved": 0, "dueDate": 1_796_079_600_000}
    same = [
        {**row, "isAiSuggested": True, "dueDate": 1_796_079_600_000.0},
        {**row, "isApproved": 1},  # approval is asked for by itself
        {**row, "assignee": None},
        {**row, "colour": "red"},  # a column of a newer app
        dict(reversed(row.items())),
    ]
    others = [{**row, "title": "call Eva"}, {**row, "id": "2"}, {**row, "dueDate": None}, {}]
    told = outbox.row_hash(cipher, "tasks", row)
    assert all(outbox.row_hash(cipher, "tasks", each) == told for each in same)
    assert all(outbox.row_hash(cipher, "tasks", each) != told for each in others)
    assert outbox.row_hash(cipher, "notes", row) != told
    assert outbox.row_hash(cipher_for(somebody().id), "tasks", row) != told
