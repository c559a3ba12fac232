"""What was said in turns is read by the model for what is worth remembering: by a worker, in nobody's way.

The exchanges of a user that wait are read together, in the order in which they were said. They are claimed first, for a
time that grows with each try; then the model is asked, outside of any transaction; then what it says is compared with
what is there and written, with the mark that the exchanges were read: all of it or nothing. A worker that dies has
written nothing, and one whose claim is over writes nothing.

Which exchanges hold something cannot be told without reading them: a name is as short as a yes. So all are read.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from zoneinfo import ZoneInfo

import orjson
from django.db import transaction
from django.db.models import BooleanField, ExpressionWrapper, F, Q
from django.db.models.functions import Now

from adiuva import llm
from adiuva.accounts.keys import NoSuchUser, cipher_for
from adiuva.accounts.models import User
from adiuva.core import db, prompts
from adiuva.core.crypto import SealBroken, UserCipher
from adiuva.core.enqueue import enqueue_on_commit
from adiuva.core.errors import AdiuvaError
from adiuva.core.logging import log
from adiuva.core.prompt_delimiting import delimit_untrusted
from memory import entries, provider_policy, recall, structured, vector_space
from memory.apply_operations import OperationWriter, ShownEntry
from memory.exchanges import UnsealedExchange, shorten, unseal_exchange
from memory.models import Entry, Exchange, Receipt, SourceKind, Tier
from memory.operations import Operation, OperationValidator, ValidOperations

MAX_ATTEMPTS: Final = 8  # after which an exchange counts as read, with nothing found in it
_ALONE_AFTER: Final = 3  # tries; then one at a time: one that the model refuses takes no others along
_AT_ONCE: Final = 8  # exchanges
_CHARS: Final = 24_000  # of them together, in one model call
_SAID_CHARS: Final = 12_000  # of the user's words of one exchange: who says more has pasted it
_ANSWER_CHARS: Final = 2_000
_KNOWN_CHARS: Final = 24_000  # of the entries that the model is shown
_ENTRY_CHARS: Final = 600
_FITTING: Final = 30  # associative entries that the model is shown
_CLAIM: Final = dt.timedelta(minutes=2)  # the first; each try doubles it
_LONGEST_CLAIM: Final = dt.timedelta(hours=6)
_MODEL_S: Final = 100.0  # well within the first claim
_QUESTION_CHARS: Final = 4_000
_SWEPT_AT_ONCE: Final = 500
_TIERS: Final = frozenset({Tier.CORE, Tier.ASSOCIATIVE})


@dataclass(frozen=True, slots=True)
class ExtractionContext:
    """What the model is given: entries by label, and the tiers that it may read. `embeds`: whether the embedding model
    may read what it adds."""

    known: dict[str, ShownEntry]
    tiers: frozenset[Tier]
    embeds: bool
    zone: ZoneInfo
    cipher: UserCipher


async def extract_facts(user_id: uuid.UUID) -> int:
    """Read what waits of a user's exchanges. Returns how many were read.

    What the model cannot be asked about now is tried again later.
    """
    done = 0
    while batch := await db.run(_claim, user_id):
        try:
            await _read(user_id, batch)
        except (llm.ModelError, TimeoutError) as error:
            why = error.code if isinstance(error, AdiuvaError) else "timeout"
            log.warning("memory.not_recorded", user_id=str(user_id), code=why, tries=batch[0].tries)
            break
        except NoSuchUser:
            break
        done += len(batch)
    return done


async def _read(user_id: uuid.UUID, batch: list[UnsealedExchange]) -> None:
    model = llm.chat_model()
    labelled = {f"e{number}": one for number, one in enumerate(batch, 1)}
    vector = None
    if await db.run(recall.needs_vector, user_id):
        vector = await vector_space.embed_question("\n".join(one.said for one in batch)[:_QUESTION_CHARS])
    given = await db.run(_prepare, user_id, batch, vector, model)
    checked, vectors = ValidOperations([]), dict[str, list[float]]()
    if given.tiers:
        said = {label: shorten(one.said, _SAID_CHARS) for label, one in labelled.items()}
        rules = OperationValidator(said, list(given.known), given.tiers, given.cipher)
        async with asyncio.timeout(_MODEL_S):
            found = await structured.ask_or_none(
                model,
                prompt="record",
                material=_material(labelled, given),
                name="memory",
                schema=rules.schema(),
                read=rules.check,
            )
        checked = found or checked
        vectors = await _vectors(checked.operations, given)
    outcomes = await db.run(_apply, user_id, labelled, given, checked.operations, vectors)
    log.info(
        "memory.recorded",
        user_id=str(user_id),
        exchanges=len(batch),
        outcomes=dict(outcomes),
        dropped=checked.dropped,
        prompt=prompts.load("memory", "record").version,
    )


@transaction.atomic
def _claim(user_id: uuid.UUID) -> list[UnsealedExchange]:
    """The next exchanges to read, taken for a while. None while others of the user's are being read or are to be tried
    again: what was said later must not be overtaken by what was said before."""
    try:
        memory = entries.lock_memory(user_id)
        cipher = cipher_for(user_id)
    except NoSuchUser:
        return []
    if not memory.enabled:
        Exchange.objects.filter(user_id=user_id).delete()
        return []
    waiting = Exchange.objects.filter(user_id=user_id, recorded_at=None).order_by("said_at", "pk")
    if given_up := waiting.filter(attempts__gte=MAX_ATTEMPTS, not_before__lte=Now()).update(
        recorded_at=Now()
    ):
        log.error("memory.never_recorded", user_id=str(user_id), exchanges=given_up)
    busy = ExpressionWrapper(Q(not_before__gt=Now()), output_field=BooleanField())
    batch: list[UnsealedExchange] = []
    chars = 0
    for row in waiting.annotate(busy=busy)[:_AT_ONCE]:
        if row.busy:
            break
        row.attempts += 1
        try:
            one = unseal_exchange(row, cipher)
        except SealBroken:
            log.error("memory.exchange_broken", user_id=str(user_id))
            row.delete()
            continue
        chars += min(len(one.said), _SAID_CHARS) + min(len(one.answer), _ANSWER_CHARS)
        if batch and (chars > _CHARS or max(one.tries, batch[0].tries) > _ALONE_AFTER):
            break
        batch.append(one)
    if batch:
        pause = min(_LONGEST_CLAIM, _CLAIM * 2 ** (batch[0].tries - 1))
        Exchange.objects.filter(pk__in=[one.id for one in batch]).update(
            attempts=F("attempts") + 1, not_before=Now() + pause
        )
    return batch


@transaction.atomic
def _prepare(
    user_id: uuid.UUID, batch: list[UnsealedExchange], vector: list[float] | None, model: llm.ChatModel
) -> ExtractionContext:
    """Choose what the model is shown, and give a receipt for it. Who may not read a tier does not write it either, so a
    model that may read neither is not asked at all."""
    row = User.objects.filter(pk=user_id).values_list("timezone", "memory__policy").first()
    if row is None:
        raise NoSuchUser("this account no longer exists")
    zone, found = row
    tiers = provider_policy.readable_tiers(found, model.provider) & _TIERS
    embeds = Tier.ASSOCIATIVE in provider_policy.readable_tiers(found, llm.embedding_model().provider)
    cipher = cipher_for(user_id)
    if not tiers:
        return ExtractionContext({}, tiers, embeds, ZoneInfo(zone), cipher)
    holding = Entry.objects.of(user_id).current()
    rows = list(holding.filter(tier=Tier.CORE)) if Tier.CORE in tiers else []
    if Tier.ASSOCIATIVE in tiers:
        question = "\n".join(one.said for one in batch)
        fitting = recall.search(
            user_id=user_id,
            question=question,
            vector=vector,
            now=batch[-1].at,
            tiers=[Tier.ASSOCIATIVE],
            limit=_FITTING,
        )
        rows += [found.entry for found in fitting]
    known: dict[str, ShownEntry] = {}
    room = _KNOWN_CHARS
    for entry in rows:
        label = f"m{len(known) + 1}"
        line = _line(label, entry, cipher)
        if line is None or (room := room - len(line)) < 0:
            continue
        known[label] = ShownEntry(entry.pk, bytes(entry.fingerprint), line)
    places = {one.source_id for one in batch if one.kind == SourceKind.CONVERSATION}
    provider_policy.write_receipt(
        user_id=user_id,
        purpose=Receipt.Purpose.RECORD,
        model=model,
        entries=[shown.id for shown in known.values()],
        withheld=list(
            holding.filter(tier__in=_TIERS - tiers).values_list("tier", flat=True).order_by().distinct()
        ),
        conversation_id=places.pop() if len(places) == 1 else None,
    )
    return ExtractionContext(known, tiers, embeds, ZoneInfo(zone), cipher)


def _line(label: str, entry: Entry, cipher: UserCipher) -> str | None:
    try:
        said = entries.unseal_entry(entry, cipher)
    except SealBroken:
        log.error("memory.entry_broken", user_id=str(entry.user_id))
        return None
    fields = {
        "entry": label,
        "tier": entry.tier,
        "key": said.key,
        "content": shorten(said.content, _ENTRY_CHARS),
    }
    return orjson.dumps({name: value for name, value in fields.items() if value is not None}).decode()


def _material(labelled: dict[str, UnsealedExchange], given: ExtractionContext) -> str:
    parts = [delimit_untrusted("known", "\n".join(shown.line for shown in given.known.values()))]
    for label, one in labelled.items():
        parts.append(
            f"Exchange {label}, {one.at.astimezone(given.zone):%A %Y-%m-%d %H:%M}\n"
            f"{delimit_untrusted(f'{label} user', shorten(one.said, _SAID_CHARS))}\n"
            f"{delimit_untrusted(f'{label} assistant', shorten(one.answer, _ANSWER_CHARS))}"
        )
    return "\n\n".join(parts)


async def _vectors(operations: Sequence[Operation], given: ExtractionContext) -> dict[str, list[float]]:
    """Where what is to be added lies. Nothing while the embedding model is away: then words alone are compared."""
    texts = [one.content for one in operations if one.op == "add" and one.tier == Tier.ASSOCIATIVE]
    if not texts or not given.embeds:
        return {}
    try:
        async with asyncio.timeout(_MODEL_S):
            return dict(zip(texts, await llm.embedding_model().embed(texts), strict=True))
    except (llm.ModelError, TimeoutError):
        return {}


# ── Comparing and writing ───────────────────────────────────────────────────────────────────────────────


@transaction.atomic
def _apply(
    user_id: uuid.UUID,
    labelled: dict[str, UnsealedExchange],
    given: ExtractionContext,
    operations: Sequence[Operation],
    vectors: dict[str, list[float]],
) -> Counter[str]:
    """Write what was found, and that the exchanges were read. What was let go of meanwhile, or taken by another worker,
    leaves nothing. Returns how many operations came to what."""
    memory = entries.lock_memory(user_id)
    rows = Exchange.objects.filter(pk__in=[one.id for one in labelled.values()], recorded_at=None)
    tries = dict(rows.values_list("pk", "attempts"))
    ours = {label: one for label, one in labelled.items() if tries.get(one.id) == one.tries}
    rows.filter(pk__in=[one.id for one in ours.values()]).update(recorded_at=Now())
    outcomes: Counter[str] = Counter()
    if not memory.enabled:
        return outcomes
    writing = OperationWriter(user_id, given.cipher, dict(given.known), vectors)
    for operation in operations:
        if (one := ours.get(operation.said_in)) is None:
            continue
        try:
            outcomes[writing.apply(operation, one)] += 1
        except AdiuvaError as error:
            outcomes[error.code] += 1
    return outcomes


# ── The sweep ───────────────────────────────────────────────────────────────────────────────────────────


def enqueue_due() -> int:
    """Tell the workers again of what waits to be read, where a nudge was lost or a try is due. Returns of how many
    users."""
    late = Exchange.objects.filter(recorded_at=None, not_before__lte=Now() - _CLAIM / 4)
    users = list(late.values_list("user_id", flat=True).order_by().distinct()[:_SWEPT_AT_ONCE])
    for user_id in users:
        enqueue_on_commit("memory.record", user_id)
    return len(users)
