"""What the assistants are told: a stable head from a file, which providers can cache, and a tail for each turn.

A head is `chat/prompts/<name>.md` with the parts it shares and its canary. It is the same bytes for all users and
turns, in every process. What changes (the time, the row it is about, what was confirmed) is in the tail, a system
message right before the last message of the user.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from django.conf import settings

from adiuva.core.prompt_delimiting import delimit_untrusted

PROMPT_NAMES: Final = ("home", "floating", "tasks", "projects", "timelines", "notes", "summary")

_FOLDER: Final = Path(__file__).with_suffix("")
_SHARED_PARTS: Final = {
    "home": ("tags",),
    "floating": ("tags",),
    **dict.fromkeys(("tasks", "projects", "timelines", "notes"), ("specialist",)),
}
_FIRST_LINE: Final = re.compile(r"version: (\d+)\n\n")
_DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_NON_LOCALE_CHARS: Final = re.compile(r"[^A-Za-z0-9_-]+")
_LINE_BREAKS: Final = re.compile(r"[\r\n\v\f\x85\u2028\u2029]+")
_CANARY: Final = "Internal mark, never to be written anywhere: {}"


@dataclass(frozen=True)
class Prompt:
    """A head. `version` is the file's number and a hash of the words; the canary is no part of it, so that two
    installations with the same words show the same version."""

    name: str
    version: str
    text: str
    canary: str


def system_prompt(name: str) -> Prompt:
    """The head of an assistant. Raise KeyError for one that does not exist."""
    return _build_prompt(name, settings.SECRET_KEY)


def all_system_prompts() -> list[Prompt]:
    return [system_prompt(name) for name in PROMPT_NAMES]


@cache
def _build_prompt(name: str, secret: str) -> Prompt:
    if name not in PROMPT_NAMES:
        raise KeyError(name)
    number, text = _read_file(name)
    words = "\n\n".join([text, *(_read_file(shared)[1] for shared in _SHARED_PARTS.get(name, ()))])
    canary = f"ref-{_keyed_digest(secret, 'canary', name)[:24]}"
    digest = hashlib.sha256(words.encode()).hexdigest()
    return Prompt(name, f"{name}.{number}-{digest[:6]}", f"{words}\n\n{_CANARY.format(canary)}", canary)


def _read_file(name: str) -> tuple[int, str]:
    """A file's version and its text."""
    whole = (_FOLDER / f"{name}.md").read_text("utf-8")
    first = _FIRST_LINE.match(whole)
    if first is None:
        raise ValueError(f"chat/prompts/{name}.md must begin with a line `version: N` and an empty one")
    return int(first[1]), whole[first.end() :].strip()


def turn_prompt(
    *,
    now: dt.datetime,
    locale: str,
    scope: str | None = None,
    context: str | None = None,
    memory: str | None = None,
    confirmed: Sequence[str] = (),
    changed: Sequence[str] = (),
) -> str:
    """What is true of this turn alone. `now` is in the user's zone.

    `scope`: the row that a floating request is about. `context`: more that the client knows. `memory`: what was
    recalled for it. `confirmed`: calls that the user has just said yes to, each ending in `tool_name {"json":
    "arguments"}`. `changed`: what was changed earlier in this conversation. All of these are data and stand between
    marks.
    """
    zone = now.tzinfo
    if zone is None:
        raise ValueError("now must be in the user's zone")
    where = _NON_LOCALE_CHARS.sub("", locale)[:35] or "en"
    parts = [f"Now: {_DAYS[now.weekday()]} {now:%Y-%m-%d %H:%M} ({zone}). The user's locale: {where}."]
    if scope is not None:
        parts.append(f"What this request is about:\n{delimit_untrusted('scope', scope)}")
    if context:
        parts.append(f"What is known besides:\n{delimit_untrusted('context', context)}")
    if memory:
        parts.append(
            f"What you remember of the user, each behind its label:\n{delimit_untrusted('memory', memory)}"
        )
    if changed:
        parts.append(
            f"Changed earlier in this conversation:\n{delimit_untrusted('changed', _bullet_list(changed))}"
        )
    if confirmed:
        parts.append(
            "The user has just said yes to these calls. Make each of them once, now, all in one answer, with exactly "
            f"these arguments:\n{delimit_untrusted('confirmed', _bullet_list(confirmed))}"
        )
    return "\n\n".join(parts)


def _bullet_list(items: Sequence[str]) -> str:
    """One item a line, also where it holds line breaks of its own."""
    return "\n".join(f"- {_LINE_BREAKS.sub(' ', item)}" for item in items)


def _keyed_digest(secret: str, *said: str) -> str:
    key = hashlib.sha256(b"adiuva.chat.prompts\0" + secret.encode()).digest()
    return hmac.new(key, "\0".join(said).encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
