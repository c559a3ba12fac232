"""Outlook, read through Graph: what is new in each folder, once each, whatever Graph does."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator
from typing import Any

import pytest

from integrations.errors import ForbiddenHost
from integrations.mail.errors import InvalidResponse, NoSuchFolder, PageLoop
from integrations.mail.mailbox_types import MailDocument
from tests.fakes.graph import Graph
from tests.fakes.mailboxes import Change, Fail
from tests.integrations.sync_harness import Run, outlook, skipped, titles, use


@pytest.fixture(scope="module")
def graph() -> Iterator[Graph]:
    with Graph() as server:
        yield server


@pytest.fixture(autouse=True)
def configured(settings: Any, graph: Graph) -> None:
    use(settings, graph=graph)


def day(ago: float) -> dt.datetime:
    return dt.datetime.now(dt.UTC) - dt.timedelta(days=ago)


async def test_a_message_becomes_a_document(graph: Graph) -> None:
    box = graph.mailbox("document")
    box.raw["inner"] = b"Subject: Inner\nFrom: c@example.com\n\nThe forwarded words."
    source_id = box.add(
        "Re: Offer",
        "<p>Agreed, 1.200&nbsp;€.</p><div>On Monday Ann wrote:</div><blockquote>How much?</blockquote>",
        kind="html",
        name='Roe, "Bea"',
        attachments=[
            {"id": "a", "name": "plan.pdf", "contentType": "application/pdf", "size": 9000},
            {"@odata.type": "#microsoft.graph.itemAttachment", "id": "inner", "name": "Fwd", "size": 70},
            {"@odata.type": "#microsoft.graph.itemAttachment", "id": "lost", "name": "Lost", "size": 70},
        ],
    )
    [item] = await Run().read(outlook(box))
    assert isinstance(item, MailDocument)
    assert (item.source_id, item.title) == (source_id, "Re: Offer")
    assert (item.sender, item.document.head.recipients) == (
        '"Roe, \\"Bea\\"" <bea@example.com>',
        "Ann <ann@example.com>",
    )
    assert [(each.name, each.size) for each in item.document.attachments] == [
        ("plan.pdf", 9000),
        ("Lost", 70),
    ]
    assert (
        "Agreed, 1.200 €.\n\nForwarded mail:\nFrom: c@example.com\nSubject: Inner\n\nThe forwarded"
        in item.text
    )
    assert "Quoted from earlier messages:\n> On Monday Ann wrote:\n>\n> How much?\n" in item.text


ATTACHED = {
    "plan.txt": ("text/plain", "Grüße: book the hall".encode("cp1252"), "Grüße: book the hall"),
    "list.csv": (
        "application/octet-stream",
        b"what,when\nprint the flyers,Friday",
        "print the flyers,Friday",
    ),
    "call.ics": (
        "text/calendar",
        b"BEGIN:VCALENDAR\r\nBEGIN:VEVENT\r\nSUMMARY:Press check\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n",
        "Event: Press check",
    ),
    "old.eml": ("application/octet-stream", b"Subject: Old\n\nsend the keys back", "send the keys back"),
}


async def test_attachments_that_are_text_are_read_and_a_mail_is_its_message_id(graph: Graph) -> None:
    box = graph.mailbox("attached")
    box.raw.update({name: raw for name, (_, raw, _) in ATTACHED.items()})
    box.add(
        attachments=[
            {"id": name, "name": name, "contentType": kind, "size": len(raw)}
            for name, (kind, raw, _) in ATTACHED.items()
        ]
        + [{"id": "big", "name": "big.txt", "contentType": "text/plain", "size": 2 << 20}],
        internetMessageId="<one@example.com>",
    )
    [item] = await Run().read(outlook(box))
    assert isinstance(item, MailDocument)
    assert item.document.head.message_id == "one@example.com"
    for _, _, shown in ATTACHED.values():
        assert shown in item.text
    assert [each.name for each in item.document.attachments] == ["big.txt"]


async def test_attachments_that_are_not_read_take_no_place_of_those_that_are(graph: Graph) -> None:
    box = graph.mailbox("logos")
    texts = {f"note-{number}.txt": f"Errand {number:02}.".encode() for number in range(12)}
    box.raw.update(texts)
    logos = [
        {"id": f"l{number}", "name": "logo.png", "contentType": "image/png", "size": 9}
        for number in range(10)
    ]
    box.add(
        attachments=[
            *logos,
            *({"id": name, "name": name, "contentType": "text/plain", "size": 10} for name in texts),
        ]
    )
    [item] = await Run().read(outlook(box))
    assert isinstance(item, MailDocument)
    assert [number for number in range(12) if f"Errand {number:02}." in item.text] == [*range(10)]
    assert [each.name for each in item.document.attachments][10:] == ["note-10.txt", "note-11.txt"]


async def test_invitations_and_signed_mails_are_read_as_they_were_sent(graph: Graph) -> None:
    box = graph.mailbox("whole")
    kind = "#microsoft.graph.eventMessageRequest"
    smime = [{"id": "s", "name": "smime.p7m", "contentType": "multipart/signed", "size": 900}]
    invitation = box.add("Review", "", **{"@odata.type": kind})
    signed, lost = box.add("Signed", "", attachments=smime), box.add("Lost", "", attachments=smime)
    calendar = ATTACHED["call.ics"][1]
    box.raw[invitation] = b"Subject: Review\nContent-Type: text/calendar\n\n" + calendar
    box.raw[signed] = (
        b"Subject: Signed\nContent-Type: multipart/signed; boundary=b\n\n--b\n\nReturn the contract.\n"
        b"--b\nContent-Type: application/pkcs7-signature\n\nMII\n--b--\n"
    )
    found = {item.source_id: item for item in await Run().read(outlook(box))}
    read = {key: item.text for key, item in found.items() if isinstance(item, MailDocument)}
    assert "Event: Press check" in read[invitation]
    assert "Return the contract." in read[signed]
    assert "smime.p7m" in read[lost]  # Graph does not give it: it is named


async def test_all_folders_but_those_of_what_is_thrown_away_are_read_and_a_move_is_not_news(
    graph: Graph,
) -> None:
    box, run = graph.mailbox("folders"), Run()
    clients = box.folder("Clients", below="id-inbox")
    box.folder("Old bin", below="id-deleteditems")
    keys = {name: box.add(name, folder=name) for name in ["id-inbox", clients, "id-sentitems"]}
    for name in ("id-drafts", "id-junkemail", "id-deleteditems", "id-Old bin"):
        box.add(name, folder=name)
    box.add("a draft", isDraft=True)
    assert sorted(titles(await run.read(outlook(box)))) == sorted(keys)
    box.move(keys["id-inbox"], clients)
    box.add("new", folder=clients)
    assert titles(await run.read(outlook(box))) == ["new"]


async def test_what_arrives_during_a_reading_and_after_one_that_died_is_found(graph: Graph) -> None:
    box, run = graph.mailbox("dies"), Run()
    box.page = 4
    for number in range(10):
        box.add(f"old {number}", at=day(30))
        box.add(f"sent {number}", folder="id-sentitems", at=day(30))
    box.fault("/me/messages/", Change(lambda answer: (box.add("meanwhile"), answer)[1]))
    await run.read(outlook(box), most=14)  # the inbox is done, the other folder is not
    assert run.cursor is None  # what is moved from the one to the other meanwhile is found when both are
    box.add("later")
    items = await run.read(outlook(box))
    assert sorted(titles(items))[:2] == ["later", "meanwhile"]
    assert len(run.settled) == 22 and set(run.settled.values()) == {1}
    assert await run.read(outlook(box)) == []


async def test_an_expired_delta_link_is_made_good_by_a_list_of_a_bounded_time(graph: Graph) -> None:
    box, run = graph.mailbox("expired"), Run()
    box.add("long ago", at=day(100))
    box.add("old", at=day(50))
    assert titles(await run.read(outlook(box))) == ["old"]
    box.add("new", at=day(0.5))
    box.forget()
    assert titles(await run.read(outlook(box))) == ["new"]
    assert box.filters[-1].startswith(f"receivedDateTime ge {day(2).date().isoformat()}")
    box.add("newer")
    box.fault("delta", Fail(400, "resyncRequired"))
    assert titles(await run.read(outlook(box))) == ["newer"]


async def test_folders_senders_and_days_are_asked_for_and_checked(graph: Graph) -> None:
    box, run = graph.mailbox("filters"), Run()
    big = box.folder("Big", below=box.folder("Clients", below="id-inbox"))
    noon = day(20).replace(hour=12)
    box.add("wanted", folder=big, at=noon)
    box.add("by its own name", folder="id-archive", at=noon)
    box.add("other sender", folder=big, at=noon, sender="max@example.com")
    box.add("next day", folder=big, at=noon + dt.timedelta(days=1))
    box.add("other folder", at=noon)
    config: dict[str, Any] = {
        "labels": ["inbox/clients/big", "Archive", "No such"],
        "senders": ["bea@example.com"],
        "date_range": {"from": f"{noon:%Y-%m-%d}", "to": f"{noon:%Y-%m-%d}"},
    }
    items = await run.read(outlook(box), **config)
    assert sorted(titles(items)) == ["by its own name", "wanted"]
    assert skipped(items) == [("No such", "no_such_folder")]
    assert "from/emailAddress/address eq 'bea@example.com'" in box.filters[-1]
    with pytest.raises(NoSuchFolder):
        await Run().read(outlook(box), labels=["No such"])


async def test_of_many_senders_none_is_asked_for_and_all_are_checked(graph: Graph) -> None:
    box = graph.mailbox("many senders")
    box.add("wanted")
    box.add("not wanted", sender="max@example.com")
    senders = [f"{number}@example.com" for number in range(20)]
    assert titles(await Run().read(outlook(box), senders=[*senders, "bea@example.com"])) == ["wanted"]
    assert not any("emailAddress" in each for each in box.filters)


@pytest.mark.parametrize("value", ["x' or 1 eq 1", "a'b@example.com", "../../users/max", "x&$filter=y"])
async def test_a_sender_or_folder_cannot_become_a_query(graph: Graph, value: str) -> None:
    box = graph.mailbox("injection")
    box.add("x")
    assert await Run().read(outlook(box), senders=[value]) == []
    assert not any("1 eq 1" in each or "a'b" in each for each in box.filters)
    with pytest.raises(NoSuchFolder):
        await Run().read(outlook(box), labels=[value])
    assert not any("users" in path or "filter=y" in path for path in box.asked)


@pytest.mark.parametrize("name", ["@odata.nextLink", "@odata.deltaLink"])
@pytest.mark.parametrize(
    "link",
    [
        "http://169.254.169.254/latest",
        "https://graph.example.com/v1.0/me",
        "http://a@127.0.0.1/",
        "file:///etc",
    ],
)
async def test_a_link_to_another_host_is_not_followed(graph: Graph, name: str, link: str) -> None:
    box, run = graph.mailbox("foreign"), Run()
    box.add("x")
    box.fault("delta", Change(lambda answer: {**answer, name: link}), times=9)
    with pytest.raises(ForbiddenHost):
        await run.read(outlook(box))
    assert run.cursor is None


async def test_links_of_an_api_that_the_server_has_left_are_made_good_by_a_list(graph: Graph) -> None:
    box, run = graph.mailbox("moved"), Run()
    box.add("old")
    await run.read(outlook(box))
    assert run.cursor is not None and graph.url in run.cursor
    run.cursor = run.cursor.replace(graph.url, "https://graph.example.com")
    box.add("new", at=day(0.1))
    assert titles(await run.read(outlook(box))) == ["new"]
    assert graph.url in run.cursor and "graph.example.com" not in run.cursor


@pytest.mark.parametrize("to", ["id-archive", "id-sentitems", "id-deleteditems"])
async def test_mails_that_are_moved_while_a_list_is_read_hide_no_others(graph: Graph, to: str) -> None:
    """Graph's pages are places in a list; the archive is read before the sent mails, the inbox before both."""
    box, run = graph.mailbox(f"shifts {to}"), Run()
    box.page = 4
    inbox = [
        box.add(f"in {number}", at=day(30)) for number in range(6)
    ]  # of one second: more than a page holds
    inbox += [box.add(f"in {number}", at=day(29 - number)) for number in range(6)]
    for number in range(4):
        box.add(f"sent {number}", folder="id-sentitems", at=day(20))
    moves = iter([inbox[-1], inbox[-2], inbox[0], None, inbox[1], inbox[7]])

    def move(answer: dict[str, Any]) -> dict[str, Any]:
        if key := next(moves, None):
            box.move(key, to)
        return answer

    box.fault("/me/messages/", Change(move), times=9)
    await run.read(outlook(box))
    assert set(run.settled.values()) == {1}
    left = 16 - len(run.settled)
    assert left == 0 if to != "id-deleteditems" else left <= 5


async def test_a_mail_that_is_moved_to_a_folder_that_was_read_already_is_found(graph: Graph) -> None:
    box, run = graph.mailbox("behind"), Run()
    box.add("read first", folder="id-inbox", at=day(20))
    late = [box.add(f"late {number}", folder="id-sentitems", at=day(20)) for number in range(2)]

    def move(answer: dict[str, Any]) -> dict[str, Any]:
        box.move(late[0], "id-inbox")
        return answer

    box.fault("/me/messages/", Change(move))
    assert sorted(titles(await run.read(outlook(box)))) == ["late 0", "late 1", "read first"]


async def test_pages_that_lead_back_or_end_nowhere_are_an_error(graph: Graph) -> None:
    box, run = graph.mailbox("loop"), Run()
    loop = f"{graph.api}/me/mailFolders/id-inbox/messages/delta?$skiptoken=1.0"
    box.fault("delta", Change(lambda answer: {**answer, "@odata.nextLink": loop}), times=9)
    with pytest.raises(PageLoop):
        await run.read(outlook(box))
    box = graph.mailbox("nowhere")
    box.fault("delta", Change(lambda answer: {"value": answer["value"]}))
    with pytest.raises(InvalidResponse):
        await run.read(outlook(box))
    assert run.cursor is None


async def test_odd_answers_are_read_as_well_as_can_be(graph: Graph) -> None:
    box, run = graph.mailbox("odd"), Run()
    box.add("no body", body=None, toRecipients="?")
    box.add(None, "text", sender="", name="")
    box.add(7, "")
    box.add(
        "half a character \ud800".encode("utf-8", "replace").decode(),
        "x",
        receivedDateTime="2026-13-45T00:00:00Z",
    )
    gone = box.add("gone")
    box.delete(gone)
    items = await run.read(outlook(box))
    assert sorted(titles(items)) == ["", "half a character ?", "no body"]
    assert [code for _, code in skipped(items)] == ["unreadable"]


async def test_no_request_is_made_before_the_time_that_graph_names_as_a_date(graph: Graph) -> None:
    box = graph.mailbox("date")
    for number in range(6):
        box.add(str(number))
    until = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(seconds=2)
    box.fault("/me/messages/", Fail(503, retry_after=until.strftime("%a, %d %b %Y %H:%M:%S GMT")))
    assert len(await Run().read(outlook(box))) == 6
    assert time.time() >= until.timestamp()
