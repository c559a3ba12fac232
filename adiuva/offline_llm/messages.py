"""Reads the text of chat messages, and the delimited blocks that Adiuva puts into its prompts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Both ends have the same name and the same random mark, so that text inside cannot close its block.
DELIMITED_BLOCK = re.compile(
    r"\[begin (?P<name>[\w ]+) (?P<mark>data-\w+)\]\n(?P<text>.*?)\n\[end \1 \2\]", re.DOTALL
)


def message_text(message: Mapping[str, Any]) -> str:
    """Return the text of a message, joined if it comes in parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def delimited_blocks(text: str) -> list[tuple[str, str]]:
    """Return the name and the text of each delimited block, in order."""
    return [(match["name"], match["text"]) for match in DELIMITED_BLOCK.finditer(text)]


def delimited_text(text: str, name: str) -> str:
    """Return the text of the first block of this name, or an empty string."""
    return next((said for found, said in delimited_blocks(text) if found == name), "")
