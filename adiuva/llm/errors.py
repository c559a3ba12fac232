"""Errors of models. Their messages hold no prompt, key or provider's text, only the provider's error code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from adiuva.core.errors import AdiuvaError
from adiuva.core.http import is_transient, retry_after_s
from adiuva.llm.types import Usage

# Words by which refusals name parts of a request.
REQUEST_PARTS: Final = (
    "stream_options", "include_usage", "stream", "response_format", "json_schema", "json_object", "json mode",
    "structured output", "grammar", "temperature", "max_tokens", "max_completion_tokens", "tool",
    "system role", "system message", "system prompt",
)  # fmt: skip
_TOO_LONG: Final = (
    "context_length", "context length", "context window", "context size", "maximum context", "prompt is too long",
)  # fmt: skip
# What servers say when the model's chat template refuses the messages: some with a status of 500, as if it would pass.
_TEMPLATE: Final = ("jinja", "chat template", "chat_template", "raise_exception", "roles must alternate")
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

    def __init__(
        self, message: str, *, about_request: bool = False, named: frozenset[str] = frozenset()
    ) -> None:
        super().__init__(message)
        # Whether it is what the request holds that was refused, and not the key, the model or the account.
        self.about_request = about_request
        # The parts of a request that the provider's text names.
        self.named = named


class ModelContextExceeded(ModelRejected):
    """The request does not fit the model's context window, of `window` tokens (0: not said)."""

    code = "model_context_exceeded"

    def __init__(self, message: str, *, window: int) -> None:
        super().__init__(message)
        self.window = max(window, 0)


class ModelGarbled(ModelError):
    """The answer is not one of a model endpoint: no JSON, the wrong shape, or endless."""

    code, status = "model_garbled", 502


class ModelEmpty(ModelError):
    """The model answered with nothing that could be shown or carried out, and did so again when it was asked again."""

    code, status = "model_empty", 502

    def __init__(self) -> None:
        super().__init__("the model gave no answer")


class BadOutput(ModelError):
    """The model answered, but not with JSON. `text` is its answer: content, never to be logged.

    `cut` holds the whole parts of a JSON value that breaks off at the end of the answer, None if none does.
    """

    code, status = "model_bad_output", 502

    def __init__(self, message: str, *, text: str, usage: Usage, cut: Any = None) -> None:
        super().__init__(message)
        self.text, self.usage, self.cut = text, usage, cut


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
            return ModelRejected(
                "the model's account has no quota left (insufficient_quota): add credit there, or name another model"
            )
        return ModelRateLimited(f"the model's provider limits our requests ({said})", retry_after=wait)
    words = f"{word} {detail.get('param')} {detail.get('message')} {text}".lower()  # only searched, not kept
    if status == 500 and any(part in words for part in _TEMPLATE):
        status = 400
    if is_transient(status) or status == 409:  # providers answer 409 while a model is loading
        return ModelUnavailable(f"the model is not available ({said})", retry_after=wait)
    if 300 <= status < 400:
        return ModelRejected(f"the model's address redirects elsewhere ({status}): check the api_base")
    if status in {401, 403}:
        return ModelRejected(
            f"the model's provider does not accept our key ({said}): check ADIUVA_MODEL_API_KEY"
        )
    if status == 404:
        return ModelRejected(
            f"the provider has no such model or address ({said}): check ADIUVA_MODEL and ADIUVA_MODEL_API_BASE"
        )
    if window := _context_window(detail, words):
        return ModelContextExceeded(
            f"the request is too long for the model's context window ({said})", window=window
        )
    if status not in {400, 422}:
        return ModelRejected(f"the model's provider refused the request ({said})")
    return ModelRejected(
        f"the model's provider refused the request ({said})",
        about_request=True,
        named=frozenset(part for part in REQUEST_PARTS if part in words),
    )


def from_error_object(detail: Any) -> ModelError:
    """The error for an error object inside an answer with a success status."""
    detail = detail if isinstance(detail, dict) else {}
    status = detail.get("code", detail.get("status"))
    if isinstance(status, str) and status.isdigit():
        status = int(status)
    if isinstance(status, int) and not isinstance(status, bool) and 400 <= status < 600:
        error = from_status(status, {"error": {**detail, "code": detail.get("type")}})
        if isinstance(error, ModelRejected):
            error.about_request = False  # it was taken: the answer had begun
        return error
    word = next((w for w in (detail.get("code"), detail.get("type")) if _is_code(w)), "no code given")
    if word == "rate_limit_exceeded":
        return ModelRateLimited(f"the model's provider limits our requests ({word})")
    return ModelInterrupted(f"the model's provider broke off its answer with an error ({word})")


def _is_code(value: Any) -> bool:
    return isinstance(value, str) and _CODE.match(value) is not None


def _context_window(detail: Mapping[str, Any], words: str) -> int:
    """The window in tokens if a refusal says that the request is too long for it, -1 if it does not say how large.

    llama.cpp gives a field for it; others say it in their text.
    """
    window = detail.get("n_ctx")
    if isinstance(window, int) and not isinstance(window, bool) and window > 0:
        return window
    return -1 if any(part in words for part in _TOO_LONG) else 0
