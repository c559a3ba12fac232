"""Builds the assistants' prompts: a stable system prompt, which providers can cache, and what belongs to each turn.

A system prompt is `chat/prompts/<name>.md` with the parts it shares with others and its canary. It is the same bytes
for all users and turns, in every process. Whatever changes (the time, the row in question, what was confirmed) is in
the turn prompt, which opens the user's last message: many chat templates refuse or drop a second system message.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from django.conf import settings

from adiuva.core import prompt_files
from adiuva.core.prompt_delimiting import delimit_own, delimit_untrusted

PROMPT_NAMES: Final = ("home", "floating", "tasks", "projects", "timelines", "notes", "agents", "summary")

_SHARED_PARTS: Final = {
    "home": ("tags",),
    "floating": ("tags",),
    **dict.fromkeys(("tasks", "projects", "timelines", "notes", "agents"), ("specialist",)),
}
_DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_NON_LOCALE_CHARS: Final = re.compile(r"[^A-Za-z0-9_-]+")
_LINE_BREAKS: Final = re.compile(r"[\r\n\v\f\x85\u2028\u2029]+")
_CANARY: Final = "Internal mark, never to be written anywhere: {}"


@dataclass(frozen=True)
class SystemPrompt:
    """`version` covers the text without the canary, so that installations with the same text show the same version.

    `canary` is a secret word in the text: an answer that contains it is quoting the prompt.
    """

    name: str
    version: str
    text: str
    canary: str


def system_prompt(name: str) -> SystemPrompt:
    """Raises KeyError if `name` is not one of PROMPT_NAMES."""
    return _build_prompt(name, settings.SECRET_KEY)


def all_system_prompts() -> list[SystemPrompt]:
    return [system_prompt(name) for name in PROMPT_NAMES]


@cache
def _build_prompt(name: str, secret: str) -> SystemPrompt:
    if name not in PROMPT_NAMES:
        raise KeyError(name)
    shared = [prompt_files.load("chat", part) for part in _SHARED_PARTS.get(name, ())]
    prompt = prompt_files.load("chat", name).followed_by(*shared)
    canary = f"ref-{_keyed_digest(secret, 'canary', name)[:24]}"
    return SystemPrompt(name, prompt.version, f"{prompt.text}\n\n{_CANARY.format(canary)}", canary)


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
    """Return the part of the prompt that holds for this turn alone. All but time and locale is delimited as untrusted
    data.

    `now`: in the user's time zone; ValueError if it has none. `scope`: the row that a floating request is about.
    `context`: what else the client sent. `memory`: what was recalled for the turn. `confirmed`: calls that the user has
    just said yes to, each ending in `tool_name {"json": "arguments"}`. `changed`: what was changed earlier in this
    conversation.
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


def with_turn_prompt(turn: str, message: str) -> str:
    """Return the user's message, preceded by the turn prompt."""
    return f"{delimit_own('turn', turn)}\n\n{message}"


def _bullet_list(items: Sequence[str]) -> str:
    """Return one item a line: line breaks within an item become spaces."""
    return "\n".join(f"- {_LINE_BREAKS.sub(' ', item)}" for item in items)


def _keyed_digest(secret: str, *parts: str) -> str:
    key = hashlib.sha256(b"adiuva.chat.prompts\0" + secret.encode()).digest()
    return hmac.new(key, "\0".join(parts).encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
