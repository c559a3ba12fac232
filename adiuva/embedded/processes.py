"""Child processes, which die with their parent, are restarted when they end, and are stopped in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from adiuva.core.errors import Unavailable
from adiuva.embedded import parent_death
from adiuva.embedded.parent_death import Owner
from adiuva.embedded.ports import free_port

Say = Callable[[str], None]


class StackError(Unavailable):
    """Error for a stack that cannot start or continue. The message is one line for the person who started it."""

    code = "stack"


def tail(log: Path, lines: int = 1) -> str:
    """Return the last lines of a log that are not empty."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 16_384))
            found = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join([line.strip() for line in found if line.strip()][-lines:])


class Process(Protocol):
    """Part of `subprocess.Popen` that is used."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, number: int, /) -> None: ...


class Forks(Protocol):
    """Server that runs programs as forks of itself."""

    @property
    def alive(self) -> bool: ...
    def fork(self, child: Child) -> Process:
        """Fork a program. Raises OSError if the server is gone."""


@dataclass
class Child:
    """Program in its own process group, so that Ctrl-C reaches only the supervisor."""

    name: str
    argv: Sequence[str | Path]
    log: Path
    env: Mapping[str, str] | None = None
    stdin: bytes = b""
    owner: Owner | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    # Signal to the child when the supervisor dies. A server with data to write needs one that lets it; the others are
    # killed.
    death_signal: signal.Signals = signal.SIGKILL
    grace_s: float = 10.0
    vital: bool = True  # the stack stops if this one keeps ending
    is_watched: bool = not parent_death.HAS_KERNEL_SUPPORT
    cwd: Path | None = None
    keeps: tuple[int, ...] = ()  # file descriptors that the child inherits; a fork has those of its server
    forked_by: Forks | None = None  # None: the child starts anew, with an interpreter of its own
    stdin_from: int = field(default=subprocess.DEVNULL, init=False)
    process: Process | None = field(default=None, init=False)
    since: float = field(default=0.0, init=False)
    _gone: bool = field(default=False, init=False)

    def start(self) -> None:
        """Start the child. The calling thread must outlive it: the kernel watches the thread, not the process."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.process = self.forked_by.fork(self) if self.forked_by else self._start_anew()
        except OSError as error:
            raise StackError(f"{self.name} cannot be started: {error}") from None
        self.since, self._gone = time.monotonic(), False

    def _start_anew(self) -> Process:
        argv, owner = [str(part) for part in self.argv], self.owner
        if self.is_watched:
            argv, owner = parent_death.watched_command(argv, self.death_signal, owner), None
        with self.log.open("ab") as out:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE if self.stdin else self.stdin_from,
                stdout=out,
                stderr=out,
                env=dict(self.env) if self.env is not None else None,
                cwd=self.cwd,
                process_group=0,
                pass_fds=self.keeps,
                user=owner.uid if owner else None,
                group=owner.gid if owner else None,
                extra_groups=[] if owner else None,
                preexec_fn=None
                if self.is_watched
                else parent_death.request_death_signal(os.getpid(), self.death_signal),
            )
        if process.stdin:
            with process.stdin as into:
                into.write(self.stdin)
        return process

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process else None

    def wait(self, *, within_s: float) -> int:
        """Wait for the child's end and return its exit code. Raises StackError on timeout."""
        if self.process is None:
            raise StackError(f"{self.name} was never started")
        try:
            return self.process.wait(timeout=within_s)
        except subprocess.TimeoutExpired:
            raise StackError(f"{self.name} did not end in {within_s:.0f} s (see {self.log})") from None

    def stop(self) -> None:
        """Ask the child to end, and kill it after its grace period, with the rest of its process group."""
        if self.process is not None and self.alive:
            self.process.send_signal(self.stop_signal)
            try:
                self.process.wait(timeout=self.grace_s)
            except subprocess.TimeoutExpired:
                pass
        self.kill()

    def kill(self) -> None:
        """Kill the child and all of its group, and wait for it."""
        if self.process is None or self._gone:
            return
        self._gone = True  # from now on its id may belong to another process
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # the group is gone, or holds only zombies, for which macOS answers "not permitted"
        self.process.wait()

    def wait_until(self, ready: Callable[[], bool], *, within_s: float, every_s: float = 0.02) -> None:
        """Wait until the child is ready. Raises StackError, with the end of its log, if it ends or is too slow."""
        deadline = time.monotonic() + within_s
        while not ready():
            if not self.alive:
                raise StackError(f"{self.name} ended at once: {tail(self.log)} (see {self.log})")
            if time.monotonic() > deadline:
                raise StackError(f"{self.name} was not ready after {within_s:.0f} s (see {self.log})")
            time.sleep(every_s)


def server_environment() -> dict[str, str]:
    """Return the environment for programs that are not ours: nothing of our configuration, and so no key."""
    return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C"}


def start_server(
    make: Callable[[int], Child], ready: Callable[[int], bool], *, port: int = 0
) -> tuple[Child, int]:
    """Start a server on this loopback port. 0 means any free port, with new tries if another program takes it first."""
    fixed, tries_left = port, 1 if port else 3
    while True:
        port, tries_left = fixed or free_port(), tries_left - 1
        child = make(port)
        child.start()
        try:
            child.wait_until(partial(ready, port), within_s=60)
            return child, port
        except BaseException as error:  # also when a signal asks us to stop meanwhile
            child.stop()
            taken = isinstance(error, StackError) and "already in use" in tail(child.log, 5)
            if not (taken and tries_left):
                raise


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


@dataclass
class Supervisor:
    """Supervisor that restarts children when they end by themselves, and stops all of them, the last one first."""

    say: Say
    children: list[Child] = field(default_factory=list)
    backoff_s: float = 1.0
    _ended_at: dict[str, list[float]] = field(default_factory=dict)

    TRIES = 4
    WINDOW_S = 120.0

    def start(self, child: Child) -> Child:
        self.children.append(child)
        if not child.alive:
            child.start()
        return child

    def restart_ended(self) -> None:
        """Restart children that have ended by themselves. Raises StackError if a vital one keeps ending."""
        now = time.monotonic()
        for child in list(self.children):
            if child.alive or (child.forked_by and not child.forked_by.alive):
                continue
            endings = [at for at in self._ended_at.get(child.name, []) if now - at < self.WINDOW_S]
            due = child.since + self.backoff_s * (
                2 ** len(endings) - 1
            )  # immediately, then after 1, 3 and 7 s
            if now < due:
                continue
            if len(endings) >= self.TRIES:
                said = f"{child.name} has ended {len(endings) + 1} times in {self.WINDOW_S:.0f} s"
                said = f"{said}: {tail(child.log)} (see {child.log})"
                if child.vital:
                    raise StackError(said)
                self.say(f"{said}; it stays ended")
                self.children.remove(child)
                continue
            code = child.process.returncode if child.process else None
            try:
                child.start()
            except StackError:
                if child.forked_by is None:
                    raise
                continue  # the server that forks it has just ended too, and comes first
            self._ended_at[child.name] = [*endings, now]
            self.say(f"{child.name} ended by itself (code {code}) and is started again; see {child.log}")

    def stop(self) -> None:
        """Stop all children, the last one first."""
        while self.children:
            self.children.pop().stop()
