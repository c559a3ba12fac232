"""A turn of the chat with a model that answers at once, beside deepagents on LiteLLM.

`python -m bench.chat_turn`. One turn at a time on warm processes: the milliseconds from home_request to the first
stream_text, and the CPU of the web process for a whole turn, for an answer and for a turn of two model calls that lists
twenty tasks. Device, model and web process are processes of their own; deepagents has no socket and no database.
`python -m bench.chat_turn account` says where the time of a turn with two model calls goes.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from uuid import uuid4

from adiuva.embedded.processes import Child
from bench.chat.device import TASKS, Device
from bench.chat.profiled import Account
from bench.harness import ROOT, Ground, cpu_s, ground, median, percentile, show, stock_python

KINDS = {"plain": "an answer", "list": "two model calls, a list of 20"}
MESSAGES = {"plain": "hello", "list": "list my tasks"}
ROUNDS, OURS, THEIRS = 5, 100, 20
WARM = 30
IDLE_S = 3.0
ACCOUNT = 1500


@dataclass
class Figures:
    firsts: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)  # of a turn, in each round


async def turns(device: Device, kind: str, number: int) -> list[float]:
    firsts = []
    for _ in range(number):
        heard = await device.ask(MESSAGES[kind])
        assert heard.end["finish"] == "stop", heard.end
        assert heard.end["usage"]["model_calls"] == (2 if kind == "list" else 1)
        firsts.append(heard.first_ms)
    return firsts


async def ours(device: Device, web: Child, idle: float, kind: str, found: Figures) -> None:
    began, cpu = time.monotonic(), cpu_s(web)
    found.firsts += await turns(device, kind, OURS)
    used = cpu_s(web) - cpu - idle * (time.monotonic() - began)
    found.cpus.append(used / OURS * 1000)


def theirs(stock: subprocess.Popen[str], kind: str, number: int, found: Figures) -> None:
    into, out = stock.stdin, stock.stdout
    assert into is not None and out is not None
    into.write(f"{kind} {number}\n")
    into.flush()
    said = json.loads(out.readline())
    found.firsts += said["first_ms"]
    found.cpus.append(said["cpu_ms"])


def token() -> str:
    from adiuva.accounts import services

    return services.register(email=f"{uuid4().hex}@example.com", password="correct horse").access_token


def settings(model: str) -> dict[str, str]:
    return {"ADIUVA_MODEL": "openai/scripted", "ADIUVA_MODEL_API_BASE": model, "ADIUVA_LOG_LEVEL": "INFO"}


async def compare(
    servers: dict[str, tuple[str, Child]], devices: dict[str, Device], stock: subprocess.Popen[str]
) -> None:
    figures = {(name, kind): Figures() for name in (*servers, "deepagents") for kind in KINDS}
    idle = {}
    for name, device in devices.items():
        for kind in KINDS:
            await turns(device, kind, WARM)
        web = servers[name][1]
        cpu = cpu_s(web)
        await asyncio.sleep(IDLE_S)
        idle[name] = (cpu_s(web) - cpu) / IDLE_S
    for kind in KINDS:
        theirs(stock, kind, 5, Figures())
    for _ in range(ROUNDS):  # by turns, so that all see the same machine
        for kind in KINDS:
            for name, device in devices.items():
                await ours(device, servers[name][1], idle[name], kind, figures[name, kind])
            theirs(stock, kind, THEIRS, figures["deepagents", kind])
    for (name, kind), found in figures.items():
        aims = ("aim: 15 ms", "aim: 8 ms" if kind == "list" else "") if name in servers else ("", "")
        spread = f"{percentile(found.firsts, 5):.1f} to {percentile(found.firsts, 95):.1f}"
        what = f"{name}, {KINDS[kind]}"
        show(f"{what}: to the first text", f"{median(found.firsts):.1f} ms", f"({spread})  {aims[0]}")
        show(f"{what}: CPU of a turn", f"{median(found.cpus):.1f} ms", aims[1])


async def compare_all(servers: dict[str, tuple[str, Child]], tokens: list[str], model: str) -> None:
    command = [stock_python(), str(ROOT / "bench" / "chat" / "stock_turn.py"), model]
    async with AsyncExitStack() as ends:
        devices = {
            name: await ends.enter_async_context(Device(base, access))
            for access, (name, (base, _)) in zip(tokens, servers.items(), strict=True)
        }
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as stock:
            await compare(servers, devices, stock)
            stock.terminate()


def account(there: Ground, model: str) -> None:
    """Where a turn's time goes, in a run of its own."""
    watched = Account(there, **settings(model))
    access = token()

    async def run() -> list[float]:
        async with Device(watched.base, access) as device:
            await turns(device, "list", WARM)
            watched.begin()
            firsts = await turns(device, "list", ACCOUNT)
            watched.end()
            return firsts

    show("to the first text", f"{median(asyncio.run(run())):.1f} ms")
    watched.tell(ACCOUNT, "a turn")


def main(there: Ground, what: str = "") -> None:
    model = there.model()
    if what == "account":
        account(there, model)
        return
    print(f"One turn at a time, a model that answers at once, {len(TASKS)} tasks")
    servers = {
        name: there.web_process(ADIUVA_SERVER=name, **settings(model)) for name in ("uvicorn", "daphne")
    }
    asyncio.run(compare_all(servers, [token() for _ in servers], model))


if __name__ == "__main__":
    with ground() as started:
        main(started, *sys.argv[1:])
