"""The number of statements that a turn and a run send to PostgreSQL: `python -m bench.statements`

BEGIN and COMMIT count, as every round trip does. Turns are those of bench.chat_turn: without a conversation, as device
clients of protocol 1 send them, and in one. What the worker does for the memory of eight turns is counted together, as
it is done together. A run reads 15 files; its second run finds them unchanged. Counts do not depend on the machine.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Final
from uuid import uuid4

from bench.agents_run import UserWithDevice, start_worker, write
from bench.chat.device import Device
from bench.chat_turn import MESSAGES, model_env, new_token
from bench.harness import BenchServers, bench_servers, record
from bench.statement_counter import StatementCounter

TURNS: Final = 8
FILES: Final = 15
_SETTLED_S: Final = 0.5


def settled(counter: StatementCounter) -> int:
    """What was sent until nothing more came for a while."""
    before, since = counter.sent, time.monotonic()
    while time.monotonic() - since < _SETTLED_S:
        time.sleep(0.05)
        if counter.sent != before:
            before, since = counter.sent, time.monotonic()
    return before


async def count_turns(base: str, token: str, counter: StatementCounter) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}

    async def ask(what: str, kind: str, **fields: str) -> dict[str, object]:
        before = counter.sent
        answer = await device.ask(MESSAGES[kind], **fields)
        assert answer.end["finish"] == "stop", answer.end
        found.setdefault(what, []).append(await asyncio.to_thread(settled, counter) - before)
        return answer.end

    async with Device(base, token) as device:
        for kind, what in (("plain", "a turn"), ("list", "a turn with two model calls")):
            await device.ask(MESSAGES[kind])  # what the process learns once
            await asyncio.to_thread(settled, counter)
            for _ in range(3):
                await ask(what, kind)
    return found


def count_recording(servers: BenchServers, token: str, model: str) -> None:
    """What the worker sends to read what was said in TURNS turns, for each."""
    from adiuva.accounts import services
    from adiuva.celery import app
    from memory.models import Exchange

    counter = StatementCounter(os.environ["DATABASE_URL"])
    worker = start_worker(servers, DATABASE_URL=counter.url, **model_env(model))
    user_id = services.authenticate(access_token=token).user_id
    waiting = Exchange.objects.filter(user_id=user_id, recorded_at=None)
    assert waiting.count() == TURNS, waiting.count()
    app.send_task("memory.record", [str(uuid4())])  # of nobody: what the worker learns once
    _wait_until(lambda: counter.sent > 0)
    before = settled(counter)
    app.send_task("memory.record", [str(user_id)])
    _wait_until(lambda: not waiting.exists())
    record(
        "reading a turn for the memory: statements of the worker", (settled(counter) - before) / TURNS, most=4
    )
    worker.stop()


def _wait_until(over: Callable[[], bool], within_s: float = 60.0) -> None:
    until = time.monotonic() + within_s
    while not over():
        if time.monotonic() > until:
            raise TimeoutError
        time.sleep(0.05)


def count_runs(servers: BenchServers) -> None:
    user = UserWithDevice(servers)
    counter = StatementCounter(os.environ["DATABASE_URL"])
    user.worker_with(f"{user.model('0')}/v1", 8, DATABASE_URL=counter.url)
    user.run(FILES)  # what the process learns once
    folder = user.folder / "counted"
    write(folder, FILES)
    agent = user.agent(folder, file_extensions=[".md"])
    for what, aim in ((f"a run over {FILES} new files", None), (f"a run over {FILES} unchanged files", 14)):
        before = settled(counter)
        user.run_agent(agent)
        record(f"{what}: statements of the worker", settled(counter) - before, most=aim)


def main(servers: BenchServers) -> None:
    model = servers.model()
    counter = StatementCounter(os.environ["DATABASE_URL"])
    base, _ = servers.web_process(DATABASE_URL=counter.url, **model_env(model))
    token = new_token()
    for what, counts in asyncio.run(count_turns(base, token, counter)).items():
        # The least: what a process does by the clock may come between.
        record(f"{what}: statements of the web process", min(counts), most=8)
    record("empty statements, which only see whether a connection works", counter.checks, most=0)
    count_recording(servers, token, model)
    count_runs(servers)


if __name__ == "__main__":
    with bench_servers() as started:
        main(started)
