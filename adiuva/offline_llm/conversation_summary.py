"""Summarizes the older part of a conversation: appends the user's messages, shortened, to the summary so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adiuva.offline_llm.messages import delimited_text, message_text

_MAX_LINES = 40
_MAX_LINE_CHARS = 160


def summarize_conversation(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the summary that the last message asks for, or an empty string if it does not ask for one."""
    asked = message_text(messages[-1]) if messages else ""
    conversation = delimited_text(asked, "conversation")
    if not conversation:
        return ""
    said = [
        f"- The user said: {_truncate(line.removeprefix('user: '))}"
        for line in conversation.splitlines()
        if line.startswith("user: ")
    ]
    known = delimited_text(asked, "summary so far").splitlines()
    return "\n".join([*known, *said][-_MAX_LINES:]) or "- Nothing that matters was said."


def _truncate(line: str) -> str:
    words = " ".join(line.split())
    return words if len(words) <= _MAX_LINE_CHARS else f"{words[:_MAX_LINE_CHARS]}…"
