"""Finds transactions that wait for each other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

from django.db import OperationalError, connections, transaction

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
