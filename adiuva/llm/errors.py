"""Errors of models. Their messages hold no prompt, key or provider's text, only the provider's error code."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from typing import Any, Final

from adiuva.core.errors import AdiuvaError, Text
from adiuva.core.http import is_transient, retry_after_s
from adiuva.llm.types import Usage

# Words by which refusals name parts of a request.
REQUEST_PARTS: Final = (
    "stream_options", "include_usage", "stream", "response_format", "json_schema", "json_object", "json mode",
    "structured output", "grammar", "temperature", "max_tokens", "max_completion_tokens", "tool",
    "function call", "system role", "system message", "system prompt",
)  # fmt: skip
_TOO_LONG: Final = (
    "context_length", "context length", "context window", "context size", "maximum context", "prompt is too long",
)  # fmt: skip
# Servers' words when the model's chat template refuses the messages: some use status 500, as if it would pass.
_TEMPLATE: Final = ("jinja", "chat template", "chat_template", "raise_exception", "roles must alternate")
# Words of refusals with a status of 400. LiteLLM's proxy looks for an unknown key in a database that it may not have,
# and calls a model that it does not have invalid.
_BAD_KEY: Final = (
    "no_db_connection",
    "invalid_api_key",
    "api key not valid",
    "api_key_invalid",
    "incorrect api key",
)
_NO_MODEL: Final = (
    "model_not_found", "invalid model name", "invalid model:", "not a valid model", "no such model", "unknown model",
    "model not found",
)  # fmt: skip
# OpenRouter's words, with a status of 404, for a model that it has.
_NO_TOOLS: Final = ("support tool use", "support tools", "support function calling")
_CODE = re.compile(r"[A-Za-z0-9_.:-]{1,64}\Z")


class ModelError(AdiuvaError):
    """Error of a model. `transient`: the same request may succeed later. `retry_after`: seconds, from the provider."""

    code, status = "model_error", 502
    transient = False

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        if retry_after is not None:
            self.extra["retry_after"] = retry_after


class ModelNotConfigured(ModelError):
    code, status = "model_not_configured", 503


class BudgetSpent(ModelError):
    """Error for a request without money left, which was not made. `retry_at`: when there is money, if known."""

    code, status = "budget_spent", 402
    retry_at: dt.datetime | None = None

    def __init__(self, retry_at: dt.datetime | None = None) -> None:
        super().__init__("the allowance for models is used up")
        self.retry_at = retry_at
        if retry_at is not None:
            self.extra["retry_at"] = retry_at.astimezone(dt.UTC).isoformat()


class WorkBudgetSpent(BudgetSpent):
    """Error for a piece of work that has cost as much as it may, though the month has money left. No request was
    made."""

    code = "work_budget_spent"

    def __init__(self) -> None:
        ModelError.__init__(self, "this has cost as much as one piece of work may")


class PriceMissing(ModelError):
    """Error for a model without a price where costs are limited. It was not asked."""

    code, status = "model_price_missing", 503

    def __init__(self, model: str) -> None:
        super().__init__(Text("the price of {model} is not known: set ADIUVA_MODEL_PRICE", model=model))


class ModelUnavailable(ModelError):
    code, status = "model_unavailable", 503
    transient = True


class ModelUnreachable(ModelUnavailable):
    """Error for an address to which no connection came about in time, so nothing was sent. After so long a wait it is
    not tried again at once."""


class ModelRateLimited(ModelError):
    code, status = "model_rate_limited", 503
    transient = True


class ModelTimeout(ModelError):
    code, status = "model_timeout", 504
    transient = True


class ModelInterrupted(ModelError):
    """Error for an answer that broke off: what arrived is incomplete."""

    code, status = "model_interrupted", 502
    transient = True


class ModelRejected(ModelError):
    """Error for a request that the provider refused; repeating it is useless."""

    code, status = "model_rejected", 502

    def __init__(
        self, message: str, *, about_request: bool = False, named: frozenset[str] = frozenset()
    ) -> None:
        super().__init__(message)
        # True if the content of the request was refused, and not the key, the model or the account.
        self.about_request = about_request
        # The parts of a request that the provider's text names.
        self.named = named


class ModelContextExceeded(ModelRejected):
    """Error for a request that does not fit the model's context window, of `window` tokens (0: not said)."""

    code = "model_context_exceeded"

    def __init__(self, message: str, *, window: int) -> None:
        super().__init__(message)
        self.window = max(window, 0)


class ModelGarbled(ModelError):
    """Error for an answer that is not one of a model endpoint: no JSON, the wrong shape, or endless."""

    code, status = "model_garbled", 502


class ModelEmpty(ModelError):
    """Error for an answer with nothing to show or carry out, again after the model was asked again."""

    code, status = "model_empty", 502

    def __init__(self) -> None:
        super().__init__("the model gave no answer")


class BadOutput(ModelError):
    """Error for an answer without JSON. `text` is the answer: content, never to be logged.

    `cut` holds the whole parts of a JSON value that breaks off at the end of the answer, None if none does.
    """

    code, status = "model_bad_output", 502

    def __init__(self, message: str, *, text: str, usage: Usage, cut: Any = None) -> None:
        super().__init__(message)
        self.text, self.usage, self.cut = text, usage, cut


def not_configured(variable: str) -> ModelNotConfigured:
    return ModelNotConfigured(Text("no model is configured: set {variable}", variable=variable))


def from_status(
    status: int, body: Any = None, headers: Mapping[str, str] | None = None, *, text: str = ""
) -> ModelError:
    """Return the error for an HTTP status that is not a success. It keeps only a short error code of the body."""
    detail = body.get("error", body) if isinstance(body, dict) else {}
    detail = detail if isinstance(detail, dict) else {}
    named = (detail.get("code"), detail.get("type"))
    word = next((word for word in named if _is_code(word) and word != str(status)), "")
    said = f"{status} {word}".strip()
    wait = retry_after_s((headers or {}).get("Retry-After"))
    if status == 429:
        if word == "insufficient_quota":
            return ModelRejected(
                "the model's account has no quota left (insufficient_quota): add credit there, or name another model"
            )
        return ModelRateLimited(
            Text("the model's provider limits our requests ({reason})", reason=said), retry_after=wait
        )
    words = f"{word} {detail.get('param')} {detail.get('message')} {text}".lower()  # only searched, not kept
    if (status == 500 and any(part in words for part in _TEMPLATE)) or (
        status == 404 and any(part in words for part in _NO_TOOLS)
    ):
        status = 400
    if is_transient(status) or status == 409:  # providers answer 409 while a model is loading
        return ModelUnavailable(Text("the model is not available ({reason})", reason=said), retry_after=wait)
    if 300 <= status < 400:
        return ModelRejected(
            Text("the model's address redirects elsewhere ({status}): check the api_base", status=status)
        )
    if status in {401, 403} or (status == 400 and any(part in words for part in _BAD_KEY)):
        return ModelRejected(
            Text(
                "the model's provider does not accept our key ({reason}): check ADIUVA_MODEL_API_KEY",
                reason=said,
            )
        )
    if status == 404 or (status == 400 and any(part in words for part in _NO_MODEL)):
        return ModelRejected(
            Text(
                "the provider has no such model or address ({reason}): check ADIUVA_MODEL and ADIUVA_MODEL_API_BASE",
                reason=said,
            )
        )
    if window := _context_window(detail, words):
        return ModelContextExceeded(
            Text("the request is too long for the model's context window ({reason})", reason=said),
            window=window,
        )
    if status not in {400, 422}:
        return ModelRejected(Text("the model's provider refused the request ({reason})", reason=said))
    return ModelRejected(
        Text("the model's provider refused the request ({reason})", reason=said),
        about_request=True,
        named=frozenset(part for part in REQUEST_PARTS if part in words),
    )


def from_error_object(detail: Any) -> ModelError:
    """Return the error for an error object inside an answer with a success status."""
    detail = detail if isinstance(detail, dict) else {}
    status = detail.get("code", detail.get("status"))
    if isinstance(status, str) and status.isdigit():
        status = int(status)
    if isinstance(status, int) and not isinstance(status, bool) and 400 <= status < 600:
        error = from_status(status, {"error": {**detail, "code": detail.get("type")}})
        if isinstance(error, ModelRejected):
            error.about_request = False  # the request was taken, since the answer had begun
        return error
    word = next((w for w in (detail.get("code"), detail.get("type")) if _is_code(w)), "no code given")
    if word == "rate_limit_exceeded":
        return ModelRateLimited(Text("the model's provider limits our requests ({reason})", reason=word))
    return ModelInterrupted(
        Text("the model's provider broke off its answer with an error ({reason})", reason=word)
    )


def _is_code(value: Any) -> bool:
    return isinstance(value, str) and _CODE.match(value) is not None


def _context_window(detail: Mapping[str, Any], words: str) -> int:
    """Return the window in tokens if a refusal says that the request is too long, -1 without a number.

    llama.cpp gives a field for it; others say it in their text.
    """
    window = detail.get("n_ctx")
    if isinstance(window, int) and not isinstance(window, bool) and window > 0:
        return window
    return -1 if any(part in words for part in _TOO_LONG) else 0
