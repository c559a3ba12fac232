"""The local embedding model as a process of its own, started once for these tests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from adiuva.local_embeddings import WeightsMissing, find_file


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    try:
        find_file()
    except WeightsMissing as error:
        pytest.skip(str(error))
    command = [sys.executable, "-m", "adiuva.local_embeddings", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening on http://127.0.0.1:"), line
        yield line.split()[-1]
        process.terminate()
        assert process.wait(60) == 0
