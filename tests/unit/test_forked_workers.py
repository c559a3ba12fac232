"""Test processes that share the tests are forks of one that has imported them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.forked_worker import SOCKET_VARIABLE


def test_this_process_is_a_fork() -> None:
    if SOCKET_VARIABLE not in os.environ:
        pytest.skip("this process runs all tests")
    assert b"tests.worker_forks" in Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
