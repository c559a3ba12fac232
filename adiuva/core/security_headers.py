"""Headers of every answer: what a browser may load and do with our pages, and that nothing personal is cached."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse

# Scripts come from our own static files; no page has inline ones. The pages of the admin, the browsable API and its
# documentation have inline styles.
_POLICY: Final = {
    "default-src": "'self'",
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data:",
    "object-src": "'none'",
    "base-uri": "'none'",
    "form-action": "'self'",
    "frame-ancestors": "'none'",
}

SECURITY_HEADERS: Final = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=()",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
# As Django keeps headers in a response. Django's setter looks at each character, but these are known to be valid.
_KEPT: Final = {
    name.lower(): (name, value) for name, value in {**SECURITY_HEADERS, "Cache-Control": "no-store"}.items()
}


class SecurityHeaders:
    """Middleware that sets these headers. Answers say themselves if they may be cached; all others may not."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        own = response.headers._store
        response.headers._store = {**_KEPT, **own}
        return response
