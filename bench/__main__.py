"""Runs the benches, each in a process of its own, and prints one table: `python -m bench [NAME …] [--full]`

    --quick            small sizes of those that measure, twelve minutes on two cores; this is the default
    --full             all of them as they are meant, with those that count what must never happen; about two hours
    --json FILE        write the figures there instead of into .state/bench, with one plot a bench beside it
    --compare FILE     compare with this one instead of with the newest earlier ones of the same form

The exit code is 1 if a bench fails. An aim that is missed is said in the table and is no failure.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adiuva.embedded.parent_death import HAS_KERNEL_SUPPORT, request_death_signal
from bench.harness import ROOT
from bench.plot import svg
from bench.report import (
    BadReport,
    Earlier,
    Report,
    Result,
    machine_facts,
    newest_earlier,
    rows_of,
    table,
)
from bench.rows import ROWS_FILE, read_rows

FOLDER: Final = ROOT / ".state" / "bench"
_GRACE_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Arguments:
    """What a bench is called with in each form."""

    quick: tuple[str, ...] | None = None  # None: it is too long for the quick form
    full: tuple[str, ...] = ()


BENCHES: Final = {
    "rest": Arguments(quick=()),
    "statements": Arguments(quick=()),
    "tool_calls": Arguments(quick=(), full=("34000",)),
    "chat_turn": Arguments(quick=("ours",)),
    "chat_stream": Arguments(quick=("bare",)),
    "sanitizer": Arguments(quick=()),
    "slow_database": Arguments(quick=("1",)),
    "database_costs": Arguments(quick=("1000",)),
    "devices": Arguments(quick=("500",)),
    "memory_recall": Arguments(quick=("100",)),
    "agents_run": Arguments(quick=("200",)),
    "agents_tick": Arguments(quick=("20000",)),
    "agents_deliver": Arguments(quick=()),
    "slow_model": Arguments(quick=("0.5",)),
    "documents": Arguments(quick=()),
    "budget_limits": Arguments(quick=("turns", "refusals")),
    "plans": Arguments(quick=("limiter",)),
    "growth": Arguments(quick=("50000",)),
    "processes": Arguments(quick=(), full=("3",)),
    "plugins": Arguments(quick=("catalogue",)),
    "memory_meaning": Arguments(),
    "vault_vectors": Arguments(),
    "vault": Arguments(),
    "neighbours": Arguments(),
    "local_model": Arguments(),
    "budgets": Arguments(),
    "model_bill": Arguments(),
    "cron_oracle": Arguments(),
    "turn_order": Arguments(),
    "followup_breaks": Arguments(),
    "run_end_timings": Arguments(),
    "webhooks": Arguments(),
    "orders": Arguments(),
    "mailboxes": Arguments(),
    "fuzz": Arguments(),
    "hostile_texts": Arguments(),
    "chaos.run_ends": Arguments(),
    "chaos": Arguments(),
}
# A bench that takes longer than this hangs.
LIMIT_S: Final = {"quick": 600.0, "full": 5_400.0}


def run_bench(module: str, arguments: Sequence[str], limit_s: float) -> Result:
    """Run one, whose output goes where ours does."""
    name = module.removeprefix("bench.")
    with tempfile.TemporaryDirectory(prefix="adiuva-bench-rows-") as folder:
        file = Path(folder) / "rows"
        env = os.environ | {ROWS_FILE: str(file), "PYTHONUNBUFFERED": "1"}
        began = time.monotonic()
        command = [sys.executable, "-m", module, *arguments]
        # If we are killed, it stops its servers and ends, too.
        end_with_us = request_death_signal(os.getpid(), signal.SIGINT) if HAS_KERNEL_SUPPORT else None

        def prepare() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background commands ignore it
            if end_with_us is not None:
                end_with_us()

        with subprocess.Popen(command, env=env, cwd=ROOT, preexec_fn=prepare) as process:
            failure = _wait(process, limit_s)
        return Result(name, time.monotonic() - began, read_rows(file), failure)


def _wait(process: subprocess.Popen[bytes], limit_s: float) -> str:
    """Wait for its end; returns how it failed."""
    try:
        code = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # so that it stops its servers
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
        return f"not done after {limit_s:.0f} s"
    except KeyboardInterrupt:  # which it got, too
        process.wait()
        return "interrupted"
    return f"exit code {code}" if code else ""


def find_earlier(compare: Path | None, form: str, names: Sequence[str]) -> tuple[Earlier, list[str]]:
    """What is compared with. Raises BadReport."""
    if compare is None:
        return newest_earlier(FOLDER, form, names)
    old = Report.read(compare)
    return rows_of(old.results), [old.label]


def run(names: Sequence[str], form: str) -> Report:
    report = Report(form, machine_facts())
    for name in names:
        print(f"── {name}", flush=True)
        given = BENCHES[name]
        quick = given.quick if form == "quick" else None
        arguments, limit_s = (given.full, LIMIT_S["full"]) if quick is None else (quick, LIMIT_S["quick"])
        report.results.append(run_bench(f"bench.{name}", arguments, limit_s))
        if report.results[-1].failure == "interrupted":
            break
    return report


def publish(report: Report, file: Path, earlier: Earlier, labels: Sequence[str]) -> int:
    """Print the table, write the figures and the plots; returns the exit code."""
    print("\n" + "\n".join(table(report, earlier)))
    facts = report.facts
    print(
        f"\n{facts['cores']} cores, Python {facts['python']}, {facts['system']}, load {facts['load']} at the beginning;"
        f" {facts['commit']}{' with changes' if facts['changed'] else ''}, {report.form} form"
    )
    if labels:
        print(f"Change since {', '.join(labels)}; worse, better and * say that it is more than turns differ.")
    report.write(file)
    plots = file.with_suffix("")
    plots.mkdir(exist_ok=True)
    for result in report.results:
        (plots / f"{result.bench}.svg").write_text(svg(f"{result.bench}, {report.label}", result.rows))
    shown = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file
    print(f"Written to {shown}, with a plot of each in {shown.with_suffix('')}/")
    return int(any(result.failure for result in report.results))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHES))
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--quick", dest="form", action="store_const", const="quick", default="quick")
    form.add_argument("--full", dest="form", action="store_const", const="full")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--compare", type=Path, metavar="FILE")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in BENCHES]:
        parser.error(f"there is no bench {', '.join(unknown)}")
    names = given.names or [
        name for name, each in BENCHES.items() if given.form == "full" or each.quick is not None
    ]
    try:
        earlier, labels = find_earlier(given.compare, given.form, names)
    except BadReport as error:
        parser.error(str(error))
    report = run(names, given.form)
    return publish(report, given.json or FOLDER / f"{report.label}.json", earlier, labels)


if __name__ == "__main__":
    sys.exit(main())
