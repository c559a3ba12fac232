"""A chart as the protocol describes it, or none at all."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import orjson

_TYPES = {"area", "bar", "line", "pie", "radar", "radial"}
_ROWS, _COLUMNS, _SERIES, _TEXT, _KEY = 1_000, 32, 32, 500, 64
_VARIABLE = r"var\(\s*--[\w-]{1,64}\s*\)"
# Colours of CSS, as far as they are made of names, numbers and variables: no url(), no escapes, no end of a rule.
_COLOR = re.compile(
    rf"#(?:[0-9a-f]{{3,4}}|[0-9a-f]{{6}}|[0-9a-f]{{8}})|[a-z]{{3,24}}|{_VARIABLE}"
    rf"|(?:rgba?|hsla?|hwb|lab|lch|oklab|oklch)\((?:[\d\s.,%/+-]|deg|turn|none|{_VARIABLE}){{1,100}}\)",
    re.IGNORECASE,
)


class _Invalid(Exception):
    pass


def validated_json(text: str, clean: Callable[[str], str]) -> str | None:
    """The chart's JSON, written again from what was checked, or None.

    Keys that a chart does not have are left out. Texts come out as `clean` leaves them, and if it finds something in
    the whole, or in the texts one after the other, that it does not find in each, there is no chart.
    """
    try:
        chart = _chart(orjson.loads(text), clean)
        written = orjson.dumps(chart).decode()
    except (orjson.JSONDecodeError, orjson.JSONEncodeError, _Invalid):
        return None
    cells = (cell for row in chart["data"] for cell in row.values() if isinstance(cell, str))
    spoken = " ".join([chart["title"], *cells, *(one["label"] for one in chart["config"].values())])
    if clean(written) != written or clean(spoken) != spoken:
        return None
    return written.replace("<", "\\u003c").replace(">", "\\u003e")  # a text in it ends no tag


def _chart(value: Any, clean: Callable[[str], str]) -> dict[str, Any]:
    match value:
        case {"chartType": str(kind), "title": str(title), "data": list(rows), "config": dict(config)}:
            _must(kind in _TYPES and 0 < len(rows) <= _ROWS and 0 < len(config) <= _SERIES)
        case _:
            raise _Invalid
    data = [_row(row, clean) for row in rows]
    series = {_key(key, clean): _series(one, clean) for key, one in config.items()}
    _must(any(key in row for row in data for key in series))
    return {"chartType": kind, "title": _text(title, clean), "data": data, "config": series}


def _row(value: Any, clean: Callable[[str], str]) -> dict[str, str | int | float]:
    _must(isinstance(value, dict) and 0 < len(value) <= _COLUMNS)
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
            _must(_COLOR.fullmatch(color.strip()) is not None)
            return {"label": _text(label, clean), "color": color.strip()}
        case _:
            raise _Invalid


def _key(key: str, clean: Callable[[str], str]) -> str:
    _must(0 < len(key) <= _KEY and clean(key) == key)
    return key


def _text(text: str, clean: Callable[[str], str]) -> str:
    _must(len(text) <= _TEXT)
    return clean(text)


def _must(holds: bool) -> None:
    if not holds:
        raise _Invalid
