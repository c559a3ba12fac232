"""Transactions that wait for each other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from django.db import OperationalError, connection, connections, transaction

from adiuva.core import db
from adiuva.core.errors import AdiuvaError

T = TypeVar("T")


def conflicts_of(*operations: Callable[[], object], times: int = 60) -> list[str]:
    """Do each of the operations in a thread of its own, again and again, and take it back each time.

    Returns what PostgreSQL ended for the sake of another; nothing is what is right.
    """
    found: list[str] = []
    together = threading.Barrier(len(operations))

    def again_and_again(operation: Callable[[], object]) -> None:
        try:
            together.wait(timeout=60)
            for _ in range(times):
                if found:
                    return
                with suppress(AdiuvaError), transaction.atomic():
                    operation()
                    transaction.set_rollback(True)
        except OperationalError as error:
            if not db.is_conflict(error):
                raise
            found.append(str(error))
        except BaseException as error:
            found.append(repr(error))
            raise
        finally:
            connections.close_all()

    threads = [threading.Thread(target=again_and_again, args=[each]) for each in operations]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def overtaken(act: Callable[[], T], change: Callable[[], object]) -> T:
    """Do `act` while `change` is done but not yet committed, which it is once `act` waits for it, or is done without.

    Returns what `act` returned. Needs the fixture `committed_db`.
    """
    with ThreadPoolExecutor(1) as threads:
        with transaction.atomic():
            change()
            acting = threads.submit(_with_connections_closed, act)
            while not acting.done() and not _is_waited_for():
                time.sleep(0.01)
        return acting.result(60)


def _with_connections_closed(act: Callable[[], T]) -> T:
    try:
        return act()
    finally:
        connections.close_all()


def _is_waited_for() -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid)))"
        )
        return bool(cursor.fetchone()[0])
