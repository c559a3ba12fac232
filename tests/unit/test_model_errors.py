"""Meanings of providers' refusals, in the bodies that the providers send."""

from __future__ import annotations

from typing import Any

import pytest

from adiuva import llm
from adiuva.llm import errors

LITELLM_KEY = {"message": "No connected db.", "type": "no_db_connection", "param": None, "code": "400"}
LITELLM_MODEL = {"message": "/chat/completions: Invalid model name passed in model=x.", "code": "400"}
GEMINI_KEY = {
    "code": 400,
    "message": "API key not valid. Please pass a valid API key.",
    "status": "INVALID_ARGUMENT",
}
XAI_KEY = {"message": "Incorrect API key provided: sk***ab."}
OPENROUTER_MODEL = {"message": "some/thing is not a valid model ID", "code": 400}
MISTRAL_MODEL = {"message": "Invalid model: thing", "type": "invalid_model", "code": "1500"}
OPENAI_KEY = {"message": "Incorrect API key provided", "code": "invalid_api_key"}
OTHER = {"message": "temperature must be 1", "type": "invalid_request_error", "code": 400}


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (400, LITELLM_KEY, "check ADIUVA_MODEL_API_KEY"),
        (400, GEMINI_KEY, "check ADIUVA_MODEL_API_KEY"),
        (400, XAI_KEY, "check ADIUVA_MODEL_API_KEY"),
        (401, OPENAI_KEY, r"\(401 invalid_api_key\): check ADIUVA_MODEL_API_KEY"),
        (400, LITELLM_MODEL, "no such model or address"),
        (400, OPENROUTER_MODEL, "no such model or address"),
        (400, MISTRAL_MODEL, "no such model or address"),
        (404, {}, "no such model or address"),
        (400, OTHER, r"refused the request \(400 invalid_request_error\)"),
    ],
)
def test_a_refusal_says_what_to_check(status: int, body: dict[str, Any], says: str) -> None:
    error = errors.from_status(status, {"error": body})
    assert isinstance(error, llm.ModelRejected) and not error.transient
    with pytest.raises(llm.ModelRejected, match=says):
        raise error
    # Only what a request holds is worth asking for again in another form.
    assert error.about_request is (body is OTHER)
