"""The headless device's life: sign-in, tokens, calls, and how it comes back or does not."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from adiuva.devices.client import (
    IN_MEMORY,
    Applied,
    BadAddress,
    Connected,
    Device,
    DeviceConfig,
    Disconnected,
    FrameReceived,
    NotConnected,
    ServerRefused,
    SignInRefused,
    Superseded,
)
from adiuva.devices.client.account import ServerAddress
from adiuva.devices.client.reconnect import Backoff, ConnectionEnd
from adiuva.devices.protocol import (
    HomeRequest,
    Ping,
    Pong,
    StreamEnd,
    ToolBatchResult,
    ToolResult,
)
from tests.fakes.device_server import EMAIL, PASSWORD, DeviceServer, Line

ROOT = Path(__file__).parents[2]


async def call(line: Line, **fields: Any) -> ToolResult:
    await line.send_text(json.dumps({"type": "tool_call", "id": "call", **fields}))
    return await line.expect(ToolResult)


def in_memory(server: str, *, password: str = PASSWORD, **dependencies: Any) -> Device:
    config = DeviceConfig(server=server, workspace=IN_MEMORY, email=EMAIL, password=password)
    return Device(config, **dependencies)


# ── Hello, pings and calls ──────────────────────────────────────────────────────────────────────────────


async def test_the_hello_says_what_the_device_can(tmp_path: Path) -> None:
    server = DeviceServer()
    async with server, server.device(workspace=tmp_path, name="NAS") as device:
        line = await server.line()
        await device.connected()
        assert (line.hello.protocol, line.hello.name) == (2, "NAS")
        assert line.hello.capabilities == ["dedupe", "batch", "manifest", "offset", "origin"]
        assert line.headers["Authorization"] == "Bearer access-1"
        assert "Origin" not in line.headers
        assert (await server.event(Connected)).session_id == "a session"
        first_id = line.hello.device_id
    async with DeviceServer() as server, server.device(workspace=tmp_path):
        assert (await server.line()).hello.device_id == first_id


async def test_pings_are_answered_and_calls_applied_in_order_and_remembered() -> None:
    server = DeviceServer()
    async with server, server.device():
        line = await server.line()
        await line.send(Ping())
        await line.expect(Pong)
        insert = {"action": "insert", "table": "tasks", "data": {"title": "T"}}
        first = await call(line, **insert)
        assert first.row is not None
        assert (await call(line, **insert)).row == first.row
        assert len((await call(line, id="s", action="select", table="tasks")).rows or []) == 1
        assert (await server.event(Applied)).writes == 1


async def test_a_batch_gets_one_answer_with_an_outcome_each() -> None:
    server = DeviceServer()
    async with server, server.device():
        line = await server.line()
        calls = [
            {"id": "1", "action": "insert", "table": "tasks", "data": {"title": "A"}},
            {"id": "2", "action": "insert", "table": "nonsense", "data": {}},
            {"id": "3", "action": "get", "table": "tasks", "data": {"id": "none"}},
            {"action": "nameless"},
            "nonsense",
        ]
        await line.send_text(json.dumps({"type": "tool_batch", "calls": calls}))
        results = (await line.expect(ToolBatchResult)).results
        assert [result.id for result in results] == ["1", "2", "3"]
        assert (results[0].row or {})["title"] == "A"
        assert results[1].error == "there is no such table"
        assert json.loads(line.texts[-1])["results"][2] == {"id": "3", "row": None}


async def test_frames_of_no_sense_cost_nothing() -> None:
    server = DeviceServer()
    async with server, server.device():
        line = await server.line()
        for text in (
            "",
            "[]",
            "{",
            '{"type":"from_the_future"}',
            '{"type":"agent_run"}',
            '{"type":"tool_batch"}',
        ):
            await line.send_text(text)
        await line.send_text(
            json.dumps({"type": "tool_call", "id": "x", "action": 7, "data": [[]], "table": {}})
        )
        assert (await line.expect(ToolResult)).error


async def test_results_larger_than_a_frame_are_split_or_refused() -> None:
    server = DeviceServer()
    async with server, server.device():
        line = await server.line()
        for number in range(3):
            note = {"title": "t", "content": "x" * 400_000}
            await call(line, id=f"n{number}", action="insert", table="notes", data=note)
        assert "too large" in ((await call(line, id="s", action="select", table="notes")).error or "")
        one = {"action": "select", "table": "notes", "limit": 1}
        await line.send_text(
            json.dumps({"type": "tool_batch", "calls": [{"id": f"{n}", **one} for n in range(3)]})
        )
        answers = [(await line.expect(ToolBatchResult)).results for _ in range(2)]
        assert [[result.id for result in results] for results in answers] == [["0", "1"], ["2"]]


async def test_a_device_can_chat_and_sees_what_comes_back() -> None:
    server = DeviceServer()
    async with server, server.device() as device:
        line = await server.line()
        await device.connected()
        await device.send(HomeRequest(message="Hello", request_id="r"))
        assert (await line.expect(HomeRequest)).message == "Hello"
        await line.send(StreamEnd(request_id="r"))
        while not isinstance((received := await server.event(FrameReceived)).frame, StreamEnd):
            pass
        assert received.frame.request_id == "r"
    with pytest.raises(NotConnected):
        await device.send(HomeRequest(message="Hello"))


async def test_protocol_1_says_and_answers_only_what_old_builds_did() -> None:
    server = DeviceServer()
    async with server, server.device(protocol=1) as device:
        line = await server.line()
        await device.connected()
        assert json.loads(line.texts[0]) == {
            "type": "device_hello",
            "device_id": device.device_id,
            "agent_ids": [],
        }
        result = await call(line, action="insert", table="tasks", data={"title": "T"})
        assert (result.row or {})["title"] == "T"


# ── Sign-in and tokens ──────────────────────────────────────────────────────────────────────────────────


async def test_a_wrong_password_ends_the_device_with_a_clear_line() -> None:
    async with DeviceServer() as server:
        with pytest.raises(SignInRefused, match="does not accept this e-mail and password"):
            await in_memory(server.base, password="wrong").run()
        assert server.logins == 1


def test_a_device_without_credentials_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(SignInRefused, match="no password and no session"):
        Device(DeviceConfig(server="https://example.com", workspace=tmp_path, email=EMAIL))


async def test_the_session_is_kept_for_its_owner_alone_and_spares_the_password(tmp_path: Path) -> None:
    file = tmp_path / "session.json"
    async with DeviceServer() as server:
        async with server.device(workspace=tmp_path):
            await server.line()
        assert json.loads(file.read_bytes())["refresh_token"] == "refresh-1"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        async with server.device(workspace=tmp_path, password=None):
            line = await server.line()
        assert line.headers["Authorization"] == "Bearer access-2"
        assert json.loads(file.read_bytes())["refresh_token"] == "refresh-2"
        assert (server.logins, server.refreshes) == (1, 1)
        assert PASSWORD not in file.read_text()
        assert sorted(path.name for path in tmp_path.glob("*session*")) == ["session.json"]


@pytest.mark.parametrize("kept", [b"", b"{", b'{"server": 1}', b"[]"])
async def test_a_torn_session_file_is_as_good_as_none(tmp_path: Path, kept: bytes) -> None:
    (tmp_path / "session.json").write_bytes(kept)
    async with DeviceServer() as server, server.device(workspace=tmp_path):
        await server.line()
        assert server.logins == 1


async def test_a_session_for_another_server_is_not_shown_to_this_one(tmp_path: Path) -> None:
    kept = {"server": "https://other.example.com", "email": EMAIL, "refresh_token": "for the other"}
    (tmp_path / "session.json").write_text(json.dumps(kept))
    async with DeviceServer() as server, server.device(workspace=tmp_path):
        await server.line()
        assert (server.logins, server.refreshes) == (1, 0)


async def test_when_the_session_is_gone_it_signs_in_again(tmp_path: Path) -> None:
    async with DeviceServer() as server:
        async with server.device(workspace=tmp_path):
            await server.line()
        server.refresh_token = "revoked"
        async with server.device(workspace=tmp_path):
            await server.line()
        assert (server.logins, server.refreshes) == (2, 1)
        server.refresh_token = "revoked"
        with pytest.raises(SignInRefused, match="session has ended"):
            await server.device(workspace=tmp_path, password=None).run()


async def test_a_refused_access_token_is_refreshed_and_an_old_one_not_even_tried() -> None:
    async with DeviceServer() as server:
        server.refuses = {"access-1"}
        async with server.device():
            assert (await server.line()).headers["Authorization"] == "Bearer access-2"
        assert (await server.event(Disconnected)).code == 4401
    async with DeviceServer(token_life_s=10) as server, server.device():
        await (await server.line()).close(1012)
        await server.line()
        assert (server.logins, server.refreshes) == (1, 1)


@pytest.mark.parametrize(
    "server",
    [
        "http://example.com",
        "http://192.168.1.7:8000",
        "http://127.0.0.1.example.com",
        "http://localhost.evil.com",
    ],
)
def test_no_password_is_sent_in_the_clear_except_to_this_machine(server: str) -> None:
    with pytest.raises(BadAddress, match="https://"):
        in_memory(server)


@pytest.mark.parametrize(
    "server",
    ["", "example.com", "ftp://example.com", "https://", "https://a:b@example.com", "https://x:port"],
)
def test_an_address_that_is_none_is_refused(server: str) -> None:
    with pytest.raises(BadAddress):
        ServerAddress.parse(server)


def test_an_address_gives_the_places_of_rest_and_socket() -> None:
    for given in ("http://localhost:8000/", "http://127.0.0.1:8000", "http://[::1]:8000"):
        assert (
            ServerAddress.parse(given).socket == given.rstrip("/").replace("http", "ws") + "/api/v1/ws/device"
        )
    assert (
        ServerAddress.parse("https://example.com/adiuva").rest("health")
        == "https://example.com/adiuva/api/v1/health"
    )


# ── Coming back ─────────────────────────────────────────────────────────────────────────────────────────


def test_waits_double_up_to_a_bound_with_full_jitter() -> None:
    most = Backoff(chance=lambda: 1.0)
    assert [most.after(ConnectionEnd("lost")) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    least = Backoff(chance=lambda: 0.0)
    assert [least.after(ConnectionEnd("lost")) for _ in range(3)] == [0, 0, 0]


def test_waits_begin_anew_after_a_stable_minute() -> None:
    backoff = Backoff(chance=lambda: 1.0)
    for _ in range(5):
        backoff.after(ConnectionEnd("lost", lasted_s=59.9))
    assert backoff.after(ConnectionEnd("lost", lasted_s=60.0)) == 1
    assert backoff.after(ConnectionEnd("lost")) == 2


def test_a_restarting_server_is_met_at_once_and_one_that_is_asked_too_much_late() -> None:
    backoff = Backoff(chance=lambda: 0.5)
    assert backoff.after(ConnectionEnd("restart", code=1012)) == 1.0
    assert backoff.after(ConnectionEnd("too many", code=4429)) == 90.0
    assert backoff.after(ConnectionEnd("busy", retry_after_s=7.0)) == 7.5


@pytest.mark.parametrize("code", [1000, 1011, 1012, 4408, 4413, 4429])
async def test_after_most_ends_it_comes_back(code: int) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    async with DeviceServer() as server, server.device(sleep=sleep):
        await (await server.line()).close(code)
        await server.line()
        ended = await server.event(Disconnected)
        assert ended.code == code
        assert waited == [ended.retry_in]


@pytest.mark.parametrize(("code", "error"), [(4409, Superseded), (4403, ServerRefused)])
async def test_after_some_ends_it_does_not(code: int, error: type[Exception]) -> None:
    async with DeviceServer() as server:
        running = asyncio.create_task(server.device().run())
        await (await server.line()).close(code)
        with pytest.raises(error):
            await running


class Late(DeviceServer):
    """Its first connection is cut before the hello is answered."""

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        if next(self._sockets):
            return await super()._socket(request)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.receive()
        assert request.transport is not None
        request.transport.abort()
        return socket

    _sockets = itertools.count()


async def test_being_replaced_by_its_own_older_connection_does_not_end_it_and_by_another_does() -> None:
    async with Late() as server:
        running = asyncio.create_task(server.device().run())
        line = await server.line()
        assert (await server.event(Disconnected)).code in (None, 1006)
        await line.close(4409)  # the server has read the hello of the one that was cut
        line = await server.line()
        assert (await server.event(Disconnected)).code == 4409
        await line.close(4409)
        with pytest.raises(Superseded):
            await running


async def test_a_server_that_is_away_is_tried_again() -> None:
    async with DeviceServer() as server:
        base = server.base
    tries = asyncio.Event()
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 4:
            tries.set()
            await asyncio.Event().wait()

    async with in_memory(base, sleep=sleep) as device:
        await asyncio.wait_for(tries.wait(), 60)
        with pytest.raises(NotConnected):
            await device.send(Pong())


async def test_a_server_that_falls_silent_is_left() -> None:
    async with DeviceServer(ping_s=0.02) as server, server.device():
        line = await server.line()
        assert (await server.event(Disconnected)).reason == "the server fell silent"
        await line.closed.wait()
        await server.line()


async def test_stopping_closes_the_socket_properly() -> None:
    async with DeviceServer() as server:
        async with server.device() as device:
            line = await server.line()
            device.stop()
        await asyncio.wait_for(line.closed.wait(), 60)
        assert line.socket.close_code == 1000


async def test_a_write_whose_answer_was_lost_is_answered_from_memory(tmp_path: Path) -> None:
    async with DeviceServer() as server, server.device(workspace=tmp_path) as device:
        line = await server.line()
        insert = {
            "type": "tool_call",
            "id": "once",
            "action": "insert",
            "table": "tasks",
            "data": {"title": "T"},
        }
        await line.send_text(json.dumps(insert))
        await line.close(1012)
        line = await server.line()
        first = await call(line, **insert)
        assert (first.row or {})["title"] == "T"
        rows = (await call(line, id="s", action="select", table="tasks")).rows
        assert rows == [first.row]
        assert device.device_id == line.hello.device_id


def test_the_device_needs_nothing_of_django() -> None:
    check = (
        "import sys; sys.argv = ['manage.py', 'device', '--help']; import runpy\n"
        "try: runpy.run_path('manage.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "sys.exit(', '.join({'django', 'numpy'} & set(sys.modules)) or 0)"
    )
    found = subprocess.run(
        [sys.executable, "-c", check], cwd=ROOT, timeout=180, check=False, capture_output=True, text=True
    )
    assert (found.returncode, found.stderr) == (0, "") and "--workspace" in found.stdout


# ── The command ─────────────────────────────────────────────────────────────────────────────────────────


async def command(
    server: DeviceServer, *arguments: str, password: str = PASSWORD
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "manage.py",
        "device",
        "--server",
        server.base,
        "--email",
        EMAIL,
        *arguments,
        cwd=ROOT,
        # Nothing listens at the database's address: the command does not need it.
        env={
            **os.environ,
            "ADIUVA_DEVICE_PASSWORD": password,
            "DATABASE_URL": "postgresql://x@127.0.0.1:9/x",
        },
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def test_the_command_connects_tells_and_ends_with_a_signal(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    seed = tmp_path / "seed.json"
    seed.write_text('{"clients": [{"name": "Client"}]}')
    async with DeviceServer() as server:
        arguments = [
            "--workspace",
            str(tmp_path / "space"),
            "--grant",
            str(tmp_path / "docs"),
            "--seed",
            str(seed),
            "--console",
        ]
        process = await command(server, *arguments)
        try:
            async with asyncio.timeout(60):
                line = await server.line_from(process)
                assert process.stdin is not None and process.stdout is not None
                process.stdin.write(b"search client\nlist\n")
                typed = await process.stdout.readuntil(b"No suggestions wait for you.")
                assert b"1. clients: Client" in typed
                rows = (await call(line, action="select", table="clients")).rows or []
                assert [row["name"] for row in rows] == ["Client"]
                process.send_signal(signal.SIGTERM)
                output = (await process.communicate())[0].decode()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert process.returncode == 0
    output = typed.decode() + output
    assert "Put 1 rows into the new workspace." in output
    assert "Connected (protocol 2)." in output
    assert output.strip().endswith("Stopped.")
    assert EMAIL not in output
    assert "access-1" not in output


async def test_the_command_says_in_a_line_that_the_password_is_wrong(tmp_path: Path) -> None:
    async with DeviceServer() as server:
        process = await command(server, "--workspace", str(tmp_path), password="wrong")
        async with asyncio.timeout(60):
            output = (await process.communicate())[0].decode()
    assert process.returncode == 1
    assert output.strip().splitlines()[-1] == "The server does not accept this e-mail and password."
    assert "Traceback" not in output
