"""The table of all benches, its JSON, and what has changed since an earlier one."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.harness import ROOT
from bench.rows import Figure, Row, number

_WHAT: Final = 62  # characters of a row's name in the table
_NAMES: Final = ("ours", "beside", "ratio", "aim", "holds", "change")


class BadReport(ValueError):
    """A file is not what `write` has written."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one bench found. `failure` says how it failed; the rows are those that it had found by then."""

    bench: str
    seconds: float
    rows: list[Row]
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    form: str  # "quick" or "full"
    facts: dict[str, Any]
    results: list[Result] = field(default_factory=list)

    @property
    def label(self) -> str:
        return f"{self.facts['date']}-{self.facts['commit']}"

    def write(self, path: Path) -> None:
        benches = {
            each.bench: {
                "seconds": round(each.seconds, 1),
                "failure": each.failure,
                "rows": [row.to_json() for row in each.rows],
            }
            for each in self.results
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = {"form": self.form, "machine": self.facts, "benches": benches}
        path.write_text(json.dumps(whole, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Report:
        """Raises BadReport if the file holds something else."""
        try:
            found = json.loads(path.read_text())
            results = [
                Result(name, each["seconds"], [Row.from_json(row) for row in each["rows"]], each["failure"])
                for name, each in found["benches"].items()
            ]
            return cls(found["form"], found["machine"], results)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise BadReport(f"{path} holds no figures of benches: {error!r}") from None


def machine_facts() -> dict[str, Any]:
    """What figures depend on, without the names of the machine and of its folders. The date is in UTC."""
    return {
        "date": dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%SZ"),
        "commit": _git("rev-parse", "--short", "HEAD") or "unknown",
        "changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


# ── Compared with earlier ones ──────────────────────────────────────────────────────────────────────────

Earlier = dict[tuple[str, str], Row]


def newest_earlier(folder: Path, form: str, names: Iterable[str]) -> tuple[Earlier, list[str]]:
    """The newest rows of each of the benches among a folder's reports of one form, and the labels of those reports.

    Raises BadReport.
    """
    wanted = set(names)
    rows: Earlier = {}
    labels: list[str] = []
    for path in sorted(folder.glob("*.json"), reverse=True):  # the date begins the name
        report = Report.read(path)
        if report.form != form:
            continue
        fresh = [each for each in report.results if each.bench in wanted and not each.failure]
        rows |= rows_of(fresh)
        wanted -= {each.bench for each in fresh}
        labels += [report.label] if fresh else []
    return rows, labels


def rows_of(results: Iterable[Result]) -> Earlier:
    return {(each.bench, row.what): row for each in results for row in each.rows}


def change(row: Row, earlier: Row | None) -> str:
    """By how much the ratio, or the figure without one, has changed: marked if by more than its turns are apart."""
    if earlier is None or (earlier.ratio is None) != (row.ratio is None):
        return "new"
    now, then = row.figure, earlier.figure
    if now.median == then.median:
        return "none"
    if then.median == 0:
        return f"was 0{_mark(row, now, then)}"
    return f"{now.median / then.median - 1:+.0%}{_mark(row, now, then)}"


def _mark(row: Row, now: Figure, then: Figure) -> str:
    """Nothing where there is one turn: how far those would be apart is not known."""
    is_known = now.turns > 1 and then.turns > 1
    if not is_known or abs(now.median - then.median) <= max(now.spread, then.spread):
        return ""
    if row.aim is None or (row.aim.least is not None and row.aim.most is not None):
        return " *"
    is_more = now.median > then.median
    return " worse" if is_more == (row.aim.most is not None) else " better"


# ── The table ───────────────────────────────────────────────────────────────────────────────────────────


def table(report: Report, earlier: Earlier) -> Iterator[str]:
    """Lines. Each bench has one of its own, with its rows below it."""
    cells = {
        each.bench: [
            (*_cells(row), change(row, earlier.get((each.bench, row.what))) if earlier else "")
            for row in each.rows
        ]
        for each in report.results
    }
    lines = [line for rows in cells.values() for line in rows]
    widths = [max(len(name), *(len(line[at]) for line in lines), 0) for at, name in enumerate(_NAMES)]
    yield _line("", _NAMES, widths)
    for each in report.results:
        yield f"{each.bench} ({each.seconds:.0f} s)"
        for row, line in zip(each.rows, cells[each.bench], strict=True):
            yield _line(row.what, line, widths)
        if each.failure:
            yield f"  FAILED: {each.failure}"
        elif not each.rows:
            yield "  no figures"


def _cells(row: Row) -> tuple[str, ...]:
    beside = "" if row.beside is None else f"{number(row.beside.median)} {row.unit}".rstrip()
    return (
        f"{number(row.ours.median)} {row.unit}".rstrip(),
        f"{beside} ({row.name})" if row.name else beside,
        "" if row.ratio is None else number(row.ratio.median),
        "" if row.aim is None else row.aim.text(row.unit),
        {None: "", True: "yes", False: "NO"}[row.holds],
    )


def _line(what: str, cells: tuple[str, ...], widths: list[int]) -> str:
    what = what if len(what) <= _WHAT else f"{what[: _WHAT - 1]}…"
    shown = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
    return f"  {what:<{_WHAT}}  {'  '.join(shown)}".rstrip()
