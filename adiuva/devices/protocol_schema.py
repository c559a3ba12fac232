"""Generator of what is published of the device socket: JSON Schema, TypeScript, and the tables of docs/protocol.md."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, get_args

from pydantic.json_schema import models_json_schema

from adiuva.devices import protocol, protocol_docs, vocabulary
from adiuva.devices.tables import TABLES, Column

SCHEMA_FILE: Final = "docs/protocol.schema.json"
TYPES_FILE: Final = "docs/protocol.d.ts"
PAGE_FILE: Final = "docs/protocol.md"
CLIENT_FILE: Final = "clients/typescript/src/protocol.ts"

_MADE: Final = "Made by `manage.py protocol` from adiuva/devices/protocol.py; do not edit."
_ALIASES: Final = {get_args(protocol.Action): "Action", get_args(protocol.TableName): "TableName"}
_UNIONS: Final = {"ClientFrame": protocol.ClientFrame, "ServerFrame": protocol.ServerFrame}


def files(project: Path) -> dict[str, str]:
    """Return the published files: path in the project → content."""
    schema = json_schema()
    types = typescript(schema)
    page = (project / PAGE_FILE).read_text("utf-8")
    return {
        SCHEMA_FILE: json.dumps(schema, indent=2, ensure_ascii=False) + "\n",
        TYPES_FILE: types + _constants(declared=True),
        CLIENT_FILE: types + _constants(declared=False),
        PAGE_FILE: protocol_docs.refreshed(page, schema),
    }


def write(project: Path) -> list[Path]:
    """Write the files; return those that changed."""
    changed = []
    for name, content in files(project).items():
        path = project / name
        if not path.exists() or path.read_text("utf-8") != content:
            path.write_text(content, "utf-8")
            changed.append(path)
    return changed


def json_schema() -> dict[str, Any]:
    """Return one document whose `$defs` hold every frame, and a union for each direction.

    It describes frames from clients as the server reads them, and frames from the server as it writes them.
    """
    sent = list(_members(protocol.ServerFrame))
    received = list(_members(protocol.ClientFrame))
    _, found = models_json_schema(
        [(model, "validation") for model in received] + [(model, "serialization") for model in sent],
        ref_template="#/$defs/{model}",
    )
    definitions = found["$defs"]
    definitions["ErrorFrame"] = definitions.pop("Error")  # in most languages, Error is a name of their own
    for name, union in _UNIONS.items():
        definitions[name] = {"oneOf": [{"$ref": f"#/$defs/{_name(model)}"} for model in _members(union)]}
    for definition in definitions.values():
        _tidy(definition)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Adiuva device socket",
        "description": f"{_MADE} `since: 2` marks what only clients of protocol 2 send or get.",
        "oneOf": [{"$ref": f"#/$defs/{name}"} for name in _UNIONS],
        "$defs": dict(sorted(definitions.items())),
    }


def _name(model: type[Any]) -> str:
    return "ErrorFrame" if model is protocol.Error else model.__name__


def _members(union: Any) -> tuple[type[Any], ...]:
    members: tuple[type[Any], ...] = union.__args__[0].__args__
    return members


def _tidy(definition: dict[str, Any]) -> None:
    """Drop titles, which repeat the names, and null defaults; make a frame's type required."""
    definition.pop("title", None)
    properties = definition.get("properties", {})
    for field in properties.values():
        field.pop("title", None)
        if field.get("default", ...) is None:
            del field["default"]
    if "type" in properties and "type" not in definition.setdefault("required", []):
        properties["type"].pop("default", None)
        definition["required"].insert(0, "type")


# ── TypeScript ──────────────────────────────────────────────────────────────────────────────────────────


def typescript(schema: dict[str, Any]) -> str:
    """Return the schema, the tables' rows and the names that it uses, as TypeScript declarations."""
    lines = [f"// {_MADE}", ""]
    for name, definition in schema["$defs"].items():
        if about := _about(definition):
            lines.append(f"/** {about} */")
        if "properties" in definition:
            lines.append(f"export interface {name} {{")
            required = set(definition.get("required", []))
            for field, body in definition["properties"].items():
                if about := _about(body):
                    lines.append(f"  /** {about} */")
                lines.append(f"  {field}{'' if field in required else '?'}: {_type(body)};")
            lines.append("}")
        else:
            lines.append(f"export type {name} = {_type(definition)};")
        lines.append("")
    return "\n".join([*lines, *_rows(), *_unions()])


def _rows() -> list[str]:
    lines = []
    for table in TABLES.values():
        lines += [
            f"/** A row of {table.name}: {table.about}. */",
            f"export interface {_row_name(table.name)} {{",
        ]
        for column in table.columns:
            if about := _column_about(column):
                lines.append(f"  /** {about} */")
            lines.append(f"  {column.name}: {_column_type(column)};")
        lines += ["}", ""]
    lines += ["export interface Rows {", *(f"  {name}: {_row_name(name)};" for name in TABLES), "}", ""]
    lines += [
        "/** The filters of a `select`; one that is null counts as absent. */",
        "export interface Filters {",
    ]
    for name, (kind, about) in vocabulary.FILTERS.items():
        if about:
            lines.append(f"  /** {about} */")
        lines.append(f"  {name}?: {kind} | null;")
    return [*lines, "}", ""]


def _row_name(table: str) -> str:
    return f"{table[0].upper()}{table[1:].removesuffix('s')}Row"


def _column_type(column: Column) -> str:
    if column.choices:
        kind = " | ".join(json.dumps(choice) for choice in column.choices)
    else:
        kind = {"flag": "0 | 1", "int": "number", "time": "number"}.get(column.kind, "string")
    always = column.required or column.made_by_device or column.default is not None
    return kind if always else f"{kind} | null"


def _column_about(column: Column) -> str:
    form = {"time": "milliseconds since the epoch", "names": "a JSON array of strings, as a string"}.get(
        column.kind
    )
    made = "made by the device" if column.made_by_device else None
    return "; ".join(word for word in (column.about, form, made) if word)


def _unions() -> list[str]:
    lines = [f"export type {name} = {_either(values)};" for values, name in _ALIASES.items()]
    lines.append(f"export type Capability = {_either(vocabulary.CAPABILITIES)};")
    lines.append(
        f"export type CloseCode = {' | '.join(str(code) for code, _ in vocabulary.CLOSE_CODES.values())};"
    )
    lines.append("/** Codes of `error` frames. Newer servers may say others. */")
    lines.append(f"export type FrameCode = {_either(vocabulary.FRAME_CODES)};")
    lines.append("/** Codes of `stream_end`. Newer servers may say others. */")
    lines.append(f"export type StreamCode = {_either(vocabulary.STREAM_CODES)};")
    return [*lines, ""]


def _either(values: Iterable[str]) -> str:
    return " | ".join(json.dumps(value) for value in values)


def _constants(*, declared: bool) -> str:
    """Return the constants, declared for a .d.ts or defined for a .ts file."""
    limits = {name: value for name, (value, _) in vocabulary.LIMITS.items()}
    closes = {name: code for name, (code, _) in vocabulary.CLOSE_CODES.items()}
    lines = []
    for name, values in {"LIMITS": limits, "CLOSE_CODES": closes}.items():
        lines.append(f"export {'declare ' if declared else ''}const {name}{':' if declared else ' ='} {{")
        if declared:
            lines += [*(f"  readonly {key}: {value};" for key, value in values.items()), "};"]
        else:
            lines += [*(f"  {key}: {value}," for key, value in values.items()), "} as const;"]
    if declared:
        lines.append(f"export declare const PROTOCOL: {vocabulary.PROTOCOL};")
    else:
        lines.append(f"export const PROTOCOL = {vocabulary.PROTOCOL};")
    return "\n".join([*lines, ""])


def _about(body: dict[str, Any]) -> str:
    words = " ".join(body.get("description", "").split())
    return f"{words} (protocol 2)".strip() if body.get("since") == 2 else words


def _type(body: dict[str, Any]) -> str:
    if "$ref" in body:
        return str(body["$ref"]).rpartition("/")[2]
    if "const" in body:
        return json.dumps(body["const"])
    if "enum" in body:
        return _ALIASES.get(tuple(body["enum"])) or _either(body["enum"])
    if options := body.get("anyOf") or body.get("oneOf"):
        return " | ".join(dict.fromkeys(_type(option) for option in options))
    match body.get("type"):
        case "array":
            item = _type(body.get("items", {}))
            return f"({item})[]" if " | " in item else f"{item}[]"
        case "object":
            inner = body.get("additionalProperties")
            return f"Record<string, {_type(inner) if isinstance(inner, dict) and inner else 'unknown'}>"
        case "integer" | "number":
            return "number"
        case "string" | "boolean" | "null" as simple:
            return str(simple)
    return "unknown"
