"""Extract facts worth remembering from finished turns, in a worker, off the request path.

A user's unread exchanges are read together, in the order of the conversation. A worker leases them, for a time that
grows with each attempt; asks the model, outside of any transaction; then compares the answer with known entries, and
writes it together with the mark that the exchanges were read. A worker that dies has written nothing, and one that lost
its lease writes nothing.

Only reading an exchange tells whether it holds a fact: a name is as short as a yes. So all are read.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final
from zoneinfo import ZoneInfo

import orjson
import structlog
from django.db import transaction
from django.db.models import Count, F, Max, Q
from django.db.models.functions import Now

from adiuva import llm
from adiuva.accounts.keys import NoSuchUser, cipher_for
from adiuva.accounts.models import User
from adiuva.core import db, leases, prompt_files
from adiuva.core.crypto import SealBroken, UserCipher
from adiuva.core.enqueue import enqueue_on_commit
from adiuva.core.errors import AdiuvaError
from adiuva.core.leases import Lease
from adiuva.core.prompt_delimiting import delimit_untrusted
from adiuva.llm.context_window import ContextWindow
from billing import usage
from billing.models import Purpose
from memory import entries, entry_content, structured, text_embedding
from memory.apply_operations import OperationWriter, ShownEntry
from memory.exchanges import UnsealedExchange, shorten, unseal_exchange
from memory.models import Entry, Exchange, Receipt, SourceKind, Tier
from memory.operation_validation import NotTheUsersWords, Operation, OperationValidator, ValidOperations
from memory.preferences import readable_tiers
from memory.receipts import write_receipt
from memory.search import needs_vector, search

# After this many attempts an exchange counts as read, with nothing found in it.
MAX_ATTEMPTS: Final = 8
# After this many attempts exchanges are read one at a time, so that one that the model refuses does not hold up others.
_BATCH_ATTEMPTS: Final = 3
_BATCH_EXCHANGES: Final = 8
_BATCH_CHARS: Final = 24_000
# A longer text of the user's in one exchange is likely pasted.
_SAID_CHARS: Final = 12_000
_ANSWER_CHARS: Final = 2_000
_KNOWN_CHARS: Final = 24_000
_ENTRY_CHARS: Final = 600
# The most associative entries that the model is shown.
_MAX_SHOWN: Final = 30
# Length of the first lease; each attempt doubles it. After a failure the next attempt waits for its end.
_FIRST_LEASE: Final = dt.timedelta(minutes=2)
_LONGEST_LEASE: Final = dt.timedelta(hours=6)
# Well below the first lease.
_MODEL_TIMEOUT_S: Final = 100.0
_QUESTION_CHARS: Final = 4_000
# One request to the model reads a user's exchanges together once the user has been quiet for this long, or as many wait
# as a request takes.
_QUIET: Final = dt.timedelta(seconds=60)
_MAX_USERS_ENQUEUED: Final = 2_000
# How many times exchanges that were too long for the model are read again at once.
_MAX_REFITS: Final = 2
_TIERS: Final = frozenset({Tier.CORE, Tier.ASSOCIATIVE})

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Batch:
    """Leased exchanges in order, by the labels that the model sees.

    `is_last`: whether no others were unread.
    """

    exchanges: Mapping[str, UnsealedExchange]
    leases: Sequence[Lease[Exchange]]
    is_last: bool

    @property
    def attempt(self) -> int:
        return max(exchange.attempts for exchange in self.exchanges.values())

    @property
    def said(self) -> str:
        return "\n".join(exchange.said for exchange in self.exchanges.values())


@dataclass(frozen=True, slots=True)
class ExtractionContext:
    """The data for the model, and the tiers that it may read. `embeds`: the embedding model may read new entries."""

    known: dict[str, ShownEntry]
    tiers: frozenset[Tier]
    embeds: bool
    zone: ZoneInfo
    cipher: UserCipher


async def extract_facts(user_id: uuid.UUID) -> int:
    """Read a user's unread exchanges. Returns how many were read.

    If the model fails on some, they are tried again when their lease has ended; if they were too long for it, at once
    and fewer together, as its window is known by then.
    """
    read, refits = 0, 0
    most_chars = await _find_batch_chars()
    while (batch := await db.run(_claim, user_id, most_chars)) is not None:
        try:
            async with usage.metered(user_id, Purpose.MEMORY):
                await _read(user_id, batch)
        except llm.BudgetSpent:
            log.info("facts.extraction_unpaid", user_id=str(user_id))
            await db.run(_count_no_attempt, user_id, batch)
            break
        except llm.ModelContextExceeded as error:
            log.warning(
                "facts.extraction_deferred", user_id=str(user_id), code=error.code, attempt=batch.attempt
            )
            if (refits := refits + 1) > _MAX_REFITS:
                break
            await db.run(_give_back, user_id, batch)
            most_chars = await _find_batch_chars()
            continue
        except (llm.ModelError, TimeoutError) as error:
            code = error.code if isinstance(error, AdiuvaError) else "timeout"
            log.warning("facts.extraction_deferred", user_id=str(user_id), code=code, attempt=batch.attempt)
            break
        except NoSuchUser:
            break
        read += len(batch.exchanges)
        if batch.is_last:
            break
    return read


@transaction.atomic
def _give_back(user_id: uuid.UUID, batch: Batch) -> None:
    with suppress(NoSuchUser):
        entries.lock_memory(user_id)  # first, as code that deletes several exchanges does
    leases.release_all(leases.held_among(batch.leases))


@transaction.atomic
def _count_no_attempt(user_id: uuid.UUID, batch: Batch) -> None:
    """Uncount an attempt that lacked money: the exchanges are tried again when their lease ends, as often as needed."""
    with suppress(NoSuchUser):
        entries.lock_memory(user_id)
    mine = [lease.pk for lease in batch.leases]
    Exchange.objects.filter(pk__in=mine, attempts__gt=0).update(attempts=F("attempts") - 1)


async def _find_batch_chars() -> int:
    """Return how many characters of exchanges one call reads: a third of a small window."""
    try:
        model = llm.chat_model(purpose="memory")
    except llm.ModelNotConfigured:
        return _BATCH_CHARS  # the model's absence is reported once there is something to read
    await model.find_window()
    return model.window.part(3, _BATCH_CHARS)


@transaction.atomic
def _claim(user_id: uuid.UUID, most_chars: int) -> Batch | None:
    """Lease the next exchanges, of at most this many characters unless one alone has more.

    Returns None while earlier ones are leased, since earlier facts must not replace later ones.
    """
    try:
        memory = entries.lock_memory(user_id)
        cipher = cipher_for(user_id)
    except NoSuchUser:
        return None
    if not memory.enabled:
        Exchange.objects.filter(user_id=user_id).delete()
        return None
    unread = Exchange.objects.filter(user_id=user_id, recorded_at=None).order_by("said_at", "pk")
    given_up = unread.filter(leases.is_free(), attempts__gte=MAX_ATTEMPTS).update(recorded_at=Now())
    if given_up:
        log.error("facts.extraction_abandoned", user_id=str(user_id), exchanges=given_up)
    picked: list[UnsealedExchange] = []
    chars = 0
    rows = list(unread.annotate(now=Now())[: _BATCH_EXCHANGES + 1])
    for row in rows[:_BATCH_EXCHANGES]:
        if row.lease_until is not None and row.lease_until > row.now:
            break
        row.attempts += 1
        try:
            exchange = unseal_exchange(row, cipher)
        except SealBroken:
            log.error("memory.exchange_seal_broken", user_id=str(user_id))
            row.delete()
            continue
        chars += min(len(exchange.said), _SAID_CHARS) + min(len(exchange.answer), _ANSWER_CHARS)
        tried_alone = picked and max(exchange.attempts, picked[0].attempts) > _BATCH_ATTEMPTS
        if picked and (chars > most_chars or tried_alone):
            break
        picked.append(exchange)
    if not picked:
        return None
    duration = min(_LONGEST_LEASE, _FIRST_LEASE * 2 ** (picked[0].attempts - 1))
    claimed = leases.claim(
        unread.filter(pk__in=[exchange.id for exchange in picked]),
        duration,
        most=len(picked),
        attempts=F("attempts") + 1,
    )
    return Batch(
        {f"e{number}": exchange for number, exchange in enumerate(picked, 1)},
        [row.lease(duration) for row in claimed],
        is_last=len(picked) == len(rows),
    )


async def _read(user_id: uuid.UUID, batch: Batch) -> None:
    model = llm.chat_model(purpose="memory")
    vector = None
    if await db.run(needs_vector, user_id):
        vector = await text_embedding.embed_question(batch.said[:_QUESTION_CHARS], user_id)
    context = await db.run(_prepare, user_id, batch, vector, model)
    found, vectors = ValidOperations(), dict[str, list[float]]()
    if context.tiers:
        said = {label: one.own_words for label, one in batch.exchanges.items()}
        days = {label: one.at.astimezone(context.zone).date() for label, one in batch.exchanges.items()}
        validator = OperationValidator(said, list(context.known), context.tiers, days)
        async with asyncio.timeout(_MODEL_TIMEOUT_S):
            answer = await structured.ask_or_none(
                model,
                prompt="record",
                material=_material(batch, context, model.window),
                name="memory",
                schema=validator.schema(),
                read=_repaired_once(validator.check),
            )
        if answer is None:  # nothing is lost: the exchanges are read again when their lease has ended
            raise llm.ModelGarbled("the model's answer could not be used, nor its repair")
        found = answer
        vectors = await _vectors(found.operations, context, user_id)
    outcomes = await db.run(_apply, user_id, batch, context, found.operations, vectors)
    log.info(
        "facts.extracted",
        user_id=str(user_id),
        exchanges=len(batch.exchanges),
        outcomes=dict(outcomes),
        dropped=found.dropped,
        prompt=prompt_files.load("memory", "record").version,
    )


def _repaired_once(check: Callable[[Any], ValidOperations]) -> Callable[[Any], ValidOperations]:
    """Treat a repaired answer that still uses words which are not the user's as one with nothing to remember.

    The model could read the exchanges, so asking again later would not help.
    """
    answers = 0

    def read(answer: Any) -> ValidOperations:
        nonlocal answers
        answers += 1
        try:
            return check(answer)
        except NotTheUsersWords as refused:
            if answers == 1:
                raise
            return ValidOperations((), refused.count)

    return read


@transaction.atomic
def _prepare(
    user_id: uuid.UUID, batch: Batch, vector: list[float] | None, model: llm.ChatModel
) -> ExtractionContext:
    """Choose the entries that the model is shown, and write a receipt for them.

    A provider that may not read a tier does not write to it either, so a model that may read none is left out.
    """
    row = User.objects.filter(pk=user_id).values_list("timezone", "memory__policy").first()
    if row is None:
        raise NoSuchUser("this account no longer exists")
    zone, policy = ZoneInfo(row[0]), row[1]
    tiers = readable_tiers(policy, model.provider) & _TIERS
    embeds = Tier.ASSOCIATIVE in readable_tiers(policy, llm.embedding_model().provider)
    cipher = cipher_for(user_id)
    if not tiers:
        return ExtractionContext({}, tiers, embeds, zone, cipher)
    current = Entry.objects.of(user_id).current()
    rows = list(current.filter(tier=Tier.CORE)) if Tier.CORE in tiers else []
    if Tier.ASSOCIATIVE in tiers:
        hits = search(
            user_id=user_id,
            question=batch.said,
            vector=vector,
            now=max(exchange.at for exchange in batch.exchanges.values()),
            tiers=[Tier.ASSOCIATIVE],
            limit=_MAX_SHOWN,
        )
        rows += [hit.entry for hit in hits]
    known = _labelled(rows, cipher, model.window.part(5, _KNOWN_CHARS))
    sources = {one.source_id for one in batch.exchanges.values() if one.kind == SourceKind.CONVERSATION}
    withheld = current.filter(tier__in=_TIERS - tiers).values_list("tier", flat=True).order_by().distinct()
    write_receipt(
        user_id=user_id,
        purpose=Receipt.Purpose.RECORD,
        model=model,
        entries=[shown.id for shown in known.values()],
        withheld=list(withheld),
        conversation_id=sources.pop() if len(sources) == 1 else None,
    )
    return ExtractionContext(known, tiers, embeds, zone, cipher)


def _labelled(rows: Sequence[Entry], cipher: UserCipher, most_chars: int) -> dict[str, ShownEntry]:
    known: dict[str, ShownEntry] = {}
    left = most_chars
    for entry in rows:
        label = f"m{len(known) + 1}"
        line = _line(label, entry, cipher)
        if line is None or (left := left - len(line)) < 0:
            continue
        known[label] = ShownEntry(entry.pk, bytes(entry.fingerprint), line)
    return known


def _line(label: str, entry: Entry, cipher: UserCipher) -> str | None:
    try:
        content = entry_content.unseal_entry(entry, cipher)
    except SealBroken:
        log.error("memory.seal_broken", user_id=str(entry.user_id), entry_id=str(entry.pk))
        return None
    fields = {
        "entry": label,
        "tier": entry.tier,
        "key": content.key,
        "content": shorten(content.content, _ENTRY_CHARS),
    }
    return orjson.dumps({name: value for name, value in fields.items() if value is not None}).decode()


def _material(batch: Batch, context: ExtractionContext, window: ContextWindow) -> str:
    said_chars, answer_chars = window.part(4, _SAID_CHARS), window.part(12, _ANSWER_CHARS)
    parts = [delimit_untrusted("known", "\n".join(shown.line for shown in context.known.values()))]
    for label, exchange in batch.exchanges.items():
        parts.append(
            f"Exchange {label}, {exchange.at.astimezone(context.zone):%A %Y-%m-%d %H:%M}\n"
            f"{delimit_untrusted(f'{label} user', shorten(exchange.said, said_chars))}\n"
            f"{delimit_untrusted(f'{label} assistant', shorten(exchange.answer, answer_chars))}"
        )
    return "\n\n".join(parts)


async def _vectors(
    operations: Sequence[Operation], context: ExtractionContext, user_id: uuid.UUID
) -> dict[str, list[float]]:
    """Return the vectors of associative texts to add, by text; none if the embedding model fails."""
    texts = [one.content for one in operations if one.op == "add" and one.tier == Tier.ASSOCIATIVE]
    if not texts or not context.embeds:
        return {}
    try:
        async with asyncio.timeout(_MODEL_TIMEOUT_S):
            return dict(zip(texts, await text_embedding.embed_texts(texts, user_id), strict=True))
    except (llm.ModelError, TimeoutError):
        return {}


@transaction.atomic
def _apply(
    user_id: uuid.UUID,
    batch: Batch,
    context: ExtractionContext,
    operations: Sequence[Operation],
    vectors: dict[str, list[float]],
) -> Counter[str]:
    """Write the operations, and mark the exchanges as read. Returns the number of operations by outcome.

    Exchanges that were deleted meanwhile, or that another worker leases, are left out.
    """
    memory = entries.lock_memory(user_id)
    held = leases.held_among(batch.leases)
    leases.release_all(held, recorded_at=Now())
    outcomes: Counter[str] = Counter()
    if not memory.enabled:
        return outcomes
    ids = {row.pk for row in held}
    writer = OperationWriter(user_id, context.cipher, dict(context.known), vectors)
    for operation in operations:
        exchange = batch.exchanges[operation.said_in]
        if exchange.id not in ids:
            continue
        try:
            outcomes[writer.apply(operation, exchange)] += 1
        except AdiuvaError as error:
            outcomes[error.code] += 1
        except SealBroken:  # of a known entry, which the operation would have changed
            log.error("memory.seal_broken", user_id=str(user_id))
            outcomes["seal_broken"] += 1
    return outcomes


def enqueue_due() -> int:
    """Enqueue tasks for users who are quiet and have unread exchanges, or who have many. Returns for how many users."""
    unread = Exchange.objects.filter(leases.is_free(), recorded_at=None).order_by().values("user_id")
    due = unread.annotate(last=Max("said_at"), count=Count("pk")).filter(
        Q(last__lte=Now() - _QUIET) | Q(count__gte=_BATCH_EXCHANGES)
    )
    users = list(due.order_by("last").values_list("user_id", flat=True)[:_MAX_USERS_ENQUEUED])
    for user_id in users:
        enqueue_on_commit("memory.record", user_id)
    return len(users)
