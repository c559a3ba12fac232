"""A turn of the chat with a model that answers at once, beside its floor, and beside deepagents on LiteLLM.

`python -m bench.chat_turn`, or with `ours` without deepagents.

One turn at a time on warm processes: the milliseconds from home_request to the first stream_text, and the CPU of the
web process for a whole turn, for an answer and for a turn of two model calls that lists twenty tasks. Device, model,
PostgreSQL, Redis and web process are processes of their own, and only the web process' CPU counts: what all its threads
use, without what it uses while nothing is asked. The floor is bench/chat/bare_turn.py, which does no more than talk to
the same neighbours; deepagents has no socket and no database. `python -m bench.chat_turn profile` says where the time
of a turn with two model calls goes.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from uuid import uuid4

from adiuva.embedded.ports import free_port
from adiuva.embedded.processes import Child
from bench.chat.device import TASKS, Device
from bench.chat.profiled_server import Profile
from bench.harness import (
    ROOT,
    BenchServers,
    bench_servers,
    cpu_s,
    listens,
    median,
    record,
    show,
    stock_python,
)

KINDS = {"plain": "an answer", "list": "two model calls, a list of 20"}
MESSAGES = {"plain": "hello", "list": "list my tasks"}
FLOOR = "aiohttp, uvicorn, psycopg"
ROUNDS, OURS, THEIRS = 5, 100, 20
WARM = 30
IDLE_S = 3.0
ACCOUNT = 1000  # a socket may send 1,200 frames a minute


@dataclass
class Measurements:
    """The median of each round, in ms: until the first text, and the CPU of a turn."""

    firsts: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)


async def run_turns(device: Device, kind: str, number: int) -> list[float]:
    firsts = []
    for _ in range(number):
        answer = await device.ask(MESSAGES[kind])
        assert answer.end["finish"] == "stop", answer.end
        assert answer.end["usage"]["model_calls"] == (2 if kind == "list" else 1)
        firsts.append(answer.first_ms)
    return firsts


async def measure_ours(device: Device, web: Child, idle: float, kind: str, found: Measurements) -> None:
    began, cpu = time.monotonic(), cpu_s(web)
    found.firsts.append(median(await run_turns(device, kind, OURS)))
    used = cpu_s(web) - cpu - idle * (time.monotonic() - began)
    found.cpus.append(used / OURS * 1000)


def measure_stock(stock: subprocess.Popen[str], kind: str, number: int, found: Measurements) -> None:
    into, out = stock.stdin, stock.stdout
    assert into is not None and out is not None
    into.write(f"{kind} {number}\n")
    into.flush()
    said = json.loads(out.readline())
    found.firsts.append(median(said["first_ms"]))
    found.cpus.append(said["cpu_ms"])


def _kinds(name: str) -> Sequence[str]:
    return ["list"] if name == FLOOR else list(KINDS)


def start_floor(servers: BenchServers, model: str) -> tuple[str, Child]:
    port = free_port()
    command = ["-m", "uvicorn", "bench.chat.bare_turn:application", "--port", str(port)]
    options = ["--ws", "websockets-sansio", "--no-access-log", "--lifespan", "off", "--log-level", "error"]
    child = servers.run(f"floor-{port}", *command, *options, BARE_API_BASE=model)
    child.wait_until(lambda: listens(port), within_s=60, every_s=0.1)
    return f"http://127.0.0.1:{port}", child


def new_token() -> str:
    from adiuva.accounts import services

    return services.register(email=f"{uuid4().hex}@example.com", password="correct horse").access_token


def model_env(model: str) -> dict[str, str]:
    return {"ADIUVA_MODEL": "openai/scripted", "ADIUVA_MODEL_API_BASE": model, "ADIUVA_LOG_LEVEL": "INFO"}


async def compare(
    servers: dict[str, tuple[str, Child]], devices: dict[str, Device], stock: subprocess.Popen[str] | None
) -> None:
    measurements = {(name, kind): Measurements() for name in (*servers, "deepagents") for kind in KINDS}
    idle = {}
    for name, device in devices.items():
        for kind in _kinds(name):
            await run_turns(device, kind, WARM)
        web = servers[name][1]
        cpu = cpu_s(web)
        await asyncio.sleep(IDLE_S)
        idle[name] = (cpu_s(web) - cpu) / IDLE_S
    if stock:
        for kind in KINDS:
            measure_stock(stock, kind, 5, Measurements())
    for _ in range(ROUNDS):  # by turns, so that all see the same machine
        for kind in KINDS:
            for name, device in devices.items():
                if kind not in _kinds(name):
                    continue
                await measure_ours(device, servers[name][1], idle[name], kind, measurements[name, kind])
            if stock:
                measure_stock(stock, kind, THEIRS, measurements["deepagents", kind])
    for name in servers:
        if name == FLOOR:
            continue
        for kind in KINDS:
            found, theirs = measurements[name, kind], measurements["deepagents", kind]
            what, peer = f"{name}, {KINDS[kind]}", "deepagents" if stock else ""
            record(
                f"{what}: to the first text",
                found.firsts,
                "ms",
                beside=theirs.firsts or None,
                name=peer,
                most=15,
            )
            record(f"{what}: CPU of a turn", found.cpus, "ms", beside=theirs.cpus or None, name=peer)
        found, least = measurements[name, "list"], measurements[FLOOR, "list"]
        record(
            f"{name}, {KINDS['list']}: CPU beside its floor",
            found.cpus,
            "ms",
            beside=least.cpus,
            name=FLOOR,
            most=3,
        )


async def compare_all(
    servers: dict[str, tuple[str, Child]], tokens: list[str], model: str, *, with_stock: bool
) -> None:
    async with AsyncExitStack() as exit_stack:
        devices = {
            name: await exit_stack.enter_async_context(Device(base, access))
            for access, (name, (base, _)) in zip(tokens, servers.items(), strict=True)
        }
        if not with_stock:
            await compare(servers, devices, None)
            return
        command = [stock_python(), str(ROOT / "bench" / "chat" / "stock_turn.py"), model]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as stock:
            await compare(servers, devices, stock)
            stock.terminate()


def profile(servers: BenchServers, model: str) -> None:
    """Profile turns with two model calls, in a separate run."""
    watched = Profile(servers, **model_env(model))
    access = new_token()

    async def run() -> list[float]:
        async with Device(watched.base, access) as device:
            await run_turns(device, "list", WARM)
            watched.start()
            firsts = await run_turns(device, "list", ACCOUNT)
            watched.stop()
            return firsts

    show("to the first text", f"{median(asyncio.run(run())):.1f} ms")
    watched.print(ACCOUNT, "a turn")


def main(servers: BenchServers, what: str = "") -> None:
    model = servers.model()
    if what == "profile":
        profile(servers, model)
        return
    print(f"One turn at a time, a model that answers at once, {len(TASKS)} tasks")
    web_servers = {
        name: servers.web_process(ADIUVA_SERVER=name, **model_env(model)) for name in ("uvicorn", "daphne")
    }
    web_servers[FLOOR] = start_floor(servers, model)
    tokens = [new_token() for _ in web_servers]
    asyncio.run(compare_all(web_servers, tokens, model, with_stock=what != "ours"))


if __name__ == "__main__":
    with bench_servers() as started:
        main(started, *sys.argv[1:])
