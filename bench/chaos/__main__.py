"""`python -m bench.chaos [--minutes N] [--records N] [--devices N] [--kills N] [--cuts N] [--control outbox|ids]`"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from bench.chaos.control import CONTROLS
from bench.chaos.harness import Form, Harness, Outcome
from bench.harness import median, percentile, show


def _form() -> tuple[Form, Path | None]:
    usual = Form()
    parser = argparse.ArgumentParser(
        prog="python -m bench.chaos", description="Tries to lose or double records."
    )
    parser.add_argument("--minutes", type=float, default=usual.seconds / 60, help="that the storm takes")
    parser.add_argument("--records", type=int, default=usual.records)
    parser.add_argument("--devices", type=int, default=usual.devices)
    parser.add_argument("--kills", type=int, default=usual.kills)
    parser.add_argument("--cuts", type=int, default=usual.cuts)
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument("--lease", type=float, default=usual.lease_s, help="of a run, in seconds")
    parser.add_argument(
        "--brief", action="store_true", help="do not measure how soon runs are taken up again"
    )
    parser.add_argument("--control", nargs="?", const="outbox", default="", choices=["", *CONTROLS])
    parser.add_argument("--keep", type=Path, help="a folder to keep logs and data in")
    given = parser.parse_args()
    form = Form(
        seconds=given.minutes * 60,
        records=given.records,
        devices=given.devices,
        kills=given.kills,
        cuts=given.cuts,
        seed=given.seed,
        lease_s=given.lease,
        control=given.control,
        brief=given.brief,
    )
    return form, given.keep


def _tell(outcome: Outcome) -> None:
    found = outcome.findings
    kills = ", ".join(f"{name} {count}" for name, count in sorted(outcome.kills.items()))
    cuts = ", ".join(f"{name} {count}" for name, count in sorted(outcome.cuts.items()))
    print(f"  killed: {kills}")
    print(f"  cut: {cuts}")
    if outcome.ended_by_themselves:
        print(f"  ended by themselves: {dict(outcome.ended_by_themselves)}")
    print(f"  runs: {dict(found.runs)}; by attempts: {dict(sorted(found.attempts.items()))}")
    for name, counts in (("endings", outcome.endings), ("logged as errors", outcome.errors)):
        if counts:
            print(f"  {name}: {dict(counts.most_common(12))}")
    for example in found.examples[:10]:
        print(f"  {example}")
    show("processes killed", f"{outcome.kills.total()}")
    show("sockets cut, of so many that were opened", f"{outcome.cuts.total()} of {outcome.sockets:,}")
    show("storm, calm after it, all", f"{outcome.storm_s:.0f}, {outcome.calm_s:.0f}, {outcome.all_s:.0f} s")
    show("runs that agents needed after the storm", f"{outcome.extra_runs}")
    if outcome.recoveries_s:
        worst = f"{median(outcome.recoveries_s):.1f}, {percentile(outcome.recoveries_s, 100):.1f} s"
        show(
            f"runs taken up after all workers died ({len(outcome.recoveries_s)}), median, last",
            worst,
            "aim: lease + 10 s",
        )
    show("records that the documents hold", f"{found.expected:,}")
    show("lost", f"{found.lost:,}", "aim: 0")
    show("double", f"{found.double:,}", "aim: 0")
    show("on a device and in no document", f"{found.strange:,}", "aim: 0")
    show(
        "stuck runs, stuck records, uncertain records",
        f"{found.stuck_runs}, {found.stuck_records}, {found.uncertain}",
    )


def main() -> int:
    """0 when nothing was lost, double, stuck or uncertain; of a control, when something was."""
    form, keep = _form()
    what = f"control: no {form.control}" if form.control else "the product"
    print(
        f"Chaos, {form.devices} devices, {form.seconds:.0f} s of storm, seed {form.seed}; {what}", flush=True
    )
    with tempfile.TemporaryDirectory(prefix="adiuva-chaos-", ignore_cleanup_errors=True) as temporary:
        folder = Path(keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o711)  # for PostgreSQL's user, where we are root
        outcome = asyncio.run(Harness(form, folder, lambda line: print(f"  {line}", flush=True)).run())
    _tell(outcome)
    if form.control:
        return 0 if outcome.findings.lost or outcome.findings.double else 1
    return 0 if outcome.findings.whole else 1


if __name__ == "__main__":
    sys.exit(main())
