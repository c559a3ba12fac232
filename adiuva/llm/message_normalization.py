"""Messages in forms that every chat template takes.

They have one system message first, then user and assistant by turns, and no calls of tools if no tools are offered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from adiuva.core.prompt_delimiting import delimit_untrusted
from adiuva.llm.types import Message

# Strict templates refuse a conversation that begins with an answer, or a user who speaks right after a tool's result.
_BEGINNING: Final = "(What was said before is left out.)"
AFTER_RESULTS: Final = "(The results are here.)"
_CALLING: Final = "(I called a tool.)"
_NO_TOOLS: Final = (
    "[From the app, not from the user: you have no tools here. You can neither look at the user's data nor change it. "
    "Where the request needs that, say so, and invent nothing.]"
)


def in_strict_order(messages: Sequence[Message]) -> Sequence[Message]:
    """Return the messages with all system texts in one message at the beginning, and no role twice in a row.

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
                arranged.append({"role": "assistant", "content": AFTER_RESULTS})
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
    """Return the messages for a template that knows no system role: its text opens the first message of the user."""
    if not messages or messages[0]["role"] != "system":
        return messages
    system, *rest = messages
    if rest and rest[0]["role"] == "user" and isinstance(rest[0].get("content"), str):
        return [{"role": "user", "content": f"{_text(system)}\n\n{_text(rest[0])}"}, *rest[1:]]
    return [{"role": "user", "content": _text(system)}, *rest]


def calls_in_words(messages: Sequence[Message]) -> Sequence[Message]:
    """Return the messages with calls of tools and their results as texts. Some providers refuse calls in a request that
    offers no tools. Messages without calls are returned unchanged."""
    if not any(message["role"] == "tool" or message.get("tool_calls") for message in messages):
        return messages
    told: list[Message] = []
    results: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            results.append(_text(message))
            continue
        if results:
            told.append(_told(results))
            results = []
        if message.get("tool_calls"):
            told.append({"role": "assistant", "content": _text(message) or _CALLING})
        else:
            told.append(message)
    return [*told, _told(results)] if results else told


def told_of_no_tools(messages: Sequence[Message]) -> Sequence[Message]:
    """Return the messages of a request without its tools. The user's last message tells the model so."""
    told = list(in_strict_order(calls_in_words(messages)))
    place = next((n for n in reversed(range(len(told))) if told[n]["role"] == "user"), None)
    if place is not None and isinstance(told[place].get("content"), str):
        told[place] = {**told[place], "content": f"{_NO_TOOLS}\n\n{_text(told[place])}"}
    return told


def _told(results: Sequence[str]) -> Message:
    return {"role": "user", "content": delimit_untrusted("results", "\n\n".join(results))}


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
