"""Errors of models. Their messages hold no prompt, key or provider's text, only the provider's error code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from adiuva.core.errors import AdiuvaError
from adiuva.core.http import is_transient, retry_after_s
from adiuva.llm.types import Usage

_CODE = re.compile(r"[A-Za-z0-9_.:-]{1,64}\Z")


class ModelError(AdiuvaError):
    """`transient`: the same request may succeed later. `retry_after`: seconds that the provider asks for."""

    code, status = "model_error", 502
    transient = False

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        if retry_after is not None:
            self.extra["retry_after"] = retry_after


class ModelNotConfigured(ModelError):
    code, status = "model_not_configured", 503


class ModelUnavailable(ModelError):
    code, status = "model_unavailable", 503
    transient = True


class ModelRateLimited(ModelError):
    code, status = "model_rate_limited", 503
    transient = True


class ModelTimeout(ModelError):
    code, status = "model_timeout", 504
    transient = True


class ModelInterrupted(ModelError):
    """The answer broke off: what arrived is incomplete."""

    code, status = "model_interrupted", 502
    transient = True


class ModelRejected(ModelError):
    """The provider refused the request; repeating it is useless."""

    code, status = "model_rejected", 502

    def __init__(self, message: str, *, refuses_schema: bool = False) -> None:
        super().__init__(message)
        self.refuses_schema = refuses_schema


class ModelGarbled(ModelError):
    """The answer is not one of a model endpoint: no JSON, the wrong shape, or endless."""

    code, status = "model_garbled", 502


class ModelEmpty(ModelError):
    """The model answered with nothing that could be shown or carried out, and did so again when it was asked again."""

    code, status = "model_empty", 502

    def __init__(self) -> None:
        super().__init__("the model gave no answer")


class BadOutput(ModelError):
    """The model answered, but not with JSON. `text` is its answer: content, never to be logged."""

    code, status = "model_bad_output", 502

    def __init__(self, message: str, *, text: str, usage: Usage) -> None:
        super().__init__(message)
        self.text, self.usage = text, usage


def from_status(
    status: int, body: Any = None, headers: Mapping[str, str] | None = None, *, text: str = ""
) -> ModelError:
    """The error for an HTTP status that is not a success. Only a short error code is kept of the body."""
    detail = body.get("error", body) if isinstance(body, dict) else {}
    detail = detail if isinstance(detail, dict) else {}
    word = next((w for w in (detail.get("code"), detail.get("type")) if _is_code(w)), "")
    said = f"{status} {word}".strip()
    wait = retry_after_s((headers or {}).get("Retry-After"))
    if status == 429:
        if word == "insufficient_quota":
            return ModelRejected("the model's account has no quota left (insufficient_quota)")
        return ModelRateLimited(f"the model's provider limits our requests ({said})", retry_after=wait)
    if is_transient(status) or status == 409:  # providers answer 409 while a model is loading
        return ModelUnavailable(f"the model is not available ({said})", retry_after=wait)
    if 300 <= status < 400:
        return ModelRejected(f"the model's address redirects elsewhere ({status}): check the api_base")
    if status in {401, 403}:
        return ModelRejected(f"the model's provider does not accept our key ({said})")
    if status == 404:
        return ModelRejected(f"the provider has no such model or address ({said})")
    return ModelRejected(
        f"the model's provider refused the request ({said})",
        refuses_schema=_about_schema(status, detail, text),
    )


def from_error_object(detail: Any) -> ModelError:
    """The error for an error object inside an answer with a success status."""
    detail = detail if isinstance(detail, dict) else {}
    status = detail.get("code", detail.get("status"))
    if isinstance(status, str) and status.isdigit():
        status = int(status)
    if isinstance(status, int) and not isinstance(status, bool) and 400 <= status < 600:
        return from_status(status, {"error": {**detail, "code": detail.get("type")}})
    word = next((w for w in (detail.get("code"), detail.get("type")) if _is_code(w)), "no code given")
    if word == "rate_limit_exceeded":
        return ModelRateLimited(f"the model's provider limits our requests ({word})")
    return ModelInterrupted(f"the model's provider broke off its answer with an error ({word})")


def _is_code(value: Any) -> bool:
    return isinstance(value, str) and _CODE.match(value) is not None


def _about_schema(status: int, detail: Mapping[str, Any], text: str) -> bool:
    """Whether a refusal is about response_format. The text is only searched, not kept."""
    if status not in {400, 422}:
        return False
    said = f"{detail.get('param')} {detail.get('code')} {detail.get('message')} {text}".lower()
    return any(word in said for word in ("response_format", "json_schema", "structured output"))
