"""Resources of `make run`: the time to its last table on a first and on a second start, CPU, and memory a process.

    python -m bench.processes [TURNS]

Each turn starts `manage.py up` in a new folder, with the demo, ends it, and starts it again. Bytecode and files should
be cached: the first turn of a machine that was just started is slower. Private memory is what a process alone maps,
the sum of it what would come back if all of them ended but one; the proportional set size also counts each one's share
of what several map. Both are read SETTLE_S after the table.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adiuva.embedded.ports import free_port
from bench.harness import ROOT, record, show

SETTLE_S: Final = 5.0
_PATIENCE_S: Final = 240.0
# What stands beside the product, by its name in lists of processes: models of this machine, and the double of Stripe.
BESIDE: Final = {"offline-model", "local-embedding", "stripe-double"}
_UP: Final = "Adiuva is up"  # the first line below the demo's tables
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Memory:
    name: str
    private: float  # MB
    proportional: float  # MB


@dataclass
class Turn:
    first_s: float = 0.0
    second_s: float = 0.0
    first_cpu_s: float = 0.0
    second_cpu_s: float = 0.0
    memory: Sequence[Memory] = ()


def measure_turn(folder: Path) -> Turn:
    found = Turn()
    with stack(folder) as (process, took):
        found.first_s, found.first_cpu_s = took, sum(cpu_s(each) for each in tree(process.pid))
    with stack(folder) as (process, took):
        found.second_s, found.second_cpu_s = took, sum(cpu_s(each) for each in tree(process.pid))
        time.sleep(SETTLE_S)
        found.memory = memory_of_python(process.pid)
    return found


@contextmanager
def stack(folder: Path) -> Iterator[tuple[subprocess.Popen[str], float]]:
    """A running `manage.py up`, and the seconds it took to its last table."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("ADIUVA_")}
    env |= {
        "ADIUVA_STATE_DIR": str(folder),
        "ADIUVA_PORT": str(free_port()),
        "ADIUVA_ENV_FILE": os.devnull,
    }
    for name in ("DATABASE_URL", "REDIS_URL"):
        env.pop(name, None)
    began = time.monotonic()
    command = [sys.executable, "manage.py", "up", "--with-parent"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    patience = threading.Timer(_PATIENCE_S, process.kill)
    patience.start()
    try:
        yield process, _wait_for_table(process) - began
    finally:
        patience.cancel()
        process.send_signal(signal.SIGTERM)
        process.communicate()


def _wait_for_table(process: subprocess.Popen[str]) -> float:
    """When it was there. Raises RuntimeError with what was said if the stack ends before."""
    assert process.stdout
    said = []
    for line in process.stdout:
        said.append(line)
        if _UP in line:
            return time.monotonic()
    raise RuntimeError("".join(["the stack ended before its table:\n", *said]))


def tree(pid: int) -> list[int]:
    """The process and all that descend from it."""
    children = defaultdict(list)
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            children[int(_stat(int(entry.name))[1])].append(int(entry.name))
    found = [pid]
    for each in found:
        found += children[each]
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the process's state on."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()


def cpu_s(pid: int) -> float:
    """Of the process and of its children that have ended."""
    return sum(int(ticks) for ticks in _stat(pid)[11:15]) / _TICKS


def memory_of_python(pid: int) -> list[Memory]:
    """Of all processes below this one that run Python."""
    return [_memory(each) for each in tree(pid) if "python" in Path(f"/proc/{each}/exe").readlink().name]


def _memory(pid: int) -> Memory:
    kilobytes: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        kilobytes[name] = int(rest.split()[0])
    private = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return Memory(_name(pid), private / 1024, kilobytes["Pss"] / 1024)


def _name(pid: int) -> str:
    """What it is called in lists of processes, or else what its command line runs."""
    called = Path(f"/proc/{pid}/comm").read_text().strip()
    if not called.startswith("python"):
        return called
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    if "-m" not in words:
        return words[2]
    module, *rest = words[words.index("-m") + 1 :]
    return " ".join([module, *(word for word in rest if word in ("beat", "worker") or word.startswith("-Q"))])


def main() -> None:
    turns = []
    for _ in range(int(sys.argv[1]) if sys.argv[1:] else 1):
        with tempfile.TemporaryDirectory(prefix="adiuva-bench-up-") as folder:
            Path(folder).chmod(0o711)  # for PostgreSQL's user, where we are root
            turns.append(measure_turn(Path(folder) / "state"))
    for each in turns[-1].memory:
        show(f"{each.name}: private, proportional", f"{each.private:.0f}, {each.proportional:.0f} MB")
    record("from start to table, first start", [turn.first_s for turn in turns], "s", most=15)
    record("from start to table, second start", [turn.second_s for turn in turns], "s", most=3)
    record("CPU of a first start", [turn.first_cpu_s for turn in turns], "s")
    record("CPU of a second start", [turn.second_cpu_s for turn in turns], "s")
    for what, most, are_beside in (
        ("server and device", 200, False),
        ("what stands beside them", None, True),
    ):
        chosen = [[each for each in turn.memory if (each.name in BESIDE) is are_beside] for turn in turns]
        record(
            f"private memory, {what}",
            [sum(each.private for each in turn) for turn in chosen],
            "MB",
            most=most,
        )
        shares = [sum(each.proportional for each in turn) for turn in chosen]
        record(f"proportional set size, {what}", shares, "MB")


if __name__ == "__main__":
    main()
