"""The event loop of a worker process for its runs: it claims queued runs and executes them side by side.

A run mostly waits: for its device, for the model. So runs hold no thread of the worker; each is a task of this loop.
Only a run that works counts as a slot of the process. A run in which nothing happened for a moment waits outside the
slots, up to a generous bound, and works again as soon as an answer arrives.

A message wakes the loop (`agents.tasks.start_queued`); it also looks by itself, so that no run depends on a message.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import random
import sys
import threading
from typing import Final

import structlog
from django.conf import settings

from adiuva import llm
from adiuva.core import db
from adiuva.core.logging import log_failure
from adiuva.core.outages import store_of
from agents import run_queue, runner
from agents.runner import Execution

# The interval at which the loop looks by itself for runs, and the least time since these were queued: the message of
# such a run was lost, or it is now due for a retry.
_LOOK_EVERY_S: Final = 5.0
_LOST_AFTER_S: Final = 10.0
# While slots are full, the interval at which the loop checks whether a run has begun to wait.
_RECOUNT_EVERY_S: Final = 0.5
_MAX_OUTAGE_PAUSE_S: Final = 5.0
# The time for queueing runs again when the process ends.
_STOP_WITHIN_S: Final = 8.0

if sys.platform == "win32":
    from asyncio import new_event_loop
else:  # as in web processes
    from uvloop import new_event_loop

log = structlog.get_logger(__name__)


class RunLoop:
    """The loop of a worker process. `start`, `wake` and `stop` may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._stopped = False
        self._woken: asyncio.Event
        self._tasks: dict[asyncio.Task[None], Execution] = {}
        self._backlog = False  # whether runs were left queued when the loop last claimed
        self._messages = 0  # messages saying that runs were queued

    def start(self) -> None:
        """Start the loop on a thread of its own, unless it runs or was stopped."""
        with self._lock:
            if self._thread is None and not self._stopped:
                self._thread = threading.Thread(target=self._run, name="runs", daemon=True)
                self._thread.start()
                self._ready.wait()

    def wake(self) -> None:
        """Claim as many runs as there is room for, because some were queued."""
        self.start()
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._backlog = True
        self._messages += 1
        self._woken.set()

    def stop(self) -> None:
        """Claim nothing more, queue the runs in progress again, and wait for that."""
        with self._lock:
            self._stopped = True
            thread = self._thread
        if thread is not None and self._loop is not None and thread.is_alive():
            self._loop.call_soon_threadsafe(self._woken.set)
            thread.join(_STOP_WITHIN_S)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(self._live())

    # Called on the loop

    async def _live(self) -> None:
        self._loop, self._woken = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        try:
            while not self._stopped:
                await self._claim_all()
                await self._wait()
        finally:
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(list(self._tasks))
            await llm.aclose()

    async def _wait(self) -> None:
        """Wait for a message or the end of a run, and look again after a while even without one."""
        full = self._backlog and not self._has_room()
        try:
            async with asyncio.timeout(_RECOUNT_EVERY_S if full else _LOOK_EVERY_S):
                await self._woken.wait()
        except TimeoutError:
            pass
        self._woken.clear()

    async def _claim_all(self) -> None:
        """Claim runs until none is left or there is no room."""
        # Without a message, claim only runs that have waited for one in vain.
        queued_for = dt.timedelta(seconds=0 if self._backlog else _LOST_AFTER_S)
        try:
            if not self._backlog and not await db.run(run_queue.has_waiting):
                return
            while self._has_room() and not self._stopped:
                messages = self._messages
                claimed = await db.run(run_queue.claim_next, queued_for=queued_for)
                if claimed is None:
                    if self._backlog:
                        waits = await db.run(run_queue.has_waiting)
                        self._backlog = waits or self._messages != messages  # one may have come meanwhile
                    return
                self._spawn(runner.Execution(claimed))
                if self._backlog and not claimed.others_wait:
                    self._backlog = self._messages != messages
                    if not self._backlog:
                        return
        except Exception as error:
            # Without its database a worker waits; whatever else happens, the loop must outlive it.
            if store_of(error):
                log.warning("run_loop.waiting_for_database", error=type(error).__name__)
            else:
                log_failure("run_loop.claim_failed", error)
            await asyncio.sleep(random.uniform(1, _MAX_OUTAGE_PAUSE_S))

    def _has_room(self) -> bool:
        working = sum(not execution.is_waiting() for execution in self._tasks.values())
        rules: dict[str, int] = settings.RUNS
        return working < rules["slots"] and len(self._tasks) < rules["most_held"]

    def _spawn(self, execution: Execution) -> None:
        task = asyncio.get_running_loop().create_task(execution.run(), name="run")
        self._tasks[task] = execution
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        if not task.cancelled() and (error := task.exception()):
            log_failure("run_loop.run_failed", error)
        if self._backlog:
            self._woken.set()


run_loop = RunLoop()
