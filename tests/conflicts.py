"""Finds transactions that wait for each other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from django.db import OperationalError, connection, connections, transaction

from adiuva.core import db
from adiuva.core.errors import AdiuvaError


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


def wait_until_in_the_way(of: Future[Any]) -> None:
    """Wait until another connection waits for the locks of this thread's transaction, or `of` has done without them."""
    waiting = False
    while not waiting and not of.done():
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid))"
            )
            waiting = cursor.fetchone()[0] > 0
