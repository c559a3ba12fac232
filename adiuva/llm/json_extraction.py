"""Finds JSON in a model's text, inside code fences, explanations or a reasoning model's thoughts."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

from adiuva.llm.openai_format import loads, replace_lone_surrogates
from adiuva.llm.types import Message, Schema

# NaN and Infinity are not JSON; a model that writes them means null. Line breaks in strings are not JSON either, but
# models write them and mean them.
_DECODER = json.JSONDecoder(parse_constant=lambda _: None, strict=False)
_OPENING = re.compile(r"""\{\s*["}]|\[\s*[\[{"\dtfn\]-]""")
# Each failed attempt costs a pass over the text before it.
_MAX_ATTEMPTS = 2_000


def find_json(text: str) -> Any:
    """The JSON value that a text is, or else the longest object or array in it.

    A value that is cut off at the end of the text does not count, nor do its inner parts. Raises ValueError if there
    is no value.
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
            place = max(error.pos, start + 1)  # skip what looked like JSON but was not
        except (ValueError, RecursionError):  # a number of thousands of digits, thousands of brackets
            break
        else:
            if place - start > length:
                length, best = place - start, value
    if not length:
        raise ValueError("there is no JSON value in the text")
    return replace_lone_surrogates(best)


def with_schema_in_prompt(messages: list[Message], schema: Schema) -> list[Message]:
    """The messages for an endpoint without response_format: the schema is added to the system message."""
    wish = (
        f"Answer with one JSON value that fits this JSON Schema, named {schema.name!r}, and with nothing "
        f"else: no explanation, no code fence.\n{orjson.dumps(dict(schema.body)).decode()}"
    )
    if messages and messages[0]["role"] == "system" and isinstance(messages[0].get("content"), str):
        return [{"role": "system", "content": f"{messages[0]['content']}\n\n{wish}"}, *messages[1:]]
    return [{"role": "system", "content": wish}, *messages]


def _without_thinking(text: str) -> str:
    """The text without a reasoning model's thoughts. Some templates send only the closing tag."""
    thought, tag, said = text.rpartition("</think>")
    if tag:
        opening = thought.find("<think>")
        if opening > 0 and (before := thought[:opening]).strip():
            return f"{before}\n{said}".strip()
        return said.strip()
    return text.partition("<think>")[0].strip()
