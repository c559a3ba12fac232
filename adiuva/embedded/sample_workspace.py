"""Documents of the demo, written so that on any day of its start some things are overdue and some are due this week.

Dates in the files of `sample` are placeholders: `{{+9}}` is the day nine days after the Monday of the current week, as
`2026-12-02`; a form of strftime may follow, as in `{{-7 %d %B %Y}}`. They count from a Monday so that meetings and
mails stay on working days.
"""

from __future__ import annotations

import re
from datetime import date, timedelta
from pathlib import Path

FOLDER = Path(__file__).parent / "sample"
SEED = FOLDER / "projects.json"  # clients and projects that are on the device from the start
_PLACEHOLDER = re.compile(r"\{\{([+-]\d+)(?: ([^{}]+))?\}\}")


def fill_dates(text: str, today: date) -> str:
    """Return the text with its placeholders filled as of today."""
    monday = today - timedelta(days=today.weekday())

    def filled(match: re.Match[str]) -> str:
        return (monday + timedelta(days=int(match[1]))).strftime(match[2] or "%Y-%m-%d")

    return _PLACEHOLDER.sub(filled, text)


def write(folder: Path, today: date) -> None:
    """Write the documents, without the seed, into the folder. Raises OSError."""
    for source in sorted(path for path in FOLDER.rglob("*") if path.is_file() and path != SEED):
        target = folder / source.relative_to(FOLDER)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(fill_dates(source.read_bytes().decode(), today).encode())
