"""Delivers 200 records to a device with a latency of 20 ms: `python -m bench.agents_deliver`

Records go through the link and Redis to a web process, and over its socket to a device in its own process, which
answers each frame after 20 ms. They are sent in batches; as single calls that do not wait for each other (to a device
without batches); and one after the other. All are compared with the round trip of one call.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final
from uuid import UUID, uuid4

import orjson

from bench.harness import BenchServers, Stopwatch, bench_servers, median, record, show

RECORDS: Final = 200
DEVICE_DELAY_S: Final = 0.020
ROUNDS: Final = 9


async def timed(work: Callable[[], Awaitable[Any]], rounds: int = ROUNDS) -> list[float]:
    """Milliseconds of each round."""
    took = []
    for _ in range(rounds):
        with Stopwatch() as watch:
            await work()
        took.append(watch.wall * 1000)
    return took


async def measure(base: str, *capabilities: str) -> dict[str, list[float]]:
    from adiuva.accounts import services
    from adiuva.accounts.models import User
    from adiuva.core import db
    from adiuva.devices import outbox
    from adiuva.devices.calls import new_call
    from adiuva.devices.link import DeviceLink, OutcomeUnknown
    from adiuva.devices.outbox import PendingRecord
    from adiuva.devices.protocol import Origin

    email = f"{uuid4().hex}@example.com"
    signed_in = await db.run(services.register, email=email, password="correct horse")
    user_id: UUID = (await db.run(User.objects.get, email=email)).pk
    url = base.replace("http", "ws") + "/api/v1/ws/device"
    command = [
        sys.executable,
        "-m",
        "bench.agents_deliver",
        "device",
        url,
        signed_in.access_token,
        *capabilities,
    ]

    origin = Origin(run_id=str(uuid4()), source="/home/kim/Documents/minutes.md")

    def records() -> list[PendingRecord]:
        return [
            PendingRecord(
                uuid4(), "tasks", {"title": f"Task {number}", "isAiSuggested": 1, "isApproved": 0}, origin
            )
            for number in range(RECORDS)
        ]

    prepared = [records() for _ in range(ROUNDS + 1)]

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as device:
        assert device.stdout is not None
        assert await asyncio.to_thread(device.stdout.readline) == "ready\n"
        async with DeviceLink(user_id) as link:

            async def one() -> None:
                await link.call(new_call("insert", "tasks", data={"title": "Task"}, call_id=str(uuid4())))

            async def all_at_once() -> None:
                outcomes = await outbox.deliver(link, prepared.pop())
                assert not any(isinstance(outcome, OutcomeUnknown) for outcome in outcomes.values())

            async def one_by_one() -> None:
                for _ in range(RECORDS):
                    await one()

            await all_at_once()
            took = {
                "one": await timed(one, 50),
                "all": await timed(all_at_once),
                "one by one": await timed(one_by_one, 1),
            }
        device.terminate()
    return took


async def run_device(url: str, token: str, *capabilities: str) -> None:
    """A device that answers each frame DEVICE_DELAY_S after it came, however many are in flight."""
    from websockets.asyncio.client import connect

    loop = asyncio.get_running_loop()
    headers = {"Authorization": f"Bearer {token}"}
    hello = {"type": "device_hello", "device_id": "bench", "protocol": 2, "capabilities": list(capabilities)}
    answers: asyncio.Queue[tuple[float, dict[str, Any]]] = asyncio.Queue()
    async with connect(url, additional_headers=headers, compression=None, ping_interval=None) as socket:
        await socket.send(json.dumps(hello))
        assert orjson.loads(await socket.recv())["type"] == "hello_ack"
        print("ready", flush=True)

        async def answer() -> None:
            while True:
                due, body = await answers.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                await socket.send(orjson.dumps(body).decode())

        answering = asyncio.create_task(answer())
        async for text in socket:
            frame = orjson.loads(text)
            due = loop.time() + DEVICE_DELAY_S
            if frame["type"] == "tool_call":
                answers.put_nowait((due, {"type": "tool_result", **_result(frame)}))
            elif frame["type"] == "tool_batch":
                results = [_result(call) for call in frame["calls"]]
                answers.put_nowait((due, {"type": "tool_batch_result", "results": results}))
            elif frame["type"] == "ping":
                await socket.send('{"type":"pong"}')
        answering.cancel()


def _result(call: dict[str, Any]) -> dict[str, Any]:
    return {"id": call["id"], "row": {**call["data"], "id": call["id"]}}


def main(servers: BenchServers) -> None:
    print(f"{RECORDS} records, a device {DEVICE_DELAY_S * 1000:.0f} ms away")
    base = servers.web()
    batched = asyncio.run(measure(base, "dedupe", "batch"))
    single = asyncio.run(measure(base, "dedupe"))
    for what, took, aim in (
        ("in batches", batched, 1.2),
        ("to a device that takes no batches", single, None),
    ):
        name = "one call and its answer"
        record(f"{RECORDS} {what}", took["all"], "ms", beside=took["one"], name=name, ratio_most=aim)
    one_by_one = batched["one by one"][0]
    show("one after the other", f"{one_by_one:,.0f} ms")
    show("in batches that many times faster", f"{one_by_one / median(batched['all']):.0f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["device"]:
        asyncio.run(run_device(*sys.argv[2:]))
    else:
        with bench_servers() as started:
            main(started)
