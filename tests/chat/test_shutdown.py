"""A web process that is asked to end: its turns end in order, their users are told, and its sockets close with 1012."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest

from adiuva.core import db
from adiuva.embedded.processes import Child
from chat.models import Turn
from tests.chat.chat_client import (
    ChatClient,
    DeviceRows,
    connect,
    conversation_of,
    end_frame,
    stored_messages,
    wait_for,
)
from tests.chat.factories import locked_turn
from tests.factories import Person
from tests.fakes.provider import Call, Hold, Provider, Say
from tests.sampling import ONE_SERVER
from tests.server_processes import Stack

TASK = {"id": "3f2a9c01d4e54bb0", "title": "Call Ada", "status": "todo"}
RENAME = Call("update_task", {"task_id": TASK["id"], "title": "Call Bob"})
SERVERS = pytest.mark.parametrize("server", ONE_SERVER)


@pytest.fixture
def other_web(stack: Stack, provider: Provider) -> str:
    return stack.web(ADIUVA_PING_S="29")


def doomed(stack: Stack, provider: Provider, server: str = "uvicorn", **env: str) -> str:
    """A web process that only this test uses."""
    return stack.web(server, **{"ADIUVA_PING_S": "27.5", "ADIUVA_STOP_TURNS_S": "50"} | env)


async def gone(child: Child) -> None:
    await asyncio.to_thread(child.wait, within_s=60)


async def closed(client: ChatClient) -> int | None:
    await client.socket.ws.wait_closed()
    return client.socket.ws.close_code


@SERVERS
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
async def test_a_running_turn_ends_in_order_and_nothing_of_it_is_lost(
    stack: Stack, other_web: str, provider: Provider, person: Person, server: str, by: signal.Signals
) -> None:
    hold = Hold("never said")
    provider.script(RENAME, Say("I renamed it, and", calls=[Call("list_tasks")]), hold)
    rows = DeviceRows(tasks=[dict(TASK)])
    base = doomed(stack, provider, server)
    async with (
        connect(base, person, rows) as session,
        connect(other_web, person, device_id="phone") as phone,
        connect(base, person, device_id="idle") as idle,
    ):
        key = await session.ask("rename it")
        await wait_for(hold.reached)
        await phone.socket.send({"type": "stream_resume", "request_id": key, "after": -1})
        await phone.until(lambda: key in phone.streams and phone.streams[key].text != "")
        child = stack.end(base, by)
        end = end_frame(await session.ended(key))
        assert end_frame(await phone.ended(key)) == end
        assert (await closed(session), await closed(idle)) == (1012, 1012)
        await gone(child)
    assert (end["finish"], end["code"]) == ("error", "server_restarting")
    assert [mutation["data"]["title"] for mutation in end["mutations"]] == ["Call Bob"]
    async with connect(other_web, person, rows, streams=[{"request_id": key, "after": -1}]) as session:
        assert (await session.ended(key)).frames == phone.streams[key].frames
    row = await db.run(Turn.objects.get, request_id=key, user_id=person.id)
    assert (row.state, row.code, row.mutations) == ("error", "server_restarting", 1)
    said = await stored_messages(other_web, person, conversation_of(phone.streams[key]))
    assert [message["text"] for message in said] == ["rename it", "I renamed it, and"]
    assert [mutation["table"] for mutation in said[-1]["mutations"]] == ["tasks"]


@SERVERS
async def test_a_write_that_is_under_way_is_waited_for(
    stack: Stack, other_web: str, provider: Provider, person: Person, server: str
) -> None:
    provider.script(RENAME)
    rows = DeviceRows(tasks=[dict(TASK)])
    base = doomed(stack, provider, server)
    async with connect(base, person, rows) as session:
        session.silent = True
        key = await session.ask("rename it")
        await session.until(lambda: session.unanswered != [])
        child = stack.end(base)
        refused = await session.say("and another thing")
        while end_frame(refused)["finish"] == "stop":  # it has not heard yet that it is to end
            refused = await session.say("and another thing")
        await session.catch_up()
        end = end_frame(await session.ended(key))
        assert await closed(session) == 1012
        await gone(child)
    assert (end["finish"], end["code"]) == ("error", "server_restarting")
    assert [mutation["data"]["title"] for mutation in end["mutations"]] == ["Call Bob"]
    assert end_frame(refused)["code"] == "server_restarting"


@SERVERS
async def test_a_client_is_told_the_end_of_a_turn_that_cannot_be_stored_in_time(
    stack: Stack, other_web: str, provider: Provider, person: Person, server: str
) -> None:
    hold = Hold("never said")
    provider.script(RENAME, hold)
    base = doomed(stack, provider, server, ADIUVA_STOP_TURNS_S="0.5")
    async with connect(base, person, DeviceRows(tasks=[dict(TASK)])) as session:
        key = await session.ask("rename it")
        await wait_for(hold.reached)
        with locked_turn(key):
            child = stack.end(base)
            end = end_frame(await session.ended(key))
            assert await closed(session) == 1012
            await gone(child)
    assert (end["finish"], end["code"]) == ("error", "server_restarting")
    assert [mutation["data"]["title"] for mutation in end["mutations"]] == ["Call Bob"]


@SERVERS
async def test_an_old_client_is_told_in_words(
    stack: Stack, provider: Provider, person: Person, server: str
) -> None:
    hold = Hold("never said")
    provider.script(hold)
    base = doomed(stack, provider, server)
    async with connect(base, person, protocol=1) as old:
        key = await old.ask("tell me a lot")
        await wait_for(hold.reached)
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

    async with connect(base, person):
        asking = asyncio.create_task(asyncio.to_thread(post))
        await wait_for(hold.reached)
        child = stack.end(base)
        status, body = await asking
        await gone(child)
    assert status in (200, 503)
    assert "server_restarting" in str(body)
