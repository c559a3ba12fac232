"""Metering of requests to models, however they end, compared with the fake provider's own counts."""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, aclosing

import aiohttp
import pytest
from pytest_django import Settings
from structlog.testing import capture_logs

from adiuva import llm
from adiuva.llm import Meter, ModelUse, http_request
from tests.fakes.provider import Break, Endless, Fail, Hold, Provider, Say, Step

ASK: list[llm.Message] = [{"role": "user", "content": "a question of some length, " * 20}]


@pytest.fixture(scope="module")
def shared_provider() -> Iterator[Provider]:
    with Provider() as running:
        yield running


@pytest.fixture
def provider(shared_provider: Provider) -> Provider:
    shared_provider.reset()
    return shared_provider


@pytest.fixture
async def model(provider: Provider, settings: Settings) -> AsyncIterator[llm.ChatModel]:
    settings.MODEL_PRICE = "1,2,0.1"  # a micro-unit a token of input, two of output
    yield llm.chat_model(provider.settings(uuid.uuid4().hex))
    await llm.aclose()


async def one_use(model: llm.ChatModel, *, most_deltas: int = 1_000) -> ModelUse:
    """What one streamed request is counted as, whatever it raises."""
    meter = Meter(uuid.uuid4(), "chat")
    with llm.counting_into(meter):
        try:
            async with aclosing(model.stream(ASK, max_tokens=50)) as source:
                async for _ in source:
                    if not (most_deltas := most_deltas - 1):
                        break
        except llm.ModelError:
            pass
    uses = meter.uses()
    return uses[0] if uses else ModelUse(model.name)


async def test_an_answer_is_counted_as_its_provider_says(provider: Provider, model: llm.ChatModel) -> None:
    provider.script(Say("Hello.", usage=(120, 30)))
    use = await one_use(model)
    assert (use.calls, use.input_tokens, use.output_tokens) == (1, 120, 30)
    assert (use.cost_micro, use.estimated_micro, use.unpriced_calls) == (180, 0, 0)


@pytest.mark.parametrize(
    "step",
    [
        Say("Hello, this is an answer.", usage=None),
        Break("text", "Hello, this is"),
        Endless("Hello, this is"),
    ],
)
async def test_what_nobody_counts_is_estimated(provider: Provider, model: llm.ChatModel, step: Step) -> None:
    """No usage was sent; the connection broke; whoever listened went away."""
    provider.script(step)
    use = await one_use(model, most_deltas=1 if isinstance(step, Endless) else 1_000)
    assert (use.calls, use.estimated_calls) == (1, 1)
    assert 100 <= use.input_tokens <= 300 and use.output_tokens >= 3
    assert use.estimated_micro == use.cost_micro == use.input_tokens + 2 * use.output_tokens


async def test_an_abort_before_the_first_word_is_not_free(provider: Provider, model: llm.ChatModel) -> None:
    provider.script(hold := Hold())
    meter = Meter(uuid.uuid4(), "agents")
    with llm.counting_into(meter):
        task = asyncio.create_task(model.complete(ASK, max_tokens=5, temperature=0.0))
    await asyncio.to_thread(hold.reached.wait, 10)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    (use,) = meter.uses()
    assert use.estimated_calls == 1 and use.cost_micro >= 100


async def test_what_a_provider_refuses_costs_nothing(provider: Provider, model: llm.ChatModel) -> None:
    provider.script(Fail(401))
    assert (await one_use(model)).calls == 0


async def test_a_connection_that_takes_too_long_costs_nothing_and_is_waited_for_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.MODEL_PRICE = "1,2,0.1"
    monkeypatch.setattr(http_request, "_TIMEOUT", aiohttp.ClientTimeout(sock_connect=0.3))
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):  # once its queue is full, packets of others are dropped
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        api_base = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        model = llm.chat_model({"model": "openai/nowhere", "api_base": api_base, "api_key": ""})
        assert (await one_use(model)).calls == 0
        with capture_logs() as logs, pytest.raises(llm.ModelUnavailable, match="cannot be reached"):
            await model.complete(ASK)
        assert "model.retry" not in [each["event"] for each in logs]
    await llm.aclose()


async def test_each_try_counts_that_was_answered(provider: Provider, model: llm.ChatModel) -> None:
    """The first is refused, the second breaks off, and the third is the answer."""
    provider.script(Fail(429, retry_after=0), Break("headers"), Say("{}", usage=(100, 10)))
    meter = Meter(uuid.uuid4(), "agents")
    with llm.counting_into(meter):
        await model.structured(ASK, name="records", schema={"type": "object"}, max_tokens=100)
    (use,) = meter.uses()
    assert (use.calls, use.estimated_calls) == (2, 1)
    assert use.cost_micro - use.estimated_micro == 120


async def test_the_ratio_of_bytes_to_tokens_is_learnt(provider: Provider, model: llm.ChatModel) -> None:
    """From what is counted, what is not counted is estimated within a tenth."""
    text = "a word and another one. " * 40
    for _ in range(25):
        provider.script(Say(text, usage=(270, 480)))
        exact = await one_use(model)
    provider.script(Say(text, usage=None))
    use = await one_use(model)
    assert use.input_tokens == pytest.approx(exact.input_tokens, rel=0.1)
    assert use.output_tokens == pytest.approx(exact.output_tokens, rel=0.1)


async def test_vectors_are_counted(provider: Provider, settings: Settings) -> None:
    settings.MODEL_PRICE = "openai/vectors=1,0"
    embedding = llm.embedding_model(provider.settings("vectors"))
    meter = Meter(uuid.uuid4(), "memory")
    with llm.counting_into(meter):
        await embedding.embed(["one", "two", "three"])
    (use,) = meter.uses()
    assert (use.calls, use.input_tokens, use.cost_micro, use.estimated_calls) == (1, 3, 3, 0)
    await llm.aclose()


async def test_work_is_counted_apart(provider: Provider, model: llm.ChatModel) -> None:
    """Each task counts into its own meter, and the tasks that it starts with it."""
    provider.default = Say("ok", usage=(10, 1))
    meters = [Meter(uuid.uuid4(), "chat") for _ in range(3)]

    async def work(meter: Meter, times: int) -> None:
        with llm.counting_into(meter):
            await asyncio.gather(*(model.complete(ASK, max_tokens=9, temperature=0.0) for _ in range(times)))

    await asyncio.gather(*(work(meter, times) for times, meter in enumerate(meters, 1)))
    assert [meter.uses()[0].calls for meter in meters] == [1, 2, 3]
