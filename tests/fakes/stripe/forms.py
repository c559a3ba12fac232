"""Stripe's request bodies: forms whose names are paths, such as `items[0][price]`."""

from __future__ import annotations

import re
from typing import Any

_NAME = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")


def read_form(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """The nested values. Lists are named `a[]` or `a[0]`; all other values are text."""
    tree: dict[str, Any] = {}
    for name, value in pairs:
        found = _NAME.fullmatch(name)
        if found is None:
            continue
        path = [found[1], *re.findall(r"\[([^\[\]]*)\]", found[2])]
        node = tree
        for part, following in zip(path, [*path[1:], None], strict=True):
            key = part or str(len(node))
            if following is None:
                node[key] = value
            else:
                node = node.setdefault(key, {})
    return {name: _lists(value) for name, value in tree.items()}


def _lists(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    if node and all(key.isdecimal() for key in node):
        return [_lists(node[key]) for key in sorted(node, key=int)]
    return {key: _lists(value) for key, value in node.items()}


def flag(value: Any) -> bool:
    return str(value).lower() == "true"
