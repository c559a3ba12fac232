"""Tool calls: through the consumer in one process beside a plain FastAPI socket, and from a worker over Redis.

`python -m bench.tool_calls [CALLS]`, so many in each of three rounds over Redis. There, CPU is of the process that
calls, of the web process and of Redis together; what the device uses is not ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import uuid4

import orjson
import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from adiuva.embedded.processes import Child
from bench.harness import BenchServers, Stopwatch, bench_servers, cpu_s, median, record

AT_ONCE = 100
CALLS = 10_000
ALONE = 1_000
ROUNDS = 3
LEAST_RATE = 9_800  # three times the rate with which this began

Call = Callable[[], Awaitable[Any]]


HELLO = {"type": "device_hello", "device_id": "bench", "protocol": 2, "capabilities": ["dedupe"]}


class InProcessDevice:
    """The other end of an ASGI socket, in process: it answers each tool call at once."""

    def __init__(self, app: Any) -> None:
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.inbox.put_nowait({"type": "websocket.connect"})
        self.inbox.put_nowait({"type": "websocket.receive", "text": orjson.dumps(HELLO).decode()})
        scope = {"type": "websocket", "path": "/ws", "headers": [], "query_string": b"", "subprotocols": []}
        self.task = asyncio.create_task(app(scope, self.inbox.get, self.send))
        self.greeted = asyncio.Event()

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] != "websocket.send":
            return
        call = orjson.loads(message["text"])
        if call["type"] == "hello_ack":
            self.greeted.set()
            return
        answer = {"type": "tool_result", "id": call["id"], "row": {"id": "1", "title": "x"}}
        self.inbox.put_nowait({"type": "websocket.receive", "text": orjson.dumps(answer).decode()})

    async def ready(self) -> None:
        """Wait until the hello is acknowledged; raise what ended the application instead."""
        greeted = asyncio.create_task(self.greeted.wait())
        await asyncio.wait({greeted, self.task}, return_when=asyncio.FIRST_COMPLETED)
        if self.task.done():
            self.task.result()

    async def end(self) -> None:
        self.inbox.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await self.task


@contextlib.asynccontextmanager
async def in_process(app: Any, _: Any) -> AsyncIterator[None]:
    """A device without a server in between."""
    device = InProcessDevice(app)
    await device.ready()
    yield
    await device.end()


@contextlib.asynccontextmanager
async def behind_uvicorn(app: Any, protocol: Any) -> AsyncIterator[None]:
    """A device in a process of its own, at a uvicorn in this one."""
    config = uvicorn.Config(
        app,
        port=0,
        ws=protocol,
        ws_per_message_deflate=False,
        ws_ping_interval=None,
        lifespan="off",
        log_config=None,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    command = [sys.executable, "-m", "bench.chat.lean_device", f"ws://127.0.0.1:{port}/ws", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as device:
        assert device.stdout is not None
        assert await asyncio.to_thread(device.stdout.readline) == "ready\n"
        yield
        device.terminate()
    server.should_exit = True
    await serving


Connected = Callable[[Any, Any], contextlib.AbstractAsyncContextManager[None]]
Measure = Callable[[Call], Awaitable[float]]


async def measure_rate(call: Call, calls: int = CALLS) -> float:
    """Calls per second with AT_ONCE concurrent callers."""

    async def caller() -> None:
        for _ in range(calls // AT_ONCE):
            await call()

    with Stopwatch() as watch:
        await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
    return calls / watch.wall


async def measure_cpu(call: Call) -> float:
    """µs of this process for a call, with AT_ONCE concurrent callers."""
    with Stopwatch() as watch:
        await measure_rate(call)
    return watch.cpu / CALLS * 1e6


async def measure_fastapi(connected: Connected, measure: Measure) -> float:
    """The plain implementation: JSON both ways, a future for each call."""
    app = FastAPI()
    waiting: dict[str, asyncio.Future[Any]] = {}
    sockets: asyncio.Queue[WebSocket] = asyncio.Queue()

    @app.websocket("/ws")
    async def ws(socket: WebSocket) -> None:
        await socket.accept()
        await socket.receive_json()
        await socket.send_json({"type": "hello_ack"})
        sockets.put_nowait(socket)
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                answer = await socket.receive_json()
                if (future := waiting.pop(answer["id"], None)) and not future.done():
                    future.set_result(answer)

    async def call() -> Any:
        call_id = uuid4().hex
        future = waiting[call_id] = asyncio.get_running_loop().create_future()
        await socket.send_json(
            {"type": "tool_call", "id": call_id, "action": "get", "table": "tasks", "data": {"id": "1"}}
        )
        return await asyncio.wait_for(future, 30)

    async with connected(app, "websockets-sansio"):
        socket = await sockets.get()
        return await measure(call)


async def measure_ours(connected: Connected, measure: Measure) -> float:
    """The product's consumer and link: typed, checked frames both ways, with all bookkeeping."""
    from adiuva.core.websocket import SocketConsumer
    from adiuva.devices import connections
    from adiuva.devices.calls import new_call
    from adiuva.devices.device_handler import DeviceHandler
    from adiuva.devices.link import DeviceLink
    from adiuva.devices.presence import Target
    from adiuva.uvicorn_websocket import PushingWebSocket

    pk = uuid4()

    class Registered(SocketConsumer):
        """A device's socket that is registered without the database once it says hello."""

        def __init__(self) -> None:
            super().__init__()
            self.device = DeviceHandler(self, lambda **_: None)

        async def connect(self) -> None:
            await self.accept()
            self.device.user_id = self.device.session_id = uuid4()

        def take_text(self, text: str) -> bool:
            return self.device.take_result(text)

        async def receive(self, text: str | None) -> None:
            if self.device.pk is not None:
                await self.device.receive(text)
                return
            self.device.protocol = 2
            connections.current().register(self.device, pk, 1)
            self.device._acknowledged = None
            await self.send_text('{"type":"hello_ack"}')

        async def disconnect(self) -> None:
            self.device.unregister()

    async with connected(Registered.as_asgi(), PushingWebSocket), DeviceLink(uuid4(), pk) as link:
        link.current_target = Target(pk, "bench", 1, "", 2, frozenset({"dedupe", "batch"}))
        return await measure(lambda: link.call(new_call("get", "tasks", data={"id": "1"})))


async def measure_in_process() -> None:
    rates: list[tuple[float, float]] = []
    cpus: list[tuple[float, float]] = []
    for _ in range(ROUNDS):  # by turns, so that both see the same machine
        for found, connected, measure in (
            (rates, in_process, measure_rate),
            (cpus, behind_uvicorn, measure_cpu),
        ):
            found.append((await measure_fastapi(connected, measure), await measure_ours(connected, measure)))
    peer = "FastAPI's socket with futures"
    theirs, ours = zip(*rates, strict=True)
    record("calls a second in one process", ours, beside=theirs, name=peer, ratio_least=1.5)
    theirs, ours = zip(*cpus, strict=True)
    record("CPU of a call behind uvicorn", ours, "µs", beside=theirs, name=peer, ratio_most=0.67)


async def measure_latency(call: Call) -> float:
    """Median seconds of a call when there is no other."""
    seconds = []
    for _ in range(ALONE):
        with Stopwatch() as watch:
            await call()
        seconds.append(watch.wall)
    return median(seconds)


async def measure_bare_socket() -> float:
    """Median seconds of a round trip over a plain socket to the same device, without link, Redis and web process."""
    from websockets.asyncio.server import ServerConnection, serve

    found: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    question = {"type": "tool_call", "id": "1", "action": "get", "table": "tasks", "data": {"id": "1"}}

    async def ask(socket: ServerConnection) -> None:
        await socket.recv()
        await socket.send('{"type":"hello_ack"}')

        async def call() -> None:
            await socket.send(orjson.dumps(question).decode())
            orjson.loads(await socket.recv())

        await call()
        found.set_result(await measure_latency(call))

    async with serve(ask, "127.0.0.1", 0, compression=None, ping_interval=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        command = [sys.executable, "-m", "bench.chat.lean_device", f"ws://127.0.0.1:{port}", "-"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as device:
            seconds = await found
            device.terminate()
    return seconds


async def measure_over_redis(base: str, web: Child, calls: int) -> None:
    from adiuva.accounts import services
    from adiuva.core import db
    from adiuva.devices.calls import new_call
    from adiuva.devices.link import DeviceLink
    from adiuva.devices.models import Device

    signed_in = await db.run(services.register, email=f"{uuid4().hex}@example.com", password="correct horse")
    url = base.replace("http", "ws") + "/api/v1/ws/device"
    command = [sys.executable, "-m", "bench.chat.lean_device", url, signed_in.access_token]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as device:
        assert device.stdout is not None
        assert await asyncio.to_thread(device.stdout.readline) == "ready\n"
        row = await db.run(Device.objects.select_related(None).get, session_id__isnull=False)
        rates, lost = [], 0
        cpus: list[dict[str, float]] = []
        async with DeviceLink(row.user_id, row.pk) as link:

            async def call() -> None:
                nonlocal lost
                result = await link.call(new_call("get", "tasks", data={"id": "1"}))
                lost += result.row is None

            await call()
            for _ in range(ROUNDS):
                before = await cpu_of_each(web)
                rates.append(await measure_rate(call, calls))
                after = await cpu_of_each(web)
                cpus.append({who: (after[who] - before[who]) / calls * 1e6 for who in after})
            one = await measure_latency(call)
        device.terminate()
    plain = await measure_bare_socket()
    way = "from a worker to a device and back"
    record(f"CPU of a call {way}", [sum(each.values()) for each in cpus], "µs", most=100)
    for who in cpus[0]:
        record(f"of it {who}", [each[who] for each in cpus], "µs")
    record(f"calls a second {way}", rates, least=LEAST_RATE)
    record(f"lost of {ROUNDS * calls:,}", lost, most=0)
    name = "a bare socket to the same device"
    record(f"one alone, {way}", one * 1000, "ms", beside=plain * 1000, name=name)


async def cpu_of_each(web: Child) -> dict[str, float]:
    """CPU seconds so far of this process, of the web process and of Redis."""
    from adiuva.core.redis import sync_redis

    seen: Any = await asyncio.to_thread(sync_redis("heartbeat").info, "cpu")
    redis = float(seen["used_cpu_user"]) + float(seen["used_cpu_sys"])
    return {"in the caller": time.process_time(), "in the web process": cpu_s(web), "in Redis": redis}


def main(servers: BenchServers, calls: int = CALLS) -> None:
    print(f"Tool calls, {AT_ONCE} at once")
    asyncio.run(measure_in_process())
    asyncio.run(measure_over_redis(*servers.web_process(), calls))


if __name__ == "__main__":
    with bench_servers() as started:
        main(started, *map(int, sys.argv[1:]))
