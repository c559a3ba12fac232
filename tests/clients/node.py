"""Node's tools of clients/typescript, for tests that skip where they are not installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.server_processes import ROOT

CLIENT = ROOT / "clients" / "typescript"
_TOOLS = CLIENT / "node_modules" / ".bin"

needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not (_TOOLS / "tsc").exists(),
    reason="needs Node 20 or newer and `npm ci` in clients/typescript",
)


def run(*argv: str, cwd: Path = CLIENT, **env: str) -> str:
    """What a command prints. A tool of node_modules is meant by its name; a failure shows all that was printed."""
    name, *rest = argv
    program = name if name == "node" else str(_TOOLS / name)
    done = subprocess.run(
        [program, *rest],
        cwd=cwd,
        env={**os.environ, "REDOCLY_TELEMETRY": "off", "NO_COLOR": "1", **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    return printed
