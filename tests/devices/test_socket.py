"""The device socket over a real connection, behind both servers."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import uuid4

import httpx
import pytest

from adiuva.accounts import services, session_check
from adiuva.core import db
from adiuva.devices.codec import MAX_FRAME_BYTES
from adiuva.devices.models import Device
from chat.consumer import ClientConsumer
from tests.factories import Person, somebody
from tests.fakes.provider import Provider
from tests.sampling import ONE_SERVER
from tests.socket_client import Socket

both_servers = pytest.mark.parametrize("web_on", ["uvicorn", "daphne"], indirect=True)


async def rest(person: Person, base: str, method: str, path: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {person.access_token}"}
    async with httpx.AsyncClient(base_url=f"{base}/api/v1", headers=headers) as client:
        return await client.request(method, path)


@both_servers
async def test_a_device_says_hello_and_is_listed_as_online(web_on: str, person: Person) -> None:
    async with Socket(web_on, person.access_token) as socket:
        ack = await socket.hello(device_id="laptop", name="Laptop", platform="linux")
        assert ack["protocol"] == 2
        assert ack["max_frame_bytes"] == MAX_FRAME_BYTES
        (device,) = (await rest(person, web_on, "GET", "/devices")).json()
        assert (device["device_id"], device["name"], device["online"]) == ("laptop", "Laptop", True)


async def test_an_unknown_zone_is_said_and_the_rest_of_the_hello_counts(web: str, person: Person) -> None:
    async with Socket(web, person.access_token) as socket:
        await socket.hello(device_id="laptop", name="Laptop", timezone="Europe/Nowhere")
        assert (await socket.receive("error"))["code"] == "unknown_timezone"
        (device,) = (await rest(person, web, "GET", "/devices")).json()
        assert (device["name"], device["timezone"], device["online"]) == ("Laptop", "", True)
    async with Socket(web, person.access_token) as socket:
        await socket.hello(device_id="laptop", timezone="Europe/Rome")
        assert (await rest(person, web, "GET", "/devices")).json()[0]["timezone"] == "Europe/Rome"


@both_servers
@pytest.mark.parametrize("token", [None, "nonsense", "a.b.c"])
async def test_without_a_valid_token_the_socket_closes_with_4401(web_on: str, token: str | None) -> None:
    async with Socket(web_on, token) as socket:
        assert await socket.code() == 4401


@both_servers
async def test_old_builds_may_bring_their_token_in_the_query(
    web_on: str, person: Person, provider: Provider
) -> None:
    async with Socket(web_on, query=f"?token={person.access_token}") as socket:
        await socket.hello(protocol=1)
        await socket.send({"type": "nobody_knows_this", "id": "x"})
        await socket.send({"type": "home_request", "message": "hello", "request_id": "r1"})
        frames = [await socket.receive() for _ in range(3)]
    assert [frame["type"] for frame in frames] == ["stream_start", "stream_text", "stream_end"]
    assert all(not {"seq", "conversation_id", "finish", "usage"} & frame.keys() for frame in frames)


@both_servers
async def test_a_ticket_opens_one_socket(web_on: str, person: Person) -> None:
    ticket = (await rest(person, web_on, "POST", "/auth/ws-ticket")).json()["ticket"]
    async with Socket(web_on, query=f"?ticket={ticket}") as socket:
        await socket.hello()
    async with Socket(web_on, query=f"?ticket={ticket}") as socket:
        assert await socket.code() == 4401


@both_servers
async def test_a_foreign_origin_is_refused(web_on: str, person: Person) -> None:
    async with Socket(web_on, person.access_token, origin="https://evil.example") as socket:
        assert await socket.code() == 4403


@both_servers
async def test_the_newer_connection_of_a_device_wins(web_on: str, person: Person) -> None:
    async with Socket(web_on, person.access_token) as old:
        await old.hello(device_id="laptop")
        async with Socket(web_on, person.access_token) as new:
            await new.hello(device_id="laptop")
            assert await old.code() == 4409
            assert await new.is_alive()
            (device,) = (await rest(person, web_on, "GET", "/devices")).json()
            assert device["online"]  # the late farewell of the old one changed nothing


async def test_a_hello_that_is_read_after_its_client_has_gone_sends_nobody_away_for_good(
    web: str, person: Person
) -> None:
    """As when the database was away: the client has left and is back before its first hello is answered."""

    async def gone(message: dict[str, Any]) -> None:
        if message["type"] == "websocket.send":
            raise OSError

    async with Socket(web, person.access_token) as new:
        await new.hello(device_id="laptop")
        hello = {"type": "device_hello", "device_id": "laptop", "protocol": 2}
        said = asyncio.Queue[dict[str, Any]]()
        for message in (
            {"type": "websocket.connect"},
            {"type": "websocket.receive", "text": json.dumps(hello)},
            {"type": "websocket.disconnect", "code": 1006},
        ):
            said.put_nowait(message)
        headers = [(b"authorization", f"Bearer {person.access_token}".encode())]
        scope = {"type": "websocket", "headers": headers, "query_string": b""}
        await ClientConsumer.as_asgi()(scope, said.get, gone)
        assert await new.code() == 1012
    async with Socket(web, person.access_token) as again:
        await again.hello(device_id="laptop")
        assert await again.is_alive()


@both_servers
async def test_a_revoked_session_closes_its_sockets(web_on: str, person: Person) -> None:
    async with Socket(web_on, person.access_token) as socket:
        await socket.hello()
        assert (await rest(person, web_on, "POST", "/auth/logout")).status_code == 200
        assert await socket.code() == 4401


@both_servers
async def test_a_forgotten_device_is_gone_and_its_socket_closed(web_on: str, person: Person) -> None:
    async with Socket(web_on, person.access_token) as socket:
        await socket.hello(device_id="lost")
        (device,) = (await rest(person, web_on, "GET", "/devices")).json()
        assert (await rest(person, web_on, "DELETE", f"/devices/{device['id']}")).json() == {"ok": True}
        assert await socket.code() == 4401
    assert not await db.run(Device.objects.filter(user_id=person.id).exists)


async def test_a_device_that_was_signed_out_before_is_forgotten(web: str, person: Person) -> None:
    async with Socket(web, person.access_token) as socket:
        await socket.hello(device_id="sold")
        assert (await rest(person, web, "POST", "/auth/logout")).status_code == 200
        assert await socket.code() == 4401
    login = {"email": person.email, "password": person.password}
    signed_in = await db.run(partial(services.login, **login))
    here = replace(person, access_token=signed_in.access_token)
    (device,) = (await rest(here, web, "GET", "/devices")).json()
    answer = await rest(here, web, "DELETE", f"/devices/{device['id']}")
    assert (answer.status_code, answer.json()) == (200, {"ok": True})
    assert (await rest(here, web, "DELETE", f"/devices/{device['id']}")).status_code == 404


async def test_another_users_device_is_not_found(web: str, person: Person) -> None:
    other = await db.run(somebody)
    async with Socket(web, person.access_token) as socket:
        await socket.hello()
        (device,) = (await rest(person, web, "GET", "/devices")).json()
        answers = [
            await rest(other, web, "DELETE", f"/devices/{device['id']}"),
            await rest(other, web, "DELETE", f"/devices/{uuid4()}"),
        ]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].json() == answers[1].json()


@both_servers
@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "bad_json"),
        ("[]", "bad_frame"),
        ("null", "bad_frame"),
        ('{"type": "pong", "x": NaN}', "bad_json"),
        ('{"type": "pong", "x": "\\ud800"}', "bad_json"),
        ('{"type": "pong", "x": 99999999999999999999999}', "number_too_large"),
        ('{"type": "pong", "x": ' + "9" * 5000 + "}", "bad_json"),
        ('{"type": "pong", "x": ' + "[" * 40 + "]" * 40 + "}", "too_deep"),
        ('{"type": "pong", "x": ' + "[" * 100_000 + "]" * 100_000 + "}", "bad_json"),
        ('{"type": "tool_result"}', "bad_frame"),
        ('{"type": "tool_result", "id": 7}', "bad_frame"),
        ('{"type": "never_heard_of"}', "unknown_type"),
        ('{"type": "device_hello", "device_id": "again"}', "hello_twice"),
        ('{"type": "stream_resume", "request_id": "r", "after": -5}', "bad_frame"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
async def test_a_bad_frame_costs_one_error_frame(web_on: str, person: Person, text: str, code: str) -> None:
    async with Socket(web_on, person.access_token) as socket:
        await socket.hello()
        await socket.ws.send(text)
        error = await socket.receive("error")
        assert error["code"] == code
        assert await socket.is_alive()


@both_servers
async def test_twenty_bad_frames_in_a_minute_close_the_socket(web_on: str, person: Person) -> None:
    async with Socket(web_on, person.access_token) as socket:
        await socket.hello()
        for _ in range(25):
            await socket.ws.send("{")
        assert await socket.code() == 4429


@both_servers
async def test_unknown_types_never_close_the_socket(web_on: str, person: Person) -> None:
    async with Socket(web_on, person.access_token) as socket:
        await socket.hello()
        for number in range(60):
            await socket.send({"type": "from_the_future", "id": str(number)})
        assert await socket.is_alive()


@both_servers
async def test_a_frame_over_one_mebibyte_closes_with_4413_and_one_below_does_not(
    web_on: str, person: Person
) -> None:
    async with Socket(web_on, person.access_token) as socket:
        await socket.hello()
        frame = {"type": "pong", "x": ""}
        frame["x"] = "x" * (MAX_FRAME_BYTES - len(json.dumps(frame)))
        await socket.send(frame)
        assert await socket.is_alive()
        frame["x"] += "x"
        await socket.send(frame)
        assert await socket.code() == 4413


@both_servers
async def test_a_frame_before_hello_is_refused_and_hello_still_works(web_on: str, person: Person) -> None:
    async with Socket(web_on, person.access_token) as socket:
        await socket.send({"type": "home_request", "message": "too early"})
        assert (await socket.receive("error"))["code"] == "hello_first"
        assert (await socket.hello())["protocol"] == 2


async def test_a_token_in_the_query_is_in_no_log(web: str, stack: object, person: Person) -> None:
    async with Socket(web, query=f"?token={person.access_token}") as socket:
        await socket.hello(protocol=1)
    async with asyncio.timeout(30):
        logs = ""
        while "device.connected" not in logs:  # which is logged behind the greeting
            await asyncio.sleep(0.05)
            logs = "".join(text for _, text in stack.tails(10_000))  # type: ignore[attr-defined]
    assert person.access_token not in logs


class TestWithShortTimeouts:
    """The timeouts are scaled down, their order is kept: hello 1 s, ping every 2 s, pong within 1 s."""

    @pytest.fixture
    def impatient(self, stack: object, request: pytest.FixtureRequest) -> str:
        return stack.web(  # type: ignore[attr-defined,no-any-return]
            request.param, ADIUVA_PING_S="2", ADIUVA_PONG_S="1", ADIUVA_HELLO_S="1"
        )

    impatient_servers = pytest.mark.parametrize("impatient", ONE_SERVER, indirect=True)

    @impatient_servers
    async def test_no_hello_closes_with_4408(self, impatient: str, person: Person) -> None:
        async with Socket(impatient, person.access_token) as socket:
            assert await socket.code() == 4408

    @impatient_servers
    async def test_no_pong_closes_with_4408(self, impatient: str, person: Person) -> None:
        async with Socket(impatient, person.access_token) as socket:
            await socket.hello()
            assert await socket.code() == 4408

    @impatient_servers
    async def test_an_idle_socket_that_answers_pings_stays(self, impatient: str, person: Person) -> None:
        async with Socket(impatient, person.access_token) as socket:
            await socket.hello()
            for _ in range(3):
                await socket.receive("ping")
                await socket.send({"type": "pong"})
            assert await socket.is_alive()


@pytest.mark.django_db
def test_live_sessions_are_those_that_let_somebody_in() -> None:
    one, other = somebody(), somebody()
    sessions = [services.authenticate(access_token=person.access_token) for person in (one, other)]
    services.logout(session=sessions[0])
    assert set(session_check.live_sessions({session.pk for session in sessions} | {uuid4()})) == {
        sessions[1].pk
    }
