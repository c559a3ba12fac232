"""The one-minute form of bench/chaos: servers of its own that are killed, sockets that are cut, and nothing missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.server_processes import ROOT

FORM = {"minutes": "0.3", "records": "320", "devices": "8", "kills": "8", "cuts": "25", "lease": "5"}


@pytest.mark.usefixtures("forkserver")  # which the processes of the bench use
def test_nothing_is_lost_or_doubled_whatever_is_killed_or_cut() -> None:
    options = [part for name, value in FORM.items() for part in (f"--{name}", value)]
    storm = subprocess.Popen(
        [sys.executable, "-m", "bench.chaos", "--brief", *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said, _ = storm.communicate()
    assert storm.returncode == 0, said
