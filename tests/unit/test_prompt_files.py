"""Versioned prompt files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from adiuva.core import prompt_files


def test_a_prompt_is_its_text_with_a_version_of_number_and_hash() -> None:
    prompt = prompt_files.load("memory", "record")
    assert re.fullmatch(r"record\.\d+-[0-9a-f]{6}", prompt.version)
    assert not prompt.text.startswith("version") and prompt.text == prompt.text.strip()


def test_a_prompt_followed_by_another_has_its_own_number_and_another_hash() -> None:
    first, second = prompt_files.load("memory", "record"), prompt_files.load("memory", "episode")
    both = first.followed_by(second)
    assert both.text == f"{first.text}\n\n{second.text}"
    assert both.version != first.version and both.version.split("-")[0] == first.version.split("-")[0]


def test_a_file_without_a_version_or_without_existence_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "prompted"
    (package / "prompts").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "prompts" / "bare.md").write_text("You are a model.\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=r"prompted/prompts/bare\.md must begin"):
        prompt_files.load("prompted", "bare")
    with pytest.raises(FileNotFoundError):
        prompt_files.load("prompted", "missing")
