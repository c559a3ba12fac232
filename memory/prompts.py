"""What the models that work on the memory are told: `memory/prompts/<name>.md`, each with a line `version: N` first."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

_FOLDER: Final = Path(__file__).with_suffix("")
_FIRST_LINE: Final = re.compile(r"version: (\d+)\n\n")


@dataclass(frozen=True)
class Prompt:
    """`version` is the file's number and a hash of its words."""

    version: str
    text: str


@cache
def prompt(name: str) -> Prompt:
    whole = (_FOLDER / f"{name}.md").read_text("utf-8")
    first = _FIRST_LINE.match(whole)
    if first is None:
        raise ValueError(f"memory/prompts/{name}.md must begin with a line `version: N` and an empty one")
    text = whole[first.end() :].strip()
    return Prompt(f"{name}.{first[1]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}", text)
