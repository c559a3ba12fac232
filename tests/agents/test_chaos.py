"""The short form of bench/chaos: processes are killed and sockets cut, and no record may be lost or duplicated."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.sampling import TRIES_ALL
from tests.server_processes import ROOT

OPTIONS = {"minutes": "0.1", "records": "60", "devices": "3", "kills": "4", "cuts": "8", "lease": "5"}


# What is killed and cut one by one, test_faults, test_runs and test_result_commits try in each run of the suite.
@pytest.mark.skipif(not TRIES_ALL, reason="it takes long: make sweep")
@pytest.mark.usefixtures("forkserver")  # the experiment starts its processes through it
def test_no_record_is_lost_or_duplicated_when_processes_are_killed_and_sockets_cut() -> None:
    options = [part for name, value in OPTIONS.items() for part in (f"--{name}", value)]
    experiment = subprocess.Popen(
        [sys.executable, "-m", "bench.chaos", "--brief", *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output, _ = experiment.communicate()
    assert experiment.returncode == 0, output
