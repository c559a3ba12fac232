"""Answers a request for records from a document: reads its messages and JSON Schema, returns JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

from adiuva.offline_llm.document_rules import PromptDocument, find_records
from adiuva.offline_llm.known_records import compare, parse_known
from adiuva.offline_llm.messages import DELIMITED_BLOCK, message_text

_DOCUMENT_HEADER = re.compile(
    r"Document: ([^\n]*)\n(?:Part: (\d{1,9}) of \d{1,9}\n)?"
    r"((?:(?:\w{2,10} of the document|Above this part|Columns of the table): [^\n]*\n)*)\n?"
)
_MAX_DEPTH = 20
_TODAY = re.compile(r"^Today: (?:\w+ )?([\d-]{10})$", re.MULTILINE)
_PROJECTS = re.compile(r"^Projects: (\{.*\})[ \t]*$", re.MULTILINE)


def extract_records(messages: Sequence[Mapping[str, Any]], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return `{"records": […]}` for the last document in the messages, limited to the schema's tables and fields.

    It adds `"known": […]` if the messages list what was found in the document before.
    """
    texts = [message_text(message) for message in messages if message.get("role") == "user"]
    preamble, document = next((found for said in reversed(texts) if (found := _split(said))), ("", ""))
    branches = _tables_of_schema(schema)
    records = []
    for table, data in find_records(_parse_document(document, preamble), set(branches)):
        fields, required = branches[table]
        kept = {key: value for key, value in data.items() if key in fields}
        if required <= kept.keys():
            records.append((table, kept))
    answer: dict[str, Any] = {}
    if known := parse_known(preamble):
        records, answer["known"] = compare(records, known, document)
    answer["records"] = [{"table": table, "data": data} for table, data in records]
    return answer


def minimal_value(schema: Any, depth: int = 0) -> Any:
    """Return the smallest value that fits a schema without rules of its own, or None."""
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        return None
    if "const" in schema:
        return schema["const"]
    if options := _list_value(schema, "enum"):
        return options[0]
    for key in ("anyOf", "oneOf", "allOf"):
        if options := _list_value(schema, key):
            return minimal_value(options[0], depth + 1)
    kind = (_list_value(schema, "type") or [schema.get("type")])[0]
    fields = schema.get("properties")
    if isinstance(fields, Mapping):
        return {
            key: minimal_value(fields.get(key), depth + 1)
            for key in _list_value(schema, "required")
            if isinstance(key, str)
        }
    least: dict[str, Any] = {
        "object": {},
        "array": [],
        "string": "",
        "integer": 0,
        "number": 0,
        "boolean": False,
    }
    return least.get(str(kind))


def _list_value(schema: Mapping[str, Any], key: str) -> list[Any]:
    found = schema.get(key)
    return found if isinstance(found, list) else []


def _split(message: str) -> tuple[str, str] | None:
    """Return the text before the document in a message, and the document with its header; None without a document."""
    blocks = (block for block in DELIMITED_BLOCK.finditer(message) if block["name"] == "document")
    block = next(blocks, None)
    return (message[: block.start()], block["text"]) if block else None


def _parse_document(message: str, preamble: str) -> PromptDocument:
    head = _DOCUMENT_HEADER.match(message)
    if head is None:
        return PromptDocument("", "")
    return PromptDocument(
        name=head[1],
        text=message[head.end() :],
        part=int(head[2] or 1),
        today=_parse_day(found[1] if (found := _TODAY.search(preamble)) else ""),
        context=head[3],
        projects=_parse_projects(preamble),
    )


def _parse_day(said: str | None) -> date:
    try:
        return date.fromisoformat(said or "")
    except ValueError:
        return datetime.now(UTC).date()


def _parse_projects(said: str) -> list[tuple[str, str]]:
    if not (match := _PROJECTS.search(said)):
        return []
    try:
        rows = json.loads(match[1])
    except (ValueError, RecursionError):
        return []
    return [(key, name) for key, name in rows.items() if isinstance(name, str)]


def _tables_of_schema(schema: Mapping[str, Any]) -> dict[str, tuple[set[str], set[str]]]:
    """Return for each table the fields that the schema lists, and those that it requires."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    try:
        items = schema["properties"]["records"]["items"]
        for branch in items.get("anyOf") or items.get("oneOf") or [items]:
            table, data = branch["properties"]["table"], branch["properties"]["data"]
            names = [table["const"]] if "const" in table else table["enum"]
            for name in names:
                found[str(name)] = (set(data["properties"]), set(data.get("required") or ()))
    except (AttributeError, TypeError, LookupError):
        return {}
    return found
