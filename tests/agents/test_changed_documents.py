"""A document that changes: what was found in it before is known again and follows it while the user has not touched it;
nothing comes twice."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest

from adiuva.core import db
from adiuva.devices.link import DeviceLink
from agents import found_records, run_release, source_changes
from agents.local_folders import DeviceSilent
from agents.models import Agent, FoundRecord
from agents.reconciliation import Change, KnownRecord
from agents.record_validation import Record
from tests.agents.device_owner import DeviceOwner, connected, document_text
from tests.agents.document_reader import Item, Reader, known_of
from tests.agents.factories import claim_run, create_run
from tests.agents.test_undo import Answers, create_waiting_change
from tests.fakes.provider import Provider, Request
from tests.sampling import TRIES_ALL
from tests.socket_client import Socket

ROME = ZoneInfo("Europe/Rome")
# How many documents the long form of the property edits: EDITED_DOCUMENTS=20 make check T=…
EDITS = 30 if TRIES_ALL else 12
DOCUMENTS = int(os.environ.get("EDITED_DOCUMENTS", "1"))


def text_of(*items: Item) -> str:
    return "# Plan\n\n" + "\n".join(item.line for item in items) + "\n"


def day(text: str) -> int:
    return int(dt.datetime.fromisoformat(text).replace(tzinfo=ROME).timestamp() * 1000)


def told(seen: dict[str, Any], code: str) -> list[str]:
    return [event["message"] for event in seen["journal"] if event["code"] == code]


def change_row(desk: DeviceOwner, table: str, row: str, **updates: Any) -> None:
    """What the user does in the app."""
    call = {"id": uuid4().hex, "action": "update", "table": table, "data": {"id": row, "updates": updates}}
    (result,) = desk.device.store.apply([call])
    assert "error" not in result


@asynccontextmanager
async def serving(desk: DeviceOwner, device: Answers) -> AsyncIterator[None]:
    """A device played by hand that is connected."""
    async with Socket(desk.web, desk.person.access_token) as socket:
        await socket.hello(device_id="desk")
        task = asyncio.create_task(device.serve(socket))
        try:
            yield
        finally:
            task.cancel()


OFFER = Item("offer", "send Rossi the offer")
CALL = Item("call", "call the printer", date="2026-12-03")


@pytest.mark.parametrize("answers_known", [True, False])
async def test_an_item_that_is_worded_anew_each_time_is_one_record(
    desk: DeviceOwner, provider: Provider, answers_known: bool
) -> None:
    provider.default = Reader(answers_known=answers_known)
    items = [OFFER, Item("bill", "write the bill"), Item("book", "book a room in Turin")]
    async with connected(desk):
        agent = await desk.agent()
        created = []
        for count in (1, 2, 3):
            desk.write("plan.md", text_of(*items[:count]))
            created.append((await desk.run(agent))["items_created"])
    assert created == [1, 1, 1]
    assert len(desk.rows("tasks")) == 3


async def test_a_read_is_told_what_was_found_before_and_not_more(
    desk: DeviceOwner, provider: Provider
) -> None:
    provider.default = Reader()
    desk.write("plan.md", text_of(OFFER, CALL))
    desk.write("other.md", text_of(Item("other", "rest a day")))
    async with connected(desk):
        agent = await desk.agent()
        await desk.run(agent)
        assert all(known_of(request) == [] for request in provider.chats)
        desk.write("plan.md", text_of(OFFER, CALL) + "\nmore")
        await desk.run(agent)
    first, second = known_of(provider.chats[-1])
    assert (first["id"], second["id"]) == (1, 2)
    assert {first["table"], second["table"]} == {"tasks"}
    assert [row.get("dueDate") for row in (first, second)] == [None, "2026-12-03"]


async def test_a_suggestion_follows_its_source_and_it_is_said(desk: DeviceOwner, provider: Provider) -> None:
    provider.default = Reader()
    room = Item("room", "book a room", date="2026-12-05")
    desk.write("plan.md", text_of(OFFER, CALL, room))
    async with connected(desk):
        agent = await desk.agent()
        await desk.run(agent)
        desk.write(
            "plan.md",
            text_of(
                replace(OFFER, is_done=True), replace(CALL, date="2026-12-10"), replace(room, is_struck=True)
            ),
        )
        seen = await desk.run(agent)
        again = await desk.run(agent)
    rows = {row["title"].rpartition("(")[2].rstrip(")"): row for row in desk.rows("tasks")}
    assert rows.keys() == {"offer", "call"}
    assert (rows["offer"]["status"], rows["call"]["dueDate"]) == ("done", day("2026-12-10"))
    assert all((row["isAiSuggested"], row["isApproved"]) == (1, 0) for row in rows.values())
    assert (seen["state"], seen["items_created"], seen["errors"]) == ("success", 0, [])
    followed = told(seen, "record_followed")
    assert len(followed) == 2
    assert any("dueDate 2026-12-03 → 2026-12-10" in words for words in followed)
    assert len(told(seen, "record_withdrawn")) == 1
    assert again["files_unchanged"] == 1 and told(again, "record_followed") == []


@pytest.mark.parametrize(
    ("touch", "why"), [({"isApproved": 1}, "approved"), ({"title": "my own words"}, "edited")]
)
async def test_a_row_that_the_user_has_touched_stays_and_the_run_says_what_changed(
    desk: DeviceOwner, provider: Provider, touch: dict[str, Any], why: str
) -> None:
    provider.default = Reader()
    desk.write("plan.md", text_of(CALL, OFFER))
    async with connected(desk):
        agent = await desk.agent()
        await desk.run(agent)
        for row in desk.rows("tasks"):
            change_row(desk, "tasks", row["id"], **touch)
        before = desk.rows("tasks")
        desk.write("plan.md", text_of(replace(CALL, date="2026-12-10")))
        seen = await desk.run(agent)
    assert desk.rows("tasks") == before
    stays = sorted(told(seen, "record_stays"))
    assert len(stays) == 2 and all(f"you have {why} it" in words for words in stays)
    assert sum("dueDate 2026-12-03 → 2026-12-10" in words for words in stays) == 1
    assert sum("not in its source any more" in words for words in stays) == 1


async def test_a_change_that_comes_again_is_brought_again(desk: DeviceOwner, provider: Provider) -> None:
    provider.default = Reader()
    dates = ["2026-12-03", "2026-12-10"] * 3
    seen = []
    async with connected(desk):
        agent = await desk.agent()
        for date in dates:
            desk.write("plan.md", text_of(replace(CALL, date=date)))
            await desk.run(agent)
            seen += [row["dueDate"] for row in desk.rows("tasks")]
    assert seen == [day(date) for date in dates]


async def test_a_row_that_an_undo_brought_back_is_withdrawn_again(
    desk: DeviceOwner, provider: Provider
) -> None:
    provider.default = Reader()
    there = []
    async with connected(desk):
        agent = await desk.agent()
        desk.write("plan.md", text_of(CALL, OFFER))
        await desk.run(agent)
        for number in range(2):
            desk.write("plan.md", text_of(OFFER) + f"\nversion {number}")
            run = (await desk.run(agent))["id"]
            there.append(len(desk.rows("tasks")))
            await desk.rest.post(f"/agents/runs/{run}/undo")
            there.append(len(desk.rows("tasks")))
    assert there == [1, 2, 1, 2]


@pytest.mark.parametrize("touch", [{"title": "my own words"}, {}])
async def test_a_row_that_the_user_has_changed_as_its_source_did_stays_the_users(
    desk: DeviceOwner, provider: Provider, touch: dict[str, Any]
) -> None:
    provider.default = Reader()
    desk.write("plan.md", text_of(CALL))
    async with connected(desk):
        agent = await desk.agent()
        first = (await desk.run(agent))["id"]
        change_row(desk, "tasks", desk.rows("tasks")[0]["id"], dueDate=day("2026-12-10"), **touch)
        before = desk.rows("tasks")
        desk.write("plan.md", text_of(replace(CALL, date="2026-12-10")))
        second = await desk.run(agent)
        desk.write("plan.md", text_of(replace(CALL, date="2026-12-10", is_struck=True)))
        seen = await desk.run(agent)
        undone = [(await desk.rest.post(f"/agents/runs/{run}/undo")).json() for run in (second["id"], first)]
    assert len(told(second, "record_followed")) == 1
    assert "you have edited it" in told(seen, "record_stays")[0]
    assert [(each["deleted"], each["restored"]) for each in undone] == [(0, 0), (0, 0)]
    assert desk.rows("tasks") == before


async def test_a_task_with_comments_is_not_withdrawn(desk: DeviceOwner, provider: Provider) -> None:
    provider.default = Reader()
    desk.write("plan.md", text_of(OFFER, CALL))
    async with connected(desk):
        agent = await desk.agent()
        await desk.run(agent)
        task = next(row["id"] for row in desk.rows("tasks") if "offer" in row["title"])
        insert = {"id": uuid4().hex, "action": "insert", "table": "taskComments"}
        desk.device.store.apply([insert | {"data": {"taskId": task, "content": "remember the tax"}}])
        desk.write("plan.md", text_of(CALL))
        seen = await desk.run(agent)
    assert len(desk.rows("tasks")) == 2
    assert "something refers to it" in told(seen, "record_stays")[0]


async def test_equal_words_on_other_days_or_of_other_people_are_several_records(
    desk: DeviceOwner, provider: Provider
) -> None:
    def literal(request: Request) -> dict[str, Any]:
        found = []
        for line in document_text(request).splitlines():
            words, _, rest = line.partition(" / ")
            if not rest:
                continue
            field = {"assignee": [rest]} if rest.isalpha() else {"dueDate": rest}
            found.append({"table": "tasks", "data": {"title": words} | ({} if rest == "twice" else field)})
        return {"records": found}

    provider.default = literal
    lines = [f"Water the plants / 2026-12-0{number}" for number in (1, 2, 3)]
    lines += ["Sign the form / Ana", "Sign the form / Ben", "Stretch / twice", "Stretch / twice"]
    desk.write("rota.md", "\n".join(lines))
    async with connected(desk):
        agent = await desk.agent()
        seen = await desk.run(agent)
        assert seen["items_created"] == 7
        desk.write("rota.md", "\n".join(lines) + "\nmore")
        seen = await desk.run(agent)
    assert (seen["items_created"], len(desk.rows("tasks"))) == (0, 7)
    repeats = [event for event in seen["journal"] if event["code"] == "repeat_left_out"]
    assert len(repeats) == 7
    assert all("part 1, record " in event["message"] for event in repeats)
    assert {event["source"] for event in repeats} == {str(desk.folder / "rota.md")}


async def test_a_repeat_within_one_answer_is_said_with_its_place(
    desk: DeviceOwner, provider: Provider
) -> None:
    task = {"table": "tasks", "data": {"title": "call Ada"}}
    provider.default = {"records": [task, task]}
    desk.write("one.md", "please call Ada today")
    async with connected(desk):
        seen = await desk.run(await desk.agent())
    assert (seen["state"], seen["items_created"]) == ("success", 1)
    assert told(seen, "repeat_left_out") == ["“call Ada” is known already (part 1, record 2)"]


@pytest.mark.parametrize("answers_known", [True, False])
async def test_a_recurring_item_arrives_again_with_its_new_date(
    desk: DeviceOwner, provider: Provider, answers_known: bool
) -> None:
    provider.default = Reader(answers_known=answers_known)
    week = Item("k48", "send the weekly report", date="2026-11-27")
    desk.write("plan.md", text_of(week))
    async with connected(desk):
        agent = await desk.agent()
        await desk.run(agent)
        desk.write("plan.md", text_of(replace(week, is_done=True)))
        await desk.run(agent)
        again = replace(week, key="k49" if answers_known else "k48", date="2026-12-04")
        desk.write(
            "plan.md", text_of(again) if not answers_known else text_of(replace(week, is_done=True), again)
        )
        seen = await desk.run(agent)
    assert seen["items_created"] == 1
    assert sorted(row["dueDate"] for row in desk.rows("tasks")) == [day("2026-11-27"), day("2026-12-04")]


async def test_another_instruction_reads_the_folder_again_and_doubles_nothing_though_it_words_all_anew(
    desk: DeviceOwner, provider: Provider
) -> None:
    provider.default = Reader()
    for number in range(4):
        desk.write(
            f"{number}.md", text_of(*(Item(f"k{number}x{n}", f"do step {n} of {number}") for n in range(3)))
        )
    async with connected(desk):
        agent = await desk.agent()
        await desk.run(agent)
        await desk.rest.patch(f"/agents/local/{agent}", json={"prompt_template": "Look harder."})
        seen = await desk.run(agent)
    assert (seen["items_processed"], seen["items_created"]) == (4, 0)
    assert len(desk.rows("tasks")) == 12


async def test_a_change_that_was_found_before_the_device_left_is_brought_later(
    desk: DeviceOwner, provider: Provider
) -> None:
    provider.default = Reader()
    desk.write("plan.md", text_of(CALL))
    async with connected(desk):
        agent = await desk.agent()
        await desk.run(agent)
        desk.write("plan.md", text_of(replace(CALL, date="2026-12-10")))
        await desk.run(agent)
        # As if the worker had died before the device answered: the change is still to be told.
        (row,) = await db.run(lambda: list(FoundRecord.objects.filter(agent_id=agent)))
        assert row.pending is None
        change_row(desk, "tasks", desk.rows("tasks")[0]["id"], dueDate=day("2026-12-10"))
        seen = await desk.run(agent)
    assert seen["state"] == "success"
    assert [row["dueDate"] for row in desk.rows("tasks")] == [day("2026-12-10")]


@pytest.mark.parametrize("fails", ["get", "select", "update", "delete"])
async def test_a_change_that_the_device_cannot_save_waits_until_it_can(desk: DeviceOwner, fails: str) -> None:
    updates = {"status": "done"} if fails in {"get", "update"} else None
    claimed, device, pk = await db.run(create_waiting_change, await desk.agent(), updates)
    (record,) = device.rows
    device.full = fails
    async with serving(desk, device), DeviceLink(desk.person.id, pk) as link:
        with pytest.raises(DeviceSilent, match="device_cannot_save"):
            await source_changes.follow_sources(claimed, link, pk)
        assert device.rows[record].get("status") is None
        waiting = FoundRecord.objects.filter(agent_id=claimed.agent_id, pending__isnull=False)
        assert await db.run(waiting.exists)
        device.full = ""
        await source_changes.follow_sources(claimed, link, pk)
    assert [row["status"] for row in device.rows.values()] == (["done"] if updates else [])


def tell_later(agent: str, *told_of: dict[str, Any] | None) -> None:
    """What readings found of the agent's only record while its device was away. None: it is gone."""
    claimed = claim_run(create_run(Agent.objects.get(pk=agent)))
    row = FoundRecord.objects.get(agent_id=agent)
    for updates in told_of:
        row.refresh_from_db()
        known = KnownRecord(row.pk, Record(row.table, FoundRecord.found.unseal_from(claimed.cipher, row)))
        found_records.change(claimed, [(Change(known, updates), "/plan.md")])
    run_release.finish(claimed)


@pytest.mark.parametrize("answers_known", [True, False])
@pytest.mark.parametrize("date", ["", "2026-12-10"])
async def test_a_row_whose_item_is_back_before_its_device_is_not_withdrawn(
    desk: DeviceOwner, provider: Provider, answers_known: bool, date: str
) -> None:
    provider.default = Reader(answers_known=answers_known)
    desk.write("plan.md", text_of(CALL))
    async with connected(desk):
        agent = await desk.agent()
        await desk.run(agent)
        updates = [{"dueDate": day(date)}] if date else []
        await db.run(tell_later, agent, *updates, None)
        desk.write("plan.md", text_of(replace(CALL, date=date or CALL.date)) + "\nmore")
        seen = await desk.run(agent)
    assert (seen["state"], seen["items_created"], told(seen, "record_withdrawn")) == ("success", 0, [])
    assert [row["dueDate"] for row in desk.rows("tasks")] == [day(date or CALL.date)]
    (record,) = await db.run(lambda: list(FoundRecord.objects.filter(agent_id=agent)))
    assert record.pending is None


# ── The property ────────────────────────────────────────────────────────────────────────────────────────


class Editor:
    """A document that somebody edits at random."""

    def __init__(self, desk: DeviceOwner, chance: random.Random) -> None:
        self.desk, self.chance = desk, chance
        self.name, self.count = "plan.md", 0
        self.items: list[Item] = []
        for _ in range(4):
            self.add()
        self.save()

    def new_key(self) -> str:
        self.count += 1
        return f"k{self.count}"

    def add(self) -> None:
        words = self.chance.choice(["call Ana", "send the offer", "book a room", "check the contract", "pay"])
        date = f"2026-12-{self.chance.randint(1, 28):02}" if self.chance.random() < 0.5 else ""
        place = self.chance.randint(0, len(self.items))
        self.items.insert(place, Item(self.new_key(), words, date))

    def replace_one(self, **fields: Any) -> None:
        open_ = [place for place, item in enumerate(self.items) if not item.is_struck]
        if open_:
            place = self.chance.choice(open_)
            self.items[place] = replace(self.items[place], **fields)

    def save(self) -> None:
        self.desk.write(self.name, text_of(*self.items))

    def choose(self) -> str:
        return self.chance.choice(
            ["add"] * 3 + ["reword", "move", "tick", "strike", "date", "remove", "rename", "copy"]
        )

    def edit(self, kind: str) -> None:
        match kind:
            case "add":
                self.add()
            case "reword":
                self.replace_one(words=f"really {self.chance.choice(['call', 'send', 'book'])} it")
            case "move":
                self.chance.shuffle(self.items)
            case "tick":
                self.replace_one(is_done=True)
            case "strike":
                self.replace_one(is_struck=True)
            case "date":
                self.replace_one(date=f"2026-12-{self.chance.randint(1, 28):02}")
            case "remove":
                if self.items:
                    self.items.pop(self.chance.randrange(len(self.items)))
            case "rename":
                before = self.desk.folder / self.name
                folder = self.desk.folder / self.chance.choice(["", "moved"])
                folder.mkdir(exist_ok=True)
                self.count += 1
                after = folder / f"plan {self.count}.md"
                before.rename(after)
                self.name = str(after.relative_to(self.desk.folder))
                return
            case "copy":
                self.count += 1
                copy = f"copy {self.count}.md"
                self.desk.write(copy, (self.desk.folder / self.name).read_text())
                if self.chance.random() < 0.5:  # and go on in the copy
                    (self.desk.folder / self.name).unlink()
                    self.name = copy
                return
        self.save()

    @property
    def expected(self) -> list[tuple[str, int | None, str]]:
        return sorted(
            (item.key, day(item.date) if item.date else None, "done" if item.is_done else "todo")
            for item in self.items
            if not item.is_struck
        )


def arrived(desk: DeviceOwner) -> list[tuple[str, int | None, str]]:
    return sorted(
        (row["title"].rpartition("(")[2].rstrip(")"), row["dueDate"], row["status"])
        for row in desk.rows("tasks")
    )


@pytest.mark.parametrize("document", range(DOCUMENTS))
async def test_after_random_edits_the_device_has_what_stands_in_the_document_each_once(
    desk: DeviceOwner, provider: Provider, document: int
) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    provider.default = Reader()
    editor = Editor(desk, chance)
    async with connected(desk):
        agent = await desk.agent()
        await desk.run(agent)
        for number in range(EDITS):
            kind = editor.choose()
            if kind in {"rename", "copy"}:
                await desk.run(agent)  # a file that is edited and renamed at once cannot be known again
            editor.edit(kind)
            if kind in {"rename", "copy"} or number == EDITS - 1 or chance.random() < 0.3:
                seen = await desk.run(agent)
                assert seen["state"] == "success", (seed, seen["errors"])
                assert arrived(desk) == editor.expected, (seed, number, kind)
