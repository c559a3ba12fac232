"""Ends work between any two of its steps: before and after each statement in PostgreSQL and each call to Stripe."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


def kill() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


@contextmanager
def failpoints(at: int, end: Callable[[], object] = kill) -> Iterator[Callable[[], int]]:
    """Call `end` at this step of the block; never if it is 0. Yields what tells how many steps there were so far.

    A commit is no step of its own, but lies between two: after the last statement of its transaction, and before the
    next one.
    """
    from django.db import connection

    from billing.payments import stripe_api

    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        if steps == at:
            end()
        return steps

    def statement(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        step()
        result = execute(sql, params, many, context)
        step()
        return result

    call = stripe_api.call

    def counted(act: Callable[[Any], Any]) -> Any:
        step()
        result = call(act)
        step()
        return result

    stripe_api.call = counted
    try:
        with connection.execute_wrapper(statement):
            yield lambda: steps
    finally:
        stripe_api.call = call
