"""JSON as our renderer writes it is what DRF's own writes."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from django.utils.translation import gettext_lazy
from rest_framework import renderers

from adiuva.core.renderers import JSONRenderer
from agents.models import AgentFamily

MOMENT = dt.datetime(2026, 3, 1, 8, 0, 0, 120, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {
            "text": 'Größe “7”\u2028\u2029\n\t"\\',
            "none": None,
            "yes": True,
            "number": 1.5,
            "list": [1, (2, 3)],
        },
        [MOMENT, MOMENT.replace(microsecond=0), MOMENT.astimezone(ZoneInfo("UTC"))],
        [MOMENT.astimezone(ZoneInfo("Europe/Rome")), MOMENT.replace(tzinfo=None), MOMENT.date()],
        [UUID(int=7), Decimal("1.5"), dt.timedelta(seconds=1.5), b"bytes", gettext_lazy("Run now")],
        AgentFamily.LOCAL,
        {1: "a key that is no text"},
        2**80,
    ],
)
def test_writes_what_drf_writes(value: Any) -> None:
    assert JSONRenderer().render(value, "application/json") == renderers.JSONRenderer().render(value)


def test_indents_if_asked_to() -> None:
    written = JSONRenderer().render({"a": 1}, "application/json; indent=2")
    assert written == b'{\n  "a": 1\n}'
    assert json.loads(JSONRenderer().render({"a": 1}, "application/json", {"indent": 4})) == {"a": 1}


@pytest.mark.parametrize("value", ["\ud800", {"a": object()}])
def test_refuses_what_drf_refuses(value: Any) -> None:
    with pytest.raises((UnicodeEncodeError, TypeError)):
        renderers.JSONRenderer().render(value)
    with pytest.raises((UnicodeEncodeError, TypeError)):
        JSONRenderer().render(value, "application/json")
