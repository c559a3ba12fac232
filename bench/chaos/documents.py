"""Generates the documents that agents read, and with them the records each device must hold: one record for each line.

Everything follows from a seed. Some documents are rewritten later with one more line, so that records found before have
to be recognised.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

LINES: Final = 4
_CHANGED_SHARE: Final = 0.2  # share of the documents that are rewritten one wave later
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
    """One agent of a device: its folder, its documents wave by wave, and the records expected from them."""

    device: int
    number: int
    folder: Path
    waves: list[dict[str, str]] = field(default_factory=list)  # file name → text
    expected: dict[str, str] = field(default_factory=dict)  # title → table

    @property
    def name(self) -> str:
        return f"device {self.device} agent {self.number}"

    def write(self, wave: int) -> None:
        """Write a wave's documents into the folder, each atomically: a reader sees the old version or the new one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, text in self.waves[wave].items():
            new = self.folder / f".{name}"
            new.write_text(text, "utf-8")
            new.replace(self.folder / name)


def agents(folder: Path, *, devices: int, records: int, waves: int, seed: int) -> list[Agent]:
    """Two agents for each device, which together are to find `records` records."""
    rng = random.Random(seed)
    made = [
        Agent(device, number, folder / f"{device}" / f"{number}")
        for device in range(devices)
        for number in (1, 2)
    ]
    for place, agent in enumerate(made):
        share = records // len(made) + (place < records % len(made))
        _fill(agent, share, waves, rng)
    return made


def _fill(agent: Agent, records: int, waves: int, rng: random.Random) -> None:
    lines = [_line(agent, number, rng) for number in range(records)]
    agent.expected = {title: _TABLES[kind] for kind, title in lines}
    agent.waves = [{} for _ in range(waves)]
    documents = [lines[start : start + LINES] for start in range(0, records, LINES)]
    for number, document in enumerate(documents):
        wave, name = number % waves, f"{number:04}.md"
        if wave + 1 < waves and len(document) > 1 and rng.random() < _CHANGED_SHARE:
            agent.waves[wave][name] = _text(document[:-1], rng)
            wave += 1
        agent.waves[wave][name] = _text(document, rng)


def _line(agent: Agent, number: int, rng: random.Random) -> tuple[str, str]:
    kind = rng.choice(list(_TABLES))
    # The numbers make each title unique, so that a repeated title is a duplicate.
    title = f"{rng.choice(_VERBS)} the {rng.choice(_THINGS)} {agent.device}-{agent.number}-{number}"
    return kind, title


def _text(lines: list[tuple[str, str]], rng: random.Random) -> str:
    filler = "It was a day like many, and this is what was said. "
    parts = [f"{kind}: {title}\n\n{filler * rng.randint(0, 8)}\n" for kind, title in lines]
    return "# Notes\n\n" + "\n".join(parts)
