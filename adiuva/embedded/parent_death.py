"""A child that dies with its parent, whatever kills the parent.

Linux has it built in: a process asks the kernel for a signal at its parent's death. Elsewhere a small
process, the leash, stands between parent and child and watches.
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
_LOOK_EVERY_S = 0.2
_GRACE_S = 10.0
_libc = ctypes.CDLL(None, use_errno=True) if HAS_KERNEL_SUPPORT else None


class Owner(NamedTuple):
    """The user a child runs as."""

    uid: int
    gid: int


def request_death_signal(parent: int, at_death: signal.Signals) -> Callable[[], None]:
    """For `subprocess`' preexec_fn: runs in the child, after its change of user, which would undo it."""
    libc = _libc or ctypes.CDLL(None)

    def ask_the_kernel() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(at_death), 0, 0, 0)
        if os.getppid() != parent:  # it died before it could be asked about
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
            time.sleep(_LOOK_EVERY_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="follow parent", daemon=True).start()


def watched_command(argv: list[str], at_death: signal.Signals, owner: Owner | None) -> list[str]:
    """The same command, on a leash of whoever starts it."""
    as_user = ["--owner", f"{owner.uid}:{owner.gid}"] if owner else []
    name = at_death.name.removeprefix("SIG")
    leash = [sys.executable, "-m", "adiuva.embedded.parent_death", "--parent", str(os.getpid())]
    return [*leash, "--signal", name, *as_user, "--", *argv]


def _owner(text: str) -> Owner:
    uid, _, gid = text.partition(":")
    return Owner(int(uid), int(gid))


def main() -> int:
    """Run the command; pass on what ends us; end it when our parent is gone. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="leash")
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
            return child.wait(timeout=_LOOK_EVERY_S)
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
