"""Identity of sources: a file stays the same when it is renamed or moved, a copy brings nothing twice, and a mail is
its Message-ID, wherever it lies.
"""

from __future__ import annotations

import shutil
import unicodedata
from typing import Any

import pytest

from adiuva.core import db
from adiuva.documents import Head
from agents.claimed_runs import ClaimedRun
from agents.extraction import SourceDocument
from agents.folder_listings import MAX_MISSED
from agents.models import Source
from agents.record_validation import Record
from tests.agents.device_owner import DeviceOwner, connected, tasks_from_lines
from tests.agents.factories import claim_run, commit_document, create_agent, create_run
from tests.fakes.provider import Provider


def codes(seen: dict[str, Any]) -> list[str]:
    return [event["code"] for event in seen["journal"] if event["code"].startswith("source_")]


async def known_sources(agent: str) -> int:
    return int(await db.run(Source.objects.filter(agent_id=agent).count))


@pytest.mark.parametrize("place", ["renamed.md", "deep/in/a folder/one.md"])
async def test_a_renamed_or_moved_file_is_the_same_source_and_is_not_read_again(
    desk: DeviceOwner, provider: Provider, place: str
) -> None:
    provider.default = tasks_from_lines
    desk.write("one.md", "do call Ada")
    desk.write("two.md", "do rest")
    async with connected(desk):
        agent = await desk.agent()
        await desk.run(agent)
        calls = len(provider.chats)
        target = desk.folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        (desk.folder / "one.md").rename(target)
        seen = await desk.run(agent)
        assert (seen["files_unchanged"], seen["items_created"], codes(seen)) == (2, 0, ["source_renamed"])
        assert len(provider.chats) == calls
        assert await known_sources(agent) == 2
        # It keeps what was found in it.
        target.write_text("do call Ada\ndo bill her")
        seen = await desk.run(agent)
    assert (seen["items_created"], len(desk.rows("tasks"))) == (1, 3)


async def test_a_name_in_another_normal_form_is_the_same_name(desk: DeviceOwner, provider: Provider) -> None:
    provider.default = tasks_from_lines
    composed = unicodedata.normalize("NFC", "Ångström für Zoë.md")
    desk.write(composed, "do call Ada")
    async with connected(desk):
        agent = await desk.agent()
        await desk.run(agent)
        (desk.folder / composed).rename(desk.folder / unicodedata.normalize("NFD", composed))
        seen = await desk.run(agent)
    assert (seen["files_unchanged"], seen["model_calls"], codes(seen)) == (1, 0, [])


async def test_a_copy_brings_nothing_twice_and_is_said(desk: DeviceOwner, provider: Provider) -> None:
    provider.default = tasks_from_lines
    desk.write("one.md", "do call Ada\ndo rest")
    async with connected(desk):
        agent = await desk.agent()
        await desk.run(agent)
        shutil.copy(desk.folder / "one.md", desk.folder / "copy of one.md")
        seen = await desk.run(agent)
        assert (seen["model_calls"], seen["items_created"], codes(seen)) == (0, 0, ["source_copied"])
        assert seen["files_seen"] == seen["files_done"] == seen["files_unchanged"] == 2
        again = await desk.run(agent)
        assert (again["files_unchanged"], codes(again)) == (2, [])
        # A copy that is edited is a document of its own, and what it has in common with the other is known.
        desk.write("copy of one.md", "do call Ada\ndo rest\ndo more")
        seen = await desk.run(agent)
    assert seen["items_created"] == 1
    assert sorted(row["title"] for row in desk.rows("tasks")) == ["call Ada", "more", "rest"]


async def test_copies_that_are_there_from_the_beginning_are_read_once(
    desk: DeviceOwner, provider: Provider
) -> None:
    provider.default = tasks_from_lines
    for name in ("a.md", "b.md", "c.md"):
        desk.write(name, "do call Ada")
    async with connected(desk):
        seen = await desk.run(await desk.agent())
    assert (seen["state"], seen["model_calls"], seen["items_created"]) == ("success", 1, 1)
    assert codes(seen) == ["source_copied", "source_copied"]


async def test_a_file_that_makes_room_for_a_new_one_keeps_what_was_found_in_it(
    desk: DeviceOwner, provider: Provider
) -> None:
    """As notes are put away: the old one gets another name, and a new one its name."""
    from tests.agents.document_reader import Item, Reader

    provider.default = Reader()
    desk.write("notes.md", Item("old", "call Ada").line)
    async with connected(desk):
        agent = await desk.agent()
        await desk.run(agent)
        (desk.folder / "notes.md").rename(desk.folder / "notes of november.md")
        desk.write("notes.md", Item("new", "rest a day").line)
        seen = await desk.run(agent)
    assert (codes(seen), seen["items_created"]) == (["source_renamed"], 1)
    assert len(desk.rows("tasks")) == 2


async def test_a_second_agent_over_the_same_folder_is_said_and_finds_what_is_there(
    desk: DeviceOwner, provider: Provider
) -> None:
    provider.default = tasks_from_lines
    desk.write("one.md", "do call Ada\ndo rest")
    async with connected(desk):
        first = await desk.agent(name="Desk")
        await desk.run(first)
        body = {
            "name": "Another",
            "device_id": "desk",
            "directory_paths": [str(desk.folder)],
            "data_types": ["tasks"],
            "prompt_template": "Look for tasks.",
            "file_extensions": [".md"],
        }
        answer = await desk.rest.post("/agents/local", json=body)
        (warning,) = answer.json()["warnings"]
        assert "“Desk” reads the same folders" in warning
        second = answer.json()["id"]
        assert (await desk.rest.get(f"/agents/local/{second}")).json()["warnings"] == []
        seen = await desk.run(second)
        assert (seen["state"], seen["model_calls"], seen["items_created"]) == ("success", 1, 0)
        desk.write("one.md", "do call Ada\ndo rest\ndo more")
        assert (await desk.run(second))["items_created"] == 1
        assert (await desk.run(first))["items_created"] == 0
    assert sorted(row["title"] for row in desk.rows("tasks")) == ["call Ada", "more", "rest"]


async def test_an_agent_that_is_made_anew_doubles_nothing(desk: DeviceOwner, provider: Provider) -> None:
    provider.default = tasks_from_lines
    desk.write("one.md", "do call Ada")
    async with connected(desk):
        agent = await desk.agent()
        await desk.run(agent)
        await desk.rest.delete(f"/agents/local/{agent}")
        seen = await desk.run(await desk.agent())
    assert (seen["items_created"], len(desk.rows("tasks"))) == (0, 1)


MAIL = """{first}From: Rossi <rossi@example.com>
To: Ada <ada@example.com>
Subject: The offer
Date: Fri, 27 Nov 2026 10:00:00 +0100
Message-ID: <offer-1@example.com>

do send the offer
{last}"""


async def test_a_mail_that_two_programs_saved_is_one(desk: DeviceOwner, provider: Provider) -> None:
    provider.default = tasks_from_lines
    desk.write("offer.eml", MAIL.format(first="", last=""))
    desk.write("5.eml (copy).eml", MAIL.format(first="Received: by a host\n", last="\n\n"))
    async with connected(desk):
        seen = await desk.run(await desk.agent(file_extensions=[".eml"]))
    assert (seen["state"], seen["items_created"]) == ("success", 1)
    assert [row["title"] for row in desk.rows("tasks")] == ["send the offer"]


async def test_each_mail_of_a_mailbox_file_is_a_source_and_is_read_once(
    desk: DeviceOwner, provider: Provider
) -> None:
    provider.default = tasks_from_lines
    begin = "From rossi@example.com Fri Nov 27 10:00:00 2026\n"
    offer = MAIL.format(first="", last="")
    bill = offer.replace("offer-1", "bill-1").replace("send the offer", "pay the bill")
    desk.write("offer.eml", offer)
    desk.write("all.mbox", f"{begin}{offer}\n")
    async with connected(desk):
        agent = await desk.agent(file_extensions=[])
        seen = await desk.run(agent)
        assert (seen["state"], seen["files_seen"], seen["items_created"]) == ("success", 2, 1)
        calls = len(provider.chats)
        desk.write("all.mbox", f"{begin}{bill}\n{begin}{offer}\n")  # it lies elsewhere in the file now
        seen = await desk.run(agent)
    assert (seen["files_unchanged"], seen["items_created"], len(provider.chats)) == (2, 1, calls + 1)
    assert sorted(row["title"] for row in desk.rows("tasks")) == ["pay the bill", "send the offer"]


def mail_document(claimed: ClaimedRun, name: str, content: str) -> SourceDocument:
    head = Head(title="The offer", message_id="offer-1@example.com")
    return SourceDocument(
        name, name, content, claimed.source_key(name), content.encode(), head, "message/rfc822"
    )


def test_a_mail_is_its_message_id_wherever_it_lies(claimed: ClaimedRun) -> None:
    offer = Record("tasks", {"title": "send the offer"})
    assert len(commit_document(claimed, mail_document(claimed, "/in/offer.eml", "text"), [offer])) == 1
    # The same mail as another program saves it, and what another agent of the same user reads in a mailbox.
    assert commit_document(claimed, mail_document(claimed, "/out/5 (copy).eml", "text\n"), [offer]) == []
    other = claim_run(create_run(create_agent(claimed.user_id)))
    assert commit_document(other, mail_document(other, "18c2f", "the text"), [offer]) == []


async def test_a_source_that_is_gone_leaves_the_ledger_after_some_runs(
    desk: DeviceOwner, provider: Provider
) -> None:
    provider.default = tasks_from_lines
    desk.write("one.md", "do call Ada")
    desk.write("two.md", "do rest")
    async with connected(desk):
        agent = await desk.agent()
        await desk.run(agent)
        (desk.folder / "two.md").unlink()
        left = []
        for _ in range(MAX_MISSED):
            await desk.run(agent)
            left.append(await known_sources(agent))
        assert left == [2] * (MAX_MISSED - 1) + [1]
        # What was found in it is still known, should it come back.
        desk.write("two.md", "do rest")
        seen = await desk.run(agent)
    assert (seen["model_calls"], seen["items_created"]) == (1, 0)
    assert len(desk.rows("tasks")) == 2


async def test_an_empty_folder_may_be_a_drive_that_is_not_connected(
    desk: DeviceOwner, provider: Provider
) -> None:
    provider.default = tasks_from_lines
    desk.write("one.md", "do call Ada")
    async with connected(desk):
        agent = await desk.agent()
        await desk.run(agent)
        (desk.folder / "one.md").rename(desk.folder.parent / "one.md")
        for _ in range(MAX_MISSED + 1):
            await desk.run(agent)
        assert await known_sources(agent) == 1
