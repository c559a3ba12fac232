"""Generated tables of docs/protocol.md. The words between them are written by hand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from adiuva.devices import vocabulary
from adiuva.devices.tables import TABLES, Column

_BLOCK: Final = re.compile(r"(<!-- made: ([a-z ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def refreshed(page: str, schema: dict[str, Any]) -> str:
    """Return the page with each block between `<!-- made: NAME -->` and `<!-- end -->` made anew."""
    definitions = schema["$defs"]
    blocks = {
        "client frames": _frames(definitions, "ClientFrame"),
        "server frames": _frames(definitions, "ServerFrame"),
        "parts of frames": _parts(definitions),
        "tables": _tables(),
        "filters": _table(
            ["filter", "value", "meaning"],
            ([f"`{name}`", kind, about] for name, (kind, about) in vocabulary.FILTERS.items()),
        ),
        "capabilities": _meanings("capability", vocabulary.CAPABILITIES),
        "limits": _table(
            ["limit", "value", "of"],
            ([f"`{name}`", f"{value:,}", about] for name, (value, about) in vocabulary.LIMITS.items()),
        ),
        "close codes": _table(
            ["code", "meaning"], ([str(code), about] for code, about in vocabulary.CLOSE_CODES.values())
        ),
        "frame codes": _meanings("code", vocabulary.FRAME_CODES),
        "stream codes": _meanings("code", vocabulary.STREAM_CODES),
        "notices": _meanings("notice", vocabulary.NOTICES),
    }
    return _BLOCK.sub(lambda found: f"{found[1]}\n{blocks[found[2]]}\n\n{found[3]}", page)


def _frames(definitions: Mapping[str, Any], union: str) -> str:
    names = _members(definitions, union)
    return _table(
        ["frame", "fields"],
        (
            [_marked(f"`{_type_of(definitions[name])}`", definitions[name]), _fields(definitions[name])]
            for name in names
        ),
    )


def _parts(definitions: Mapping[str, Any]) -> str:
    unions = [name for name, body in definitions.items() if "oneOf" in body]
    frames = {name for union in unions for name in _members(definitions, union)}
    rows = (
        [f"`{name}`", _fields(body)]
        for name, body in definitions.items()
        if "properties" in body and name not in frames
    )
    return _table(["object", "fields"], rows)


def _members(definitions: Mapping[str, Any], union: str) -> list[str]:
    return [option["$ref"].rpartition("/")[2] for option in definitions[union]["oneOf"]]


def _type_of(definition: Mapping[str, Any]) -> str:
    return str(definition["properties"]["type"]["const"])


def _fields(definition: Mapping[str, Any]) -> str:
    required = definition.get("required", [])
    described = []
    for name, body in definition["properties"].items():
        if "const" in body:
            continue
        text = _marked(f"`{name}{'' if name in required else '?'}`: {_form(body)}", body)
        if about := " ".join(body.get("description", "").split()):
            text += f" ({about})"
        described.append(text)
    about = " ".join(definition.get("description", "").split())
    return "<br>".join([*described, *([f"*{about}*"] if about else [])])


def _marked(text: str, body: Mapping[str, Any]) -> str:
    return f"{text} ²" if body.get("since") == 2 else text


def _form(body: Mapping[str, Any]) -> str:
    if "$ref" in body:
        return str(body["$ref"]).rpartition("/")[2]
    if "enum" in body:
        return ", ".join(f"`{value}`" for value in body["enum"])
    if options := body.get("anyOf"):
        return " or ".join(_form(option) for option in options if option.get("type") != "null")
    match body.get("type"):
        case "array":
            return f"list of {_form(body.get('items', {}))}"
        case "object":
            inner = body.get("additionalProperties")
            return f"object of {_form(inner)}" if isinstance(inner, dict) and inner else "object"
        case str(simple):
            return simple
    return "anything"


def _tables() -> str:
    parts = []
    for table in TABLES.values():
        rows = _table(
            ["column", "value", "meaning"],
            ([f"`{column.name}`", _value(column), column.about] for column in table.columns),
        )
        parts.append(f"**{table.name}**: {table.about}.\n\n{rows}")
    return "\n\n".join(parts)


def _value(column: Column) -> str:
    kinds = {
        "int": "integer",
        "flag": "0 or 1",
        "time": "milliseconds since the epoch",
        "names": "a JSON array of strings, as a string",
    }
    form = ", ".join(f"`{choice}`" for choice in column.choices) or kinds.get(column.kind, "text")
    if column.made_by_device:
        return f"{form}; the device makes it"
    if column.required:
        return f"{form}; required"
    return form if column.default is None else f"{form}; `{column.default}` if absent"


def _meanings(head: str, meanings: Mapping[str, str]) -> str:
    return _table([head, "meaning"], ([f"`{name}`", about] for name, about in meanings.items()))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)
