"""Detection of tool calls and tool schemas that a model writes as JSON into its text."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import orjson

_NAMES = ("name", "tool", "tool_name", "function", "recipient_name")
_ARGUMENTS = ("arguments", "parameters", "args", "input", "tool_input")
_LISTS = ("tool_calls", "tool_uses", "function_call")
_NAMED = re.compile(rf'"(?:{"|".join(_NAMES)})"\s*:\s*"(?:functions\.)?([\w-]+)"')
_WITH_ARGUMENTS = re.compile(rf'"(?:{"|".join(_ARGUMENTS)})"\s*:')
_FUNCTION = re.compile(r'"type"\s*:\s*"function"')


def contains_tool_call(text: str, tools: Collection[str]) -> bool:
    """Return whether a JSON text, valid or broken, is or contains a tool call or a tool's schema."""
    try:
        waiting = [orjson.loads(text)]
    except orjson.JSONDecodeError:
        named = any(match[1] in tools for match in _NAMED.finditer(text))
        return bool(_FUNCTION.search(text) or (named and _WITH_ARGUMENTS.search(text)))
    while waiting:
        match waiting.pop():
            case dict() as inner if _is_call(inner, tools):
                return True
            case dict() as inner:
                waiting += inner.values()
            case list() as inner:
                waiting += inner
    return False


def _is_call(value: dict[str, Any], tools: Collection[str]) -> bool:
    if value.get("type") == "function" or any(isinstance(value.get(key), list | dict) for key in _LISTS):
        return True
    named = any(
        isinstance(name := value.get(key), str) and name.removeprefix("functions.") in tools for key in _NAMES
    )
    return named and any(key in value for key in _ARGUMENTS)
