"""Terminal output of `make run`: lines, one progress bar, tables. Plain text where the output is no terminal."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
import unicodedata
from collections.abc import Sequence
from typing import TextIO

_BAR_CELLS = 24
_PLAIN_EVERY_S = 5.0
_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "cyan": "36"}


class Terminal:
    """Terminal whose lines and progress bar share one output: a new line replaces the bar. Thread-safe."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self._out = out
        self._live = out.isatty() and os.environ.get("TERM") != "dumb"
        self._colour = self._live and not os.environ.get("NO_COLOR")
        self._lock = threading.RLock()
        self._bar_shown = False
        self._plain_at = 0.0

    @property
    def width(self) -> int:
        return max(40, shutil.get_terminal_size((100, 24)).columns)

    def styled(self, text: str, style: str) -> str:
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self._colour else text

    def say(self, line: str = "") -> None:
        with self._lock:
            self._clear_bar()
            self._write(f"{line}\n")

    def bar(self, label: str, done: int, total: int, words: str) -> None:
        """Show progress. Without a terminal, print a line at first and then every few seconds."""
        with self._lock:
            if not self._live:
                if time.monotonic() - self._plain_at >= _PLAIN_EVERY_S:
                    self._plain_at = time.monotonic()
                    self._write(f"{label}: {words}\n")
                return
            filled = _BAR_CELLS * done // total if total else 0
            cells = "█" * filled + "░" * (_BAR_CELLS - filled)
            self._clear_bar()
            self._write(truncate(f"{label} {cells} {words}", self.width - 1))
            self._bar_shown = True

    def end_bar(self) -> None:
        with self._lock:
            self._clear_bar()
            self._plain_at = 0.0

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print aligned columns that fit the terminal's width; the widest ones are shortened first."""
        widths = [max(map(display_width, column)) for column in zip(header, *rows, strict=True)]
        room = self.width - 2 - 2 * (len(widths) - 1)
        while sum(widths) > room:
            widths[widths.index(max(widths))] -= 1
        self.say()
        self.say(self.styled(title, "bold"))
        self.say("  " + self.styled(_columns(header, widths), "dim"))
        for row in rows:
            self.say("  " + _columns(row, widths))

    def _clear_bar(self) -> None:
        if self._bar_shown:
            self._write("\r\x1b[2K")
            self._bar_shown = False

    def _write(self, text: str) -> None:
        try:
            encoding = self._out.encoding or "utf-8"
            self._out.write(text.encode(encoding, "replace").decode(encoding))
            self._out.flush()
        except (OSError, ValueError):  # the terminal was closed; the servers continue
            self._live = self._colour = False


def _columns(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(
        pad(truncate(cell, width), width) for cell, width in zip(cells, widths, strict=True)
    ).rstrip()


def display_width(text: str) -> int:
    """Return how many columns a terminal needs for the text."""
    return sum(_cells(char) for char in text)


def _cells(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) in {"Cf", "Mn"}:
        return 0
    return 2 if unicodedata.east_asian_width(char) in {"W", "F"} else 1


def pad(text: str, width: int) -> str:
    return text + " " * (width - display_width(text))


def truncate(text: str, width: int) -> str:
    """Return the text on one line, without control characters, with an ellipsis if it was longer."""
    text = "".join(char if char.isprintable() else " " for char in text)
    if display_width(text) <= width:
        return text
    kept, used = [], 0
    for char in text:
        used += _cells(char)
        if used > width - 1:
            break
        kept.append(char)
    return "".join(kept).rstrip() + "…"
