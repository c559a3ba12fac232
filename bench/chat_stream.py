"""Cost and delay of a streamed word from the model's socket to the device's, beside what does nothing but stream.

`python -m bench.chat_stream [bare|ours|profile]`. Adiuva is measured by turns with an application of only aiohttp and
uvicorn (bench/chat/bare_socket.py), then on daphne, then LangChain on LiteLLM; `bare` stops after the first, in less
time, and `ours` before the last.

A model in its own process streams WORDS_A_S words a second to each of CHATS concurrent chats. Meanwhile the CPU of the
web process is measured per word, and for every word when the model sent it and when it arrived. A word is shown once
the next one has proved it complete, so its delay includes one pause of the model; words that took more than LATE_MS
count as late. The stock stack gets only as many chats as it can carry.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import sys
import time
import urllib.request
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from adiuva.embedded.ports import free_port
from adiuva.embedded.processes import Child
from bench.chat.device import Device, TimedAnswer
from bench.chat.profiled_server import Profile
from bench.chat.scripted_model import WORDS_A_S, word
from bench.chat_turn import model_env, new_token
from bench.harness import (
    ROOT,
    BenchServers,
    bench_servers,
    cpu_s,
    listens,
    percentile,
    record,
    show,
    stock_python,
)

CHATS = 100
STOCK_CHATS = (20, 10)  # under all of them it drops connections
TURNS = 3
SECONDS, FEW_SECONDS = 20, 10
LEAD_S = 3.0  # until all stream, and before the first has ended
LATE_MS = 100


@dataclass
class Load:
    """What the devices measured under load."""

    cpu_us: float  # of the web process, per word that the model sent meanwhile
    words_a_s: float
    delays_ms: list[float]  # of each word, from the model to the device
    late_at: list[float]  # of each word that was late, seconds since the first chat began to stream
    words: int

    @property
    def late(self) -> int:
        return len(self.late_at)


async def measure_load(
    model: str,
    base: str,
    web: Child,
    tokens: list[str],
    profile: Profile | None = None,
    seconds: int = SECONDS,
) -> Load:
    words = WORDS_A_S * seconds
    gc.disable()  # a pause of this process would make words seem late
    async with AsyncExitStack() as exit_stack:
        devices = [await exit_stack.enter_async_context(Device(base, token)) for token in tokens]
        await devices[0].ask("hello")  # of a model that is not known yet, Adiuva holds the first answer back
        tasks = []
        run = next(_runs)
        for number, device in enumerate(devices):
            tasks.append(asyncio.create_task(device.ask(f"stream {words} {run}.{number}")))
            await asyncio.sleep(1 / WORDS_A_S / len(devices))  # each at another moment
        await asyncio.sleep(LEAD_S)
        began, cpu = time.monotonic_ns(), cpu_s(web)
        if profile:
            profile.start()
        await asyncio.sleep(seconds - 2 * LEAD_S)
        ended, cpu = time.monotonic_ns(), cpu_s(web) - cpu
        if profile:
            profile.stop()
        answer = await asyncio.gather(*tasks)
    times = json.load(await asyncio.to_thread(urllib.request.urlopen, f"{model.removesuffix('/v1')}/times"))
    sent = [times[f"stream {words} {run}.{number}"] for number in range(len(devices))]
    meanwhile = sum(began <= moment < ended for moments in sent for moment in moments)
    gc.enable()
    first = min(moments[0] for moments in sent)
    delays, late_at = [], []
    for moments, one in zip(sent, answer, strict=True):
        found = delays_of(moments, one)
        delays += found
        late_at += [(at - first) / 1e9 for at, ms in zip(moments, found, strict=True) if ms > LATE_MS]
    took_s = (ended - began) / 1e9
    return Load(cpu / meanwhile * 1e6, meanwhile / took_s, delays, late_at, words * len(devices))


_runs = itertools.count()


def delays_of(sent: list[int], answer: TimedAnswer) -> list[float]:
    """For each word, milliseconds from when the model sent it until its last letter had arrived at the device."""
    assert answer.end["finish"] == "stop", answer.end
    grown = list(itertools.accumulate(length for _, length in answer.texts))
    seen, whole = [], 0
    for place, moment in enumerate(sent):
        whole += len(word(place))
        text = bisect_left(grown, whole - 1)  # the blank behind it may come with the next
        seen.append((answer.texts[text][0] - moment) / 1e6)
    return seen


def record_load(name: str, seen: Sequence[Load], floor: Sequence[Load] | None = None) -> None:
    """Of each turn, beside a floor."""
    cpus, what = [each.cpu_us for each in seen], f"{name}: CPU of a word"
    if floor is not None:
        bare = [each.cpu_us for each in floor]
        record(what, cpus, "µs", beside=bare, name="bare aiohttp and uvicorn", ratio_most=1)
    else:
        record(what, cpus, "µs")
    delays = [delay for each in seen for delay in each.delays_ms]
    spread = " / ".join(f"{percentile(delays, percent):.0f}" for percent in (50, 99, 100))
    show(f"{name}: words a second", f"{percentile([each.words_a_s for each in seen], 50):,.0f}")
    show(f"{name}: delay p50 / p99 / most", f"{spread} ms")
    late, words = sum(each.late for each in seen), sum(each.words for each in seen)
    if moments := Counter(int(at) for each in seen for at in each.late_at):
        most = ", ".join(f"second {second}: {count}" for second, count in sorted(moments.items()))
        show(f"{name}: late words by when they were sent", most)
    what = f"{name}: more than {LATE_MS} ms late, of 100,000 words"
    record(what, late / words * 100_000, most=None if floor is None else 0)


def start_stock_server(servers: BenchServers, model: str) -> tuple[str, Child]:
    port = free_port()
    env = os.environ | {"STOCK_API_BASE": model, "PYTHONPATH": str(ROOT)}
    command = [stock_python(), "-m", "daphne", "-p", str(port), "bench.chat.stock_socket:application"]
    child = Child("stock", command, servers.folder / "stock.log", env=env, cwd=ROOT)
    child.start()
    servers.exit_stack.callback(child.stop)
    child.wait_until(lambda: listens(port), within_s=60, every_s=0.1)
    return f"http://127.0.0.1:{port}", child


def start_bare_server(servers: BenchServers, model: str) -> tuple[str, Child]:
    port = free_port()
    command = ["-m", "uvicorn", "bench.chat.bare_socket:application", "--port", str(port)]
    options = ["--ws", "websockets-sansio", "--no-access-log", "--lifespan", "off", "--log-level", "error"]
    child = servers.run(f"bare-{port}", *command, *options, BARE_API_BASE=model)
    child.wait_until(lambda: listens(port), within_s=60, every_s=0.1)
    return f"http://127.0.0.1:{port}", child


def main(servers: BenchServers, what: str = "") -> None:
    model = servers.model()
    tokens = [new_token() for _ in range(CHATS)]
    # By default a process asks a model for fewer answers at once: the rest would wait for their turn.
    env = model_env(model)
    seconds = FEW_SECONDS if what == "bare" else SECONDS
    print(f"{CHATS} chats at once, {WORDS_A_S} words a second each, for {seconds} s")
    if what == "profile":
        profile = Profile(servers, **env)
        record_load("Adiuva", [asyncio.run(measure_load(model, profile.base, profile.web, tokens, profile))])
        profile.print(CHATS * WORDS_A_S * round(SECONDS - 2 * LEAD_S), "a word")
        return
    ours, floor = servers.web_process(ADIUVA_SERVER="uvicorn", **env), start_bare_server(servers, model)
    seen: list[list[Load]] = [[], []]
    for _ in range(TURNS):
        for found, (base, web) in zip(seen, (ours, floor), strict=True):
            found.append(asyncio.run(measure_load(model, base, web, tokens, seconds=seconds)))
    record_load("Adiuva on uvicorn", *seen)
    for _, web in (ours, floor):
        web.stop()
    if what == "bare":
        return
    base, web = servers.web_process(ADIUVA_SERVER="daphne", **env)
    record_load("Adiuva on daphne", [asyncio.run(measure_load(model, base, web, tokens))])
    web.stop()
    if what == "ours":
        return
    base, web = start_stock_server(servers, model)
    for number in STOCK_CHATS:
        load = asyncio.run(measure_load(model, base, web, tokens[:number]))
        record_load(f"LangChain on LiteLLM, daphne, {number} chats", [load])


if __name__ == "__main__":
    with bench_servers() as started:
        main(started, *sys.argv[1:])
