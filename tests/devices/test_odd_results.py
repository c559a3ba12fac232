"""Results that are too large for a frame are asked for in pieces, and malformed ones fail their call at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, get_args

import pytest
from websockets.exceptions import ConnectionClosed

from adiuva.devices.calls import new_call
from adiuva.devices.client.device import Device
from adiuva.devices.codec import MAX_FRAME_BYTES
from adiuva.devices.large_selects import PartialSelect
from adiuva.devices.link import AnswerUnreadable, DeviceLink
from adiuva.devices.protocol import TableName, ToolResultBody
from tests.chat.device_sessions import call_tool, connected_device, make_session
from tests.devices.link_endpoints import Frame, Local, Remote, answering
from tests.factories import Person
from tests.sampling import ONE_SERVER
from tests.server_processes import Stack
from tests.socket_client import Socket

ROW_BYTES = 12_000


def many(count: int, size: int = ROW_BYTES) -> list[Frame]:
    return [{"id": f"row{place}", "title": f"Row {place}", "content": "x" * size} for place in range(count)]


class Rows:
    """A device that answers selects from these rows, whatever the size. `frames` are the calls that came."""

    def __init__(self, rows: list[Frame]) -> None:
        self.rows = rows
        self.asked: list[tuple[int | None, int | None]] = []

    def __call__(self, call: Frame) -> Frame:
        self.asked.append((call.get("limit"), call.get("offset")))
        first = call.get("offset") or 0
        last = len(self.rows) if call.get("limit") is None else first + call["limit"]
        return {"id": call["id"], "rows": self.rows[first:last]}


@asynccontextmanager
async def device(
    kind: type[Socket], base: str, person: Person, answer: Callable[[Frame], Frame], **hello: Any
) -> AsyncIterator[DeviceLink]:
    async with (
        kind(base, person.access_token) as socket,
        answering(socket, answer=answer, **hello),
        DeviceLink(person.id, wait_s=20.0) as link,
    ):
        yield link


KINDS = pytest.mark.parametrize("kind", [Local, Remote], ids=["same process", "another process"])


@KINDS
async def test_a_device_that_can_go_on_is_asked_piece_by_piece_for_all_rows(
    web: str, person: Person, kind: type[Socket]
) -> None:
    rows = Rows(many(120))
    async with device(kind, web, person, rows, capabilities=["dedupe", "batch", "offset"]) as link:
        for table in get_args(TableName):
            for limit in (None, 500, 120):
                rows.asked.clear()
                result = await link.call(new_call("select", table, filters={}, limit=limit))
                assert result.rows == rows.rows and not isinstance(result, PartialSelect), (table, limit)
                assert len(set(rows.asked)) == len(rows.asked)  # never the same again


@KINDS
@pytest.mark.parametrize("hello", [{"protocol": 1}, {"capabilities": ["dedupe", "batch"]}], ids=["v1", "v2"])
async def test_another_is_asked_for_as_many_as_fit_and_what_is_missing_is_known(
    web: str, person: Person, kind: type[Socket], hello: Any
) -> None:
    rows = Rows(many(120))
    async with device(kind, web, person, rows, **hello) as link:
        result = await link.call(new_call("select", "notes", filters={}, limit=100))
        both = await link.send_calls(
            [new_call("select", "notes", filters={}, limit=100), new_call("select", "tasks", limit=3)]
        )
    assert isinstance(result, PartialSelect) and result.has_more
    assert result.rows == rows.rows[:50]
    assert [len(one.rows or []) for one in both if isinstance(one, ToolResultBody)] == [50, 3]
    assert all(offset is None for _, offset in rows.asked)


async def test_a_row_that_is_too_large_by_itself_costs_that_row(web: str, person: Person) -> None:
    rows = Rows([*many(3), {"id": "huge", "content": "x" * (MAX_FRAME_BYTES + 1)}, *many(9)[3:]])
    async with device(Remote, web, person, rows, capabilities=["offset"]) as link:
        result = await link.call(new_call("select", "notes", filters={}, limit=100))
    assert isinstance(result, PartialSelect) and (result.skipped, result.has_more) == (1, False)
    assert [row["id"] for row in result.rows or []] == [f"row{place}" for place in range(9)]


async def test_a_write_whose_answer_is_too_large_may_have_happened(web: str, person: Person) -> None:
    def answer(call: Frame) -> Frame:
        return {"id": call["id"], "row": {"id": "n", "content": "x" * MAX_FRAME_BYTES}}

    async with device(Remote, web, person, answer, capabilities=["dedupe"]) as link:
        with pytest.raises(AnswerUnreadable):
            await link.call(new_call("update", "notes", data={"id": "n", "updates": {"title": "Menu"}}))
        result = await link.call(new_call("get", "notes", data={"id": "n"}))
    assert (result.code, result.row) == ("too_large", None)


@pytest.mark.parametrize("server", ONE_SERVER)
async def test_a_result_over_which_the_web_server_closes_the_socket_is_asked_for_in_pieces_too(
    stack: Stack, person: Person, server: str
) -> None:
    """A frame over 4 MiB is never seen by us; the device comes back and is asked for less."""
    base = stack.web(server)
    rows = Rows(many(120, 50_000))

    async def reconnecting() -> None:
        while True:
            async with Remote(base, person.access_token) as socket:
                await socket.hello(2, "desk", capabilities=["offset"])
                with suppress(ConnectionClosed):
                    while True:
                        frame = await socket.receive()
                        if frame["type"] == "tool_call":
                            await socket.send({"type": "tool_result", **rows(frame)})
                await socket.drop()

    coming_back = asyncio.create_task(reconnecting())
    try:
        async with DeviceLink(person.id, wait_s=20.0) as link:
            result = await link.call(new_call("select", "notes", filters={}, limit=200))
    finally:
        coming_back.cancel()
        await asyncio.gather(coming_back, return_exceptions=True)
    assert result.rows == rows.rows
    if server == "uvicorn":
        assert len(set(rows.asked)) == len(rows.asked)


async def test_the_headless_device_sends_a_table_in_pieces(web: str, person: Person) -> None:
    async with connected_device(web, person) as connected:
        assert isinstance(connected.device, Device)
        for place in range(120):
            connected.put("notes", title=f"Row {place}", content="x" * ROW_BYTES)
        said = await connected.use("list_notes")
        assert said.startswith("At least 100 notes:")
        result = await connected.link.call(new_call("select", "notes", filters={"orderBy": "createdAt"}))
    assert [row["title"] for row in result.rows or []] == [f"Row {place}" for place in range(120)]


# ── Malformed ───────────────────────────────────────────────────────────────────────────────────────────

GOOD = {"id": "t1", "title": "Call Ada"}
BROKEN = {
    "rows is an object": '{"type": "tool_result", "id": ID, "rows": {}}',
    "rows is a text": '{"type": "tool_result", "id": ID, "rows": "none"}',
    "error is true": '{"type": "tool_result", "id": ID, "error": true}',
    "deleted is a text": '{"type": "tool_result", "id": ID, "deleted": "maybe"}',
    "not a number": '{"type": "tool_result", "id": ID, "rows": [{"id": "t1", "dueDate": NaN}]}',
    "a large number": '{"type": "tool_result", "id": ID, "rows": [{"id": "t1", "dueDate": 99999999999999999999}]}',
    "deep": '{"type": "tool_result", "id": ID, "rows": [' + '{"a": ' * 40 + "1" + "}" * 40 + "]}",
    "cut off": '{"type": "tool_result", "id": ID, "rows": [{"id": "t1", "titl',
    "in a batch": '{"type": "tool_batch_result", "results": [null, {"id": ID, "rows": {}}]}',
    "a batch cut off": '{"type": "tool_batch_result", "results": [{"id": ID, "rows": [{"id"',
}


@asynccontextmanager
async def saying(
    web: str, person: Person, text: str, kind: type[Socket] = Remote, **hello: Any
) -> AsyncIterator[DeviceLink]:
    """A device that answers each call with this text, in which ID stands for the call's id."""
    async with kind(web, person.access_token) as socket, DeviceLink(person.id, wait_s=20.0) as link:
        await socket.hello(2, **hello)

        async def serve() -> None:
            while True:
                frame = await socket.receive()
                for call in frame.get("calls", [frame] if frame["type"] == "tool_call" else []):
                    await socket.ws.send(text.replace("ID", json.dumps(call["id"])))

        serving = asyncio.create_task(serve())
        try:
            yield link
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


@KINDS
async def test_a_malformed_result_fails_its_call_at_once(
    web: str, person: Person, kind: type[Socket]
) -> None:
    for what, text in BROKEN.items():
        async with saying(web, person, text, kind) as link, asyncio.timeout(60):
            result = await link.call(new_call("select", "tasks", filters={}))
            assert (result.code, result.rows) == ("malformed", None), what
            with pytest.raises(AnswerUnreadable):
                await link.call(new_call("insert", "tasks", data={"title": "Call"}))


async def test_so_does_one_for_a_call_in_a_batch(web: str, person: Person) -> None:
    for what, text in BROKEN.items():
        async with saying(web, person, text, capabilities=["batch", "dedupe"]) as link, asyncio.timeout(60):
            calls = [
                new_call("select", "tasks", filters={}),
                new_call("insert", "tasks", data={"title": "Call"}),
            ]
            read, write = await link.send_calls(calls)
        assert isinstance(read, ToolResultBody) and read.code == "malformed", what
        assert isinstance(write, AnswerUnreadable), what


async def test_an_error_object_is_the_devices_own_error(web: str, person: Person) -> None:
    for error, text, code in (
        ({"code": "locked", "message": "the database is locked"}, "the database is locked", "locked"),
        ({"code": "locked"}, "locked", "locked"),
        ({}, "", None),
        ([], "", None),
    ):
        body = json.dumps({"type": "tool_result", "id": "ID", "error": error}).replace('"ID"', "ID")
        async with saying(web, person, body) as link:
            result = await link.call(new_call("get", "tasks", data={"id": "t1"}))
        assert (result.error, result.code) == (text, code)


async def test_one_bad_row_costs_that_row_and_it_is_said(web: str, person: Person) -> None:
    bad_rows: list[Any] = [None, 7, "row", [], {}, {"id": 7, "title": "x"}, {"title": "x"}]
    for bad in bad_rows:
        body = json.dumps({"type": "tool_result", "id": "ID", "rows": [GOOD, bad]}).replace('"ID"', "ID")
        async with saying(web, person, body) as link:
            said = await call_tool(make_session(link), "list_clients")
        assert said.startswith("1 client:\n- ") and "[c1]" in said, bad
        assert said.endswith("Besides, 1 client could not be read: the device gave no valid rows for them.")


async def test_a_link_reads_on_after_an_odd_result(web: str, person: Person) -> None:
    """The socket stays open: only the call that was answered badly is lost."""
    async with saying(web, person, BROKEN["not a number"]) as link:
        for _ in range(3):
            assert (await link.call(new_call("select", "tasks", filters={}))).code == "malformed"
        assert (await link.target()).epoch == 1
