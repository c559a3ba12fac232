"""Mailboxes behind everything that providers do: each message once, few requests at once, none before its time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from adiuva.core.errors import AdiuvaError
from integrations.mail.sync import MailboxSync
from tests.fakes.google import GmailBox, Google
from tests.fakes.graph import Graph, GraphBox
from tests.fakes.mailboxes import Box, Bytes, Change, Cut, Fail, Fault, Slow
from tests.integrations.sync_harness import Run, gmail, outlook, teams, use
from tests.sampling import few

MANY = 600
FEW = 40
WAIT = 1.6  # seconds, of a Retry-After: longer than an answer may be on its way


@pytest.fixture(scope="module")
def google() -> Iterator[Google]:
    with Google() as server:
        yield server


@pytest.fixture(scope="module")
def graph() -> Iterator[Graph]:
    with Graph() as server:
        yield server


@pytest.fixture(autouse=True)
def configured(settings: Any, google: Google, graph: Graph) -> None:
    use(settings, google=google, graph=graph)


Script = Callable[[Any], None]


def every(number: int, fault: Fault, part: str = "") -> Script:
    return lambda box: box.every(number, part, fault)


def first(part: str, *faults: Fault, times: int = 1) -> Script:
    return lambda box: box.fault(part, *faults, times=times)


def again(answer: dict[str, Any]) -> dict[str, Any]:
    """A page with everything twice, as pages that shift under a reader have it."""
    for name in ("messages", "value"):
        if isinstance(answer.get(name), list):
            answer[name] = answer[name] + answer[name][::-1]
    return answer


def loop(answer: dict[str, Any]) -> dict[str, Any]:
    return {**answer, "nextPageToken": "0"} if "messages" in answer else answer


COMMON: dict[str, Script] = {
    "nothing": lambda box: None,
    "a failure now and then": every(5, Fail(500)),
    "gateways": every(6, Fail(502)),
    "broken connections": every(6, Cut()),
    "answers that are cut": every(7, Bytes(b'{"messages": [')),
    "slow answers": every(9, Slow(0.05)),
    "throttled": first("", *[Change(dict)] * 9, Fail(429, retry_after=WAIT)),
    "throttled at the first page": first("", Fail(429, retry_after=WAIT)),
    "throttled again and again": first("", *[Fail(429, retry_after=0.15), Change(dict)], times=3),
    "throttled without a time": every(8, Fail(429)),
    "away for a moment": first("", *[Change(dict)] * 5, Fail(503, retry_after=WAIT)),
    "a token that ends": first("", *[Change(dict)] * 20, Fail(401)),
    "everything twice": every(1, Change(again)),
}
GMAIL: dict[str, Script] = COMMON | {
    "google's own throttling": every(9, Fail(403, "userRateLimitExceeded")),
    "a loop of pages, once": first("/messages?", Change(loop), Change(loop)),
    "a run that is refused": first("/messages/", *[Change(dict)] * 15, Fail(403, "forbidden")),
}
GRAPH: dict[str, Script] = {name: COMMON[name] for name in list(COMMON)[1:]} | {
    "a link to elsewhere, once": first(
        "delta", Change(lambda answer: {**answer, "@odata.nextLink": "http://169.254.169.254/"})
    ),
}
TEAMS: dict[str, Script] = {
    name: COMMON[name] for name in ("a failure now and then", "throttled", "everything twice")
}


async def survive(box: Box, reader: Callable[[], MailboxSync], count: int) -> Run:
    """Read until it ends well, dying half-way the first time, as a worker may."""
    run = Run()
    await_most: int | None = count // 2
    for _ in range(8):
        try:
            await run.read(reader(), most=await_most)
        except AdiuvaError:
            continue
        if await_most is None:
            break
        await_most = None
    assert await run.read(reader()) == []
    assert len(run.settled) == count, box.name
    assert set(run.settled.values()) == {1}, box.name
    assert box.peak <= 4, (box.name, box.peak)
    assert not box.early, (box.name, box.early)
    return run


def mail(number: int) -> bytes:
    return f"From: Bea <bea@example.com>\nSubject: Mail {number}\n\nPlease send offer {number}.\n".encode()


async def test_each_message_of_gmail_comes_once_under_each_fault(google: Google) -> None:
    async def one(name: str, script: Script) -> None:
        box: GmailBox = google.mailbox(f"gmail, {name}")
        box.page, box.latency_s = 15, 0.002
        for number in range(FEW):
            box.add(mail(number))
        script(box)
        await survive(box, lambda: gmail(box), FEW)

    await asyncio.gather(*(one(name, script) for name, script in few(GMAIL.items(), 6)))


async def test_each_message_of_outlook_comes_once_under_each_fault(graph: Graph) -> None:
    async def one(name: str, script: Script) -> None:
        box: GraphBox = graph.mailbox(f"outlook, {name}")
        box.page, box.latency_s = 15, 0.002
        for number in range(FEW):
            box.add(f"Mail {number}", folder="id-inbox" if number % 3 else "id-archive")
        script(box)
        await survive(box, lambda: outlook(box), FEW)

    await asyncio.gather(*(one(name, script) for name, script in few(GRAPH.items(), 6)))


async def test_each_message_of_teams_comes_once_under_each_fault(graph: Graph) -> None:
    async def one(name: str, script: Script) -> None:
        box: GraphBox = graph.mailbox(f"teams, {name}")
        box.page = 15
        root = ""
        for number in range(FEW):
            root = box.post("Sales", "General", f"post {number}", reply_to=root if number % 4 else "")
            root = root if number % 4 == 0 else box.posts["Sales", "General"][number]["replyToId"]
        script(box)
        await survive(box, lambda: teams(box), FEW)

    await asyncio.gather(*(one(name, script) for name, script in TEAMS.items()))


async def test_a_large_mailbox_comes_once_through_all_faults_together(google: Google) -> None:
    box: GmailBox = google.mailbox("two thousand")
    for number in range(MANY):
        box.add(mail(number))
    box.every(41, "", Fail(500))
    box.every(97, "", Cut())
    box.every(701, "", Fail(429, retry_after=0.15))
    box.every(211, "", Change(again))
    box.fault("/messages/", *[Change(dict)] * 300, Fail(401))
    await survive(box, lambda: gmail(box), MANY)


async def test_readers_of_one_mailbox_share_its_four_places(google: Google) -> None:
    box: GmailBox = google.mailbox("shared")
    box.latency_s = 0.02
    for number in range(30):
        box.add(mail(number))
    box.fault("/messages/", *[Change(dict)] * 40, Fail(429, retry_after=WAIT))

    def in_a_thread() -> None:  # as the runs of a worker: each with an event loop of its own
        asyncio.run(survive(box, lambda: gmail(box), 30))

    await asyncio.gather(*(asyncio.to_thread(in_a_thread) for _ in range(3)))
    assert box.peak == 4
