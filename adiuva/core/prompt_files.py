"""Loader of versioned prompt files: `<package>/prompts/<name>.md`, each with a first line `version: N`."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

_HEAD: Final = re.compile(r"version: (\d+)\n\n")


@dataclass(frozen=True)
class Prompt:
    name: str
    number: int
    text: str

    @property
    def version(self) -> str:
        """Return the name, the file's number and a hash of the text, so that a forgotten number still shows."""
        return f"{self.name}.{self.number}-{hashlib.sha256(self.text.encode()).hexdigest()[:6]}"

    def followed_by(self, *others: Prompt) -> Prompt:
        """Return this prompt with the text of others appended; it keeps its name and number."""
        return Prompt(self.name, self.number, "\n\n".join([self.text, *(other.text for other in others)]))


@cache
def load(package: str, name: str) -> Prompt:
    """Return the prompt in `<package>/prompts/<name>.md`.

    Raises FileNotFoundError if there is none, ValueError if it does not begin with its version.
    """
    content = (files(package) / "prompts" / f"{name}.md").read_text("utf-8")
    head = _HEAD.match(content)
    if head is None:
        raise ValueError(f"{package}/prompts/{name}.md must begin with a line `version: N` and an empty line")
    return Prompt(name, int(head[1]), content[head.end() :].strip())
