"""Shared by the benches: servers of their own on loopback, clocks, and the printing of figures.

A figure of one machine says little, so each bench also measures what it compares with, in the same run.
"""

from __future__ import annotations

import base64
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from adiuva.embedded.ports import free_port
from adiuva.embedded.postgres import Postgres
from adiuva.embedded.processes import Child, python
from adiuva.embedded.rest_client import is_up
from adiuva.embedded.valkey import Valkey
from bench.rows import Aim, Figure, Row, emit, number, ratio_of

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class BenchServers:
    """Running PostgreSQL and Valkey. Django is set up on them in this process; more processes can be started."""

    folder: Path
    exit_stack: ExitStack

    def web(self, **env: str) -> str:
        """Start a web process; returns its base URL."""
        return self.web_process(**env)[0]

    def web_process(self, module: str = "adiuva.server", **env: str) -> tuple[str, Child]:
        port = free_port()
        base = f"http://127.0.0.1:{port}"
        child = self.run(f"web-{port}", "-m", module, ADIUVA_PORT=str(port), **env)
        child.wait_until(lambda: is_up(base), within_s=180, every_s=0.1)
        return base, child

    def model(self) -> str:
        """Start the chat benches' scripted model; returns its API base URL."""
        port = free_port()
        child = self.run(f"model-{port}", "-m", "bench.chat.scripted_model", str(port))
        child.wait_until(lambda: listens(port), within_s=30)
        return f"http://127.0.0.1:{port}/v1"

    def run(self, name: str, *arguments: str, **env: str) -> Child:
        child = Child(name, python(*arguments), self.folder / f"{name}.log", env=os.environ | env, cwd=ROOT)
        child.start()
        self.exit_stack.callback(child.stop)
        return child


@contextmanager
def bench_servers() -> Iterator[BenchServers]:
    """Start PostgreSQL and Valkey in a temporary folder, set up Django in this process, and migrate."""
    with ExitStack() as exit_stack:
        folder = Path(exit_stack.enter_context(tempfile.TemporaryDirectory(prefix="adiuva-bench-")))
        folder.chmod(0o711)  # for PostgreSQL's user, where we are root
        password = secrets.token_hex(16)
        postgres = Postgres(
            folder / "postgres", password=password, log=folder / "postgres.log", durable=False
        )
        valkey = Valkey(folder / "valkey", password=password, log=folder / "valkey.log", durable=False)
        exit_stack.callback(postgres.stop)
        exit_stack.callback(valkey.stop)
        os.environ |= {
            "ADIUVA_ENV_FILE": os.devnull,
            "ADIUVA_ENV": "development",
            "ADIUVA_STATE_DIR": str(folder / "state"),
            "ADIUVA_SECRET_KEY": secrets.token_urlsafe(40),
            "ADIUVA_KEYS": f"bench:{base64.b64encode(secrets.token_bytes(32)).decode()}",
            "ADIUVA_LOG_LEVEL": "WARNING",
            "ADIUVA_LOGIN_ADDRESS_RATE": "1000000/min",
            "DATABASE_URL": postgres.start(),
            "REDIS_URL": valkey.start(),
            "DJANGO_SETTINGS_MODULE": "adiuva.settings",
        }
        import django

        django.setup()
        from adiuva.embedded.migrate import migrate

        sys.stdout, shown = open(os.devnull, "w"), sys.stdout  # noqa: SIM115, PTH123
        try:
            migrate()
        finally:
            sys.stdout = shown
        yield BenchServers(folder, exit_stack)


def stock_python() -> str:
    """Path of the Python with the libraries that the chat benches compare with; installs them on first use."""
    place, ours, theirs = (
        ROOT / ".venv" / "stock",
        ROOT / "requirements.txt",
        ROOT / "bench/chat/requirements.txt",
    )
    found, done = place / "bin" / "python", place / ".installed"
    if not done.exists() or done.stat().st_mtime < max(ours.stat().st_mtime, theirs.stat().st_mtime):
        print("Installing the stock stack into .venv/stock ...", flush=True)
        uv, env = str(Path(sys.executable).with_name("uv")), os.environ | {"UV_PYTHON_DOWNLOADS": "never"}
        subprocess.run(
            [uv, "venv", "--quiet", "--clear", "--python", sys.executable, place], env=env, check=True
        )
        install = [
            uv,
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--require-hashes",
            "--python",
            str(found),
            "-r",
        ]
        for lock in (ours, theirs):  # the second adds its own, and replaces what it needs in another version
            subprocess.run([*install, str(lock)], env=env, check=True)
        done.touch()
    return str(found)


def run_sabotaged_worker(sabotages: Mapping[str, Callable[[], None]]) -> None:
    """Run a Celery worker after one of the product's guarantees was taken from it. Returns when the worker has ended.

    The command line names the sabotage; what follows is for Celery.
    """
    import django
    from celery.__main__ import main as celery

    name, *arguments = sys.argv[1:]
    django.setup()
    sabotages[name]()
    sys.argv = ["celery", *arguments]
    celery()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def cpu_s(child: Child) -> float:
    """CPU seconds a process has used so far: user and system time of all threads."""
    fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


class Stopwatch:
    def __enter__(self) -> Stopwatch:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall = time.perf_counter() - self._wall
        self.cpu = time.process_time() - self._cpu


def show(what: str, figure: str, aim: str = "") -> None:
    print(f"  {what:<58} {figure:>14}   {aim}".rstrip(), flush=True)


def record(
    what: str,
    ours: float | Sequence[float],
    unit: str = "",
    *,
    beside: float | Sequence[float] | None = None,
    name: str = "",
    least: float | None = None,
    most: float | None = None,
    ratio_least: float | None = None,
    ratio_most: float | None = None,
) -> None:
    """Print a figure, and make it a row in the table of `python -m bench`.

    `ours` is one figure, or one a turn. `beside` is the same of what it is compared with, whose name is given. An aim
    is a bound of ours (`least`, `most`) or of the ratio to what is beside.
    """
    aim = None
    if (ratio_least, ratio_most) != (None, None):
        aim = Aim(ratio_least, ratio_most, of_ratio=True)
    elif (least, most) != (None, None):
        aim = Aim(least, most)
    other, ratio = (None, None) if beside is None else (Figure.of(beside), ratio_of(ours, beside))
    row = Row(what, Figure.of(ours), unit, other, name, ratio, aim)
    said = []
    if row.beside is not None:
        said.append(f"{name}: {number(row.beside.median)} {unit}".rstrip())
    if row.ratio is not None:
        said.append(f"ratio: {number(row.ratio.median)}")
    if row.aim is not None:
        said.append(f"aim: {row.aim.text(unit)}")
    show(what, f"{number(row.ours.median)} {unit}".rstrip(), "; ".join(said))
    emit(row)
