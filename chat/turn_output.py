"""What a turn says to its user: sanitized, begun once, in paragraphs."""

from __future__ import annotations

import re
import uuid
from collections import ChainMap
from functools import cache
from typing import Final

import structlog

from adiuva.devices.protocol import Domain
from adiuva.sanitizer import LeakPatterns, Sanitizer
from chat.agent_loop import LimitReached
from chat.assistants import TOOLS
from chat.device_session import DeviceSession
from chat.models import AssistantKind
from chat.prompts import all_system_prompts
from chat.request import ChatRequest
from chat.stream import Stream
from chat.turn_rows import ClaimedTurn

log = structlog.get_logger("adiuva.chat")

_MAX_CHARS: Final = 200_000

# What a request about the whole workspace is about, where its answer begins before any tool was used.
_DOMAIN_WORDS: Final[tuple[tuple[re.Pattern[str], Domain], ...]] = (
    (re.compile(r"\b(?:notes?|notiz\w*|appunt\w*)\b", re.IGNORECASE), "notes"),
    (re.compile(r"\b(?:timelines?|milestones?|meilenstein\w*|scadenz\w*)\b", re.IGNORECASE), "timelines"),
    (re.compile(r"\b(?:projects?|clients?|projekt\w*|progett\w*|client[ei])\b", re.IGNORECASE), "projects"),
)
_TAG = re.compile(r"<(task|project|note|timeline)>\[([^\]<>]*)\]</\1>")
_ID = re.compile(r"\[id ([^\]\s]+)\]")
_OPAQUE_ID = re.compile(r"[0-9A-Fa-f-]{16,}")  # else a client's request id, which may be ordinary words
_IDENTIFIER = re.compile(r"\w*_\w*")


@cache
def _guard() -> LeakPatterns:
    heads = all_system_prompts()
    return LeakPatterns(
        prompts=[*(head.text for head in heads), *(tool.description for tool in TOOLS)],
        canaries=[head.canary for head in heads],
        tool_names=[tool.name for tool in TOOLS],
    )


class TurnOutput:
    """`begin` it, then `say` what the model says; `pause` ends one of the model's answers."""

    def __init__(self, stream: Stream, request: ChatRequest, claimed: ClaimedTurn) -> None:
        self._stream, self._request, self._claimed = stream, request, claimed
        self._session: DeviceSession | None = None
        self._sanitizer: Sanitizer | None = None
        self._texts: list[str] = []
        self._chars = 0
        self._begun_to_speak = self._between = False
        self._label = ""

    @property
    def text(self) -> str:
        """What the user was shown so far."""
        return "".join(self._texts)

    def set_known_ids(self, session: DeviceSession, summary: str = "") -> None:
        """What the desk reads from now on is the user's own, and its ids may be shown in tags, as those may that this
        conversation has shown before, in `summary` too."""
        request, claimed = self._request, self._claimed
        self._session = session
        earlier: dict[str, str] = {}
        earlier |= dict.fromkeys(_ID.findall(summary), "")
        for text in (summary, *(said.text for said in claimed.history)):
            for _, ids in _TAG.findall(text):
                earlier |= dict.fromkeys((key.strip(" \"'") for key in ids.split(",")), "")
        earlier |= {
            str(mutation.data.get("id")): "" for said in claimed.history for mutation in said.mutations
        }
        self._known = ChainMap(session.titles, earlier)
        texts = (request.message, request.context, *(said.text for said in claimed.history))
        self._own_words = {word for text in texts for word in _IDENTIFIER.findall(text)}
        secrets = (
            request.user_id,
            request.device_id,
            claimed.conversation_id,
            claimed.turn_id,
            request.request_id,
        )
        self._private = {str(secret) for secret in secrets if secret and _OPAQUE_ID.fullmatch(str(secret))}
        self._private |= {secret.hex for secret in secrets if isinstance(secret, uuid.UUID)}

    def _is_own(self, word: str) -> bool:
        return word in self._own_words or (self._session is not None and self._session.has_recent_word(word))

    def start(self, domain: Domain | None = None) -> None:
        """Say, once, that the answer begins; of a floating request first what it is about."""
        if self._begun_to_speak:
            return
        self._begun_to_speak = True
        if self._request.kind == AssistantKind.FLOATING:
            self._stream.domain(domain or self._guess())
        conversation = self._claimed.conversation_id
        self._stream.start(str(conversation) if conversation else None)

    def _guess(self) -> Domain:
        return next(
            (domain for pattern, domain in _DOMAIN_WORDS if pattern.search(self._request.message)), "tasks"
        )

    def write(self, text: str) -> None:
        """Raise Limit when it is too much."""
        if self._sanitizer is None:
            self._sanitizer = Sanitizer(_guard(), known=self._known, private=self._private, own=self._is_own)
        self._show(self._sanitizer.feed(text))

    def end_answer(self) -> None:
        """The model has ended one of its answers: nothing is held back any longer."""
        if (sanitizer := self._sanitizer) is None:
            return
        self._sanitizer = None
        self._show(sanitizer.finish())
        self._between = bool(self._texts)
        if sanitizer.removed:
            log.info("chat.text_withheld", turn=str(self._claimed.turn_id), **sanitizer.removed)

    def append_paragraph(self, text: str) -> None:
        """Words of ours, as a paragraph after the model's."""
        self._between = bool(self._texts)
        self._show(text)

    def _show(self, text: str) -> None:
        if not text:
            return
        self.start()
        if self._between:  # what the model says after its tools is another paragraph
            self._between = False
            text = text if self._texts[-1].endswith("\n") else f"\n\n{text}"
        self._chars += len(text)
        if self._chars > _MAX_CHARS:
            raise LimitReached("answer_too_long")
        self._texts.append(text)
        self._stream.write(text)

    def status(self, label: str) -> None:
        """What is being done, for people; each once in a row."""
        if label and self._begun_to_speak and label != self._label:
            self._label = label
            self._stream.status(label)
