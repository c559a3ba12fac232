"""Finds JSON in a model's text, inside code fences, explanations or a reasoning model's thoughts.

Comments and trailing commas are skipped. A value that breaks off at the end of the text never counts as whole: its
whole items are found separately (`JsonReading.cut`), so that the caller can ask for the rest.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

import orjson

from adiuva.llm.openai_format import loads, replace_lone_surrogates
from adiuva.llm.types import Message, Schema

# NaN and Infinity are not JSON; a model that writes them means null. Line breaks in strings are not JSON either, but
# models write them and mean them.
_DECODER: Final = json.JSONDecoder(parse_constant=lambda _: None, strict=False)
# The beginnings of a value or of a reasoning model's thoughts, and the ends of thoughts.
_OPENING: Final = re.compile(r"""(?P<think><think>)|(?P<thought></think>)|\{\s*["}/]|\[\s*[\[{"\dtfn\]/-]""")
_STRING_COMMENT_OR_COMMA: Final = re.compile(
    r'(?P<string>"(?:[^"\\]|\\.)*")|//[^\n]*|/\*.*?\*/|,(?=(?:\s|//[^\n]*|/\*.*?\*/)*[}\]])', re.DOTALL
)
# Each failed attempt costs a pass over the text before it; each attempt without comments, one over all of it.
_MAX_ATTEMPTS: Final = 2_000
_MAX_MENDED: Final = 3
# The rest of a number, a word or an escape that breaks off: no longer than "-Infinity", and without signs of structure.
_BROKEN_TOKEN: Final = re.compile(r"""[^{}\[\]",:\s]{0,12}\Z""")
_SPACE: Final = re.compile(r"\s*")


@dataclass(frozen=True)
class JsonReading:
    """JSON found in a text: whole objects and arrays in their order, and the whole parts of one that breaks off.

    `longest` is the place of the value with the longest text. `cut` has the whole parts of a value that breaks off: an
    object with its whole members, of which the last may be an array of its whole items, or an array of whole items. It
    is None if nothing breaks off.
    """

    values: tuple[Any, ...]
    cut: dict[str, Any] | list[Any] | None = None
    longest: int = 0


def find_json(text: str) -> Any:
    """Return the JSON value that a text is, or else the longest object or array in it. Raises ValueError."""
    found = read_json(text)
    if not found.values:
        raise ValueError("there is no JSON value in the text")
    return found.values[found.longest]


def read_json(text: str) -> JsonReading:
    """Return all values of a text. Thoughts do not count. It raises nothing."""
    try:
        return JsonReading((loads(text),))
    except ValueError:
        pass
    values: list[tuple[int, Any]] = []  # each value with the length of its text
    cut: dict[str, Any] | list[Any] | None = None
    place, mended = 0, 0
    for _ in range(_MAX_ATTEMPTS):
        opening = _OPENING.search(text, place)
        if opening is None:
            break
        start = opening.start()
        if opening["think"]:
            place = text.find("</think>", start)
            if place < 0:
                break  # all the rest is a thought
            place += len("</think>")
            continue
        if opening["thought"]:  # some templates send only the closing tag
            values.clear()
            place = opening.end()
            continue
        value, end = _decode(text, start)
        if end is None and mended < _MAX_MENDED and ("/" in text or "," in text):
            mended += 1
            plain = text[:start] + _STRING_COMMENT_OR_COMMA.sub(_blank, text[start:])
            value, end = _decode(plain, start)
            if isinstance(end, _Cut):
                text = plain
        if isinstance(end, _Cut):
            cut = replace_lone_surrogates(_whole_parts(text, start))
            break
        if end is None:
            place = _after_malformed(text, start)
        else:
            values.append((end - start, value))
            place = end
    longest = max(range(len(values)), key=lambda number: values[number][0], default=0)
    return JsonReading(tuple(replace_lone_surrogates(value) for _, value in values), cut, longest)


class _Cut:
    """Error for a value that breaks off at the end of the text."""


def _decode(text: str, start: int) -> tuple[Any, int | _Cut | None]:
    """Return the value that begins at `start`, and its end; None if it is no JSON."""
    try:
        return _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        # A string that never ends is reported where it began: either way the text is over.
        if error.msg.startswith("Unterminated string") or _BROKEN_TOKEN.match(text, error.pos):
            return None, _Cut()
        return None, None
    except (ValueError, RecursionError):  # a number of thousands of digits, thousands of brackets
        return None, _Cut()


def _after_malformed(text: str, start: int) -> int:
    """Return where to look on behind a false beginning of JSON: at the error, or at a tag before it."""
    try:
        _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        end = max(error.pos, start + 1)
        tag = text.find("</think>", start, end)
        return tag if tag >= 0 else end
    return start + 1


def _blank(match: re.Match[str]) -> str:
    """Return a string as it is, and a comment or a trailing comma as blanks, so that all else keeps its place."""
    return match[0] if match["string"] else " " * len(match[0])


def _whole_parts(text: str, start: int) -> dict[str, Any] | list[Any]:
    """Return the whole members or items of an object or array that breaks off."""
    if text[start] == "[":
        return _whole_items(text, start)
    found: dict[str, Any] = {}
    place = start + 1
    while True:
        place = _skip(text, place, ",")
        key, end = _decode(text, place) if text[place : place + 1] == '"' else (None, None)
        if not isinstance(end, int) or not isinstance(key, str):
            return found
        place = _skip(text, end, ":")
        value, end = _decode(text, place)
        if isinstance(end, int) and _is_whole(text, value, end):
            found[key], place = value, end
            continue
        if text[place : place + 1] == "[":
            found[key] = _whole_items(text, place)
        return found


def _whole_items(text: str, start: int) -> list[Any]:
    found: list[Any] = []
    place = _skip(text, start + 1, "")
    while place < len(text):
        value, end = _decode(text, place)
        if not isinstance(end, int) or not _is_whole(text, value, end):
            break
        found.append(value)
        place = _skip(text, end, ",")
    return found


def _is_whole(text: str, value: Any, end: int) -> bool:
    """Return whether a value that ends here is over: a number or a word is only if something follows it."""
    return isinstance(value, dict | list | str) or text[_skip(text, end, "") :][:1] in {",", "]", "}"}


def _skip(text: str, place: int, sign: str) -> int:
    """Return the place behind blanks and one `sign`, if it is there."""
    place = _SPACE.match(text, place).end()  # type: ignore[union-attr]  # it matches always
    if sign and text.startswith(sign, place):
        place = _SPACE.match(text, place + 1).end()  # type: ignore[union-attr]
    return place


def with_schema_in_prompt(messages: list[Message], schema: Schema) -> list[Message]:
    """Return the messages for an endpoint without response_format, with the schema in the system message."""
    wish = (
        f"Answer with one JSON value that fits this JSON Schema, named {schema.name!r}, and with nothing "
        f"else: no explanation, no code fence.\n{orjson.dumps(dict(schema.body)).decode()}"
    )
    if messages and messages[0]["role"] == "system" and isinstance(messages[0].get("content"), str):
        return [{"role": "system", "content": f"{messages[0]['content']}\n\n{wish}"}, *messages[1:]]
    return [{"role": "system", "content": wish}, *messages]
