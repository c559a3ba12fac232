"""A bar chart of a bench, as SVG: each row in shares of its aim, or of what stands beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

from bench.rows import Figure, Row, number

_LEFT, _WIDTH, _RIGHT, _STEP, _TOP = 430, 360, 230, 26, 64
_MOST: Final = 2.0  # what is longer is cut, and its figure says how long it would be
_COLOURS: Final = {True: "#2e7d32", False: "#c62828", None: "#78909c"}


def svg(title: str, rows: Sequence[Row]) -> str:
    """The line is the aim; of a row without an aim, it is what stands beside it. Rows with neither are left out."""
    bars = [(row, found) for row in rows if (found := _shares(row)) is not None]
    height = _TOP + _STEP * len(bars) + 12
    one = _x(1)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + _RIGHT}" height="{height}"'
            ' font-family="sans-serif" font-size="12">',
            '<rect width="100%" height="100%" fill="white"/>',
            f'<text x="12" y="24" font-size="16">{escape(title)}</text>',
            f'<text x="{one:.0f}" y="44" text-anchor="middle">the aim, or what is beside</text>',
            *(line for at, (row, found) in enumerate(bars) for line in _bar(_TOP + _STEP * at, row, found)),
            f'<path d="M{one:.0f} 50V{height - 8}" stroke="black" stroke-dasharray="4 3"/>',
            "</svg>\n",
        ]
    )


def _shares(row: Row) -> Figure | None:
    """The figure in shares of what the line stands for."""
    if row.aim is None:
        return row.ratio
    figure = row.ratio if row.aim.of_ratio else row.ours
    bound = row.aim.most if row.aim.most is not None else row.aim.least
    if figure is None or not bound:
        return None
    return Figure(figure.median / bound, figure.least / bound, figure.most / bound, figure.turns)


def _bar(top: int, row: Row, found: Figure) -> Iterator[str]:
    aim = f", aim {row.aim.text(row.unit)}" if row.aim else ""
    ratio = f"{number(row.ratio.median)} times" if row.ratio else ""
    said = (
        ratio if ratio and (row.aim is None or row.aim.of_ratio) else f"{number(row.ours.median)} {row.unit}"
    )
    middle = top + 8
    yield f'<text x="{_LEFT - 10}" y="{top + 12}" text-anchor="end">{escape(row.what[:68])}</text>'
    yield (
        f'<rect x="{_LEFT}" y="{top}" width="{_x(found.median) - _LEFT:.1f}" height="16"'
        f' fill="{_COLOURS[row.holds]}"/>'
    )
    if found.turns > 1:
        yield f'<path d="M{_x(found.least):.1f} {middle}H{_x(found.most):.1f}" stroke="black"/>'
    yield f'<text x="{_LEFT + _WIDTH + 10}" y="{top + 12}">{escape(said + aim)}</text>'


def _x(share: float) -> float:
    return _LEFT + _WIDTH * min(share, _MOST) / _MOST
