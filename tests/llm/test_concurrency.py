"""Adaptive limit of concurrent answers at an endpoint, with a provider that has few slots, over a real Redis."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator

import pytest
from pytest_django import Settings

from adiuva import llm
from adiuva.llm import concurrency, transport
from tests.fakes.provider import Fail, Hold, Provider, Request

ASK: list[llm.Message] = [{"role": "user", "content": "a question"}]


class Slots:
    """A step of a provider that answers so many requests at a time, each in `seconds`; the others wait in line."""

    def __init__(self, count: int, seconds: float) -> None:
        self.free, self.seconds, self.waiting_most, self.waiting = asyncio.Semaphore(count), seconds, 0, 0

    async def __call__(self, request: Request) -> str:
        self.waiting += 1
        self.waiting_most = max(self.waiting_most, self.waiting)
        async with self.free:
            self.waiting -= 1
            await asyncio.sleep(self.seconds)
        return "an answer"


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as running:
        yield running


@pytest.fixture
async def model(provider: Provider) -> AsyncIterator[llm.ChatModel]:
    yield llm.chat_model(provider.settings(uuid.uuid4().hex))
    await llm.aclose()


async def test_a_local_server_with_two_slots_reads_a_folder_at_its_own_pace(
    provider: Provider, model: llm.ChatModel, settings: Settings
) -> None:
    """In proportion: 20 s a document and a patience of 120 s. With 24 at once, nine of ten would be given up."""
    settings.MODEL_TIMEOUT_S = 1.2
    slots = provider.default = Slots(2, 0.2)
    replies = await asyncio.gather(*(model.complete(ASK) for _ in range(40)))
    assert [reply.text for reply in replies] == ["an answer"] * 40
    assert len(provider.calls) == 40 and not any(call.gone.is_set() for call in provider.calls)
    assert provider.peak > 2  # both slots stay busy
    assert slots.waiting_most < 8


async def test_a_provider_with_room_soon_gets_all_that_is_allowed(
    provider: Provider, model: llm.ChatModel, settings: Settings
) -> None:
    settings.MODEL_CONCURRENCY = 16
    provider.default = Slots(100, 0.02)
    await asyncio.gather(*(model.complete(ASK) for _ in range(150)))
    assert (
        transport.concurrency_limit(model.endpoint).allowed == 16 >= provider.peak > concurrency.FIRST_LIMIT
    )


async def test_a_busy_endpoint_halves_the_limit_and_gets_it_back(
    provider: Provider, model: llm.ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = transport.concurrency_limit(model.endpoint)
    await asyncio.gather(*(model.complete(ASK) for _ in range(60)))
    before = limit.allowed
    provider.script(Fail(429, retry_after=0))
    await model.complete(ASK)
    assert limit.allowed <= before // 2 + 1
    await asyncio.gather(*(model.complete(ASK) for _ in range(200)))
    assert limit.allowed > before // 2


async def test_processes_share_one_limit(model: llm.ChatModel) -> None:
    """Event loops stand for processes: each has a limit of its own."""
    limits = [concurrency.AdaptiveLimit(model.endpoint) for _ in range(4)]
    for limit in limits * 2:
        await limit.synchronize()
    assert [limit.allowed for limit in limits] == [concurrency.FIRST_LIMIT / 4] * 4


async def test_one_user_whose_calls_hang_leaves_room_for_another(
    provider: Provider, model: llm.ChatModel
) -> None:
    hold = Hold()
    provider.default = hold

    async def ask(user: uuid.UUID) -> str:
        llm.on_behalf_of(user)
        return (await model.complete(ASK)).text

    hanging = [asyncio.create_task(ask(uuid.UUID(int=1))) for _ in range(30)]
    assert await asyncio.to_thread(hold.reached.wait, 5)
    provider.default = "an answer"
    async with asyncio.timeout(30):
        assert await asyncio.create_task(ask(uuid.UUID(int=2))) == "an answer"
    for task in hanging:
        task.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)


async def test_without_redis_it_still_answers(provider: Provider, settings: Settings) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:9/0"
    model = llm.chat_model(provider.settings(uuid.uuid4().hex))
    replies = await asyncio.gather(*(model.complete(ASK) for _ in range(30)))
    assert len(replies) == 30
    await llm.aclose()


async def test_who_is_cancelled_in_line_takes_no_slot(
    provider: Provider, model: llm.ChatModel, settings: Settings
) -> None:
    settings.MODEL_CONCURRENCY = 1
    provider.default = Slots(10, 0.05)
    asking = [asyncio.create_task(model.complete(ASK)) for _ in range(10)]
    await asyncio.sleep(0.02)
    for task in asking[1::2]:
        task.cancel()
    done = await asyncio.gather(*asking, return_exceptions=True)
    assert sum(isinstance(each, llm.Reply) for each in done) == 5
    assert (await model.complete(ASK)).text == "an answer"
