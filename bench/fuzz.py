"""100,000 fuzzed frames on real sockets, while a neighbour asks for answers.

`python -m bench.fuzz [frames]`. There must be no traceback and no close code but the protocol's, and the neighbour must
be answered within 250 ms. A short form is part of the tests.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from uuid import uuid4

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from bench.harness import bench_servers, percentile, record, show

FUZZERS = 8
AT_ONCE = 25
ALLOWED = {1000, 4408, 4413, 4429}

SEEDS: list[dict[str, object]] = [
    {"type": "device_hello", "device_id": "d", "agent_ids": ["a"], "protocol": 2, "capabilities": ["dedupe"]},
    {"type": "pong"},
    {"type": "tool_result", "id": "x", "row": {"id": "1", "createdAt": 1700000000000}},
    {"type": "tool_result", "id": "x", "rows": [{"id": "1"}], "results": [{"score": 0.5}], "deleted": True},
    {"type": "tool_batch_result", "results": [{"id": "x", "error": "no"}]},
    {"type": "agent_manifest", "run_id": "r", "files": [{"path": "/a", "sha256": "0" * 64, "size": 1, "mtime": 1}]},
    {"type": "agent_data", "run_id": "r", "batch": 0, "files": [{"path": "/a", "name": "a", "content": "x"}]},
    {"type": "agent_complete", "run_id": "r", "files_read": 1, "errors": ["no", {"path": "/b"}], "batches": 1},
    {"type": "home_request", "message": "hi", "request_id": "q", "conversation_history": [{"role": "user"}]},
    {"type": "floating_request", "message": "hi", "scope": {"type": "task", "id": "1"}, "request_id": "q"},
    {"type": "request_cancel", "request_id": "q"},
    {"type": "request_steer", "request_id": "q", "message": "x"},
    {"type": "stream_resume", "request_id": "q", "after": 3},
    {"type": "approval_response", "id": "a", "approved": True},
]  # fmt: skip
ODD_VALUES: list[object] = [
    None, True, 0, -1, 1.5, 2**63 - 1, 2**63, 10**30, "", "x" * 5000, "\x00", "\ud800", "日本", [], {}, [[]], {"": {}},
    [None] * 100, {"type": "pong"}, float("nan"), float("inf"), "NaN", {"$ref": "#"}, {"__proto__": 1},
]  # fmt: skip


@dataclass
class Findings:
    frames: int = 0
    connections: int = 0
    codes: Counter[int] = field(default_factory=Counter)


def frame_source(rng: random.Random) -> Callable[[], str | bytes]:
    """Returns a function that makes random frames, from nearly valid ones to garbage."""

    def mutate(value: object, depth: int = 0) -> object:
        if rng.random() < 0.15:
            return rng.choice(ODD_VALUES)
        if isinstance(value, dict):
            found = {key: mutate(item, depth + 1) for key, item in value.items() if rng.random() > 0.1}
            if rng.random() < 0.2:
                found[rng.choice(["x", "type", "id", "after", "run_id", ""])] = rng.choice(ODD_VALUES)
            return found
        if isinstance(value, list):
            return [mutate(item, depth + 1) for item in value] * rng.choice([0, 1, 1, 1, 3])
        return value

    def one() -> str | bytes:
        kind = rng.random()
        text = json.dumps(mutate(rng.choice(SEEDS)), ensure_ascii=rng.random() < 0.5, allow_nan=True)
        text = text.encode("utf-8", "replace").decode()
        if kind < 0.6:
            return text
        if kind < 0.7:  # cut, doubled, with garbage in it
            place = rng.randrange(len(text) + 1)
            return rng.choice(
                [text[:place], text * 2, text[:place] + rng.choice('{}[],:"\\\x01') + text[place:]]
            )
        if kind < 0.75:
            return rng.choice(["[", '{"a":']) * rng.choice([10, 40, 2_000, 100_000])
        if kind < 0.78:
            return '{"type": "pong", "x": ' + "9" * rng.choice([19, 20, 400, 5_000]) + "}"
        if kind < 0.8:
            return rng.randbytes(rng.randrange(200))
        return json.dumps(
            {"type": rng.choice(["", "x", "tool_call", "hello_ack", "from_the_future"]), "id": "x"}
        )

    return one


async def fuzz(base: str, tokens: list[str], count: int, *, seed: int = 1) -> Findings:
    """Send `count` frames over one socket for each token, at the same time."""
    found = Findings()
    each = count // len(tokens)
    await asyncio.gather(
        *(_fuzzer(_url(base), token, each, random.Random(seed + n), found) for n, token in enumerate(tokens))
    )
    return found


async def _fuzzer(url: str, token: str, count: int, rng: random.Random, found: Findings) -> None:
    make = frame_source(rng)
    left = count
    while left > 0:
        async with _open(url, token) as socket:
            found.connections += 1
            try:
                await socket.send(
                    json.dumps({"type": "device_hello", "device_id": "f", "protocol": rng.choice([1, 2])})
                )
                while left > 0:
                    for _ in range(min(left, AT_ONCE)):
                        await socket.send(make())
                    left -= AT_ONCE
                    # Once a valid request behind them is answered, they have been read.
                    await _ask(socket, {"type": "home_request", "message": "hi"}, "request_id", "stream_end")
                    found.frames += AT_ONCE
            except ConnectionClosed:
                found.frames += AT_ONCE  # the server closes after twenty bad frames and ignores the rest
        found.codes[socket.close_code or 0] += 1


async def _ask(socket: ClientConnection, frame: dict[str, object], key: str, answer: str) -> None:
    ref = uuid4().hex
    await socket.send(json.dumps(frame | {key: ref}))
    async for text in socket:
        said = json.loads(text)
        if said["type"] == "ping":
            await socket.send('{"type": "pong"}')
        elif said["type"] == answer and ref in (said.get("ref"), said.get("request_id")):
            return
    raise ConnectionClosed(socket.protocol.close_rcvd, socket.protocol.close_sent)


def _url(base: str) -> str:
    return base.replace("http", "ws", 1) + "/api/v1/ws/device"


def _open(url: str, token: str) -> connect:
    headers = {"Authorization": f"Bearer {token}"}
    return connect(url, additional_headers=headers, compression=None, ping_interval=None, open_timeout=30)


async def neighbour(base: str, token: str, done: asyncio.Event) -> list[float]:
    """Ask every 20 ms until `done` is set; returns how long each answer took, in milliseconds."""
    took = []
    async with _open(_url(base), token) as socket:
        await socket.send(json.dumps({"type": "device_hello", "device_id": "n", "protocol": 2}))
        while not done.is_set():
            asked = time.perf_counter()
            await _ask(socket, {"type": "are_you_there"}, "id", "error")
            took.append((time.perf_counter() - asked) * 1000)
            await asyncio.sleep(0.02)
    return took


def _fuzz_alone(base: str, tokens: list[str], count: int) -> Findings:
    return asyncio.run(fuzz(base, tokens, count))


async def _fuzz_beside_neighbour(base: str, tokens: list[str], count: int) -> tuple[Findings, list[float]]:
    """Run the fuzzers in a process of their own, so that the neighbour waits for the server alone."""
    done = asyncio.Event()
    waiting = asyncio.create_task(neighbour(base, tokens[0], done))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        fuzzing = asyncio.get_running_loop().run_in_executor(pool, _fuzz_alone, base, tokens[1:], count)
        found = await fuzzing
    done.set()
    return found, await waiting


def main(count: int) -> bool:
    with bench_servers() as servers:
        from adiuva.accounts import services

        tokens = [
            services.register(email=f"{uuid4().hex}@example.com", password="correct horse").access_token
            for _ in range(FUZZERS + 1)
        ]
        base = servers.web()
        found, took = asyncio.run(_fuzz_beside_neighbour(base, tokens, count))
        log = "".join(path.read_text() for path in servers.folder.glob("web-*.log"))
    faults = sum(log.count(word) for word in ("Traceback", "handler_failed", "task_failed"))
    other = set(found.codes) - ALLOWED
    print(f"Fuzzed frames over {found.connections:,} connections, {FUZZERS} at once")
    show("frames sent", f"{found.frames:,}")
    show("close codes", " ".join(f"{code}×{n}" for code, n in sorted(found.codes.items())))
    record("close codes that are not the protocol's", len(other), most=0)
    record("faults in the log", faults, most=0)
    show("a neighbour's answer, median", f"{percentile(took, 50):.1f} ms")
    record("a neighbour's answer, slowest", max(took), "ms", most=250)
    return not faults and not other


if __name__ == "__main__":
    sys.exit(0 if main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000) else 1)
