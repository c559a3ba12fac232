"""The language in which the server speaks to a user: that of their account's locale, if there is a catalogue of it.

Texts for people are wrapped in Django's gettext where they are made, and a person's language is chosen around that:

    with speaking(user.locale):
        text = gettext("Hello")

`locale/<language>/LC_MESSAGES` holds the catalogues, compiled: nothing has to be installed to use them.
"""

from __future__ import annotations

from typing import Final

from django.utils import translation

DEFAULT: Final = "en"
TRANSLATED: Final = ("de", "fr", "it", "es")
LANGUAGES: Final = (DEFAULT, *TRANSLATED)


def language_of(locale: str) -> str:
    """The language of a tag such as `de-CH`; English if it is none of ours."""
    language = locale.replace("_", "-").partition("-")[0].lower()
    return language if language in LANGUAGES else DEFAULT


def speaking(locale: str) -> translation.override:
    """A context in which gettext speaks this locale's language. It holds for the present task or thread alone."""
    return translation.override(language_of(locale))
