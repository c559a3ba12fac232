"""A turn's text on its way to the user: sanitized, announced once, and in paragraphs."""

from __future__ import annotations

import re
import uuid
from collections import ChainMap
from functools import cache
from typing import Final

import structlog

from adiuva.devices.protocol import Domain
from adiuva.sanitizer import LeakPatterns, Sanitizer, addresses_in
from chat.assistants import TOOLS
from chat.claimed_turn import ClaimedTurn
from chat.device_session import DeviceSession
from chat.models import AssistantKind
from chat.prompts import all_system_prompts
from chat.request import ChatRequest
from chat.stream import Stream
from chat.turn_context import LimitReached

log = structlog.get_logger(__name__)

_MAX_CHARS: Final = 200_000

# Guesses the domain of a floating request about the whole workspace if its answer begins before any tool was called.
_DOMAIN_WORDS: Final[tuple[tuple[re.Pattern[str], Domain], ...]] = (
    (re.compile(r"\b(?:notes?|notiz\w*|appunt\w*)\b", re.IGNORECASE), "notes"),
    (re.compile(r"\b(?:timelines?|milestones?|meilenstein\w*|scadenz\w*)\b", re.IGNORECASE), "timelines"),
    (re.compile(r"\b(?:projects?|clients?|projekt\w*|progett\w*|client[ei])\b", re.IGNORECASE), "projects"),
)
_TAG = re.compile(r"<(task|project|note|timeline)>\[([^\]<>]*)\]</\1>")
_ID = re.compile(r"\[id ([^\]\s]+)\]")
# A request id that does not look like this was chosen by the client and may be an ordinary word: it is not withheld.
_OPAQUE_ID = re.compile(r"[0-9A-Fa-f-]{16,}")
_IDENTIFIER = re.compile(r"\w*_\w*")


@cache
def _leak_patterns() -> LeakPatterns:
    prompts = all_system_prompts()
    return LeakPatterns(
        prompts=[*(prompt.text for prompt in prompts), *(tool.description for tool in TOOLS)],
        canaries=[prompt.canary for prompt in prompts],
        tool_names=[tool.name for tool in TOOLS],
    )


class TurnOutput:
    """`start` it, then `write` the model's text; `end_answer` ends one of the model's answers."""

    def __init__(self, stream: Stream, request: ChatRequest, claimed: ClaimedTurn) -> None:
        self._stream, self._request, self.claimed = stream, request, claimed
        self._session: DeviceSession | None = None
        self._sanitizer: Sanitizer | None = None
        self._texts: list[str] = []
        self._chars = 0
        self._started = self._between = False
        self._has_words = False  # whether the current answer has shown more than blanks
        self._label = ""

    @property
    def text(self) -> str:
        """The text that the user has been shown so far."""
        return "".join(self._texts)

    def set_known_ids(self, session: DeviceSession, summary: str = "") -> None:
        """Set which row ids may appear in tags: those that `session` has read, and those shown before.

        Ids were shown before in this conversation's messages and in `summary`, which stands for older ones.
        """
        request, claimed = self._request, self.claimed
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
        said = (
            request.message,
            request.context,
            *(text.text for text in claimed.history if text.role == "user"),
        )
        self._own_addresses = set[str]().union(*map(addresses_in, said))
        secrets = (
            request.user_id,
            request.device_id,
            claimed.conversation_id,
            claimed.turn_id,
            request.request_id,
        )
        self._private = {str(secret) for secret in secrets if secret and _OPAQUE_ID.fullmatch(str(secret))}
        self._private |= {secret.hex for secret in secrets if isinstance(secret, uuid.UUID)}

    def _knows_address(self, address: str) -> bool:
        """Return whether the user has written this address, or this turn has read it."""
        return address in self._own_addresses or (
            self._session is not None and address in self._session.addresses
        )

    def _id_of(self, alias: str) -> str | None:
        """Return the id of a row that the model names by its alias."""
        found = self._session.aliases.find(alias) if self._session is not None else None
        return found[1] if found else None

    def _is_own(self, word: str) -> bool:
        return word in self._own_words or (self._session is not None and self._session.has_recent_word(word))

    def start(self, domain: Domain | None = None) -> None:
        """Announce, once, that the answer begins; for a floating request, its domain first."""
        if self._started:
            return
        self._started = True
        if self._request.kind == AssistantKind.FLOATING:
            self._stream.domain(domain or self._guess_domain())
        conversation = self.claimed.conversation_id
        self._stream.start(str(conversation) if conversation else None)

    def _guess_domain(self) -> Domain:
        return next(
            (domain for pattern, domain in _DOMAIN_WORDS if pattern.search(self._request.message)), "tasks"
        )

    def write(self, text: str) -> None:
        """Show text of the model's. Raises LimitReached if the answer grows too long."""
        if self._sanitizer is None:
            self._sanitizer = Sanitizer(
                _leak_patterns(),
                known=self._known,
                private=self._private,
                own=self._is_own,
                knows_address=self._knows_address,
                id_of=self._id_of,
            )
        self._show(self._sanitizer.feed(text))

    def end_answer(self) -> bool:
        """Show the text that the sanitizer still holds back, because the model has ended one of its answers.

        Returns whether the user has been shown any of this answer.
        """
        if (sanitizer := self._sanitizer) is None:
            return False
        self._sanitizer = None
        self._show(sanitizer.finish())
        self._between = bool(self._texts)
        if sanitizer.removed:
            log.info("turn.text_withheld", turn=str(self.claimed.turn_id), **sanitizer.removed)
        is_shown, self._has_words = self._has_words, False
        return is_shown

    def append_paragraph(self, text: str) -> None:
        """Add a text of the server's as a paragraph after the model's."""
        self._between = bool(self._texts)
        self._show(text)

    def _show(self, text: str) -> None:
        if not text:
            return
        self.start()
        if self._between:  # the text after a tool call is another paragraph
            self._between = False
            text = text if self._texts[-1].endswith("\n") else f"\n\n{text}"
        self._chars += len(text)
        if self._chars > _MAX_CHARS:
            raise LimitReached("answer_too_long")
        self._texts.append(text)
        self._has_words = self._has_words or not text.isspace()
        self._stream.write(text)

    def status(self, label: str) -> None:
        """Show the user the current activity, unless that is shown already."""
        if label and self._started and label != self._label:
            self._label = label
            self._stream.status(label)
