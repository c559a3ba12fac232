"""Environment variables are declared with type and bounds, and looked up in order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from adiuva.core import env
from adiuva.core.env import Section, Variable

_section = Section("Test")
COUNT = _section.integer("X_COUNT", 3, "A count.", minimum=1, maximum=9)
DELAY = _section.number("X_DELAY", 1.5, "A delay.", minimum=0.1)
FLAG = _section.flag("X_FLAG", True, "A flag.")
WORDS = _section.words("X_WORDS", ("a",), "A list.")
CHOICE = _section.choice("X_CHOICE", ("red", "blue"), "red", "A choice.")
EXTRAS = _section.json_object("X_EXTRAS", "What else.")
RATE = _section.text("X_RATE", "1/s", "A rate.", pattern=r"\d+/s", bounds="a number per s")


@pytest.fixture(autouse=True)
def _fresh_lookup() -> Any:
    caches = (env._dotenv, env._configured, env._all_values)
    for each in caches:
        each.cache_clear()
    yield
    for each in caches:
        each.cache_clear()


@pytest.mark.parametrize(
    ("variable", "raw", "value"),
    [
        (COUNT, "", 3),
        (COUNT, " 7 ", 7),
        (DELAY, "0.1", 0.1),
        (FLAG, "", True),
        (FLAG, "No", False),
        (FLAG, "on", True),
        (WORDS, "", ["a"]),
        (WORDS, " x ,, y", ["x", "y"]),
        (CHOICE, "blue", "blue"),
        (RATE, "20/s", "20/s"),
        (EXTRAS, "", {}),
        (EXTRAS, '{"effort": "low"}', {"effort": "low"}),
    ],
)
def test_a_value_has_the_declared_type(
    variable: Variable[Any], raw: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable.name, raw)
    assert variable.read() == value


@pytest.mark.parametrize(
    ("variable", "raw", "problem"),
    [
        (COUNT, "many", "X_COUNT must be a whole number, not 'many'"),
        (COUNT, "0", "X_COUNT must be at least 1, not 0"),
        (COUNT, "10", "X_COUNT must be at most 9, not 10"),
        (DELAY, "soon", "X_DELAY must be a number, not 'soon'"),
        (DELAY, "nan", "X_DELAY must be at least 0.1, not nan"),
        (FLAG, "maybe", "X_FLAG must be 1 or 0, not 'maybe'"),
        (CHOICE, "green", "X_CHOICE must be one of red, blue, not 'green'"),
        (EXTRAS, "low", 'X_EXTRAS must be a JSON object, such as {"name": "value"}'),
        (EXTRAS, "[1]", 'X_EXTRAS must be a JSON object, such as {"name": "value"}'),
        (RATE, "1/s or so", "X_RATE must be a number per s, not '1/s or so'"),
    ],
)
def test_a_wrong_value_is_refused_with_the_variables_name(
    variable: Variable[Any], raw: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable.name, raw)
    with pytest.raises(ImproperlyConfigured) as refused:
        variable.read()
    assert str(refused.value) == problem


def test_the_environment_comes_before_dotenv_and_dotenv_before_the_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADIUVA_ENV_FILE", str(tmp_path / "dotenv"))
    monkeypatch.setenv("ADIUVA_STATE_DIR", str(tmp_path))
    (tmp_path / "env").write_text("X_COUNT=1\nX_DELAY=1\nX_CHOICE=blue\n")
    (tmp_path / "dotenv").write_text("X_COUNT=2\nX_DELAY=2\n")
    monkeypatch.setenv("X_COUNT", "3")
    assert (COUNT.read(), DELAY.read(), CHOICE.read()) == (3, 2.0, "blue")
    assert (COUNT.read_configured(), DELAY.read_configured(), CHOICE.read_configured()) == (3, 2.0, "red")
    assert CHOICE.read_configured("blue") == "blue"
