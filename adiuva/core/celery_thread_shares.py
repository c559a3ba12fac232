"""Shares of a worker's threads, so that tasks that wait for something slow leave threads for the others.

A task waits for a model or a device on a thread of the worker. All tasks of a kind get a part of the threads; a task
that finds none free is put off for a moment. A task with the same arguments as one in progress runs once more after
that one, however often it was sent, since it reads the same rows.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from enum import Enum
from functools import wraps
from typing import Final

from celery import current_app
from django.conf import settings

_PUT_OFF_S: Final = 1.0


class Share(Enum):
    """Kind of tasks, and the part of the worker's threads that it may hold. All kinds together leave an eighth free."""

    MODELS = 1 / 2
    DEVICES = 1 / 4
    EXPORTS = 1 / 8

    def most(self) -> int:
        return max(1, int(settings.CELERY_WORKER_CONCURRENCY * self.value))


class _Threads:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[tuple[Share, str, tuple[str, ...]], bool] = {}

    def enter(self, share: Share, task: str, args: tuple[str, ...]) -> bool | None:
        """Take a thread. True: go on. False: none is free. None: the same task is in progress, and will run once
        more."""
        with self._lock:
            key = (share, task, args)
            if key in self._under_way:
                self._under_way[key] = True
                return None
            if sum(each[0] is share for each in self._under_way) >= share.most():
                return False
            self._under_way[key] = False
            return True

    def leave(self, share: Share, task: str, args: tuple[str, ...]) -> bool:
        """Give the thread back. Returns whether the same task was sent meanwhile."""
        with self._lock:
            return self._under_way.pop((share, task, args))


_threads = _Threads()


def within(share: Share) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate the function of a Celery task, below `shared_task`, so that its tasks stay within a share of threads."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def run(*args: str) -> None:
            task = f"{function.__module__}.{function.__qualname__}"
            entered = _threads.enter(share, task, args)
            if entered is None:
                return
            if not entered:
                _send_again(args)
                return
            try:
                function(*args)
            finally:
                if _threads.leave(share, task, args):
                    _send_again(args)

        return run

    return decorate


def _send_again(args: tuple[str, ...]) -> None:
    """Send the current task again, to run in a moment. If that fails, a sweep finds its rows."""
    task = current_app.current_task
    if task is not None:
        task.apply_async(args, countdown=random.uniform(_PUT_OFF_S, 2 * _PUT_OFF_S))
