"""`manage.py check_models` says of each configured model whether it works, and what to do if not."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command

from tests.fakes.provider import Fail, Provider, Raw


def said(settings: Any, model: dict[str, str]) -> tuple[str, int]:
    settings.MODEL, settings.EMBEDDING_MODEL = model, {"model": "lexical", "api_base": "", "api_key": ""}
    out, code = StringIO(), 0
    try:
        call_command("check_models", stdout=out)
    except SystemExit as end:
        code = int(end.code or 0)
    return out.getvalue(), code


def test_models_that_work_are_said_once_for_all_they_are_used_for(settings: Any, provider: Provider) -> None:
    text, code = said(settings, provider.settings())
    assert code == 0 and len(provider.chats) == 1
    assert "for chat, extraction, memory at http://127.0.0.1" in text and text.count(" works (") == 2


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (Fail(401), "ADIUVA_MODEL_API_KEY"),
        (Fail(404), "It is named by ADIUVA_MODEL, "),
        (Raw(b"<html>hello</html>"), "is no API of a model"),
    ],
)
def test_what_fails_is_said_with_what_to_do(settings: Any, provider: Provider, step: Any, words: str) -> None:
    provider.script(step, step, step)
    text, code = said(settings, provider.settings())
    assert code == 1 and " does not work: " in text and words in text, text


def test_a_fallback_is_asked_itself_and_hides_no_other(settings: Any, provider: Provider) -> None:
    settings.MODEL_FALLBACKS = ["openai/second"]
    provider.default = lambda request: "ok" if request.body["model"] == "second" else Fail(404)
    text, code = said(settings, provider.settings("first"))
    assert code == 1 and "Model openai/first for chat, extraction, memory at" in text
    assert "Model openai/second as a fallback at" in text and text.count(" works (") == 2


def test_an_address_is_said_without_its_password(settings: Any) -> None:
    model = {"model": "openai/x", "api_base": "http://kim:secret@127.0.0.1:9/v1", "api_key": ""}
    text, code = said(settings, model)
    assert code == 1 and "secret" not in text and "http://127.0.0.1:9/v1" in text
    text, _ = said(settings, model | {"api_base": "http://127.0.0.1:9/v1"})
    assert "Check that a model server runs at http://127.0.0.1:9/v1" in text
    assert "Set ADIUVA_MODEL, " in said(settings, {"model": "", "api_base": "", "api_key": ""})[0]
