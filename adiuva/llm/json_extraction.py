"""JSON in a model's free text: with fences, a preface, an afterword, or its thoughts around it."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

from adiuva.llm.openai_format import loads, replace_lone_surrogates
from adiuva.llm.types import Message, Schema

# NaN and Infinity are no JSON; a model that writes them means "nothing". Nor are line breaks in strings, but
# models write those too, and mean what they write.
_DECODER = json.JSONDecoder(parse_constant=lambda _: None, strict=False)
_OPENING = re.compile(r"""\{\s*["}]|\[\s*[\[{"\dtfn\]-]""")
_MAX_ATTEMPTS = 2_000  # a failed try costs a pass over what lies before it


def find_json(text: str) -> Any:
    """The JSON value that a text is or holds: the longest object or array in it.

    A value that breaks off at the end of the text is none, and its inner parts do not stand for it.
    Raise ValueError if there is none.
    """
    try:
        return loads(text)
    except ValueError:
        text = _without_thinking(text)
    length, best, place = 0, None, 0
    for _ in range(_MAX_ATTEMPTS):
        opening = _OPENING.search(text, place)
        if opening is None:
            break
        start = opening.start()
        try:
            value, place = _DECODER.raw_decode(text, start)
        except json.JSONDecodeError as error:
            # A string that never ends is reported where it began: either way the text is over.
            if error.pos >= len(text) or error.msg.startswith("Unterminated string"):
                break
            place = max(error.pos, start + 1)  # what lies before was a beginning of JSON, but not a whole
        except (ValueError, RecursionError):  # a number of thousands of digits, thousands of brackets
            break
        else:
            if place - start > length:
                length, best = place - start, value
    if not length:
        raise ValueError("there is no JSON value in the text")
    return replace_lone_surrogates(best)


def with_schema_in_prompt(messages: list[Message], schema: Schema) -> list[Message]:
    """The messages for an endpoint that takes no response_format: the schema joins the system message."""
    wish = (
        f"Answer with one JSON value that fits this JSON Schema, named {schema.name!r}, and with nothing "
        f"else: no explanation, no code fence.\n{orjson.dumps(dict(schema.body)).decode()}"
    )
    if messages and messages[0]["role"] == "system" and isinstance(messages[0].get("content"), str):
        return [{"role": "system", "content": f"{messages[0]['content']}\n\n{wish}"}, *messages[1:]]
    return [{"role": "system", "content": wish}, *messages]


def _without_thinking(text: str) -> str:
    """Without the part that a reasoning model thinks aloud. Some templates send only the closing tag."""
    thought, tag, said = text.rpartition("</think>")
    if tag:
        opening = thought.find("<think>")
        if opening > 0 and (before := thought[:opening]).strip():
            return f"{before}\n{said}".strip()
        return said.strip()
    return text.partition("<think>")[0].strip()
