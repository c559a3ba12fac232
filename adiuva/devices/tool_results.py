"""Tool results that are malformed, or too large for a frame.

A bad row costs only that row. A bad result fails its call at once, so that nobody waits for an answer that has come.
Like the frames, this module imports no framework.
"""

from __future__ import annotations

import re
from typing import Final

from pydantic import ValidationError

from adiuva.devices.protocol import Data, ToolResult, ToolResultBody

MALFORMED: Final = "malformed"
TOO_LARGE: Final = "too_large"
# The device's own code: it could store nothing, so nothing happened.
NOT_SAVED: Final = "not_saved"
_WORDS: Final = {
    MALFORMED: "the device's answer cannot be read",
    TOO_LARGE: "the device's answer is too large for a frame",
}
# Devices that know no codes give the reason in words.
_SAYS_TOO_LARGE: Final = re.compile(r"\btoo[ _]large\b", re.IGNORECASE)
_RESULT_TYPES: Final = ("tool_result", "tool_batch_result")
# The id at the beginning of a result, before or after its type. Nearly all results begin in the same way.
_USUAL_START: Final = '{"type":"tool_result","id":"'
_LONGEST_ID: Final = 200
_LEADING_ID: Final = re.compile(
    r'\s*\{\s*(?:"type"\s*:\s*"tool_result"\s*,\s*)?"id"\s*:\s*"([^"\\]{1,200})"', re.ASCII
)


def failed(call_id: str, code: str) -> ToolResult:
    """Return the result of a call with a useless answer. `code` says why."""
    return ToolResult(id=call_id, error=_WORDS[code], code=code)


def is_large_select(action: str, result: ToolResultBody) -> bool:
    """Return whether the rows of a select did not fit into a frame."""
    if action != "select" or result.error is None:
        return False
    return result.code == TOO_LARGE or (result.code is None and bool(_SAYS_TOO_LARGE.search(result.error)))


def is_unreadable(result: ToolResultBody) -> bool:
    """Return whether the device has answered something unknown: a write may have happened."""
    return result.error is not None and result.code in (MALFORMED, TOO_LARGE)


def may_be_result(text: str) -> bool:
    """Return whether the text of a frame, which may not be JSON, looks like a tool result."""
    return any(f'"{name}"' in text for name in _RESULT_TYPES)


def leading_id(text: str) -> str | None:
    """Return the id at the beginning of a frame, if it is clear without parsing. A frame that begins with a call's id
    is meant as its answer, whatever it is."""
    if text.startswith(_USUAL_START):
        start = len(_USUAL_START)
        end = text.find('"', start, start + _LONGEST_ID + 1)
        if end > start and "\\" not in (call := text[start:end]):
            return call
    found = _LEADING_ID.match(text)
    return found[1] if found is not None else None


def repaired(content: Data) -> Data | None:
    """Return a valid frame of tool results made of an invalid one; None if that is impossible.

    Something that is no row becomes an empty one, which is no valid row either; something that is no result becomes a
    failed one.
    """
    match content:
        case {"type": "tool_result", "id": str(call_id)} if 0 < len(call_id) <= 200:
            return {"type": "tool_result", **_repaired_result(content)}
        case {"type": "tool_batch_result", "results": list(results)}:
            named = [
                one
                for one in results
                if isinstance(one, dict) and isinstance(key := one.get("id"), str) and 0 < len(key) <= 200
            ]
            return {"type": "tool_batch_result", "results": [_repaired_result(one) for one in named]}
    return None


def _repaired_result(given: Data) -> Data:
    result = {name: value for name, value in given.items() if name in ToolResultBody.model_fields}
    for name in ("rows", "results"):
        if isinstance(rows := result.get(name), list):
            result[name] = [row if isinstance(row, dict) else {} for row in rows]
    match result.get("error"):
        case {"message": str(message), **rest}:
            result["error"] = message
            result["code"] = rest.get("code")
        case dict() | list() as error:
            result["error"] = (
                str(error.get("code") or error.get("error") or "") if isinstance(error, dict) else ""
            )
            result["code"] = error.get("code") if isinstance(error, dict) else None
    if not isinstance(result.get("code"), str):
        result.pop("code", None)
    try:
        ToolResultBody.model_validate(result)
    except ValidationError:
        return failed(given["id"], MALFORMED).model_dump(exclude={"type"})
    return result
