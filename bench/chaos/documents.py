"""What the devices are given to read, and so what they must hold in the end: each line of a document is one record.

All of it follows from a seed. A document is written whole, and some are written again later with a line more, so that
what is found twice has to be recognised.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

LINES: Final = 4
_CHANGED: Final = 0.2  # of the documents are written again, one wave later
_TABLES: Final = {"task": "tasks", "note": "notes"}
_VERBS: Final = (
    "answer",
    "archive",
    "book",
    "check",
    "collect",
    "compare",
    "draft",
    "mend",
    "order",
    "send",
    "translate",
)
_THINGS: Final = (
    "bicycle", "boat", "calendar", "carpet", "clock", "contract", "curtains", "invoice", "kettle", "letter", "map",
    "mirror", "parcel", "piano", "poster", "recipe", "tickets", "umbrella", "window",
)  # fmt: skip


@dataclass
class Agent:
    """One agent of a device: its folder, what comes into it wave by wave, and the records that makes."""

    device: int
    number: int
    folder: Path
    waves: list[dict[str, str]] = field(default_factory=list)  # file name → text
    expected: dict[str, str] = field(default_factory=dict)  # title → table

    @property
    def name(self) -> str:
        return f"device {self.device} agent {self.number}"

    def write(self, wave: int) -> None:
        """Put a wave's documents into the folder, each at once: a reader sees the old one or the new one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, text in self.waves[wave].items():
            new = self.folder / f".{name}"
            new.write_text(text, "utf-8")
            new.replace(self.folder / name)


def agents(folder: Path, *, devices: int, records: int, waves: int, seed: int) -> list[Agent]:
    """Two agents a device, that together are to find so many records."""
    chance = random.Random(seed)
    made = [
        Agent(device, number, folder / f"{device}" / f"{number}")
        for device in range(devices)
        for number in (1, 2)
    ]
    for place, agent in enumerate(made):
        share = records // len(made) + (place < records % len(made))
        _fill(agent, share, waves, chance)
    return made


def _fill(agent: Agent, records: int, waves: int, chance: random.Random) -> None:
    lines = [_line(agent, number, chance) for number in range(records)]
    agent.expected = {title: _TABLES[kind] for kind, title in lines}
    agent.waves = [{} for _ in range(waves)]
    documents = [lines[start : start + LINES] for start in range(0, records, LINES)]
    for number, document in enumerate(documents):
        wave, name = number % waves, f"{number:04}.md"
        if wave + 1 < waves and len(document) > 1 and chance.random() < _CHANGED:
            agent.waves[wave][name] = _text(document[:-1], chance)
            wave += 1
        agent.waves[wave][name] = _text(document, chance)


def _line(agent: Agent, number: int, chance: random.Random) -> tuple[str, str]:
    kind = chance.choice(list(_TABLES))
    # The number makes it one of a kind, so that a double is a double.
    title = f"{chance.choice(_VERBS)} the {chance.choice(_THINGS)} {agent.device}-{agent.number}-{number}"
    return kind, title


def _text(lines: list[tuple[str, str]], chance: random.Random) -> str:
    filler = "It was a day like many, and this is what was said. "
    parts = [f"{kind}: {title}\n\n{filler * chance.randint(0, 8)}\n" for kind, title in lines]
    return "# Notes\n\n" + "\n".join(parts)
