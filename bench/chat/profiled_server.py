"""A web process that profiles itself: `python -m bench.chat.profiled_server`.

SIGUSR1 starts the profile; SIGUSR2 writes it as JSON to the file that ADIUVA_BENCH_PROFILE names. The CPU is sampled by
the kernel's profiling timer (ITIMER_PROF), which hardly slows what it measures; each sample counts for the component
whose code, or whose library's, is innermost. `spans` are waits, in seconds, without the spans nested in them.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import TYPE_CHECKING, Any

from bench.harness import cpu_s, show

if TYPE_CHECKING:
    from bench.harness import BenchServers

# Part of a file's path → the component it counts for. The first match wins.
COMPONENTS = {
    "/adiuva/core/db.py": "database",
    "/django/db/": "database",
    "/psycopg": "database",
    "/chat/conversations.py": "database",
    "/adiuva/devices/presence.py": "database",
    "/adiuva/core/crypto.py": "sealing",
    "/chat/tools/": "tools: arguments, prose",
    "/chat/device_session.py": "tools: arguments, prose",
    "/adiuva/sanitizer/": "sanitizer",
    "/chat/turn_output.py": "sanitizer",
    "/adiuva/llm/": "model client",
    "/aiohttp/": "model client",
    "/multidict/": "model client",
    "/yarl/": "model client",
    "/aiosignal/": "model client",
    "/chat/stream_log.py": "stream log",
    "/redis/": "stream log",
    "/adiuva/devices/": "socket, frames, tool round trip",
    "/adiuva/core/websocket.py": "socket, frames, tool round trip",
    "/chat/chat_handler.py": "socket, frames, tool round trip",
    "/chat/consumer.py": "socket, frames, tool round trip",
    "/chat/stream.py": "socket, frames, tool round trip",
    "/channels/": "socket, frames, tool round trip",
    "/uvicorn/": "socket, frames, tool round trip",
    "/websockets/": "socket, frames, tool round trip",
    "/daphne/": "socket, frames, tool round trip",
    "/autobahn/": "socket, frames, tool round trip",
    "/twisted/": "socket, frames, tool round trip",
    "/structlog/": "logging",
    "/logging/": "logging",
    "/adiuva/core/logging.py": "logging",
    "/chat/": "turn and its loop",
    "/langchain_core/": "turn and its loop",
    "/bench/": "the profiler itself",
}
_TIMES_A_S = 500

samples: Counter[str] = Counter()
functions: Counter[str] = Counter()
spans: defaultdict[str, float] = defaultdict(float)
counts: Counter[str] = Counter()
longest: defaultdict[str, float] = defaultdict(float)
_inner: ContextVar[list[float]] = ContextVar("inner")


def component_of(frame: FrameType | None) -> str:
    while frame is not None:
        path = frame.f_code.co_filename
        for part, component in COMPONENTS.items():
            if part in path:
                return component
        frame = frame.f_back
    return "asyncio"


def sample(signum: int, frame: FrameType | None) -> None:
    if frame is not None and frame.f_code.co_name == "select":
        samples["database"] += 1  # the event loop is idle, so the CPU was used by a database thread
        functions["a database thread"] += 1
        return
    samples[component_of(frame)] += 1
    seen = set()
    while frame is not None:
        path = "/".join(frame.f_code.co_filename.rsplit("/", 2)[-2:])
        seen.add(f"{path}:{frame.f_code.co_name}")
        frame = frame.f_back
    functions.update(seen)


@contextmanager
def span(name: str) -> Iterator[None]:
    inner: list[float] = []
    outer, token, began = _inner.get(None), _inner.set(inner), time.perf_counter()
    try:
        yield
    finally:
        took = time.perf_counter() - began
        _inner.reset(token)
        if outer is not None:
            outer.append(took)
        spans[name] += took - sum(inner)
        counts[name] += 1


def instrument() -> None:
    from adiuva.core import db
    from adiuva.devices.link import DeviceLink
    from adiuva.llm.openai_client import OpenAIChat

    run, listen = db.run, OpenAIChat._stream_once

    async def timed_run(function: Any, *args: Any, **kwargs: Any) -> Any:
        # A partial has no name of its own.
        with span(f"database: {getattr(function, 'func', function).__name__}"):
            return await run(function, *args, **kwargs)

    db.run = timed_run
    for name in ("call", "send_calls"):

        def timed(method: Any) -> Any:
            @functools.wraps(method)
            async def wrapped(*args: Any, **kwargs: Any) -> Any:
                with span("tool round trip"):
                    return await method(*args, **kwargs)

            return wrapped

        setattr(DeviceLink, name, timed(getattr(DeviceLink, name)))

    async def timed_listen(self: Any, *args: Any) -> Any:
        source = listen(self, *args)
        while True:
            with span("model: waiting for it"):
                found = await anext(source, None)
            if found is None:
                return
            yield found

    OpenAIChat._stream_once = timed_listen  # type: ignore[method-assign,assignment]


def instrument_garbage_collector() -> None:
    began = 0.0

    def collected(phase: str, info: dict[str, int]) -> None:
        nonlocal began
        if phase == "start":
            began = time.perf_counter()
        else:
            took = time.perf_counter() - began
            spans["garbage collector"] += took
            counts["garbage collector"] += 1
            longest["garbage collector"] = max(longest["garbage collector"], took)

    gc.callbacks.append(collected)


def start_profile(*_: object) -> None:
    for measured in (samples, functions, spans, counts, longest):
        measured.clear()
    signal.setitimer(signal.ITIMER_PROF, 1 / _TIMES_A_S, 1 / _TIMES_A_S)


def write_profile(*_: object) -> None:
    signal.setitimer(signal.ITIMER_PROF, 0)
    profile = {
        "samples": samples,
        "functions": dict(functions.most_common(60)),
        "spans": spans,
        "counts": counts,
        "longest": longest,
    }
    path = os.environ["ADIUVA_BENCH_PROFILE"]
    with open(f"{path}.new", "w") as file:  # noqa: PTH123
        json.dump(profile, file)
    os.replace(f"{path}.new", path)  # noqa: PTH105


# ── The bench's side ────────────────────────────────────────────────────────────────────────────────────


class Profile:
    """Starts a profiled web process and prints what it did between `start` and `stop`."""

    def __init__(self, servers: BenchServers, **env: str) -> None:
        self._path = servers.folder / f"profile-{time.monotonic_ns()}.json"
        self.base, self.web = servers.web_process(
            "bench.chat.profiled_server", ADIUVA_BENCH_PROFILE=str(self._path), **env
        )

    def start(self) -> None:
        assert self.web.pid is not None
        self._cpu = cpu_s(self.web)
        os.kill(self.web.pid, signal.SIGUSR1)

    def stop(self) -> None:
        assert self.web.pid is not None
        self._cpu = cpu_s(self.web) - self._cpu
        os.kill(self.web.pid, signal.SIGUSR2)
        while not self._path.exists():
            time.sleep(0.05)

    def print(self, count: int, unit: str) -> None:
        """Print CPU and waits per unit, of which there were `count`. With FUNCTIONS set in the environment also print
        the CPU of each function including its callees."""
        found = json.loads(self._path.read_text())
        components, cpu = Counter(found["samples"]), self._cpu / count * 1e6
        show(f"CPU of {unit}", f"{cpu:,.0f} µs", f"{components.total():,} samples")
        for component, number in components.most_common():
            show(f"  {component}", f"{number / components.total() * cpu:,.0f} µs")
        for name, seconds in Counter(found["spans"]).most_common():
            number = found["counts"][name]
            longest = f"longest {found['longest'][name] * 1000:.0f} ms" if name in found["longest"] else ""
            show(f"  waits: {name} ({number:,})", f"{seconds / count * 1e6:,.0f} µs", longest)
        if os.environ.get("FUNCTIONS"):
            for function, number in found["functions"].items():
                print(f"  {number / components.total() * cpu:8.1f} µs  {function}")


def main() -> None:
    import adiuva.asgi  # noqa: F401  # sets Django up
    from adiuva import server

    instrument()
    instrument_garbage_collector()
    signal.signal(signal.SIGPROF, sample)
    signal.signal(signal.SIGUSR1, start_profile)
    signal.signal(signal.SIGUSR2, write_profile)
    server.main()


if __name__ == "__main__":
    main()
