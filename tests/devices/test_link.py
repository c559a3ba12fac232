"""Calls to a device, from a worker through Redis to a real web process, and in the socket's own process."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from uuid import uuid4

import pytest
from channels.layers import get_channel_layer
from django.conf import settings

from adiuva.core import db
from adiuva.devices import presence
from adiuva.devices.calls import new_call
from adiuva.devices.codec import MAX_FRAME_BYTES
from adiuva.devices.link import DeviceLink, DeviceOffline, OutcomeUnknown
from adiuva.devices.presence import Target
from adiuva.devices.protocol import MAX_BATCH, ToolCall, ToolResultBody
from tests.devices.link_endpoints import Frame, Local, Open, Remote, answering, result
from tests.factories import Person, somebody
from tests.server_processes import Stack

# Long enough for a reconnect on a busy machine; no test waits for it.
BACK_S = 20.0


@pytest.fixture(params=["through Redis", "in process"])
def connect(request: pytest.FixtureRequest, committed_db: str) -> Open:
    """Opens a socket for a person's device."""
    if request.param == "in process":
        return lambda person: Local("http://local", person.access_token)
    web = request.getfixturevalue("web")
    return lambda person: Remote(web, person.access_token)


@pytest.fixture
def through_redis(web: str) -> Open:
    return lambda person: Remote(web, person.access_token)


def inserts(count: int, **data: Any) -> list[ToolCall]:
    return [
        ToolCall(id=uuid4().hex, action="insert", table="tasks", data={"title": str(number), **data})
        for number in range(count)
    ]


async def test_a_call_brings_the_devices_row(connect: Open, person: Person) -> None:
    async with connect(person) as socket, answering(socket) as seen, DeviceLink(person.id) as link:
        found = await link.call(new_call("get", "tasks", data={"id": "7"}))
        assert found.row == {"id": seen[0]["id"]}
        assert (seen[0]["action"], seen[0]["table"], seen[0]["data"]) == ("get", "tasks", {"id": "7"})
        assert (seen[0]["attempt"], seen[0]["deadline_ms"]) == (1, 30_000)


async def test_the_devices_own_error_is_a_result(connect: Open, person: Person) -> None:
    def refuse(call: Frame) -> Frame:
        return {"id": call["id"], "error": "no such table"}

    async with connect(person) as socket, answering(socket, answer=refuse), DeviceLink(person.id) as link:
        assert (await link.call(new_call("delete", "tasks", data={"id": "7"}))).error == "no such table"


async def test_without_a_device_nothing_is_sent(committed_db: str, person: Person) -> None:
    async with DeviceLink(person.id) as link:
        with pytest.raises(DeviceOffline):
            await link.call(new_call("insert", "tasks", data={"title": "x"}))
        with pytest.raises(DeviceOffline):
            await link.send_calls(inserts(3))


async def test_a_call_may_wait_for_the_device(connect: Open, person: Person) -> None:
    async with DeviceLink(person.id, wait_s=BACK_S) as link:
        calling = asyncio.create_task(link.call(new_call("select", "tasks")))
        async with connect(person) as socket, answering(socket):
            assert (await calling).row is not None


async def test_a_silent_device_leaves_the_outcome_unknown_and_a_late_answer_hurts_nobody(
    connect: Open, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect(person) as socket:
        await socket.hello()
        with monkeypatch.context() as patch:
            patch.setitem(settings.SOCKET, "tool_answer_timeout_s", 0.2)
            async with DeviceLink(person.id) as link:
                calling = asyncio.create_task(link.call(new_call("insert", "tasks", data={"title": "x"})))
                late = await socket.receive("tool_call")
                with pytest.raises(OutcomeUnknown):
                    await calling
        async with DeviceLink(person.id) as link:
            await socket.send({"type": "tool_result", **result(late)})
            calling = asyncio.create_task(link.call(new_call("get", "tasks", data={"id": "1"})))
            await socket.send({"type": "tool_result", **result(await socket.receive("tool_call"))})
            assert (await calling).row is not None
        assert await socket.is_alive()


async def test_a_device_that_dedupes_gets_the_same_call_again_when_it_is_back(
    connect: Open, person: Person
) -> None:
    async with DeviceLink(person.id, wait_s=BACK_S) as link:
        async with connect(person) as socket:
            await socket.hello(device_id="laptop")
            calling = asyncio.create_task(link.call(new_call("insert", "tasks", data={"title": "x"})))
            first = await socket.receive("tool_call")
            await socket.drop()
        async with connect(person) as socket, answering(socket, device_id="laptop") as seen:
            assert (await calling).row == {"id": first["id"], "title": "x"}
    assert [(call["id"], call["attempt"]) for call in seen] == [(first["id"], 2)]


@pytest.mark.parametrize("capabilities", [["dedupe"], ["dedupe", "batch"]])
async def test_a_repeat_that_a_device_cannot_save_says_nothing_of_the_first(
    connect: Open, person: Person, capabilities: list[str]
) -> None:
    """Its file was locked, so it could not even look whether it has the call."""

    def locked(call: Frame) -> Frame:
        return {"id": call["id"], "error": "database is locked", "code": "not_saved"}

    hello = {"device_id": "laptop", "capabilities": capabilities}
    async with DeviceLink(person.id, wait_s=BACK_S) as link:
        async with connect(person) as socket:
            await socket.hello(**hello)
            calling = asyncio.create_task(link.send_calls(inserts(2)))
            for kind in ["tool_batch"] if "batch" in capabilities else ["tool_call"] * 2:
                await socket.receive(kind)
            await socket.drop()
        async with connect(person) as socket, answering(socket, answer=locked, **hello):
            outcomes = await calling
            (once,) = await link.send_calls(inserts(1))
    assert [type(outcome) for outcome in outcomes] == [OutcomeUnknown] * 2
    assert isinstance(once, ToolResultBody) and once.code == "not_saved"


async def test_no_call_comes_before_the_hello_is_acknowledged(
    person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_connection = presence.open_connection

    def found_before_it_is_acknowledged(**given: Any) -> Any:
        opened = open_connection(**given)
        time.sleep(0.5)  # of a thread; meanwhile others find the device and call it
        return opened

    monkeypatch.setattr(presence, "open_connection", found_before_it_is_acknowledged)
    async with DeviceLink(person.id, wait_s=BACK_S) as link, Local("", person.access_token) as socket:
        hello = {"type": "device_hello", "device_id": "laptop", "agent_ids": [], "protocol": 2}
        await socket.send(hello | {"capabilities": ["dedupe", "batch", "manifest"]})
        calling = asyncio.create_task(link.call(new_call("select", "tasks")))
        assert (await socket.receive())["type"] == "hello_ack"
        await socket.send({"type": "tool_result", **result(await socket.receive())})
        assert (await calling).row is not None


async def test_a_write_is_never_sent_twice_to_a_device_that_does_not_dedupe(
    connect: Open, person: Person
) -> None:
    async with DeviceLink(person.id, wait_s=BACK_S) as link:
        async with connect(person) as socket:
            await socket.hello(device_id="laptop", capabilities=[])
            writing = asyncio.create_task(link.call(new_call("insert", "tasks", data={"title": "x"})))
            await socket.receive("tool_call")
            reading = asyncio.create_task(link.call(new_call("select", "tasks")))
            read = await socket.receive("tool_call")
            await socket.drop()
        # Not even when it has learned to dedupe meanwhile: it did not keep the first one's result.
        async with connect(person) as socket, answering(socket, device_id="laptop") as seen:
            with pytest.raises(OutcomeUnknown):
                await writing
            assert (await reading).row is not None
    assert [(call["id"], call["action"]) for call in seen] == [(read["id"], "select")]


async def test_a_repeat_goes_to_the_same_device_only(connect: Open, person: Person) -> None:
    async with DeviceLink(person.id) as link, connect(person) as socket, connect(person) as other:
        await other.hello()
        await socket.hello(device_id="laptop")
        link.device = (await db.run(presence.find, user_id=person.id)).pk  # type: ignore[union-attr]
        calling = asyncio.create_task(link.call(new_call("insert", "tasks", data={"title": "x"})))
        await socket.receive("tool_call")
        await socket.drop()
        with pytest.raises(OutcomeUnknown):
            await calling
        assert await other.is_alive()  # and has got nothing, or this would have met it


async def test_batches_are_applied_in_order_in_frames_that_fit(connect: Open, person: Person) -> None:
    calls = inserts(200, description="x" * 20_000)
    async with connect(person) as socket, answering(socket) as seen, DeviceLink(person.id) as link:
        outcomes = await link.send_calls(calls)
    assert [outcome.id for outcome in outcomes if isinstance(outcome, ToolResultBody)] == [
        call.id for call in calls
    ]
    assert {frame["type"] for frame in seen} == {"tool_batch"}
    assert [call["id"] for frame in seen for call in frame["calls"]] == [call.id for call in calls]
    assert max(len(frame["calls"]) for frame in seen) <= MAX_BATCH
    assert max(len(str(frame)) for frame in seen) < MAX_FRAME_BYTES


async def test_a_protocol_1_device_gets_calls_one_by_one_and_nothing_newer(
    connect: Open, person: Person
) -> None:
    calls = inserts(200)
    async with (
        DeviceLink(person.id, wait_s=BACK_S) as link,
        connect(person) as socket,
        answering(socket, 1, capabilities=["batch"]) as seen,
    ):
        outcomes = await link.send_calls(calls)
    assert all(isinstance(outcome, ToolResultBody) for outcome in outcomes)
    assert [frame.get("id") for frame in seen] == [call.id for call in calls]
    assert all(not {"attempt", "deadline_ms"} & frame.keys() for frame in seen)


async def test_the_results_of_a_batch_may_come_in_pieces_and_in_any_order(
    connect: Open, person: Person
) -> None:
    calls = inserts(4)
    async with connect(person) as socket, DeviceLink(person.id) as link:
        await socket.hello()
        sending = asyncio.create_task(link.send_calls(calls))
        batch = (await socket.receive("tool_batch"))["calls"]
        for part in (batch[3:], batch[1:3]):
            await socket.send(
                {"type": "tool_batch_result", "results": [result(call) for call in reversed(part)]}
            )
        await socket.send({"type": "tool_result", **result(batch[0])})
        outcomes = await sending
    assert [outcome.row for outcome in outcomes if isinstance(outcome, ToolResultBody)] == [
        result(call)["row"] for call in batch
    ]


async def test_what_a_batch_still_lacks_is_sent_as_the_device_takes_it_when_it_is_back(
    connect: Open, person: Person
) -> None:
    calls = inserts(3)
    async with DeviceLink(person.id, wait_s=BACK_S) as link:
        async with connect(person) as socket:
            await socket.hello(device_id="laptop")
            sending = asyncio.create_task(link.send_calls(calls))
            batch = (await socket.receive("tool_batch"))["calls"]
            await socket.send({"type": "tool_batch_result", "results": [result(batch[0])]})
            assert await socket.is_alive()  # it has read the result
            await socket.drop()
        back = {"device_id": "laptop", "capabilities": ["dedupe"]}
        async with connect(person) as socket, answering(socket, **back) as seen:
            outcomes = await sending
    assert all(isinstance(outcome, ToolResultBody) for outcome in outcomes)
    assert [(frame["type"], frame["id"], frame["attempt"]) for frame in seen] == [
        ("tool_call", call.id, 2) for call in calls[1:]
    ]


async def test_a_connection_that_ends_while_it_is_asked_about_is_not_there(
    connect: Open, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, find = asyncio.get_running_loop(), presence.find

    def lost_meanwhile(**of: Any) -> Target | None:
        found = find(**of)
        assert found is not None
        loop.call_soon_threadsafe(link.lost, found.epoch)
        return found

    async with connect(person) as socket, DeviceLink(person.id) as link:
        await socket.hello()
        await link.target()
        assert await link.is_current()
        monkeypatch.setattr(presence, "find", lost_meanwhile)
        assert not await link.is_current()


async def test_batches_to_a_device_that_dedupes_do_not_wait_for_each_other(
    connect: Open, person: Person
) -> None:
    calls = inserts(2 * MAX_BATCH)
    async with connect(person) as socket, DeviceLink(person.id) as link:
        await socket.hello(capabilities=["batch", "dedupe"])
        sending = asyncio.create_task(link.send_calls(calls))
        batches = [(await socket.receive("tool_batch"))["calls"] for _ in range(2)]
        assert [call["id"] for batch in batches for call in batch] == [call.id for call in calls]
        for batch in batches:
            await socket.send({"type": "tool_batch_result", "results": [result(call) for call in batch]})
        outcomes = await sending
    assert [outcome.id for outcome in outcomes if isinstance(outcome, ToolResultBody)] == [
        call.id for call in calls
    ]


async def test_when_the_device_goes_the_batches_behind_are_not_sent(connect: Open, person: Person) -> None:
    calls = inserts(2 * MAX_BATCH)
    async with connect(person) as socket, DeviceLink(person.id) as link:
        await socket.hello(capabilities=["batch"])
        sending = asyncio.create_task(link.send_calls(calls))
        await socket.receive("tool_batch")
        await socket.drop()
        outcomes = await sending
    assert [type(outcome) for outcome in outcomes] == [OutcomeUnknown] * MAX_BATCH + [
        DeviceOffline
    ] * MAX_BATCH


async def test_calls_of_many_links_at_once_do_not_mix(connect: Open, person: Person) -> None:
    async def one(number: int) -> bool:
        async with DeviceLink(person.id) as link:
            found = await asyncio.gather(
                *(link.call(new_call("insert", "notes", data={"title": f"{number}.{n}"})) for n in range(3))
            )
        return [row["title"] for each in found if (row := each.row)] == [f"{number}.{n}" for n in range(3)]

    async with connect(person) as socket, answering(socket):
        assert all(await asyncio.gather(*(one(number) for number in range(100))))


async def test_each_of_a_users_devices_is_reached_by_its_id(connect: Open, person: Person) -> None:
    async with (
        connect(person) as socket,
        connect(person) as other,
        answering(socket, device_id="laptop") as laptop,
        answering(other, device_id="server") as server,
    ):
        for device_id, seen in (("laptop", laptop), ("server", server)):
            target = await db.run(_find, person, device_id)
            async with DeviceLink(person.id, target.pk) as link:
                await link.call(new_call("select", "tasks"))
            assert len(seen) == 1


def _find(person: Person, device_id: str) -> presence.Target:
    from adiuva.devices.models import Device

    device = Device.objects.get(user_id=person.id, device_id=device_id)
    found = presence.find(user_id=person.id, pk=device.pk)
    assert found is not None
    return found


async def test_another_users_device_is_never_found(connect: Open, person: Person) -> None:
    other = await db.run(somebody)
    async with connect(person) as socket, answering(socket, device_id="laptop") as seen:
        target = await db.run(_find, person, "laptop")
        for link in (DeviceLink(other.id, target.pk), DeviceLink(other.id)):
            with pytest.raises(DeviceOffline):
                await link.call(new_call("select", "tasks"))
        assert seen == []


async def test_what_a_cancelled_caller_asked_disturbs_no_other(connect: Open, person: Person) -> None:
    async with connect(person) as socket, DeviceLink(person.id) as link:
        await socket.hello()
        calling = asyncio.create_task(link.call(new_call("select", "tasks")))
        asked = await socket.receive("tool_call")
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)
        again = asyncio.create_task(link.call(new_call("select", "tasks")))
        await socket.send({"type": "tool_result", **result(asked)})
        await socket.send({"type": "tool_result", **result(await socket.receive("tool_call"))})
        assert (await again).id != asked["id"]


async def test_whoever_waits_on_a_link_that_closes_is_told_that_the_outcome_is_unknown(
    connect: Open, person: Person
) -> None:
    async with connect(person) as socket:
        await socket.hello()
        async with DeviceLink(person.id) as link:
            calling = asyncio.create_task(link.call(new_call("insert", "tasks", data={"title": "x"})))
            await socket.receive("tool_call")
        with pytest.raises(OutcomeUnknown):
            await calling


async def test_nobody_listens_for_ended_sockets_and_links(through_redis: Open, person: Person) -> None:
    layer = get_channel_layer()
    async with through_redis(person) as socket, answering(socket), DeviceLink(person.id) as link:
        await link.call(new_call("select", "tasks"))
        channels = [(await link.target()).channel, await link._inbox.open()]
        assert [await layer.send(channel, {"type": "nothing"}) for channel in channels] == [1, 1]
    for channel in channels:
        while await layer.send(channel, {"type": "nothing"}):  # the socket's end is heard of in its own time
            pass


async def test_a_call_to_a_socket_that_has_ended_goes_to_the_devices_next_one(
    through_redis: Open, person: Person
) -> None:
    """The process is there, so Redis has passed the call on; the process gives it back."""
    async with (
        through_redis(person) as socket,
        answering(socket, device_id="laptop"),
        DeviceLink(person.id) as link,
    ):
        ended = await link.target()
    async with (
        through_redis(person) as socket,
        answering(socket, device_id="laptop") as seen,
        DeviceLink(person.id, ended.pk) as link,
    ):
        for write in inserts(4):
            link.current_target = ended
            outcome = (await link.send_calls([write]))[0]
            assert isinstance(outcome, ToolResultBody) and outcome.row
        link.current_target = ended
        assert (await link.call(new_call("get", "tasks", data={"id": "1"}))).row
    assert len(seen) == 5


async def test_a_killed_servers_device_is_offline_at_once_for_calls_and_comes_back_elsewhere(
    stack: Stack, web: str, person: Person
) -> None:
    from django.utils import timezone

    from adiuva.devices.models import Device, Process

    doomed = stack.web(ADIUVA_PING_S="29")
    async with DeviceLink(person.id) as link:
        async with Remote(doomed, person.access_token) as socket:
            await socket.hello(device_id="laptop")
            calling = asyncio.create_task(link.call(new_call("select", "tasks")))
            await socket.send({"type": "tool_result", **result(await socket.receive("tool_call"))})
            await calling
            stack.kill(doomed)
            # Its lease still runs; but nobody listens there any more, so nothing is sent, and nobody waits.
            with pytest.raises(DeviceOffline):
                await link.call(new_call("insert", "tasks", data={"title": "x"}))
        device = await db.run(Device.objects.get, user_id=person.id)
        process = Process.objects.filter(pk=device.process_id)
        assert await db.run(process.update, lease_until=timezone.now()) == 1
        (shown,) = await db.run(_listed, person, web)
        assert not shown["online"]
        async with Remote(web, person.access_token) as socket, answering(socket, device_id="laptop"):
            assert (await link.call(new_call("insert", "tasks", data={"title": "x"}))).row is not None
            (shown,) = await db.run(_listed, person, web)
            assert shown["online"]


def _listed(person: Person, web: str) -> list[dict[str, Any]]:
    with person.rest(web) as rest:
        found: list[dict[str, Any]] = rest.get("/devices").json()
    return found
