"""A web process that is asked to end: its turns end in order, their users are told, and its sockets close with 1012."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest

from adiuva.core import db
from adiuva.embedded.processes import Child
from chat.models import Turn
from tests.chat.chat_client import Client, Rows, chatting, conversation_of, ending, kept, reached
from tests.factories import Person, somebody
from tests.fakes.provider import Call, Hold, Provider, Say
from tests.server_processes import Stack

TASK = {"id": "3f2a9c01d4e54bb0", "title": "Call Ada", "status": "todo"}
RENAME = Call("update_task", {"task_id": TASK["id"], "title": "Call Bob"})
SERVERS = pytest.mark.parametrize("server", ["uvicorn", "daphne"])


@pytest.fixture
def person(committed_db: str) -> Person:
    return somebody()


@pytest.fixture
def other_web(stack: Stack, provider: Provider) -> str:
    return stack.web(ADIUVA_PING_S="29")


def doomed(stack: Stack, provider: Provider, server: str = "uvicorn", **env: str) -> str:
    """A web process that only this test uses."""
    return stack.web(server, ADIUVA_PING_S="27.5", **env)


async def gone(child: Child) -> None:
    await asyncio.to_thread(child.wait, within_s=60)


async def closed(client: Client) -> int | None:
    await client.socket.ws.wait_closed()
    return client.socket.ws.close_code


@SERVERS
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
async def test_a_running_turn_ends_in_order_and_nothing_of_it_is_lost(
    stack: Stack, other_web: str, provider: Provider, person: Person, server: str, by: signal.Signals
) -> None:
    hold = Hold("never said")
    provider.script(RENAME, Say("I renamed it, and", calls=[Call("list_tasks")]), hold)
    rows = Rows(tasks=[dict(TASK)])
    base = doomed(stack, provider, server)
    async with (
        chatting(base, person, rows) as desk,
        chatting(other_web, person, device_id="phone") as phone,
        chatting(base, person, device_id="idle") as idle,
    ):
        key = await desk.ask("rename it")
        await reached(hold.reached)
        await phone.socket.send({"type": "stream_resume", "request_id": key, "after": -1})
        await phone.until(lambda: key in phone.streams and phone.streams[key].text != "")
        child = stack.end(base, by)
        end = ending(await desk.ended(key))
        assert ending(await phone.ended(key)) == end
        assert (await closed(desk), await closed(idle)) == (1012, 1012)
        await gone(child)
    assert (end["finish"], end["code"]) == ("error", "server_restarting")
    assert [mutation["data"]["title"] for mutation in end["mutations"]] == ["Call Bob"]
    async with chatting(other_web, person, rows, streams=[{"request_id": key, "after": -1}]) as desk:
        assert (await desk.ended(key)).frames == phone.streams[key].frames
    row = await db.run(Turn.objects.get, request_id=key, user_id=person.id)
    assert (row.state, row.code, row.mutations) == ("error", "server_restarting", 1)
    said = await kept(other_web, person, conversation_of(phone.streams[key]))
    assert [message["text"] for message in said] == ["rename it", "I renamed it, and"]
    assert [mutation["table"] for mutation in said[-1]["mutations"]] == ["tasks"]


@SERVERS
async def test_a_write_that_is_under_way_is_waited_for(
    stack: Stack, other_web: str, provider: Provider, person: Person, server: str
) -> None:
    provider.script(RENAME)
    rows = Rows(tasks=[dict(TASK)])
    base = doomed(stack, provider, server)
    async with chatting(base, person, rows) as desk:
        desk.silent = True
        key = await desk.ask("rename it")
        await desk.until(lambda: desk.unanswered != [])
        child = stack.end(base)
        refused = await desk.say("and another thing")
        while ending(refused)["finish"] == "stop":  # it has not heard yet that it is to end
            refused = await desk.say("and another thing")
        await desk.catch_up()
        end = ending(await desk.ended(key))
        assert await closed(desk) == 1012
        await gone(child)
    assert (end["finish"], end["code"]) == ("error", "server_restarting")
    assert [mutation["data"]["title"] for mutation in end["mutations"]] == ["Call Bob"]
    assert ending(refused)["code"] == "server_restarting"


@SERVERS
async def test_an_old_client_is_told_in_words(
    stack: Stack, provider: Provider, person: Person, server: str
) -> None:
    hold = Hold("never said")
    provider.script(hold)
    base = doomed(stack, provider, server)
    async with chatting(base, person, protocol=1) as old:
        key = await old.ask("tell me a lot")
        await reached(hold.reached)
        child = stack.end(base)
        stream = await old.ended(key)
        assert await closed(old) == 1012
        await gone(child)
    assert stream.kinds() == ["stream_start", "stream_text", "stream_end"]
    assert stream.text == "The server is restarting. Please try again in a moment."


@SERVERS
async def test_a_process_that_serves_nobody_ends_at_once(
    stack: Stack, provider: Provider, committed_db: str, server: str
) -> None:
    child = stack.end(doomed(stack, provider, server))
    await gone(child)
    assert "Traceback" not in child.log.read_text()


async def test_a_question_that_waits_for_a_whole_chat_over_rest_is_answered_with_what_there_is(
    stack: Stack, provider: Provider, person: Person
) -> None:
    hold = Hold("never said")
    provider.script(hold)
    base = doomed(stack, provider)

    def post() -> tuple[int, dict[str, Any]]:
        with person.rest(base) as rest:
            answer = rest.post("/chat", json={"message": "hello"})
            return answer.status_code, answer.json()

    async with chatting(base, person):
        asking = asyncio.create_task(asyncio.to_thread(post))
        await reached(hold.reached)
        child = stack.end(base)
        status, body = await asking
        await gone(child)
    assert status in (200, 503)
    assert "server_restarting" in str(body)
