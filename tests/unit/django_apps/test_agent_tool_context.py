"""Waiting times of a turn's tools for an agent's run."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from chat.agent_tool_context import AgentWork
from chat.request import RunEnds

_SPARE_S = 1.0  # between what is asked for and what is left of a turn


def _work(left_s: float | None, *, origin: RunEnds | None = None) -> AgentWork:
    """That of a turn that waits for its tools so much longer."""
    now = asyncio.get_running_loop().time()
    conclude_at = None if left_s is None else now + left_s
    nothing: Any = None
    return AgentWork(
        SimpleNamespace(origin=origin),  # type: ignore[arg-type]  # all that is looked at
        nothing,
        nothing,
        nothing,
        nothing,
        nothing,
        conclude_at,
    )


@pytest.mark.parametrize(
    ("wanted", "left_s", "waits_s"),
    [(300, 80.0, 80.0), (60, 80.0, 60.0), (300, None, 300.0), (60, -5.0, 0.0)],
)
async def test_a_wait_leaves_time_for_an_answer(wanted: int, left_s: float | None, waits_s: float) -> None:
    assert waits_s - _SPARE_S < _work(left_s).longest_wait_s(wanted) <= waits_s


async def test_a_turn_that_follows_up_a_run_waits_for_none() -> None:
    follow_up = RunEnds(("a run",), ("Clients",))
    assert _work(80.0, origin=follow_up).longest_wait_s(300) == 0
