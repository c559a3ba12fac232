"""Tasks that wait hold a part of a worker's threads at most, and what is sent twice is done at most twice."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from pytest_django import Settings

from adiuva.core import celery_thread_shares
from adiuva.core.celery_thread_shares import Share, within


@pytest.fixture
def sent_again(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    monkeypatch.setattr(celery_thread_shares, "_send_again", found.append)
    return found


class Tasks:
    """Tasks that wait until they are let go, each on a thread of its own."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool, self.go, self._begun = pool, threading.Event(), threading.Semaphore(0)

    def start(self, share: Share, argument: str) -> Future[None]:
        def wait(_: str) -> None:
            self._begun.release()
            self.go.wait(10)

        return self._pool.submit(within(share)(wait), argument)

    def begun(self) -> bool:
        return self._begun.acquire(timeout=10)


@pytest.fixture
def tasks(settings: Settings) -> Iterator[Tasks]:
    settings.CELERY_WORKER_CONCURRENCY = 8
    with ThreadPoolExecutor(16) as pool:
        made = Tasks(pool)
        yield made
        made.go.set()


def test_tasks_of_a_kind_leave_threads_for_the_others(
    tasks: Tasks, sent_again: list[tuple[str, ...]]
) -> None:
    waiting = [tasks.start(Share.MODELS, str(number)) for number in range(4)]
    assert all(tasks.begun() for _ in waiting)
    tasks.start(Share.MODELS, "one more").result(10)  # does not wait: it is put off
    assert sent_again == [("one more",)]
    waiting.append(tasks.start(Share.DEVICES, "another kind"))
    assert tasks.begun()
    tasks.go.set()
    for each in waiting:
        each.result(10)
    tasks.start(Share.MODELS, "one more").result(10)
    assert sent_again == [("one more",)]


def test_what_is_sent_again_while_it_is_in_progress_is_done_once_more(
    tasks: Tasks, sent_again: list[tuple[str, ...]]
) -> None:
    first = tasks.start(Share.DEVICES, "ada")
    assert tasks.begun()
    for _ in range(3):
        tasks.start(Share.DEVICES, "ada").result(10)
    assert sent_again == []
    tasks.go.set()
    first.result(10)
    assert sent_again == [("ada",)]


def test_a_task_that_fails_gives_its_thread_back(tasks: Tasks, sent_again: list[tuple[str, ...]]) -> None:
    @within(Share.EXPORTS)
    def fail(_: str) -> None:
        raise ValueError("no")

    for _ in range(3):
        with pytest.raises(ValueError, match="no"):
            fail("x")
    assert sent_again == []


def test_the_shares_leave_threads_free() -> None:
    assert sum(share.value for share in Share) < 1
