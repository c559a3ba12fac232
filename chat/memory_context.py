"""The memory entries that a turn recalls, under labels that stand for ids, and their receipts."""

from __future__ import annotations

import asyncio
import re
import uuid
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from typing import Any, Final, Literal
from zoneinfo import ZoneInfo

from django.db import Error as DatabaseError
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import ToolException

from adiuva import llm
from adiuva.core import db
from adiuva.core.logging import log_failure
from chat.claimed_turn import ClaimedTurn
from chat.foreign_text import ForeignTexts
from chat.request import ChatRequest
from chat.untrusted_text import one_line
from memory import grounding, intent, recall, search, text_embedding
from memory.entries import SourceRef
from memory.entry_content import MAX_CONTENT_CHARS
from memory.exchanges import seal_foreign
from memory.models import SourceKind, Tier
from memory.recall import RecalledEntry, RecallResult
from memory.receipts import TurnReader, write_turn_receipt

# The name that stands in place of a device's table in memory tools and approval questions.
MEMORY: Final[Literal["memory"]] = "memory"
_MAX_RECALL_TOKENS: Final = 1_500
_MAX_SEARCH_RESULTS: Final = 12
# A shorter message may make sense only with the messages before it: so many of them, and so many last characters of
# each.
_SHORT_MESSAGE_CHARS: Final = 60
_PRECEDING_MESSAGES: Final = 2
_PRECEDING_CHARS: Final = 400
_MAX_QUESTION_CHARS: Final = 4_000
_LABEL: Final = re.compile(r"\s*\[?\s*[mM](\d{1,4})\s*\]?\s*")
_LABEL_START: Final = re.compile(r"\[(?=\s*[mM]\d)")


# More than 15 methods: one for each question that a turn or a tool asks of the memory.
@dataclass
class MemoryContext:
    """The memory as one turn uses it. `steered`: the user's messages while the turn runs. `said_yes`: whether the
    request is a plain yes.

    `foreign`: the texts that the turn has read so far and that the user did not write.
    """

    request: ChatRequest
    claimed: ClaimedTurn
    model: llm.ChatModel
    zone: ZoneInfo
    steered: list[str] = field(default_factory=list)
    said_yes: bool = False
    foreign: ForeignTexts = field(default_factory=ForeignTexts)
    _recalled: RecallResult = field(default_factory=RecallResult)
    _known: list[RecalledEntry] = field(default_factory=list)
    _receipts: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def enabled(self) -> bool:
        """False if this turn neither recalls nor remembers anything."""
        return self.request.memory and self.claimed.memory

    @property
    def user_id(self) -> uuid.UUID:
        return self.request.user_id

    @property
    def origin(self) -> SourceRef:
        """The source of entries that this turn remembers."""
        claimed = self.claimed
        place = claimed.conversation_id or claimed.turn_id
        kind = SourceKind.REQUEST if claimed.conversation_id is None else SourceKind.CONVERSATION
        foreign = seal_foreign(claimed.cipher, self.foreign.listed(), place)
        return SourceRef(kind, place, claimed.seq, foreign=foreign)

    # ── Recall ──────────────────────────────────────────────────────────────────────────────────────────

    async def recall(self, now: datetime) -> str | None:
        """Return what the turn prompt says of the memory; None if nothing was recalled. A failure is logged and does
        not end the turn.
        """
        if not self.enabled:
            return None
        try:
            if (found := self.claimed.recalled) is None:
                wanted = _wanted(self.request, self.claimed, self.model, now)
                found = await db.run(recall.embed_and_recall, **wanted)
                if found is None:
                    vector = await text_embedding.embed_question(wanted["question"], self.user_id)
                    found = await db.run(recall.recall, vector=vector, **wanted)
            self._recalled = found
        except Exception as error:
            log_failure("memory.recall_failed", error, user_id=str(self.user_id))
            return None
        return self._lines(self._recalled) or None

    def start_receipt(self) -> None:
        """Write the receipt of the recalled entries while the model reads them."""
        if self._recalled.entries or self._recalled.withheld:
            receipt = asyncio.get_running_loop().create_task(
                self._write_receipt(self._recalled), name="receipt"
            )
            self._receipts.append(receipt)

    async def search(self, question: str) -> str:
        """Return the entries that match a question of the model's; "" if there are none."""
        recalled = await db.run(
            recall.search_for_model,
            user_id=self.user_id,
            question=question[:_MAX_QUESTION_CHARS],
            vector=await self._vector(question[:_MAX_QUESTION_CHARS]),
            provider=self.model.provider,
            limit=_MAX_SEARCH_RESULTS,
            now=datetime.now(self.zone),
        )
        told = {known.id for known in self._known}
        new = [known for known in recalled.entries if known.id not in told]
        await self._write_receipt(replace(recalled, entries=new))
        return self._lines(recalled)

    async def wait_for_receipts(self) -> None:
        """Wait until the receipts are written."""
        await asyncio.gather(*self._receipts)

    async def _vector(self, question: str) -> list[float] | None:
        """Return the question's embedding. If that costs a request, ask only for users who have embedded entries."""
        if (vector := await db.run(text_embedding.embed_now, question, self.user_id)) is not None:
            return vector
        return (
            await text_embedding.embed_question(question, self.user_id)
            if await db.run(search.needs_vector, self.user_id)
            else None
        )

    async def _write_receipt(self, recalled: RecallResult) -> None:
        reader = TurnReader(
            user_id=self.user_id,
            provider=self.model.provider,
            model=self.model.name,
            turn_id=self.claimed.turn_id,
            conversation_id=self.claimed.conversation_id,
        )
        try:
            await db.run(
                write_turn_receipt, reader, [known.id for known in recalled.entries], recalled.withheld
            )
        except DatabaseError as error:
            log_failure("receipt.write_failed", error, turn=str(self.claimed.turn_id))

    # ── How entries are written for a model ─────────────────────────────────────────────────────────────

    def _lines(self, recalled: RecallResult) -> str:
        return "\n".join(f"- {self.entry_line(known)}" for known in recalled.entries)

    def entry_line(self, known: RecalledEntry) -> str:
        """Return an entry on one line, behind its label. Its text cannot pose as another entry."""
        return f"[{self.label(known)}] {entry_text(known)} ({self._when(known)})"

    def label(self, known: RecalledEntry) -> str:
        places = [place for place, one in enumerate(self._known) if one.id == known.id]
        if places:
            self._known[places[0]] = known
            return f"m{places[0] + 1}"
        self._known.append(known)
        return f"m{len(self._known)}"

    def _when(self, known: RecalledEntry) -> str:
        since = self._day(known.since)
        match known.tier:
            case Tier.CORE:
                return f"since {since}"
            case Tier.EPISODIC if known.began_at is not None:
                first, last = self._day(known.began_at), self._day(known.ended_at or known.began_at)
                return f"happened on {first}" if first == last else f"happened {first} to {last}"
            case Tier.PROACTIVE:
                return f"a pattern, {known.confidence or 0:.0%} sure, since {since}"
        return f"said on {since}"

    def _day(self, when: datetime) -> date:
        return when.astimezone(self.zone).date()

    # ── What the model wants to do with entries ─────────────────────────────────────────────────────────

    def entry_by_label(self, label: object) -> RecalledEntry | None:
        """Return the entry of a label that this turn has shown; the label may be in brackets."""
        found = _LABEL.fullmatch(label) if isinstance(label, str) else None
        place = int(found[1]) - 1 if found else -1
        return self._known[place] if 0 <= place < len(self._known) else None

    def why_not_the_users(self, content: str) -> str:
        """Return why a text may not be kept as the user's, in words for the model; "" if it may (memory.grounding).

        The user's messages of this conversation count, and so does an answer of ours that they have just said a plain
        yes to, unless it may quote texts of others. After a private message, only the user's words in this turn count.
        """
        said = self.said_now
        if not self.claimed.has_private:
            said += [intent.own_words(one.text) for one in self.claimed.history if one.role == "user"]
            if self.said_yes and self.claimed.history and not self.foreign.earlier:
                said.append(self.claimed.history[-1].text)
        return grounding.problem(content, said, day=self._day(datetime.now(self.zone)))

    def only_proposes(self, content: str) -> bool:
        """Return whether a text is kept as a proposal because texts of others may have led the model to it.

        Either this turn has read such texts; or earlier answers may quote them, and the user says it neither now nor
        with a plain yes.
        """
        if self.foreign:
            return True
        if not self.foreign.earlier or self.said_yes:
            return False
        return bool(grounding.problem(content, self.said_now, day=self._day(datetime.now(self.zone))))

    @property
    def said_now(self) -> list[str]:
        """The user's words in this turn, without what they quote."""
        return [intent.own_words(text) for text in (*self.request.words, *self.steered)]

    @property
    def said_lately(self) -> list[str]:
        """Those words, after the messages right before them, which may say what this one is about ("No, coffee!")."""
        if self.claimed.has_private or self.foreign.earlier:
            return self.said_now
        before = [one.text for one in self.claimed.history if one.role == "user"][-_PRECEDING_MESSAGES:]
        return ["\n".join([*(intent.own_words(text) for text in before), *self.said_now])]

    # ── Deferred calls outlive their turn, and labels do not ────────────────────────────────────────────

    def with_entry_id(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return a call's arguments, with the entry's id and text in place of its label."""
        known = self.entry_by_label(arguments.get(MEMORY))
        return arguments | {MEMORY: [str(known.id), known.key, known.content]} if known else arguments

    async def with_label(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of `with_entry_id`, with a label of this turn in place of the id and text.

        It is the label of no entry if the entry says something else by now: the user was asked about another text.
        """
        entry_id, *asked = arguments[MEMORY]
        known = await self.read(uuid.UUID(entry_id))
        is_same = known is not None and [known.key, known.content] == asked
        return arguments | {MEMORY: self.label(known) if known and is_same else "m0"}

    async def read(self, entry_id: uuid.UUID) -> RecalledEntry | None:
        """Return an entry as it is now; None if there is none."""
        return await db.run(recall.read_entry, self.user_id, entry_id)


def recall_at_once(request: ChatRequest, claimed: ClaimedTurn) -> RecallResult | None:
    """Recall for a turn, in the thread that claims it. Returns None if that takes more than a statement: then the turn
    recalls by itself.
    """
    if not (request.memory and claimed.memory):
        return None
    try:
        wanted = _wanted(request, claimed, llm.chat_model(), datetime.now(ZoneInfo(claimed.timezone)))
        vector = text_embedding.embed_now(wanted["question"], request.user_id)
        return recall.recall(vector=vector, **wanted) if vector is not None else None
    except llm.ModelError:
        return None  # no model is configured; the turn says so
    except Exception as error:
        log_failure("memory.recall_failed", error, user_id=str(request.user_id))
        return RecallResult()


def _wanted(
    request: ChatRequest, claimed: ClaimedTurn, model: llm.ChatModel, now: datetime
) -> dict[str, Any]:
    """Return the parameters of a turn's recall, except the vector."""
    return {
        "user_id": request.user_id,
        "question": _question(request, claimed),
        "provider": model.provider,
        "limit_tokens": _MAX_RECALL_TOKENS,
        "now": now,
    }


def _question(request: ChatRequest, claimed: ClaimedTurn) -> str:
    """Return the message; a short one, such as "and that one?", with the messages right before it."""
    message = request.message
    if len(message) >= _SHORT_MESSAGE_CHARS:
        return message[:_MAX_QUESTION_CHARS]
    before = [said.text[-_PRECEDING_CHARS:] for said in claimed.history[-_PRECEDING_MESSAGES:]]
    return "\n".join([message, *before])


def entry_text(known: RecalledEntry, most: int = MAX_CONTENT_CHARS) -> str:
    """Return an entry's text, on one line."""
    text = f"{known.key}: {known.content}" if known.key else known.content
    return _LABEL_START.sub("(", one_line(text, most))


def memory_context_of(config: RunnableConfig) -> MemoryContext:
    """Return the memory context of the turn that a tool runs in. Raises ToolException if memory is off."""
    found = config["configurable"][MEMORY]
    assert isinstance(found, MemoryContext)
    if not found.enabled:
        raise ToolException("Failed: the memory is off here: nothing is recalled and nothing is kept.")
    return found
