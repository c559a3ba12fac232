"""Log entries are events: a noun, a dot, and what happened to it, from a logger named after its module."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
EVENT = re.compile(r"[a-z]+(_[a-z]+)*\.[a-z]+(_[a-z]+)*")


def modules() -> Iterator[tuple[str, ast.Module]]:
    for app in ("adiuva", "agents", "billing", "chat", "integrations", "memory"):
        for path in sorted((ROOT / app).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            # The headless device and the offline model are programs of their own, which log for their owner.
            if "/migrations/" not in name and "devices/client" not in name and "offline_llm" not in name:
                yield name, ast.parse(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def calls() -> list[tuple[str, ast.Call]]:
    """All calls, each with the name of its file. They are read once, and not kept beyond this module."""
    return [(name, node) for name, tree in modules() for node in ast.walk(tree) if isinstance(node, ast.Call)]


def event_of(call: ast.Call) -> str | None:
    """The first argument of a call that logs, if it is a literal."""
    match call.func:
        case ast.Attribute(value=ast.Name(id="log" | "logger"), attr=level) if level in LEVELS:
            pass
        case ast.Name(id="log_failure"):
            pass
        case _:
            return None
    match call.args:
        case [ast.Constant(value=str(event)), *_]:
            return event
    return None


def test_events_are_a_noun_and_what_happened(calls: list[tuple[str, ast.Call]]) -> None:
    wrong = [
        f"{name}:{node.lineno} {event!r}"
        for name, node in calls
        if (event := event_of(node)) and not EVENT.fullmatch(event)
    ]
    assert wrong == []


def test_loggers_are_named_after_their_module(calls: list[tuple[str, ast.Call]]) -> None:
    wrong = [
        f"{name}:{node.lineno}"
        for name, node in calls
        if isinstance(node.func, ast.Attribute)
        and node.func.attr in ("get_logger", "getLogger")
        and isinstance(node.args[0] if node.args else None, ast.Constant)
    ]
    assert wrong == []
