"""Base class of views that answer or take bytes, and their description in OpenAPI."""

from __future__ import annotations

from typing import Any, Final

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse
from rest_framework.request import Request
from rest_framework.views import APIView


def header(name: str, about: str, kind: Any = str, *, required: bool = False) -> OpenApiParameter:
    return OpenApiParameter(name, kind, OpenApiParameter.HEADER, description=about, required=required)


CONDITIONS: Final = [
    header("If-None-Match", "An ETag: 304 if it is still that."),
    header("If-Modified-Since", "304 if it is no newer."),
    header("Range", "One range of bytes, such as bytes=100-199."),
    header("If-Range", "An ETag: the range counts only if it is still that."),
]
BYTES: Final[dict[Any, Any]] = {
    (200, "application/octet-stream"): OpenApiTypes.BINARY,
    (206, "application/octet-stream"): OpenApiResponse(OpenApiTypes.BINARY, "The part that Range asked for."),
    304: OpenApiResponse(description="It is what you have."),
}
EMPTY: Final = OpenApiResponse(description="It is done.")


class BytesView(APIView):
    def perform_content_negotiation(self, request: Request, force: bool = False) -> Any:
        """Choose the renderer whatever the client accepts: the bytes are what they are, and refusals are JSON."""
        return super().perform_content_negotiation(request, force=True)
