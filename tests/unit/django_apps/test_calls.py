"""Calls to devices, as they are made."""

from __future__ import annotations

import pytest

from adiuva.devices import codec, protocol
from adiuva.devices.calls import new_call


def test_a_call_is_made_as_pydantic_would_make_it() -> None:
    made = new_call("insert", "tasks", data={"title": "x", "dueDate": None})
    expected = protocol.ToolCall(**vars(made))
    assert vars(made) == vars(expected) and list(vars(made)) == list(vars(expected))
    for version in (1, 2):
        assert codec.dump(made, version) == codec.dump(expected, version)
    assert made.model_copy(update={"attempt": 2}) == expected.model_copy(update={"attempt": 2})
    assert new_call("insert", "tasks").id != made.id
    with pytest.raises(ValueError):
        new_call("insert", "passwords")  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        new_call("drop", "tasks")  # type: ignore[arg-type]
