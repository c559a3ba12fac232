"""Channels of Teams, read through Graph: messages and replies, once each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from integrations.mail.errors import NoSuchFolder
from integrations.mail.mailbox_types import MailDocument
from tests.fakes.graph import Graph, stamp
from tests.fakes.mailboxes import Change, Fail
from tests.integrations.sync_harness import Run, skipped, teams, use


@pytest.fixture(scope="module")
def graph() -> Iterator[Graph]:
    with Graph() as server:
        yield server


@pytest.fixture(autouse=True)
def configured(settings: Any, graph: Graph) -> None:
    use(settings, graph=graph)


def bodies(items: list[object]) -> list[str]:
    return sorted(item.text.split("\n\n", 1)[1].strip() for item in items if isinstance(item, MailDocument))


async def test_a_message_and_its_reply_become_documents(graph: Graph) -> None:
    box = graph.mailbox("document")
    root = box.post("Sales", "General", "<p>Who does the <b>offer</b>?</p>", subject="Offer")
    box.post(
        "Sales", "General", "<p>Me, by Friday</p>", reply_to=root, who="Max",
        attachments=[{"name": "plan.pdf", "contentType": "reference"}],
    )  # fmt: skip
    box.post("Sales", "General", "", messageType="systemEventMessage")
    box.post("Sales", "General", "gone", deletedDateTime=stamp())
    box.post("Sales", "General", "<p>&nbsp;</p>")
    first, reply = sorted(await Run().read(teams(box)), key=lambda item: item.source_id)
    assert isinstance(first, MailDocument) and isinstance(reply, MailDocument)
    assert first.text.endswith("From: Bea\nChannel: Sales/General\nSubject: Offer\n\nWho does the offer?\n")
    assert "From: Max\nChannel: Sales/General\nIn reply to: Offer\n\nMe, by Friday\n" in reply.text
    assert (reply.sender, reply.document.head.recipients, reply.document.attachments[0].name) == (
        "Max",
        "Sales/General",
        "plan.pdf",
    )
    assert first.source_id.endswith(root) and first.source_id.startswith("t-Sales/19:General@thread/")


async def test_new_messages_edits_and_replies_to_old_threads_are_found_once(graph: Graph) -> None:
    box, run = graph.mailbox("news"), Run()
    box.page = 3
    roots = [box.post("Sales", "General", f"thread {number}") for number in range(8)]
    for number in range(5):
        box.post("Sales", "General", f"reply {number}", reply_to=roots[0])
    assert len(await run.read(teams(box))) == 13
    assert await run.read(teams(box)) == []
    box.post("Sales", "General", "new thread")
    box.post("Sales", "General", "new reply", reply_to=roots[0])
    edited = box.posts["Sales", "General"][1]
    edited |= {"body": {"contentType": "text", "content": "edited"}, "lastEditedDateTime": stamp()}
    box.changes["Sales/General"].append(edited["id"])
    assert bodies(await run.read(teams(box))) == ["edited", "new reply", "new thread"]
    box.forget()
    box.post("Sales", "General", "after it expired")
    assert bodies(await run.read(teams(box))) == ["after it expired"]


async def test_channels_are_chosen_by_name_team_or_id_and_one_that_is_closed_is_listed(graph: Graph) -> None:
    box, run = graph.mailbox("channels"), Run()
    for team, channel in [("Sales", "General"), ("Sales", "Offers"), ("Lab", "General"), ("Lab", "Noise")]:
        box.post(team, channel, f"{team} {channel}")
    box.fault("19%3AGeneral", Fail(403, "Forbidden"))
    items = await run.read(teams(box), labels=["sales", "Lab/General", "Void"])
    assert bodies(items) == ["Lab General", "Sales Offers"]
    assert skipped(items) == [("Void", "no_such_folder"), ("t-Sales/19:General@thread", "provider_refused")]
    assert bodies(await run.read(teams(box), labels=["sales", "Lab/General", "Void"])) == ["Sales General"]
    with pytest.raises(NoSuchFolder):
        await run.read(teams(box), labels=["Void"])


async def test_senders_and_days_hold_for_replies_too(graph: Graph) -> None:
    box = graph.mailbox("filters")
    root = box.post("Sales", "General", "old", createdDateTime="2026-01-10T10:00:00.000Z")
    box.post("Sales", "General", "by Max", reply_to=root, who="Max")
    box.post("Sales", "General", "by Bea", reply_to=root)
    assert bodies(await Run().read(teams(box), senders=["max"])) == ["by Max"]
    box.fault(
        "/messages",
        Change(lambda answer: {**answer, "value": [3, None, {"id": 5}, *answer["value"]]}),
        times=2,
    )
    span = {"from": "2026-01-01", "to": "2026-01-31"}
    assert bodies(await Run().read(teams(box), date_range=span)) == ["old"]
