"""Language in which the server speaks to a user: that of their account's locale, if there is a catalogue for it.

Code that makes a text for people wraps it in Django's gettext, and its caller chooses the person's language:

    with speaking(user.locale):
        text = gettext("Hello")

Below /api/ the middleware and authentication choose it before a view begins. Errors are in English until somebody is
told of them (`said`, `body_of`), so that logs and models always read the same words.

`locale/<language>/LC_MESSAGES` holds the catalogues, compiled: nothing has to be installed to use them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Final

from django.conf import settings
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils import timezone, translation
from django.utils.cache import patch_vary_headers
from django.utils.translation import gettext

from adiuva.core.errors import AdiuvaError, Text

DEFAULT: Final = "en"
TRANSLATED: Final = ("de", "fr", "it", "es")
LANGUAGES: Final = (DEFAULT, *TRANSLATED)


def language_of(locale: str) -> str:
    """Return the language of a tag such as `de-CH`; English if it is none of ours."""
    language = locale.replace("_", "-").partition("-")[0].lower()
    return language if language in LANGUAGES else DEFAULT


def speaking(locale: str) -> translation.override:
    """Return a context in which gettext speaks this locale's language. It holds only for the present task or thread."""
    return translation.override(language_of(locale))


def speaking_to(request: HttpRequest) -> translation.override:
    """Return a context that speaks the language of the request's user, or else that of Accept-Language."""
    locale = getattr(request.user, "locale", None)
    if locale is None:
        locale = translation.get_language_from_request(request)
    return speaking(locale)


def speaking_by_header(accept_language: str) -> translation.override:
    """Return the same context for a request whose headers alone are known."""
    request = HttpRequest()
    request.META["HTTP_ACCEPT_LANGUAGE"] = accept_language
    return speaking(translation.get_language_from_request(request))


def speak_to(user: Any) -> None:
    """Answer the request in this user's language from now on, within the API's middleware."""
    _speak(language_of(user.locale))


def _speak(language: str | None) -> None:
    """Speak a language from now on. Choosing it anew costs more than seeing that it is spoken already."""
    if language == translation.get_language():
        return
    if language is None:
        translation.deactivate_all()
    else:
        translation.activate(language)


class ApiLanguage:
    """Middleware: below /api/ the server speaks the language of Accept-Language, until it knows the user."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if not request.path.startswith("/api/"):
            return self._get_response(request)
        before = translation.get_language()
        _speak(_asked_for(request))
        try:
            response = self._get_response(request)
            if response.status_code >= 400 or response.get("Content-Type", "").startswith("text/html"):
                response.headers.setdefault("Content-Language", translation.get_language() or DEFAULT)
                patch_vary_headers(response, ["Accept-Language"])
        finally:
            _speak(before)
        return response


def _asked_for(request: HttpRequest) -> str:
    """Return the language of a cookie or of Accept-Language; most programs send neither."""
    if "HTTP_ACCEPT_LANGUAGE" in request.META or "HTTP_COOKIE" in request.META:
        return language_of(translation.get_language_from_request(request))
    return language_of(settings.LANGUAGE_CODE)


def said(text: str) -> str:
    """Return a message of an error, or of a run's journal, in the current language. Other texts stay as they are."""
    if not isinstance(text, Text):
        # Django would change all kinds of line ends to one, but what others wrote must stay as it is.
        return text if "\r" in text else gettext(text)
    values = {name: said(value) if isinstance(value, Text) else value for name, value in text.values.items()}
    words = gettext(text.msgid)
    return words.format(**values) if values else words


def sentence(text: str) -> str:
    """Return a message of an error as a page shows it: in the current language, with a capital and a full stop."""
    words = said(text)
    return f"{words[:1].upper()}{words[1:].removesuffix('.')}."


def body_of(error: AdiuvaError) -> dict[str, Any]:
    """Return an error's wire form in the current language: `{code, message, fields?}` and whatever the error adds."""
    found: dict[str, Any] = {"code": error.code, "message": said(error.message), **_spoken(error.extra)}
    if error.fields:
        found["fields"] = {
            name: [said(problem) for problem in problems] for name, problems in error.fields.items()
        }
    return found


def _spoken(value: Any) -> Any:
    """Return the same value with each Text in it translated."""
    match value:
        case Text():
            return said(value)
        case dict():
            return {name: _spoken(each) for name, each in value.items()}
        case list():
            return [_spoken(each) for each in value]
    return value


def in_their_language(view: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
    """Decorate a page's view, so that it speaks the signed-in user's language, or else the browser's, and its days and
    times are those of the user's time zone, or else of UTC.
    """

    @wraps(view)
    def speak(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        with speaking_to(request), timezone.override(getattr(request.user, "timezone", None)):
            response = view(request, *args, **kwargs)
            response.headers.setdefault("Content-Language", translation.get_language() or DEFAULT)
        patch_vary_headers(response, ["Accept-Language"])
        return response

    return speak
