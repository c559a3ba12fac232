"""Generates the published JSON Schema and TypeScript types of the device socket from the typed frames."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from pydantic.json_schema import models_json_schema

from adiuva.devices import protocol

SCHEMA_FILE: Final = "protocol.schema.json"
TYPES_FILE: Final = "protocol.d.ts"

_MADE: Final = "Made by `manage.py protocol` from adiuva/devices/protocol.py; do not edit."
_UNIONS: Final = {"ClientFrame": protocol.ClientFrame, "ServerFrame": protocol.ServerFrame}


def files() -> dict[str, str]:
    """File name → content of the files that are published in `docs/`."""
    schema = json_schema()
    return {
        SCHEMA_FILE: json.dumps(schema, indent=2, ensure_ascii=False) + "\n",
        TYPES_FILE: typescript(schema),
    }


def write(folder: Path) -> list[Path]:
    """Write the files; returns those that changed."""
    changed = []
    for name, content in files().items():
        path = folder / name
        if not path.exists() or path.read_text("utf-8") != content:
            path.write_text(content, "utf-8")
            changed.append(path)
    return changed


def json_schema() -> dict[str, Any]:
    """One document whose `$defs` hold every frame, and a union for each direction.

    Frames from clients are described as the server reads them, frames from the server as it writes them.
    """
    sent = list(_members(protocol.ServerFrame))
    received = list(_members(protocol.ClientFrame))
    _, found = models_json_schema(
        [(model, "validation") for model in received] + [(model, "serialization") for model in sent],
        ref_template="#/$defs/{model}",
    )
    definitions = found["$defs"]
    for name, union in _UNIONS.items():
        definitions[name] = {"oneOf": [{"$ref": f"#/$defs/{model.__name__}"} for model in _members(union)]}
    for definition in definitions.values():
        _tidy(definition)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Adiuva device socket",
        "description": f"{_MADE} `since: 2` marks what only clients of protocol 2 send or get.",
        "oneOf": [{"$ref": f"#/$defs/{name}"} for name in _UNIONS],
        "$defs": dict(sorted(definitions.items())),
    }


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


def typescript(schema: dict[str, Any]) -> str:
    """The schema as TypeScript declarations."""
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
    return "\n".join(lines)


def _about(body: dict[str, Any]) -> str:
    words = " ".join(body.get("description", "").split())
    return f"{words} (protocol 2)".strip() if body.get("since") == 2 else words


def _type(body: dict[str, Any]) -> str:
    if "$ref" in body:
        return str(body["$ref"]).rpartition("/")[2]
    if "const" in body:
        return json.dumps(body["const"])
    if "enum" in body:
        return " | ".join(json.dumps(value) for value in body["enum"])
    if options := body.get("anyOf") or body.get("oneOf"):
        return " | ".join(dict.fromkeys(_type(option) for option in options))
    match body.get("type"):
        case "array":
            item = _type(body.get("items", {}))
            return f"({item})[]" if " | " in item else f"{item}[]"
        case "object":
            return "Record<string, unknown>"
        case "integer" | "number":
            return "number"
        case "string" | "boolean" | "null" as simple:
            return str(simple)
    return "unknown"
