"""Adjusts the OpenAPI document that drf-spectacular generates from the views."""

from __future__ import annotations

from typing import Any

from drf_spectacular.openapi import AutoSchema

from adiuva.core.openapi_examples import EXAMPLES

_METHODS = frozenset({"get", "post", "put", "patch", "delete"})


class Schema(AutoSchema):
    """Schema whose operations take the docstring's first sentence as summary, if the view names none."""

    def get_summary(self) -> str | None:
        if given := super().get_summary():
            return str(given)
        return _first_sentence(str(self.get_description() or "")) or None

    def _get_request_body(self, direction: str = "request") -> Any:
        """Return the body of a DELETE too, which drf-spectacular leaves out, if the view says `delete_takes_body`."""
        if self.method != "DELETE" or not getattr(self.view, "delete_takes_body", False):
            return super()._get_request_body(direction)  # type: ignore[no-untyped-call]
        self.method = "POST"
        try:
            return super()._get_request_body(direction)  # type: ignore[no-untyped-call]
        finally:
            self.method = "DELETE"


def _first_sentence(text: str) -> str:
    head = " ".join(text.split("\n\n")[0].split())
    return head.partition(". ")[0].rstrip(".")


def finish(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Adjust the document, as drf-spectacular's postprocessing hook.

    Operations that need no sign-in say so, and request bodies get an example. The body of a PATCH gets no defaults,
    since it leaves what it does not name as it is, and generators take defaults for values that are always sent.
    """
    for path in result["paths"].values():
        for operation in (operation for method, operation in path.items() if method in _METHODS):
            operation.setdefault("security", [])
            _add_example(operation)
    for name, schema in result["components"]["schemas"].items():
        if name.startswith("Patched"):
            for field in schema.get("properties", {}).values():
                field.pop("default", None)
        for field in schema.get("properties", {}).values():
            if {} in field.get("oneOf", ()):  # "anything or null" is anything
                del field["oneOf"]
    return result


def _add_example(operation: dict[str, Any]) -> None:
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if body is not None and operation["operationId"] in EXAMPLES:
        body["example"] = EXAMPLES[operation["operationId"]]
