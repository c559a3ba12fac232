"""A folder on a device becomes records on it: real web, worker, device and socket; only the model is scripted."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import sqlite3
from contextlib import closing
from typing import Any

import pytest
from django.utils import timezone

from adiuva.core import db
from adiuva.embedded.processes import python
from agents import runs
from agents.extraction import PART_CHARS
from agents.models import Agent, Run
from tests.agents.device_owner import (
    END_STATES,
    TIMEOUT_S,
    DeviceOwner,
    connected,
    counts_add_up,
    document_text,
    tasks_from_lines,
)
from tests.agents.factories import create_run
from tests.fakes.provider import Fail, Hold, Provider, Request
from tests.server_processes import Stack
from tests.socket_client import Socket


async def test_what_is_in_a_folder_arrives_on_the_device_for_review(
    desk: DeviceOwner, provider: Provider
) -> None:
    provider.default = tasks_from_lines
    desk.write("one.md", "do call Ada\ndo write the offer\n")
    desk.write("two.md", "nothing here")
    async with connected(desk):
        seen = await desk.run(await desk.agent())
    assert (seen["state"], seen["status"], seen["errors"]) == ("success", "success", [])
    assert (seen["files_seen"], seen["files_done"], seen["items_processed"]) == (2, 2, 2)
    assert (seen["items_created"], seen["model_calls"]) == (2, 2)
    assert counts_add_up(seen)
    assert {row["title"] for row in desk.rows("tasks")} == {"call Ada", "write the offer"}
    assert all((row["isAiSuggested"], row["isApproved"]) == (1, 0) for row in desk.rows("tasks"))
    assert desk.progress[-1].state == "success"
    assert desk.progress[-1].records_created == 2
    assert next(event["kind"] for event in seen["journal"]) == "started"
    assert seen["journal"][-1]["code"] == "completed"


async def test_a_second_run_uploads_nothing_asks_no_model_and_creates_nothing(
    desk: DeviceOwner, provider: Provider
) -> None:
    provider.default = tasks_from_lines
    desk.write("one.md", "do call Ada")
    async with connected(desk):
        agent = await desk.agent()
        await desk.run(agent)
        calls = len(provider.calls)
        seen = await desk.run(agent)
        assert (seen["state"], seen["files_unchanged"], seen["items_processed"]) == ("success", 1, 0)
        assert (seen["items_created"], seen["model_calls"]) == (0, 0)
        assert len(provider.calls) == calls
        desk.write("one.md", "do call Ada\ndo send the bill")
        seen = await desk.run(agent)
        origins = desk.device.store.origins(row["id"] for row in desk.rows("tasks"))
    assert (seen["items_created"], seen["items_processed"]) == (1, 1)
    assert sorted(row["title"] for row in desk.rows("tasks")) == ["call Ada", "send the bill"]
    # Each from its own run, and both from the file as the journal names it.
    assert len({run for run, _ in origins.values()}) == len(origins) == 2
    assert {source for _, source in origins.values()} == {str(desk.folder / "one.md")}


async def test_a_changed_prompt_reads_again_without_duplicates(desk: DeviceOwner, provider: Provider) -> None:
    provider.default = tasks_from_lines
    desk.write("one.md", "do call Ada")
    async with connected(desk):
        agent = await desk.agent()
        await desk.run(agent)
        await desk.rest.patch(f"/agents/local/{agent}", json={"prompt_template": "Look harder."})
        seen = await desk.run(agent)
    assert (seen["items_processed"], seen["items_created"], seen["model_calls"]) == (1, 0, 1)
    assert len(desk.rows("tasks")) == 1


async def test_a_run_waits_for_its_device_and_continues_when_it_connects(
    desk: DeviceOwner, provider: Provider
) -> None:
    provider.default = tasks_from_lines
    desk.write("one.md", "do call Ada")
    agent = await desk.agent()
    run = await desk.start(agent)
    await desk.until(run, lambda seen: seen["state"] == "waiting_device")
    again = await desk.rest.post(f"/agents/{agent}/run")
    assert again.status_code == 409
    assert (again.json()["code"], again.json()["run_id"]) == ("run_is_live", run)
    async with connected(desk):
        seen = await desk.until(run, lambda seen: seen["state"] in END_STATES)
    assert (seen["state"], seen["items_created"]) == ("success", 1)


async def test_a_run_that_waits_can_be_cancelled(desk: DeviceOwner) -> None:
    run = await desk.start(await desk.agent())
    await desk.until(run, lambda seen: seen["state"] == "waiting_device")
    assert (await desk.rest.post(f"/agents/runs/{run}/cancel")).json()["state"] == "cancelled"
    assert (await desk.see(run))["status"] == "error"


async def test_a_run_is_cancelled_while_the_model_answers(desk: DeviceOwner, provider: Provider) -> None:
    hold = Hold()
    provider.script(hold)
    desk.write("one.md", "do call Ada")
    async with connected(desk):
        run = await desk.start(await desk.agent())
        await asyncio.to_thread(hold.reached.wait, TIMEOUT_S)
        await desk.rest.post(f"/agents/runs/{run}/cancel")
        seen = await desk.until(run, lambda seen: seen["state"] in END_STATES)
    assert seen["state"] == "cancelled"
    assert await asyncio.to_thread(hold.gone.wait, TIMEOUT_S)
    assert desk.rows("tasks") == []


async def test_a_long_document_is_extracted_completely(desk: DeviceOwner, provider: Provider) -> None:
    provider.default = tasks_from_lines
    lines = [
        f"do step {number}" if number % 50 == 0 else "some words of no matter" for number in range(2_000)
    ]
    desk.write("long.md", "\n".join(lines))
    async with connected(desk):
        seen = await desk.run(await desk.agent())
    assert len("\n".join(lines)) > 4 * PART_CHARS
    assert seen["state"] == "success"
    assert {row["title"] for row in desk.rows("tasks")} == {
        f"step {number}" for number in range(0, 2_000, 50)
    }


async def test_text_of_any_length_and_script_arrives_unharmed(desk: DeviceOwner, provider: Provider) -> None:
    provider.default = tasks_from_lines
    body = "äöü 漢字 🎉 " * 150_000
    desk.write("huge.txt", f"do begin\n{body}\ndo end ✓")
    async with connected(desk):
        seen = await desk.run(await desk.agent())
    assert seen["state"] == "success", seen["errors"]
    assert {row["title"] for row in desk.rows("tasks")} == {"begin", "end ✓"}


async def test_a_project_is_named_by_a_real_id_or_not_at_all(desk: DeviceOwner, provider: Provider) -> None:
    def by_name(request: Request) -> dict[str, Any]:
        assert "Villa Rossi" in request.body["messages"][1]["content"]
        rows = [("by name", "villa rossi"), ("made up", "p-77"), ("none", None)]
        return {"records": [{"table": "tasks", "data": {"title": t, "projectId": p}} for t, p in rows]}

    provider.default = by_name
    desk.write("one.md", "text")
    async with connected(desk):
        desk.device.store.seed({"projects": [{"name": "Villa Rossi"}]})
        (project,) = desk.rows("projects")
        seen = await desk.run(await desk.agent())
    assert {row["title"]: row["projectId"] for row in desk.rows("tasks")} == {
        "by name": project["id"],
        "made up": None,
        "none": None,
    }
    assert (seen["state"], seen["model_calls"]) == ("success", 2)  # one repair try
    (told,) = [event for event in seen["journal"] if event["code"] == "field_left_out"]
    assert "projectId is not the label of a listed project (p1) (part 1, record 2)" in told["message"]
    assert told["source"] == str(desk.folder / "one.md")


async def test_wrong_records_are_repaired_once_or_quarantined(desk: DeviceOwner, provider: Provider) -> None:
    wrong = {"table": "tasks", "data": {"title": "x", "dueDate": "soon"}}
    mended = {"table": "tasks", "data": {"title": "x", "dueDate": "2026-12-01"}}
    provider.script({"records": [wrong]}, {"records": [mended]})
    desk.write("one.md", "text")
    async with connected(desk):
        agent = await desk.agent()
        seen = await desk.run(agent)
        (task,) = desk.rows("tasks")
        assert task["dueDate"] == 1_796_079_600_000  # midnight in Rome
        assert (seen["state"], seen["errors"]) == ("success", [])
        lonely = {"table": "timelines", "data": {"title": "launch", "date": "2026-12-01"}}
        provider.default = {"records": [lonely]}
        desk.write("two.md", "another text")
        seen = await desk.run(agent)
    assert seen["state"] == "partial"
    assert [event["code"] for event in seen["journal"] if event["kind"] == "record_quarantined"] == [
        "no_project"
    ]
    assert desk.rows("timelines") == []


@pytest.mark.parametrize(
    "answer",
    [
        'Here you are:\n```json\n{"records": [{"table": "tasks", "data": {"title": "x"}}]}\n```\nAnything else?',
        '<think>{"records": []}</think>{"records": [{"table": "tasks", "data": {"title": "x"}}]}',
        '[{"table": "tasks", "data": {"title": "x"}}]',
    ],
)
async def test_code_fences_prefaces_and_thoughts_around_an_answer_are_ignored(
    desk: DeviceOwner, provider: Provider, answer: str
) -> None:
    provider.script(answer)
    desk.write("one.md", "text")
    async with connected(desk):
        seen = await desk.run(await desk.agent())
    assert (seen["state"], seen["items_created"]) == ("success", 1)


async def test_an_answer_without_json_is_not_an_empty_success(desk: DeviceOwner, provider: Provider) -> None:
    provider.default = "I would rather talk about the weather."
    desk.write("one.md", "do call Ada")
    async with connected(desk):
        seen = await desk.run(await desk.agent())
    assert (seen["state"], seen["status"], seen["items_created"]) == ("error", "error", 0)
    assert seen["journal"][-1]["code"] == "nothing_could_be_read"
    assert "one.md" in seen["errors"][0]


async def test_an_unavailable_model_is_reported_and_asked_again_by_the_next_run(
    desk: DeviceOwner, provider: Provider
) -> None:
    provider.default = Fail(401)
    for number in range(8):
        desk.write(f"{number}.md", f"do step {number}")
    async with connected(desk):
        agent = await desk.agent()
        seen = await desk.run(agent)
        assert (seen["state"], seen["journal"][-1]["code"]) == ("error", "model_rejected")
        provider.default = tasks_from_lines
        seen = await desk.run(agent)
    assert (seen["state"], seen["items_created"]) == ("success", 8)


async def test_the_models_concurrency_limit_holds(desk: DeviceOwner, provider: Provider) -> None:
    async def slow(request: Request) -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return tasks_from_lines(request)

    provider.default = slow
    for number in range(60):
        desk.write(f"{number}.md", f"do step {number}")
    async with connected(desk):
        seen = await desk.run(await desk.agent())
    assert seen["items_created"] == 60
    assert 1 < provider.peak <= 24


async def test_files_that_cannot_be_read_are_listed_with_their_reason(
    desk: DeviceOwner, provider: Provider
) -> None:
    provider.default = tasks_from_lines
    desk.write("good.md", "do call Ada")
    (desk.folder / "bad.md").write_bytes(b"\x00\x01\x02\xff" * 100)
    async with connected(desk):
        agent = await desk.agent(directory_paths=[str(desk.folder), "/somewhere/else"])
        seen = await desk.run(agent)
    assert (seen["state"], seen["items_created"]) == ("partial", 1)
    assert counts_add_up(seen) and seen["files_failed"] == 2
    assert any("bad.md" in error for error in seen["errors"])
    assert any("/somewhere/else" in error for error in seen["errors"])


async def test_what_is_passed_over_or_partly_read_is_said(desk: DeviceOwner, provider: Provider) -> None:
    provider.default = tasks_from_lines
    desk.write("one.md", "do call Ada")
    desk.write("photo.jpg", "no text")
    desk.write("scan.jpg", "no text")
    (desk.folder / "old.txt").write_bytes("позвонить заказчику и отправить счёт".encode("koi8-r"))
    head = "Subject: s\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\ndo write\n--b\n"
    desk.write("mail.eml", head + "Content-Type: application/ms-tnef; name=winmail.dat\n\nx\n--b--\n")
    async with connected(desk):
        seen = await desk.run(await desk.agent(file_extensions=[]))
    assert (seen["state"], seen["passed_over"], seen["files_failed"]) == ("partial", {".jpg": 2}, 0)
    assert desk.progress[-1].passed_over == {".jpg": 2}
    [error] = seen["errors"]
    assert "mail.eml: a part in Outlook's own format (winmail.dat) cannot be read" in error
    said = {event["code"]: event["message"] for event in seen["journal"]}
    assert said["passed_over"] == "files of kinds that cannot be read were passed over: 2 .jpg"
    assert "it was read as KOI8-" in said["read_as"]
    assert any("позвонить" in document_text(request) for request in provider.calls)


async def test_an_empty_folder_is_a_success_that_says_so(desk: DeviceOwner) -> None:
    async with connected(desk):
        seen = await desk.run(await desk.agent())
    assert (seen["state"], seen["journal"][-1]["code"]) == ("success", "empty")


async def test_a_device_of_protocol_1_gets_the_same_service(desk: DeviceOwner, provider: Provider) -> None:
    provider.default = tasks_from_lines
    desk.write("one.md", "do call Ada")
    desk.write("two.md", "do write the offer")
    desk.device = desk.new_device(protocol=1)
    async with connected(desk):
        agent = await desk.agent()
        seen = await desk.run(agent)
        assert (seen["state"], seen["items_created"]) == ("success", 2)
        assert counts_add_up(seen)
        calls = len(provider.calls)
        seen = await desk.run(agent)
        assert counts_add_up(seen)
        assert (seen["items_created"], seen["files_unchanged"]) == (0, 2)
    assert len(provider.calls) == calls
    assert len(desk.rows("tasks")) == 2


async def test_deleting_an_agent_keeps_its_run_history(desk: DeviceOwner, provider: Provider) -> None:
    desk.write("one.md", "text")
    provider.default = {"records": []}
    async with connected(desk):
        agent = await desk.agent()
        run = (await desk.run(agent))["id"]
    assert (await desk.rest.delete(f"/agents/local/{agent}")).json() == {"ok": True}
    listed = (await desk.rest.get("/agents/runs", params={"agent_id": agent})).json()
    assert [item["id"] for item in listed] == [run]
    assert listed[0]["agent_name"] == "Desk"


async def test_a_device_that_refuses_records_is_reported(desk: DeviceOwner, provider: Provider) -> None:
    provider.default = tasks_from_lines
    desk.write("one.md", "do call Ada")
    async with connected(desk):
        with closing(sqlite3.connect(desk.folder.parent / "device" / "data.sqlite3")) as store:
            store.execute("CREATE TRIGGER no BEFORE INSERT ON tasks BEGIN SELECT RAISE(ABORT, 'full'); END")
        seen = await desk.run(await desk.agent())
    assert (seen["state"], seen["items_created"]) == ("partial", 0)
    assert [event["kind"] for event in seen["journal"] if event["kind"] == "record_refused"]


async def test_a_device_that_disconnects_during_its_upload_continues_when_it_is_back(
    desk: DeviceOwner, provider: Provider
) -> None:
    hold = Hold()
    provider.default = tasks_from_lines
    provider.script(hold)
    for number in range(80):
        desk.write(f"{number}.md", f"do step {number}")
    async with connected(desk):
        run = await desk.start(await desk.agent())
        await asyncio.to_thread(hold.reached.wait, TIMEOUT_S)
    await desk.until(run, lambda seen: seen["state"] == "waiting_device")
    assert await asyncio.to_thread(hold.gone.wait, TIMEOUT_S)
    desk.device = desk.new_device()
    async with connected(desk):
        seen = await desk.until(run, lambda seen: seen["state"] in END_STATES)
    assert (seen["state"], seen["items_created"]) == ("success", 80)
    assert sorted(row["title"] for row in desk.rows("tasks")) == sorted(f"step {n}" for n in range(80))
    assert counts_add_up(seen)


async def test_records_whose_answer_was_lost_are_sent_again_as_the_same_calls(
    desk: DeviceOwner, provider: Provider
) -> None:
    provider.default = tasks_from_lines
    text = "do call Ada\ndo write the offer"
    path = f"{desk.folder}/one.md"
    run = ""
    batches: list[list[str]] = []

    async def play(socket: Socket, *, answers: bool) -> None:
        """A device with one file, that answers records or hangs up on them."""
        while True:
            frame = await socket.receive()
            mine = {"run_id": frame.get("run_id")}
            match frame["type"]:
                case "tool_call":
                    await socket.send({"type": "tool_result", "id": frame["id"], "rows": []})
                case "tool_batch":
                    batches.append([call["id"] for call in frame["calls"]])
                    if not answers:
                        return
                    rows = [{"id": call, "row": {"id": f"row of {call}"}} for call in batches[-1]]
                    await socket.send({"type": "tool_batch_result", "results": rows})
                case "agent_run":
                    sha256 = hashlib.sha256(text.encode()).hexdigest()
                    file = {"path": path, "sha256": sha256, "size": len(text), "mtime": 0}
                    await socket.send({"type": "agent_manifest", **mine, "files": [file]})
                case "agent_fetch" if frame["paths"]:
                    file = {"path": path, "name": "one.md", "content": text}
                    await socket.send({"type": "agent_data", **mine, "files": [file], "batch": 0})
                case "agent_fetch" | "agent_ack":
                    await socket.send({"type": "agent_complete", **mine, "files_read": 1})
                case "agent_progress" if frame["state"] in END_STATES:
                    return

    agent = await desk.agent()
    async with Socket(desk.web, desk.person.access_token) as socket:
        await socket.hello(device_id="desk")
        run = await desk.start(agent)
        await play(socket, answers=False)
    await desk.until(run, lambda seen: seen["state"] == "waiting_device")
    async with Socket(desk.web, desk.person.access_token) as socket:
        await socket.hello(device_id="desk")
        await play(socket, answers=True)
    seen = await desk.see(run)
    assert (seen["state"], seen["items_created"], seen["files_unchanged"]) == ("success", 2, 1)
    assert batches[0] == batches[1] and len(batches) == 2
    assert len(provider.chats) == 1


async def test_a_run_whose_worker_is_killed_is_finished_by_another_without_duplicates(
    desk: DeviceOwner, provider: Provider, stack: Stack
) -> None:
    hold = Hold()
    held = [hold]

    def answer(request: Request) -> Any:
        if "wait" in document_text(request) and held:
            return held.pop()
        return tasks_from_lines(request)

    provider.default = answer
    desk.write("one.md", "do call Ada")
    desk.write("two.md", "do write the offer\nand wait")
    script = (
        "import asyncio, sys, uuid, django; django.setup(); from agents import runner; "
        "asyncio.run(runner.execute(uuid.UUID(sys.argv[1])))"
    )
    async with connected(desk):
        agent = await desk.agent()
        run = str((await db.run(lambda: create_run(Agent.objects.get(pk=agent)))).pk)
        model = {"ADIUVA_MODEL": "openai/scripted", "ADIUVA_MODEL_API_BASE": provider.url}
        doomed = await asyncio.to_thread(stack.run, "doomed", python("-c", script, run), **model)
        await asyncio.to_thread(hold.reached.wait, TIMEOUT_S)
        await desk.until(run, lambda seen: seen["items_created"] == 1)
        assert doomed.process is not None
        doomed.process.kill()
        assert await asyncio.to_thread(hold.gone.wait, TIMEOUT_S)

        def time_passes() -> None:
            Run.objects.filter(pk=run).update(lease_until=timezone.now() - dt.timedelta(seconds=1))
            runs.sweep()

        await db.run(time_passes)
        seen = await desk.until(run, lambda seen: seen["state"] in END_STATES)
    assert (seen["state"], seen["items_created"]) == ("success", 2)
    assert [event["count"] for event in seen["journal"] if event["kind"] == "started"] == [1, 2]
    assert sorted(row["title"] for row in desk.rows("tasks")) == ["call Ada", "write the offer"]
    assert (seen["files_unchanged"], seen["items_processed"], counts_add_up(seen)) == (1, 1, True)


async def test_the_run_after_a_cancelled_one_delivers_the_rest_and_nothing_twice(
    desk: DeviceOwner, provider: Provider
) -> None:
    hold = Hold()
    held = [hold]
    provider.default = lambda request: (
        held.pop() if "wait" in document_text(request) and held else tasks_from_lines(request)
    )
    desk.write("one.md", "do call Ada")
    desk.write("two.md", "do write the offer\nand wait")
    async with connected(desk):
        agent = await desk.agent()
        run = await desk.start(agent)
        await asyncio.to_thread(hold.reached.wait, TIMEOUT_S)
        await desk.until(run, lambda seen: seen["items_created"] == 1)
        await desk.rest.post(f"/agents/runs/{run}/cancel")
        seen = await desk.until(run, lambda seen: seen["state"] in END_STATES)
        assert (seen["state"], seen["items_created"]) == ("cancelled", 1)
        seen = await desk.run(agent)
    assert (seen["state"], seen["items_created"], seen["files_unchanged"]) == ("success", 1, 1)
    assert sorted(row["title"] for row in desk.rows("tasks")) == ["call Ada", "write the offer"]


async def test_a_run_reads_no_other_device_than_its_agents(desk: DeviceOwner, provider: Provider) -> None:
    desk.write("one.md", "do call Ada")
    async with connected(desk):
        run = await desk.start(await desk.agent(device_id="never-seen"))
        await desk.until(run, lambda seen: seen["state"] == "waiting_device")
    assert provider.chats == []


async def test_an_agent_that_is_deleted_during_its_run_ends_it(desk: DeviceOwner, provider: Provider) -> None:
    hold = Hold({"records": [{"table": "tasks", "data": {"title": "too late"}}]})
    provider.script(hold)
    desk.write("one.md", "text")
    async with connected(desk):
        agent = await desk.agent()
        run = await desk.start(agent)
        await asyncio.to_thread(hold.reached.wait, TIMEOUT_S)
        await desk.rest.delete(f"/agents/local/{agent}")
        hold.release()
        seen = await desk.until(run, lambda seen: seen["state"] in END_STATES)
    assert seen["state"] == "cancelled"
    assert desk.rows("tasks") == []
