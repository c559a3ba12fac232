"""Ends a child process when its parent dies, however the parent dies.

On Linux a process asks the kernel for a signal at its parent's death (prctl PR_SET_PDEATHSIG). Elsewhere a small
watcher process, this module's `main`, runs between parent and child.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

HAS_KERNEL_SUPPORT = sys.platform == "linux"
_PR_SET_PDEATHSIG = 1
_POLL_INTERVAL_S = 0.2
_GRACE_S = 10.0
_libc = ctypes.CDLL(None, use_errno=True) if HAS_KERNEL_SUPPORT else None


class Owner(NamedTuple):
    """User that a child runs as."""

    uid: int
    gid: int


def request_death_signal(parent: int, death_signal: signal.Signals) -> Callable[[], None]:
    """Request a signal at the parent's death, as a preexec_fn for `subprocess`. It runs in the child after the change
    of user, which would reset the request."""
    libc = _libc or ctypes.CDLL(None)

    def ask_the_kernel() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != parent:  # the parent died before the request
            os.kill(os.getpid(), signal.SIGKILL)

    return ask_the_kernel


def follow_parent() -> None:
    """Send this process SIGTERM when its parent dies."""
    parent = os.getppid()
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_INTERVAL_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="follow parent", daemon=True).start()


def watched_command(argv: list[str], death_signal: signal.Signals, owner: Owner | None) -> list[str]:
    """Return the same command, run by a watcher process that ends it when the process calling this dies."""
    as_user = ["--owner", f"{owner.uid}:{owner.gid}"] if owner else []
    name = death_signal.name.removeprefix("SIG")
    watcher = [sys.executable, "-m", "adiuva.embedded.parent_death", "--parent", str(os.getpid())]
    return [*watcher, "--signal", name, *as_user, "--", *argv]


def _owner(text: str) -> Owner:
    uid, _, gid = text.partition(":")
    return Owner(int(uid), int(gid))


def main() -> int:
    """Run the command, forward signals to it, and end it when our parent is gone. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="parent_death")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--signal", type=lambda name: signal.Signals[f"SIG{name}"], default=signal.SIGTERM)
    parser.add_argument("--owner", type=_owner, default=None)
    parser.add_argument("command", nargs="+")
    chosen = parser.parse_args()
    owner: Owner | None = chosen.owner
    child = subprocess.Popen(
        chosen.command,
        user=owner.uid if owner else None,
        group=owner.gid if owner else None,
        extra_groups=[] if owner else None,
    )
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, lambda got, _frame: child.send_signal(got))
    while os.getppid() == chosen.parent:
        try:
            return child.wait(timeout=_POLL_INTERVAL_S)
        except subprocess.TimeoutExpired:
            continue
    child.send_signal(chosen.signal)
    try:
        return child.wait(timeout=_GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


if __name__ == "__main__":
    sys.exit(main())
