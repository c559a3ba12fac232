"""Common parts of all REST endpoints: the form of errors, and their description in OpenAPI."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.conf import settings
from django.core.exceptions import PermissionDenied, RequestDataTooBig
from django.core.exceptions import ValidationError as DjangoValidationError
from django.db import IntegrityError
from django.http import Http404
from django.utils.translation import gettext
from drf_spectacular.authentication import SessionScheme
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.utils import OpenApiResponse
from psycopg.errors import ForeignKeyViolation
from rest_framework import exceptions, metadata, serializers
from rest_framework.renderers import BrowsableAPIRenderer, JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from adiuva.core import errors, metrics
from adiuva.core.errors import Text
from adiuva.core.language import body_of
from adiuva.core.logging import log_failure
from adiuva.core.outages import as_unavailable

if TYPE_CHECKING:
    from rest_framework.views import APIView  # DRF loads this module while it makes that class


_OUR_CODES = {
    "parse_error": "bad_json",
    "authentication_failed": "not_authenticated",
    "permission_denied": "forbidden",
}
_WHOLE = "non_field_errors"  # DRF's name for problems of the body as a whole


class TooLarge(errors.AdiuvaError):
    code, status = "too_large", 413


# ── Errors ──────────────────────────────────────────────────────────────────────────────────────────────


def exception_handler(error: Exception, context: Mapping[str, Any]) -> Response | None:
    """Answer every refusal with `{code, message, fields?}`, as DRF's hook. None for unforeseen errors, a 500."""
    found = _as_ours(error)
    if found is None:
        return None
    metrics.count_error("rest", found.code)
    _refuse_in_json(context.get("request"))
    response = Response(body_of(found), status=found.status)
    if found.status == 401:
        response["WWW-Authenticate"] = "Bearer"
    if "retry_after_s" in found.extra:
        response["Retry-After"] = str(found.extra["retry_after_s"])
    if found.status == 416:
        response["Content-Range"] = f"bytes */{found.extra['size']}"
    return response


def _refuse_in_json(request: Any) -> None:
    """Render a refusal as JSON, also where a view answers with a page or with YAML."""
    chosen = getattr(request, "accepted_renderer", None)
    if chosen and not isinstance(chosen, JSONRenderer | BrowsableAPIRenderer):
        request.accepted_renderer, request.accepted_media_type = JSONRenderer(), JSONRenderer.media_type


def _as_ours(error: Exception) -> errors.AdiuvaError | None:
    match error:
        case errors.AdiuvaError():
            return error
        case Http404() | exceptions.NotFound():
            return errors.NotFound("there is nothing here, or it is not yours")
        case PermissionDenied():
            return errors.Forbidden("you may not do this")
        case RequestDataTooBig():
            return TooLarge(
                Text("a body has at most {most} bytes", most=settings.DATA_UPLOAD_MAX_MEMORY_SIZE)
            )
        case DjangoValidationError():
            named = hasattr(error, "error_dict")
            return _invalid(error.message_dict if named else {_WHOLE: error.messages})
        case exceptions.ValidationError():
            return _invalid(error.detail)
        case exceptions.Throttled():
            return _throttled(error)
        case exceptions.APIException():
            return _refusal(error, str(error.detail))
    if isinstance(error, IntegrityError) and isinstance(error.__cause__, ForeignKeyViolation):
        log_failure("request.overtaken", error, level="warning")
        return errors.Conflict("what this belongs to was deleted meanwhile")
    if (unavailable := as_unavailable(error)) is not None:
        log_failure("dependency.unavailable", error)
        return unavailable
    return None


def _throttled(error: exceptions.Throttled) -> errors.AdiuvaError:
    found = _refusal(error, "")
    seconds = max(1, math.ceil(getattr(error, "wait", None) or 0))
    found.message = Text("too many tries: the next is possible in {seconds} s", seconds=seconds)
    found.extra["retry_after_s"] = seconds
    return found


def _refusal(error: exceptions.APIException, message: str) -> errors.AdiuvaError:
    found = errors.AdiuvaError(message)
    found.code = _OUR_CODES.get(error.default_code, error.default_code)
    # DRF turns 401 into 403 where it knows no scheme to name; we always name ours.
    found.status = type(error).status_code
    return found


def _invalid(detail: Any) -> errors.Invalid:
    fields = dict(_flat(detail))
    name, problems = next(iter(fields.items()), (_WHOLE, [gettext("The request is not valid.")]))
    message = problems[0] if name == _WHOLE else Text("{name}: {problem}", name=name, problem=problems[0])
    return errors.Invalid(message, fields=fields)


def _flat(detail: Any, name: str = "") -> Iterable[tuple[str, list[str]]]:
    """Return nested error details under dotted names: `files.0.path`."""
    if isinstance(detail, Mapping):
        nested: Iterable[tuple[Any, Any]] = detail.items()
    elif isinstance(detail, Sequence) and any(isinstance(part, Mapping | list) for part in detail):
        nested = enumerate(detail)
    else:
        problems = [detail] if isinstance(detail, str) else list(detail)
        if problems:
            yield name or _WHOLE, [str(problem) for problem in problems]
        return
    for key, part in nested:
        inner = name if key == _WHOLE else f"{name}.{key}" if name else str(key)
        yield from _flat(part, inner)


class Metadata(metadata.SimpleMetadata):
    """Answer to OPTIONS. /api/v1/schema/ describes the fields of an endpoint's bodies; to describe them here too, DRF
    would look up the object, and fail at views without a serializer."""

    def determine_actions(self, request: Request, view: APIView) -> dict[str, Any]:
        return {}


# ── OpenAPI ─────────────────────────────────────────────────────────────────────────────────────────────


class Bearer(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = "adiuva.accounts.authentication.BearerAuthentication"
    name = "bearer"

    def get_security_definition(self, auto_schema: object) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}


class Browser(SessionScheme):  # type: ignore[no-untyped-call]
    target_class = "adiuva.accounts.authentication.BrowserAuthentication"
    priority = 0


class Problem(serializers.Serializer[Any]):
    """Why a request was refused."""

    code = serializers.CharField(help_text="For programs.")
    message = serializers.CharField(help_text="For people.")
    fields = serializers.DictField(  # type: ignore[assignment]  # the wire's word, and DRF's own
        child=serializers.ListField(child=serializers.CharField()),
        required=False,
        help_text="What is wrong, by the names of the body's values.",
    )
    store = serializers.ChoiceField(
        ["database", "redis", "disk"],
        required=False,
        help_text="With 503 `unavailable`: what cannot be used.",
    )


class Done(serializers.Serializer[Any]):
    ok = serializers.BooleanField(default=True)


_MEANINGS = {
    400: "The request is not valid.",
    401: "Not signed in, or no longer.",
    402: "Your plan has no room for it; see `feature`, `limit`, `used` and `upgrade_to`.",
    403: "Not allowed.",
    404: "There is none, or it is another user's.",
    408: "The body came too slowly.",
    409: "It conflicts with what is there.",
    410: "It is over.",
    411: "Its length must be said.",
    412: "It is not what the request says.",
    413: "The body is too large.",
    415: "The body is of another media type.",
    416: "There are fewer bytes than that.",
    423: "Another request is at it.",
    429: "Too many tries; see Retry-After.",
    502: "Another service refused it.",
    503: "Something is away for now.",
    507: "The server has no room for it.",
}


def error_responses(*statuses: int) -> dict[int, OpenApiResponse]:
    """Return the refusals of an endpoint, for extend_schema's `responses`."""
    return {status: OpenApiResponse(Problem, _MEANINGS[status]) for status in statuses}


def user_id(request: Request) -> UUID:
    """Return the id of the request's user, for endpoints that require sign-in."""
    found = request.user.pk
    assert isinstance(found, UUID)
    return found
