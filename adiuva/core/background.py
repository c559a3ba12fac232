"""Background tasks of one event loop, kept alive until they end, with their failures logged."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from adiuva.core.errors import AdiuvaError
from adiuva.core.logging import log_failure

T = TypeVar("T")


class BackgroundTasks:
    """Holder of references to tasks (asyncio itself keeps only weak ones), which logs unexpected errors as `event`.

    An AdiuvaError is an expected outcome: the task's waiter is told, and nothing is logged.
    """

    def __init__(self, event: str, logger: Any) -> None:
        self._event, self._logger = event, logger
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, AdiuvaError):
            log_failure(self._event, error, logger=self._logger, task=task.get_name())
