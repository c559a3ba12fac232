"""Rows of a bench's results: a figure, the one that it is compared with, and its aim."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

# Names the file that a bench's rows are appended to, one in a line. Without it they are only printed.
ROWS_FILE: Final = "ADIUVA_BENCH_ROWS"


@dataclass(frozen=True, slots=True)
class Figure:
    """The median of some turns of a bench, with the least and the most of them."""

    median: float
    least: float
    most: float
    turns: int = 1

    @classmethod
    def of(cls, turns: float | Sequence[float]) -> Figure:
        values = list(turns) if isinstance(turns, Sequence) else [turns]
        return cls(statistics.median(values), min(values), max(values), len(values))

    @property
    def spread(self) -> float:
        """How far the turns are apart. With one turn it is not known, and 0."""
        return self.most - self.least


@dataclass(frozen=True, slots=True)
class Aim:
    """The bounds of a figure: of the ratio, or of ours."""

    least: float | None = None
    most: float | None = None
    of_ratio: bool = False

    def holds(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    def text(self, unit: str) -> str:
        unit = "times" if self.of_ratio else unit
        if self.least is not None and self.most is not None:
            words = " to ".join(f"{bound:,}" for bound in sorted({self.least, self.most}))
        elif self.most is not None:
            words = f"≤ {self.most:,}" if self.most else "0"
        else:
            words = f"≥ {self.least:,}"
        return f"{words} {unit}".rstrip()


@dataclass(frozen=True, slots=True)
class Row:
    what: str
    ours: Figure
    unit: str = ""
    beside: Figure | None = None
    name: str = ""  # of what is beside
    ratio: Figure | None = None  # ours ÷ beside
    aim: Aim | None = None

    @property
    def figure(self) -> Figure:
        """What is compared with earlier runs: the ratio where there is one, since machines differ less in it."""
        return self.ratio or self.ours

    @property
    def holds(self) -> bool | None:
        """Whether the aim is reached; None without an aim."""
        if self.aim is None:
            return None
        figure = self.ratio if self.aim.of_ratio else self.ours
        return figure is not None and self.aim.holds(figure.median)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"holds": self.holds}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Row:
        figures = {
            name: found[name] and Figure(**found[name])
            for name in ("ours", "beside", "ratio")
            if name in found
        }
        aim = found["aim"] and Aim(**found["aim"])
        return cls(what=found["what"], unit=found["unit"], name=found["name"], aim=aim, **figures)


def ratio_of(ours: float | Sequence[float], beside: float | Sequence[float]) -> Figure | None:
    """Turn by turn where both have as many: then what else the machine does cancels out. None beside nothing."""
    mine, other = Figure.of(ours), Figure.of(beside)
    if other.least <= 0:
        return None
    if isinstance(ours, Sequence) and isinstance(beside, Sequence) and len(ours) == len(beside):
        return Figure.of([one / another for one, another in zip(ours, beside, strict=True)])
    turns = min(mine.turns, other.turns)
    return Figure(mine.median / other.median, mine.least / other.most, mine.most / other.least, turns)


def emit(row: Row) -> None:
    """Hand a row to who runs the benches, if somebody does."""
    if path := os.environ.get(ROWS_FILE):
        with Path(path).open("a") as file:
            file.write(json.dumps(row.to_json()) + "\n")


def read_rows(path: Path) -> list[Row]:
    if not path.exists():
        return []
    return [Row.from_json(json.loads(line)) for line in path.read_text().splitlines()]


def number(value: float) -> str:
    """With two or three digits that say something, and none behind the point where it is whole."""
    if value == round(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"
