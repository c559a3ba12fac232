"""Validation of charts in answers: a chart passes as the protocol describes it, or not at all."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import orjson

_TYPES = {"area", "bar", "line", "pie", "radar", "radial"}
_MAX_ROWS, _MAX_COLUMNS, _MAX_SERIES = 1_000, 32, 32
_MAX_TEXT_CHARS, _MAX_KEY_CHARS = 500, 64
_VARIABLE = r"var\(\s*--[\w-]{1,64}\s*\)"
# CSS colours made of names, numbers and variables: no url(), no escapes, nothing that ends a rule.
_COLOR = re.compile(
    rf"#(?:[0-9a-f]{{3,4}}|[0-9a-f]{{6}}|[0-9a-f]{{8}})|[a-z]{{3,24}}|{_VARIABLE}"
    rf"|(?:rgba?|hsla?|hwb|lab|lch|oklab|oklch)\((?:[\d\s.,%/+-]|deg|turn|none|{_VARIABLE}){{1,100}}\)",
    re.IGNORECASE,
)


class _Invalid(Exception):
    pass


def validated_json(text: str, clean: Callable[[str], str]) -> str | None:
    """Return the chart's JSON, serialized anew from its validated parts; None if it is not valid.

    Unknown keys are dropped. `clean` replaces texts. The chart is refused if `clean` would also change the whole JSON,
    or all texts joined: something forbidden may be spread over several texts.
    """
    try:
        chart = _chart(orjson.loads(text), clean)
        written = orjson.dumps(chart).decode()
    except (orjson.JSONDecodeError, orjson.JSONEncodeError, _Invalid):
        return None
    cells = (cell for row in chart["data"] for cell in row.values() if isinstance(cell, str))
    texts = " ".join([chart["title"], *cells, *(one["label"] for one in chart["config"].values())])
    if clean(written) != written or clean(texts) != texts:
        return None
    return written.replace("<", "\\u003c").replace(">", "\\u003e")  # no text in it can end the tag


def _chart(value: Any, clean: Callable[[str], str]) -> dict[str, Any]:
    match value:
        case {"chartType": str(kind), "title": str(title), "data": list(rows), "config": dict(config)}:
            _require(kind in _TYPES and 0 < len(rows) <= _MAX_ROWS and 0 < len(config) <= _MAX_SERIES)
        case _:
            raise _Invalid
    data = [_row(row, clean) for row in rows]
    series = {_key(key, clean): _series(one, clean) for key, one in config.items()}
    _require(any(key in row for row in data for key in series))
    return {"chartType": kind, "title": _text(title, clean), "data": data, "config": series}


def _row(value: Any, clean: Callable[[str], str]) -> dict[str, str | int | float]:
    _require(isinstance(value, dict) and 0 < len(value) <= _MAX_COLUMNS)
    row: dict[str, str | int | float] = {}
    for key, cell in value.items():
        match cell:
            case bool():
                raise _Invalid
            case str():
                row[_key(key, clean)] = _text(cell, clean)
            case int() | float():
                row[_key(key, clean)] = cell
            case _:
                raise _Invalid
    return row


def _series(value: Any, clean: Callable[[str], str]) -> dict[str, str]:
    match value:
        case {"label": str(label), "color": str(color)}:
            _require(_COLOR.fullmatch(color.strip()) is not None)
            return {"label": _text(label, clean), "color": color.strip()}
        case _:
            raise _Invalid


def _key(key: str, clean: Callable[[str], str]) -> str:
    _require(0 < len(key) <= _MAX_KEY_CHARS and clean(key) == key)
    return key


def _text(text: str, clean: Callable[[str], str]) -> str:
    _require(len(text) <= _MAX_TEXT_CHARS)
    return clean(text)


def _require(holds: bool) -> None:
    if not holds:
        raise _Invalid
