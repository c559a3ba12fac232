"""Command line of the chaos test: `python -m bench.chaos [--minutes N] [--records N] [--devices N] [--kills N] …`"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from bench.chaos.experiment import ChaosConfig, ChaosExperiment, Outcome
from bench.chaos.sabotaged_worker import SABOTAGES
from bench.harness import median, percentile, record, show


def _parse_arguments() -> tuple[ChaosConfig, Path | None]:
    defaults = ChaosConfig()
    parser = argparse.ArgumentParser(
        prog="python -m bench.chaos", description="Tries to make Adiuva lose or duplicate records."
    )
    parser.add_argument(
        "--minutes", type=float, default=defaults.seconds / 60, help="length of the fault phase"
    )
    parser.add_argument("--records", type=int, default=defaults.records)
    parser.add_argument("--devices", type=int, default=defaults.devices)
    parser.add_argument("--kills", type=int, default=defaults.kills)
    parser.add_argument("--cuts", type=int, default=defaults.cuts)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument(
        "--lease", type=float, default=defaults.lease_s, help="length of a run's lease, in seconds"
    )
    parser.add_argument(
        "--brief",
        action="store_true",
        help="do not measure how soon runs are reclaimed after all workers died",
    )
    parser.add_argument(
        "--sabotage",
        nargs="?",
        const="outbox",
        default="",
        choices=["", *SABOTAGES],
        help="remove a guarantee; the test must then fail",
    )
    parser.add_argument("--keep", type=Path, help="folder in which logs and data are kept")
    given = parser.parse_args()
    config = ChaosConfig(
        seconds=given.minutes * 60,
        records=given.records,
        devices=given.devices,
        kills=given.kills,
        cuts=given.cuts,
        seed=given.seed,
        lease_s=given.lease,
        sabotage=given.sabotage,
        brief=given.brief,
    )
    return config, given.keep


def _print_outcome(outcome: Outcome) -> None:
    found = outcome.findings
    kills = ", ".join(f"{name} {count}" for name, count in sorted(outcome.kills.items()))
    cuts = ", ".join(f"{name} {count}" for name, count in sorted(outcome.cuts.items()))
    print(f"  killed: {kills}")
    print(f"  cut: {cuts}")
    if outcome.unplanned_exits:
        print(f"  exited unexpectedly: {dict(outcome.unplanned_exits)}")
    print(f"  runs: {dict(found.runs)}; by attempts: {dict(sorted(found.attempts.items()))}")
    for name, counts in (("failure codes of runs", outcome.endings), ("logged as errors", outcome.errors)):
        if counts:
            print(f"  {name}: {dict(counts.most_common(12))}")
    for example in found.examples[:10]:
        print(f"  {example}")
    show("processes killed", f"{outcome.kills.total()}")
    show("sockets cut, of all opened", f"{outcome.cuts.total()} of {outcome.sockets:,}")
    show(
        "fault phase, settling, total",
        f"{outcome.fault_phase_s:.0f}, {outcome.settling_s:.0f}, {outcome.all_s:.0f} s",
    )
    show("runs needed after the fault phase", f"{outcome.extra_runs}")
    if outcome.recoveries_s:
        worst = f"{median(outcome.recoveries_s):.1f}, {percentile(outcome.recoveries_s, 100):.1f} s"
        show(
            f"runs reclaimed after all workers died ({len(outcome.recoveries_s)}), median, last",
            worst,
            "aim: lease + 10 s",
        )
    show("records in the documents", f"{found.expected:,}")
    for what, count in (
        ("lost", found.lost),
        ("duplicates", found.duplicates),
        ("rows on a device that no document contains", found.unexpected),
        ("stuck runs", found.stuck_runs),
        ("stuck records", found.stuck_records),
        ("uncertain records", found.uncertain),
    ):
        record(what, count, most=0)


def main() -> int:
    """Returns 0 if nothing was lost, duplicated, stuck or uncertain; with a sabotage, if something was."""
    config, keep = _parse_arguments()
    what = f"sabotaged: {config.sabotage}" if config.sabotage else "the product"
    print(
        f"Chaos, {config.devices} devices, {config.seconds:.0f} s of faults, seed {config.seed}; {what}",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="adiuva-chaos-", ignore_cleanup_errors=True) as temporary:
        folder = Path(keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o711)  # for PostgreSQL's user, where we are root
        outcome = asyncio.run(
            ChaosExperiment(config, folder, lambda line: print(f"  {line}", flush=True)).run()
        )
    _print_outcome(outcome)
    if config.sabotage:
        return 0 if outcome.findings.lost or outcome.findings.duplicates else 1
    return 0 if outcome.findings.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
