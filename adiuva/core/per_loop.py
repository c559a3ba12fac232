"""Registry of one value for each event loop, such as its HTTP session or its connections to Redis."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")


class PerLoop(Generic[T]):
    """Registry that makes a value when an event loop first asks for it, and forgets it when the loop is gone.

    Safe to use from several threads, each of which may run a loop of its own.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: WeakKeyDictionary[asyncio.AbstractEventLoop, T] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def get(self) -> T:
        """Return the running loop's value. Raises RuntimeError if no loop is running."""
        loop = asyncio.get_running_loop()
        # No lock on the usual path: only the loop's own thread writes or reads this key.
        if (known := self._values.get(loop)) is not None:
            return known
        value = self._make()
        with self._lock:
            # A value that refers to its loop keeps it alive, so the weak key alone does not free it.
            for closed in [other for other in self._values if other.is_closed()]:
                del self._values[closed]
            self._values[loop] = value
        return value

    def pop(self) -> T | None:
        """Remove and return the running loop's value, for example to close it; None if there is none."""
        with self._lock:
            return self._values.pop(asyncio.get_running_loop(), None)
