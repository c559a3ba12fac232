"""The summary of a conversation's older part: what the user said, cut short, below what was known before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adiuva.offline_model.extraction import text as text_of
from adiuva.offline_model.turn import fenced

_MOST_LINES = 40
_LINE_CHARS = 160


def summary(messages: Sequence[Mapping[str, Any]]) -> str:
    """The summary that the last message asks for, or nothing if it is no such request."""
    asked = text_of(messages[-1]) if messages else ""
    conversation = fenced(asked, "conversation")
    if not conversation:
        return ""
    said = [
        f"- The user said: {_short(line.removeprefix('user: '))}"
        for line in conversation.splitlines()
        if line.startswith("user: ")
    ]
    known = fenced(asked, "summary so far").splitlines()
    return "\n".join([*known, *said][-_MOST_LINES:]) or "- Nothing that matters was said."


def _short(line: str) -> str:
    words = " ".join(line.split())
    return words if len(words) <= _LINE_CHARS else f"{words[:_LINE_CHARS]}…"
