from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that PostgreSQL's user can pass through; pytest's own cannot be entered by others."""
    made = Path(tempfile.mkdtemp(prefix="adiuva-embedded-"))
    made.chmod(0o711)
    yield made
    for pointer in made.rglob("elsewhere"):
        shutil.rmtree(pointer.read_text().strip(), ignore_errors=True)
    shutil.rmtree(made)
