"""Codec of the frames of adiuva.devices.protocol as JSON text, within the limits of every frame.

Like the frames themselves, this module imports no framework: clients use it too.
"""

from __future__ import annotations

import json
from contextlib import suppress
from functools import cache
from typing import Any, Final, TypeVar, cast, get_args

import orjson
from pydantic import BaseModel, TypeAdapter, ValidationError

from adiuva.devices import tool_results
from adiuva.devices.protocol import (
    MAX_BATCH,
    SINCE_2,
    ClientFrame,
    Data,
    Received,
    Sent,
    ServerFrame,
    ToolBatchResult,
    ToolResult,
    ToolResultBody,
)

MAX_FRAME_BYTES: Final = 1024 * 1024
MAX_DEPTH: Final = 32
PART_BYTES: Final = 512 * 1024
INT64_MAX: Final = 2**63 - 1

Frame = TypeVar("Frame", bound=Sent | Received)
Result = TypeVar("Result", bound=ToolResultBody)

client_frames: TypeAdapter[ClientFrame] = TypeAdapter(ClientFrame)
server_frames: TypeAdapter[ServerFrame] = TypeAdapter(ServerFrame)

# Adapters by type, because letting the union choose costs as much again as checking a frame.
_CLIENT_FRAMES: Final[dict[Any, type[Received]]] = {
    model.model_fields["type"].default: model for model in get_args(get_args(ClientFrame)[0])
}

# Finds a run of digits ten times faster than a regular expression, and every frame is searched. Braces become brackets
# meanwhile, so that one count tells how deep a frame can nest.
_TO_ZEROS_AND_BRACKETS: Final = bytes.maketrans(b"123456789{", b"000000000[")
_LONG_NUMBER: Final = b"0" * 19


class BadFrame(ValueError):
    """Error for a frame that cannot be accepted; its sender gets an error frame. `ref` is its id, request_id or run_id
    and `kind` its type, as far as they are known."""

    def __init__(self, code: str, message: str, ref: str | None = None, kind: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.ref, self.kind = code, message, ref, kind


class FrameTooLarge(BadFrame):
    def __init__(self) -> None:
        super().__init__("frame_too_large", f"a frame is at most {MAX_FRAME_BYTES} bytes")


def parse(text: str) -> ClientFrame:
    """Return one frame from a client. Raises BadFrame, with the code `unknown_type` if its type is not known."""
    content = decode(text)
    kind = content.get("type")
    if kind == "tool_result" and (result := _plain_result(ToolResult, content)) is not None:
        return result
    if kind == "tool_batch_result" and (batch := _plain_batch(content)) is not None:
        return batch
    if isinstance(kind, str) and (model := _CLIENT_FRAMES.get(kind)) is not None:
        try:
            return cast(ClientFrame, model.__pydantic_validator__.validate_python(content))
        except ValidationError:
            pass  # the union describes better what is wrong
    try:
        return client_frames.validate_python(content)
    except ValidationError as error:
        if (repaired := tool_results.repaired(content)) is not None:
            with suppress(ValidationError):
                return client_frames.validate_python(repaired)
        raise _explain(content, error) from None


def _plain_result(model: type[Result], content: Data) -> Result | None:
    """Return what pydantic would make of a result, if that is clear at a glance. Keys of JSON objects are texts, but
    pydantic would look at each key of each row, and copy them."""
    fields = _NO_RESULT[model].copy()
    for name, value in content.items():
        if value is not None and (kind := _RESULT_TYPES.get(name)) is not None:
            if type(value) is not kind or (kind is list and not all(type(row) is dict for row in value)):
                return None
            fields[name] = value
    if not 0 < len(fields["id"]) <= _MAX_ID_CHARS:
        return None
    return construct(model, fields)


def _plain_batch(content: Data) -> ToolBatchResult | None:
    """Return what pydantic would make of the results of a batch, if that is clear at a glance."""
    given = content.get("results")
    if type(given) is not list or len(given) > MAX_BATCH:
        return None
    results: list[ToolResultBody] = []
    for each in given:
        if type(each) is not dict or (result := _plain_result(ToolResultBody, each)) is None:
            return None
        results.append(result)
    return construct(ToolBatchResult, {"type": "tool_batch_result", "results": results})


# pydantic handles results without an id.
_NO_RESULT: Final[dict[type[ToolResultBody], Data]] = {
    model: {**vars(model(id="-")), "id": ""} for model in (ToolResult, ToolResultBody)
}
_RESULT_TYPES: Final[dict[str, Any]] = {
    "id": str,
    "row": dict,
    "rows": list,
    "results": list,
    "deleted": bool,
    "ok": bool,
    "error": str,
    "code": str,
}
_MAX_ID_CHARS: Final = 200


def parse_server(text: str) -> ServerFrame:
    """Return one frame from the server, for clients. Raises BadFrame like `parse`."""
    content = decode(text)
    try:
        return server_frames.validate_python(content)
    except ValidationError as error:
        raise _explain(content, error) from None


def parse_trusted(text: str) -> ServerFrame:
    """Return one frame that the server wrote itself, without the limits for clients."""
    return server_frames.validate_json(text)


def dump(frame: Sent | Received, protocol: int = 2) -> str:
    """Return a frame's text for a peer of this protocol version. Fields without a value are left out."""
    return dump_bytes(frame, protocol).decode()


def dump_bytes(frame: Sent | Received, protocol: int = 2) -> bytes:
    """Return a frame as `dump` does, in UTF-8."""
    left_out = _newer_fields(type(frame)) if protocol < 2 else None
    # The same as `model_dump_json` in half the time, which has a dozen options to pass on.
    return frame.__pydantic_serializer__.to_json(frame, exclude_none=True, exclude=left_out)


def construct(model: type[Frame], fields: Data) -> Frame:
    """Return a frame with these fields, which must be all of its fields in their order, and are not checked.

    It does what `model_construct` does, in a tenth of the time.
    """
    made = _new(model)
    _put_fields(made, fields)
    _put_fields_set(made, _NONE_SET)
    _put_extra(made, None)
    _put_private(made, None)
    return made


_new: Final = object.__new__
# The slots of every model, which a frozen one does not let be set by name.
_put_fields, _put_fields_set, _put_extra, _put_private = (
    vars(BaseModel)[slot].__set__
    for slot in ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")
)
_NONE_SET: Final[set[str]] = set()  # one for all, since a copy of a model gets a set of its own


def is_in_protocol(frame: type[Sent], protocol: int) -> bool:
    """Return whether this protocol version has this type of frame."""
    return protocol >= 2 or frame.model_config.get("json_schema_extra") is not SINCE_2


def decode(text: str) -> Data:
    """Return a JSON object within the limits of every frame. Raises BadFrame."""
    try:
        if len(text) > MAX_FRAME_BYTES or (not text.isascii() and len(text.encode()) > MAX_FRAME_BYTES):
            raise FrameTooLarge
        content = orjson.loads(text)  # refuses NaN, Infinity, lone surrogates and what nests over 1,024 deep
    except (orjson.JSONDecodeError, UnicodeEncodeError) as error:
        raise BadFrame("bad_json", f"not JSON: {error}") from None
    if not isinstance(content, dict):
        raise BadFrame("bad_frame", "a frame is a JSON object")
    simplified = text.encode().translate(_TO_ZEROS_AND_BRACKETS)
    if simplified.count(b"[") > MAX_DEPTH and nests_over(content, MAX_DEPTH):
        raise _refused("too_deep", f"a frame nests at most {MAX_DEPTH} levels", content)
    # orjson reads integers beyond 64 bits as floats, so they can only be found in the text.
    if _LONG_NUMBER in simplified and not _integers_fit(text):
        raise _refused("number_too_large", "integers are within 64 bits", content)
    return content


def nests_over(value: Any, levels: int) -> bool:
    """Return whether lists and objects nest more than `levels` deep."""
    # Level by level, because a frame of many rows is wide, and one call per value would cost more than the rest of
    # parsing.
    layer = [value] if isinstance(value, (dict, list)) else []
    for _ in range(levels):
        if not layer:
            return False
        layer = [
            item
            for each in layer
            for item in (each.values() if isinstance(each, dict) else each)
            if isinstance(item, (dict, list))
        ]
    return bool(layer)


def _refused(code: str, message: str, content: Data) -> BadFrame:
    return BadFrame(code, message, _ref(content), str(content.get("type", "")))


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -INT64_MAX - 1 <= int(digits) <= INT64_MAX:
        raise ValueError
    return 0


def _integers_fit(text: str) -> bool:
    try:
        json.loads(text, parse_int=_integer)
    except ValueError:
        return False
    return True


def _ref(content: Data) -> str | None:
    for key in ("request_id", "id", "run_id"):
        if isinstance(found := content.get(key), str) and len(found) <= 200:
            return found
    return None


def _explain(content: Data, error: ValidationError) -> BadFrame:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if first["type"] == "union_tag_invalid":
        return BadFrame("unknown_type", "this type of frame is not known", _ref(content))
    where = ".".join(str(part) for part in first["loc"]) or "frame"
    return _refused("bad_frame", f"{where}: {first['msg']}", content)


@cache
def _newer_fields(model: type[BaseModel]) -> set[str]:
    return {name for name, field in model.model_fields.items() if field.json_schema_extra is SINCE_2}
