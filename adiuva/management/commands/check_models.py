"""`manage.py check_models`: ask each configured model something small, and say what to do about one that fails."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, get_args
from urllib.parse import urlsplit

from django.conf import settings
from django.core.management.base import BaseCommand

from adiuva import env_variables as env
from adiuva import llm
from adiuva.llm.lexical import LEXICAL

_WAIT_S: Final = 60.0  # a model on this machine may have to be loaded first
_OF_PURPOSE: Final = {
    "chat": env.MODEL_CHAT,
    "extraction": env.MODEL_EXTRACTION,
    "memory": env.MODEL_MEMORY,
}
# Enough for a model that thinks first to come to an answer.
_ANSWER_TOKENS: Final = 1_024
_ASKED: Final[list[llm.Message]] = [{"role": "user", "content": "Answer with the word ok."}]


class Command(BaseCommand):
    help = (
        "Ask each configured model something small; say which of them work, and what to do about the others."
    )
    # It needs neither database nor Redis, so that it can say what is wrong before they are there.
    requires_system_checks: list[str] = []

    def handle(self, *_: Any, **__: Any) -> None:
        failed = asyncio.run(self._check_all())
        if failed:
            sys.exit(1)

    async def _check_all(self) -> bool:
        try:
            named: dict[str, list[str]] = {}
            for purpose in get_args(llm.Purpose):
                name = settings.MODELS_BY_PURPOSE[purpose] or settings.MODEL["model"]
                uses = named.setdefault(name, [])
                uses.append(purpose if uses else f"for {purpose}")
            for name in settings.MODEL_FALLBACKS:  # one by one: the first that works would hide the others
                named.setdefault(name, []).append("as a fallback")
            failed = []
            for name, uses in named.items():
                own = _variable_of(name)
                use = ", ".join(uses)
                failed.append(await self._check(use, name, settings.MODEL, (own, env.MODEL), _chats(name)))
            name = settings.EMBEDDING_MODEL["model"] or LEXICAL
            failed.append(
                await self._check(
                    "for embeddings", name, settings.EMBEDDING_MODEL, (env.EMBEDDING_MODEL,) * 2, _embeds
                )
            )
            return any(failed)
        finally:
            await llm.aclose()

    async def _check(
        self,
        use: str,
        name: str,
        configured: dict[str, str],
        variables: tuple[Any, Any],
        ask: Callable[[], Awaitable[Any]],
    ) -> bool:
        """Return whether the model failed. `variables`: where its name is configured, and its address and key."""
        base = _without_secrets(configured["api_base"])
        model = f"Model {name or '(none)'} {use}{f' at {base}' if base else ''}"
        started = time.monotonic()
        try:
            await asyncio.wait_for(ask(), _WAIT_S)
        except (llm.ModelError, TimeoutError) as error:
            why = str(error) or f"it gave no answer in {_WAIT_S:.0f} s"
            advice = _advice(error, variables[0].name, variables[1].name, base)
            self.stdout.write(f"{model} does not work: {why}. {advice}")
            return True
        self.stdout.write(f"{model} works ({time.monotonic() - started:.1f} s).")
        return False


def _variable_of(name: str) -> Any:
    """Return the variable that names this model."""
    for purpose, variable in _OF_PURPOSE.items():
        if name and settings.MODELS_BY_PURPOSE[purpose] == name:
            return variable
    is_fallback = name in settings.MODEL_FALLBACKS and name != settings.MODEL["model"]
    return env.MODEL_FALLBACKS if is_fallback else env.MODEL


def _chats(name: str) -> Callable[[], Awaitable[Any]]:
    async def ask() -> None:
        model = llm.chat_model({**settings.MODEL, "model": name})
        await llm.forget_learnt(model)  # the server may have been changed meanwhile
        await model.complete(_ASKED, max_tokens=_ANSWER_TOKENS, temperature=0.0)

    return ask


async def _embeds() -> None:
    await llm.embedding_model().embed(["ok"])


def _advice(error: Exception, named: str, variable: str, base: str) -> str:
    """Return in a sentence what to do."""
    there = f"at {base}" if base else "there"
    match error:
        case llm.ModelNotConfigured():
            return f"Set {named}, such as openai/gpt-4.1-mini, and {variable}_API_KEY."
        case llm.ModelRateLimited():
            return "Wait, or ask the provider for more."
        case llm.ModelUnavailable() | TimeoutError() | llm.ModelTimeout() | llm.ModelInterrupted():
            return f"Check that a model server runs {there}, and that {variable}_API_BASE is its address."
        case llm.ModelGarbled():
            return f"Check {variable}_API_BASE: what answers {there} is no API of a model. It often ends with /v1."
        case llm.ModelRejected():
            return f"It is named by {named}, its key is {variable}_API_KEY, its address {variable}_API_BASE."
    return f"Try another model ({named})."


def _without_secrets(address: str) -> str:
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.netloc else ""
