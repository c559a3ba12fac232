"""What a streamed chunk costs from the provider's socket to the device's, beside LangChain on LiteLLM and daphne.

`python -m bench.chat_stream`. CHATS chats at once are each sent WORDS_A_S words a second by a model in a process of its
own. While all of them stream, the CPU of the web process is taken, per word; and every word has a moment when the model
sent it and one when it arrived. A word is shown once what follows it has shown that it is whole, so it is late by one
pause of the model at least; called late is what came LATE_MS after that. The stock stack gets as many chats as it
carries.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import time
import urllib.request
from bisect import bisect_left
from contextlib import AsyncExitStack
from dataclasses import dataclass

from adiuva.embedded.ports import free_port
from adiuva.embedded.processes import Child
from bench.chat.device import Device, Heard
from bench.chat.profiled import Account
from bench.chat.provider import WORDS_A_S, word
from bench.chat_turn import settings, token
from bench.harness import ROOT, Ground, cpu_s, ground, listens, percentile, show, stock_python

CHATS = 100
STOCK_CHATS = (20, 10)  # under all of them it drops connections
SECONDS = 20
LEAD_S = 3.0  # until all stream, and before the first has ended
LATE_MS = 100


@dataclass
class Load:
    """What the device's end saw."""

    cpu_us: float  # of the web process, per word that the model sent meanwhile
    words_a_s: float
    delays_ms: list[float]  # of each word, from the model to the device
    words: int

    @property
    def late(self) -> int:
        return sum(1 for delay in self.delays_ms if delay > LATE_MS)


async def load(model: str, base: str, web: Child, tokens: list[str], account: Account | None = None) -> Load:
    words = WORDS_A_S * SECONDS
    async with AsyncExitStack() as ends:
        devices = [await ends.enter_async_context(Device(base, token)) for token in tokens]
        tasks = []
        run = next(_runs)
        for number, device in enumerate(devices):
            tasks.append(asyncio.create_task(device.ask(f"stream {words} {run}.{number}")))
            await asyncio.sleep(1 / WORDS_A_S / len(devices))  # each at another moment
        await asyncio.sleep(LEAD_S)
        began, cpu = time.monotonic_ns(), cpu_s(web)
        if account:
            account.begin()
        await asyncio.sleep(SECONDS - 2 * LEAD_S)
        ended, cpu = time.monotonic_ns(), cpu_s(web) - cpu
        if account:
            account.end()
        heard = await asyncio.gather(*tasks)
    times = json.load(await asyncio.to_thread(urllib.request.urlopen, f"{model.removesuffix('/v1')}/times"))
    sent = [times[f"stream {words} {run}.{number}"] for number in range(len(devices))]
    meanwhile = sum(began <= moment < ended for moments in sent for moment in moments)
    delays = [delay for moments, one in zip(sent, heard, strict=True) for delay in delays_of(moments, one)]
    seconds = (ended - began) / 1e9
    return Load(cpu / meanwhile * 1e6, meanwhile / seconds, delays, words * len(devices))


_runs = itertools.count()


def delays_of(sent: list[int], heard: Heard) -> list[float]:
    """Milliseconds from when a word was sent until the text had grown over its last letter."""
    assert heard.end["finish"] == "stop", heard.end
    grown = list(itertools.accumulate(length for _, length in heard.texts))
    found, whole = [], 0
    for place, moment in enumerate(sent):
        whole += len(word(place))
        text = bisect_left(grown, whole - 1)  # the blank behind it may come with the next
        found.append((heard.texts[text][0] - moment) / 1e6)
    return found


def tell(name: str, found: Load, aim: str = "") -> None:
    show(f"{name}: CPU of a word", f"{found.cpu_us:.0f} µs", aim)
    show(f"{name}: words a second", f"{found.words_a_s:,.0f}")
    spread = " / ".join(f"{percentile(found.delays_ms, percent):.0f}" for percent in (50, 99, 100))
    show(f"{name}: delay p50 / p99 / most", f"{spread} ms")
    late = f"{found.late:,} of {found.words:,}"
    show(f"{name}: more than {LATE_MS} ms late", late, "aim: none" if aim else "")


def stock(there: Ground, model: str) -> tuple[str, Child]:
    port = free_port()
    env = os.environ | {"STOCK_API_BASE": model, "PYTHONPATH": str(ROOT)}
    command = [stock_python(), "-m", "daphne", "-p", str(port), "bench.chat.stock_socket:application"]
    child = Child("stock", command, there.folder / "stock.log", env=env, cwd=ROOT)
    child.start()
    there.ends.callback(child.stop)
    child.wait_until(lambda: listens(port), within_s=60, every_s=0.1)
    return f"http://127.0.0.1:{port}", child


def main(there: Ground, what: str = "") -> None:
    model = there.model()
    tokens = [token() for _ in range(CHATS)]
    # By default a process asks a model for fewer answers at once: the rest would wait for their turn.
    env = settings(model)
    print(f"{CHATS} chats at once, {WORDS_A_S} words a second each, for {SECONDS} s")
    if what == "account":
        account = Account(there, **env)
        tell("Adiuva", asyncio.run(load(model, account.base, account.web, tokens, account)))
        account.tell(CHATS * WORDS_A_S * round(SECONDS - 2 * LEAD_S), "a word")
        return
    for server in ("uvicorn", "daphne"):
        base, web = there.web_process(ADIUVA_SERVER=server, **env)
        found = asyncio.run(load(model, base, web, tokens))
        tell(f"Adiuva on {server}", found, "aim: 40 µs" if server == "uvicorn" else "")
        web.stop()
    if what != "ours":
        base, web = stock(there, model)
        for number in STOCK_CHATS:
            found = asyncio.run(load(model, base, web, tokens[:number]))
            tell(f"LangChain on LiteLLM, daphne, {number} chats", found)


if __name__ == "__main__":
    with ground() as started:
        main(started, *sys.argv[1:])
