"""One value for each event loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from adiuva.core.per_loop import PerLoop


class Value:
    """Refers to its loop, as HTTP sessions and connections do."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()


def test_loops_have_values_of_their_own_and_keep_them() -> None:
    registry = PerLoop(Value)

    async def twice() -> tuple[Value, Value]:
        return registry.get(), registry.get()

    first, second = asyncio.run(twice()), asyncio.run(twice())
    assert first[0] is first[1] and second[0] is second[1] and first[0] is not second[0]


def test_the_value_of_a_closed_loop_is_forgotten_when_another_loop_asks() -> None:
    registry = PerLoop(Value)

    async def get() -> None:
        registry.get()

    for _ in range(3):
        asyncio.run(get())
    assert len(registry._values) == 1


async def test_a_value_that_was_taken_out_is_made_anew() -> None:
    registry = PerLoop(Value)
    first = registry.get()
    assert registry.pop() is first and registry.pop() is None and registry.get() is not first


def test_without_a_running_loop_there_is_no_value() -> None:
    with pytest.raises(RuntimeError):
        PerLoop(Value).get()


def test_loops_in_several_threads_ask_at_once() -> None:
    registry, found = PerLoop(Value), []

    async def get() -> None:
        for _ in range(100):
            found.append(registry.get())
            await asyncio.sleep(0)

    threads = [threading.Thread(target=asyncio.run, args=(get(),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 800 and len(set(map(id, found))) == 8
