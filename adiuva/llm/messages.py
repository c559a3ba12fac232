"""The order of messages that every chat template takes: one system message first, then user and assistant by turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from adiuva.llm.types import Message

# Strict templates refuse a conversation that begins with an answer, or a user who speaks right after a tool's result.
_BEGINNING: Final = "(What was said before is left out.)"
_AFTER_RESULTS: Final = "(The results are here.)"


def in_strict_order(messages: Sequence[Message]) -> Sequence[Message]:
    """The messages with all system texts in one message at the beginning, and no role twice in a row.

    Tool calls and their results stay as they are. Messages that are in order are returned unchanged.
    """
    if _is_in_order(messages):
        return messages
    system = [_text(message) for message in messages if message["role"] == "system"]
    arranged: list[Message] = [{"role": "system", "content": "\n\n".join(system)}] if system else []
    for message in messages:
        before = arranged[-1] if arranged else None
        role_before = before["role"] if before is not None else "system"
        match message["role"]:
            case "system":
                continue
            case "assistant" if role_before == "system":
                arranged.append({"role": "user", "content": _BEGINNING})
            case "user" if role_before == "tool":
                arranged.append({"role": "assistant", "content": _AFTER_RESULTS})
            case ("user" | "assistant") as role if (
                before is not None
                and role == role_before
                and isinstance(before.get("content"), str)
                and isinstance(message.get("content"), str)
                and not before.get("tool_calls")
            ):
                together = f"{_text(before)}\n\n{_text(message)}"
                arranged[-1] = {**message, "content": together}
                continue
        arranged.append(message)
    return arranged


def without_system_role(messages: Sequence[Message]) -> Sequence[Message]:
    """The messages for a template that knows no system role: its text opens the first message of the user."""
    if not messages or messages[0]["role"] != "system":
        return messages
    system, *rest = messages
    if rest and rest[0]["role"] == "user" and isinstance(rest[0].get("content"), str):
        return [{"role": "user", "content": f"{_text(system)}\n\n{_text(rest[0])}"}, *rest[1:]]
    return [{"role": "user", "content": _text(system)}, *rest]


def _is_in_order(messages: Sequence[Message]) -> bool:
    before = "system"
    for place, message in enumerate(messages):
        role = message["role"]
        if role == "system":
            if place:
                return False
        elif role == "user":
            if before not in ("system", "assistant"):
                return False
        elif role == "assistant" and before not in ("user", "tool"):
            return False
        before = role
    return True


def _text(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return content or ""
