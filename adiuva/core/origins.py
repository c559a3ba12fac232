"""Origins (RFC 6454) from which a page may use the API and open the device socket, and what CORS allows them."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from corsheaders import middleware
from django.conf import settings
from django.core.exceptions import DisallowedHost
from django.http.request import split_domain_port, validate_host
from django.utils.cache import patch_vary_headers

if TYPE_CHECKING:
    from django.http import HttpRequest


def is_allowed(origin: str, host: str) -> bool:
    """Return whether the `Origin` of a request to `host` (its Host header) is on the list, or is this server itself.

    The server's own origins are those of the names that settings.ALLOWED_HOSTS takes.
    """
    if any(_pattern(entry).fullmatch(origin) for entry in (settings.PUBLIC_URL, *settings.ALLOWED_ORIGINS)):
        return True
    parts = urlsplit(origin)
    # Behind https, a page that came over plain http may have been written by anyone on the way.
    schemes = {"https", urlsplit(settings.PUBLIC_URL).scheme}
    if parts.scheme not in schemes or parts.netloc.lower() != host.lower():
        return False
    name, _ = split_domain_port(host)
    return bool(name) and validate_host(name, settings.ALLOWED_HOSTS)


def cors_headers(origin: str, host: str) -> dict[str, str]:
    """Return the headers that let a page read an answer which Django does not give. Empty for origins that may not."""
    if not origin or not is_allowed(origin, host):
        return {}
    exposed = ", ".join(settings.CORS_EXPOSE_HEADERS)
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": exposed,
        "Vary": "origin",
    }


@cache
def _pattern(entry: str) -> re.Pattern[str]:
    """Return the pattern of an entry of the list: an origin, in which `:*` is any port or none, and any other `*` part
    of a name."""
    text = re.escape(entry.rstrip("/")).replace(r":\*", r"(:\d+)?").replace(r"\*", r"[\w.-]*")
    return re.compile(text, re.IGNORECASE)


class CorsMiddleware(middleware.CorsMiddleware):
    """Middleware of django-cors-headers that programs other than browsers skip: they name no origin."""

    def __call__(self, request: HttpRequest) -> Any:
        if (
            "HTTP_ORIGIN" in request.META
            or request.method == "OPTIONS"
            or not request.path_info.startswith("/api/")
        ):
            return super().__call__(request)
        response: Any = self.get_response(request)
        patch_vary_headers(response, ("origin",))
        return response


def allows_cors(sender: object, request: HttpRequest, **_: object) -> bool:
    """Return whether CORS allows the request, as receiver of django-cors-headers' signal, at any path."""
    if not request.path.startswith("/api/"):
        return False
    try:
        return is_allowed(request.headers.get("Origin", ""), request.get_host())
    except (DisallowedHost, ValueError):
        return False
