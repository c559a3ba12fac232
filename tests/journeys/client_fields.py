"""Every field that a client can send, from the published schemas, each with a word of its own in it.

A new field of a frame, body or address is in it by itself.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from typing import Any, Final

import yaml

from tests.journeys.test_what_memory_leaves import Canaries
from tests.server_processes import ROOT

FIELDS: Final = 700  # three digits tell their words apart
_DOCS: Final = ROOT / "docs"


class Words:
    """A canary for each field. `fields` names the field of each that was given out."""

    def __init__(self) -> None:
        self.canaries = Canaries(FIELDS)
        self.fields: dict[str, str] = {}

    def of(self, field: str) -> str:
        word = self.canaries.words(1)
        self.fields[word] = field
        return word

    def found_in(self, said: bytes) -> set[str]:
        """The fields whose words are there; "?" if they are there in a form that does not tell which."""
        if not self.canaries.there(said):
            return set()
        given = re.findall(rb"%s\d{3}" % self.canaries.stem.encode(), said.lower())
        return {self.fields[word] for each in set(given) if (word := each.decode()) in self.fields} or {"?"}


def _value(schema: dict[str, Any], root: dict[str, Any], words: Words, field: str, depth: int = 0) -> Any:
    """A value that the schema allows, with all optional fields, and a word in each text that is free."""
    if "$ref" in schema:
        target: Any = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        return _value(target, root, words, field, depth + 1)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    for key in ("oneOf", "anyOf", "allOf"):
        if key in schema:
            choices = [one for one in schema[key] if one.get("type") != "null"]
            return _value(choices[0], root, words, field, depth + 1)
    match schema.get("type"):
        case "object" if depth < 8:
            named = {
                name: _value(each, root, words, f"{field}.{name}", depth + 1)
                for name, each in schema.get("properties", {}).items()
                if not each.get("readOnly")
            }
            is_free = schema.get("additionalProperties") not in (None, False)
            return named | ({"more": words.of(f"{field}.*")} if is_free and not named else {})
        case "array":
            return [_value(schema.get("items", {"type": "string"}), root, words, field, depth + 1)]
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return True
        case "string":
            return _text(schema, words, field)
    return {"more": words.of(f"{field}.*")} if depth < 8 else {}


def _text(schema: dict[str, Any], words: Words, field: str) -> str:
    match schema.get("format"):
        case "uuid":
            return str(uuid.uuid4())
        case "date-time":
            return "2026-11-02T09:00:00Z"
        case "date":
            return "2026-11-02"
        case "email":
            return f"{words.of(field)}@example.com"
        case "uri":
            return f"https://{words.of(field)}.example"
    if schema.get("maxLength", 100) < 17 or "64" in schema.get("pattern", ""):
        return "0" * min(64, int(schema.get("maxLength", 64)))
    return words.of(field)


def requests(words: Words) -> Iterator[tuple[str, str, dict[str, str], dict[str, Any] | None]]:
    """(method, path, query, body) of each operation that takes a word. `{}` in a path stands for an id of an object."""
    api = yaml.load(
        (_DOCS / "openapi.yaml").read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    )
    for path, operations in api["paths"].items():
        for method, operation in operations.items():
            if method not in ("get", "post", "put", "patch"):
                continue
            name, where, before = f"{method} {path}", path, len(words.fields)
            query = {}
            for each in (*operations.get("parameters", ()), *operation.get("parameters", ())):
                schema = each.get("schema", {})
                if each["in"] == "query" and schema.get("type") == "string":
                    query[each["name"]] = _value(schema, api, words, f"{name} ?{each['name']}")
                elif each["in"] == "path":
                    choice = schema["enum"][0] if "enum" in schema else "{}"
                    where = where.replace("{" + each["name"] + "}", choice)
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            body = _value(content["schema"], api, words, name) if content else None
            if len(words.fields) > before:
                yield method, where, query, body


def frames(words: Words) -> Iterator[dict[str, Any]]:
    """Each frame of a client."""
    root = json.loads((_DOCS / "protocol.schema.json").read_text())
    client = root["$defs"]["ClientFrame"]
    for each in client.get("oneOf") or client["anyOf"]:
        name = each["$ref"].rpartition("/")[2]
        yield _value(each, root, words, name)
