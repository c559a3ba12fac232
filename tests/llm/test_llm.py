"""The chat and embedding models against a real HTTP endpoint that behaves, and one that does not."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest_django import Settings

from adiuva import llm
from adiuva.core.language import body_of
from adiuva.llm import transport
from adiuva.llm.streamed_body import StreamedBody
from tests.fakes.provider import Break, Call, Endless, Fail, Hold, Provider, Raw, Request, Say
from tests.llm.learnt import forget_all, know_that_it_shows_no_thoughts

ASK: list[llm.Message] = [{"role": "user", "content": "a secret question"}]
TOOLS = [{"type": "function", "function": {"name": "list_tasks", "parameters": {"type": "object"}}}]
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    monkeypatch.setattr(transport, "FIRST_BACKOFF_S", 0.01)
    forget_all()
    with Provider() as running:
        yield running


@pytest.fixture
async def model(provider: Provider) -> AsyncIterator[llm.ChatModel]:
    know_that_it_shows_no_thoughts(provider.url, "openai/scripted")
    yield llm.chat_model(provider.settings())
    await llm.aclose()


async def everything(model: llm.ChatModel, **more: Any) -> list[llm.Delta]:
    """All deltas, those included whose text went to `on_text`."""
    found: list[llm.Delta] = []

    def take(text: str) -> None:
        found.append(llm.Text(text))

    async for deltas in model.stream(ASK, on_text=take, **more):
        found.extend(deltas)
    return found


def text_of(deltas: list[llm.Delta]) -> str:
    return "".join(delta.text for delta in deltas if isinstance(delta, llm.Text))


# ── Whole answers ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_complete_answer_has_text_finish_and_usage(provider: Provider, model: llm.ChatModel) -> None:
    provider.script(Say("Grüße, Ada", usage=(11, 3)))

    reply = await model.complete(ASK, max_tokens=50, temperature=0.2)

    assert reply == llm.Reply("Grüße, Ada", (), "stop", llm.Usage(11, 3))
    assert provider.last == {
        "model": "scripted",
        "messages": ASK,
        "max_tokens": 50,
        "temperature": 0.2,
        "stream": True,  # so that only silence ends the wait for a long answer
        "stream_options": {"include_usage": True},
    }
    assert provider.calls[0].headers["Authorization"] == "Bearer a-key-of-the-tests"


async def test_a_complete_answer_holds_the_tools_it_calls(provider: Provider, model: llm.ChatModel) -> None:
    provider.script(Say(calls=[Call("list_tasks", {"status": "todo"}), Call("list_notes")]))

    reply = await model.complete(ASK, tools=TOOLS)

    assert [(call.name, json.loads(call.arguments)) for call in reply.tool_calls] == [
        ("list_tasks", {"status": "todo"}),
        ("list_notes", {}),
    ]
    assert reply.finish == "tool_calls"
    assert provider.last["tools"] == TOOLS
    assert reply.tool_calls[0].wire()["function"]["name"] == "list_tasks"


async def test_a_tool_call_without_an_id_gets_one_and_arguments_may_be_an_object(
    provider: Provider, model: llm.ChatModel
) -> None:
    call = {"function": {"name": "list_tasks", "arguments": {"a": 1}}}
    body = {"choices": [{"message": {"tool_calls": [call]}}]}
    provider.script(Raw(json.dumps(body).encode()))

    reply = await model.complete(ASK)

    assert reply.tool_calls[0].id and json.loads(reply.tool_calls[0].arguments) == {"a": 1}
    assert reply.finish == "tool_calls"


@pytest.mark.parametrize(
    "step",
    [
        Raw(b"<html>welcome</html>", content_type="text/html"),
        Raw(b'{"choices": []}'),
        Raw(b'{"choices": [{"message": "text"}]}'),
        Raw(b"[1, 2]"),
        Raw(b'{"choices": [{"message": {"tool_calls": [{"function": {"name": ""}}]}}]}'),
        Raw(b"[" * 100_000),
    ],
)
async def test_an_answer_that_is_no_completion_is_garbled(
    provider: Provider, model: llm.ChatModel, step: Raw
) -> None:
    provider.script(step)
    with pytest.raises(llm.ModelGarbled):
        await model.complete(ASK)
    assert len(provider.calls) == 1


async def test_an_answer_without_end_is_cut_off(provider: Provider, model: llm.ChatModel) -> None:
    provider.script(Raw(b" " * (transport.MAX_ANSWER_BYTES + 1)))
    with pytest.raises(llm.ModelGarbled, match="too long"):
        await model.complete(ASK)


# ── Faults and retries ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 529])
async def test_a_transient_status_is_retried(provider: Provider, model: llm.ChatModel, status: int) -> None:
    provider.script(Fail(status), "there you go")
    assert (await model.complete(ASK)).text == "there you go"
    assert len(provider.calls) == 2


async def test_a_broken_connection_is_tried_again(provider: Provider, model: llm.ChatModel) -> None:
    provider.script(Break("start"), Fail(503), "there you go")
    assert (await model.complete(ASK)).text == "there you go"


async def test_a_request_is_tried_three_times_at_most(provider: Provider, model: llm.ChatModel) -> None:
    provider.default = Fail(503, code="overloaded")
    with pytest.raises(llm.ModelUnavailable, match="503 overloaded") as caught:
        await model.complete(ASK)
    assert len(provider.calls) == 3
    assert caught.value.transient and caught.value.code == "model_unavailable" and caught.value.status == 503


@pytest.mark.parametrize(("status", "calls"), [(400, 2), (401, 1), (403, 1), (404, 1), (422, 2)])
async def test_a_refusal_is_not_repeated_but_once_without_what_the_endpoint_may_lack(
    provider: Provider, model: llm.ChatModel, status: int, calls: int
) -> None:
    provider.default = Fail(status, code="bad", message="you said: a secret question, key a-key-of-the-tests")
    with pytest.raises(llm.ModelRejected, match="bad") as caught:
        await model.complete(ASK)
    assert len(provider.calls) == calls and not caught.value.transient
    for told in (str(caught.value), repr(caught.value), str(body_of(caught.value))):
        assert "secret" not in told and "a-key-of" not in told


async def test_what_an_endpoint_has_taken_before_is_not_the_reason_of_a_refusal(
    provider: Provider, model: llm.ChatModel
) -> None:
    provider.script("fine", Fail(400, code="bad"))
    await model.complete(ASK)
    with pytest.raises(llm.ModelRejected, match="bad"):
        await model.complete(ASK)
    assert len(provider.calls) == 2


async def test_a_code_that_is_a_text_is_not_repeated(provider: Provider, model: llm.ChatModel) -> None:
    provider.default = Fail(400, code="you said: a secret question")
    with pytest.raises(llm.ModelRejected) as caught:
        await model.complete(ASK)
    assert "secret" not in str(caught.value)


async def test_an_account_without_quota_is_not_tried_again(provider: Provider, model: llm.ChatModel) -> None:
    provider.script(Fail(429, code="insufficient_quota"))
    with pytest.raises(llm.ModelRejected, match="quota"):
        await model.complete(ASK)
    assert len(provider.calls) == 1


async def test_a_long_retry_after_raises_at_once_and_tells_the_caller(
    provider: Provider, model: llm.ChatModel
) -> None:
    provider.script(Fail(429, retry_after=3600))
    with pytest.raises(llm.ModelRateLimited) as caught:
        await model.complete(ASK)
    assert caught.value.retry_after == 3600 and body_of(caught.value)["retry_after"] == 3600
    assert len(provider.calls) == 1


async def test_a_retry_after_is_waited_for(
    provider: Provider, model: llm.ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "MAX_RETRY_AFTER_S", 0.0)
    provider.script(Fail(503, retry_after=0), "there you go")
    assert (await model.complete(ASK)).text == "there you go"


async def test_a_port_where_nobody_listens_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "FIRST_BACKOFF_S", 0.01)
    nowhere = llm.chat_model({"model": "openai/x", "api_base": "http://127.0.0.1:9/v1", "api_key": ""})
    with pytest.raises(llm.ModelUnavailable, match="cannot be reached"):
        await nowhere.complete(ASK)
    await llm.aclose()


async def test_a_silent_model_times_out_and_its_request_is_closed(
    provider: Provider, model: llm.ChatModel, settings: Settings
) -> None:
    settings.MODEL_TIMEOUT_S = 0.2
    whole, streamed = Hold(), Hold()
    provider.script(whole, streamed)
    with pytest.raises(llm.ModelTimeout):
        await model.complete(ASK)
    with pytest.raises(llm.ModelTimeout):
        await everything(model)
    assert len(provider.calls) == 2
    assert await asyncio.to_thread(whole.gone.wait, 5) and await asyncio.to_thread(streamed.gone.wait, 5)


async def test_a_model_that_falls_silent_in_mid_stream_times_out_and_its_request_is_closed(
    provider: Provider, model: llm.ChatModel, settings: Settings
) -> None:
    settings.MODEL_TIMEOUT_S = 0.2
    provider.script(Break("text", "Half an ans", now=threading.Event()))
    texts = []
    with pytest.raises(llm.ModelTimeout):
        async for deltas in model.stream(ASK):
            texts += [delta.text for delta in deltas if isinstance(delta, llm.Text)]
    assert texts == ["Half an ans"]
    assert await asyncio.to_thread(provider.calls[-1].gone.wait, 5)


async def test_a_redirect_is_not_followed(provider: Provider, model: llm.ChatModel) -> None:
    with Provider() as elsewhere:
        for status in (301, 307, 308):
            provider.script(Raw(status=status, headers={"Location": f"{elsewhere.url}/chat/completions"}))
            with pytest.raises(llm.ModelRejected, match="redirects"):
                await model.complete(ASK)
        assert elsewhere.calls == []


async def test_no_log_line_holds_the_question_or_the_key(
    provider: Provider, model: llm.ChatModel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    provider.script(Fail(500, message="a secret question"), Break("start"), "a secret question")
    await model.complete(ASK)
    assert "model.retry" in caplog.text
    assert "secret" not in caplog.text and "a-key-of" not in caplog.text


# ── Limits ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_no_more_requests_than_allowed_are_under_way(
    provider: Provider, model: llm.ChatModel, settings: Settings
) -> None:
    settings.MODEL_CONCURRENCY = 3
    holds = [Hold() for _ in range(3)]
    provider.script(*holds)
    asking = [asyncio.create_task(model.complete(ASK)) for _ in range(7)]
    for hold in holds:
        assert await asyncio.to_thread(hold.reached.wait, 5)
    for hold in holds:
        hold.release()
    await asyncio.gather(*asking)
    assert provider.peak == 3


async def test_a_request_that_waits_for_its_retry_frees_its_slot(
    provider: Provider, model: llm.ChatModel, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.MODEL_CONCURRENCY = 1
    waiting, go_on = asyncio.Event(), asyncio.Event()

    async def pause(*_: object) -> None:
        waiting.set()
        await go_on.wait()

    monkeypatch.setattr(transport, "pause_before_retry", pause)
    provider.script(Fail(503), "second", "first, at last")
    first = asyncio.create_task(model.complete(ASK))
    await waiting.wait()
    assert (await model.complete(ASK)).text == "second"
    go_on.set()
    assert (await first).text == "first, at last"


def test_each_event_loop_has_connections_of_its_own(provider: Provider) -> None:
    model = llm.chat_model(provider.settings())
    assert model is llm.chat_model(provider.settings())

    async def one_run() -> str:
        try:
            return (await model.complete(ASK)).text
        finally:
            await llm.aclose()

    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(asyncio.run(one_run()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["ok"] * 4


# ── Streams ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_stream_brings_text_tool_calls_and_a_finish(provider: Provider, model: llm.ChatModel) -> None:
    provider.script(
        Say("Let me look. ", calls=[Call("list_tasks", {"status": "todo"}), Call("list_notes", {"q": "ü"})])
    )

    deltas = await everything(model, tools=TOOLS)

    assert text_of(deltas) == "Let me look. "
    calls = [delta for delta in deltas if isinstance(delta, llm.ToolCall)]
    assert [(call.id, call.name, json.loads(call.arguments)) for call in calls] == [
        ("call_0", "list_tasks", {"status": "todo"}),
        ("call_1", "list_notes", {"q": "ü"}),
    ]
    assert deltas[-1] == llm.Finish("tool_calls", llm.Usage(7, 5))
    assert provider.last["stream"] is True and provider.last["stream_options"] == {"include_usage": True}


async def test_the_chunks_of_one_read_are_yielded_as_one_list(
    provider: Provider, model: llm.ChatModel
) -> None:
    provider.script(Say(pieces=["a"] * 500))
    lists = [deltas async for deltas in model.stream(ASK)]
    assert len(lists) < 50
    assert text_of([delta for deltas in lists for delta in deltas]) == "a" * 500


@pytest.mark.parametrize(
    "step",
    [
        Say("Grüße 🐝 an Ada", split=1),
        Say("Grüße 🐝 an Ada", split=1, newline="\r\n"),
        Say("Grüße 🐝 an Ada", done=False),
        Say("Grüße 🐝 an Ada", done=False, usage=None),
    ],
)
async def test_a_stream_may_be_cut_anywhere_and_lack_its_done_mark(
    provider: Provider, model: llm.ChatModel, step: Say
) -> None:
    provider.script(step)
    deltas = await everything(model)
    assert text_of(deltas) == "Grüße 🐝 an Ada"
    assert isinstance(deltas[-1], llm.Finish) and deltas[-1].reason == "stop"


async def test_only_a_chunked_body_is_taken_over_from_aiohttp_and_all_are_read(
    provider: Provider, model: llm.ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[bool] = []
    take_over = StreamedBody.begin

    def begin(body: StreamedBody) -> bool:
        taken.append(take_over(body))
        return taken[-1]

    monkeypatch.setattr(StreamedBody, "begin", begin)
    now = threading.Event()
    provider.script(Break("text", "Half an ans", now=now))
    with pytest.raises(llm.ModelInterrupted):
        async for _ in model.stream(ASK):
            now.set()
    assert taken == [True]
    taken.clear()
    events: list[Any] = [{"delta": {"content": piece}} for piece in ("Grü", "ße")]
    events.append({"delta": {}, "finish_reason": "stop"})
    body = b"".join(b"data: " + json.dumps({"choices": [event]}).encode() + b"\n\n" for event in events)
    compressed = Raw(
        gzip.compress(body), content_type="text/event-stream", headers={"Content-Encoding": "gzip"}
    )
    for step in (Raw(body, content_type="text/event-stream"), compressed):
        provider.script(step)
        assert text_of(await everything(model)) == "Grüße"
    assert taken == []


async def test_text_behind_the_first_goes_to_its_taker_whose_error_ends_the_request(
    provider: Provider, model: llm.ChatModel
) -> None:
    class Enough(Exception):
        pass

    taken: list[str] = []

    def take(text: str) -> None:
        taken.append(text)
        if len(taken) == 3:
            raise Enough

    provider.script(Endless())
    yielded: list[llm.Delta] = []
    with pytest.raises(Enough):
        async for deltas in model.stream(ASK, on_text=take):
            yielded += deltas
    assert yielded and len(taken) == 3
    assert set(text_of(yielded) + "".join(taken)) == set("again and ")
    assert await asyncio.to_thread(provider.calls[0].gone.wait, 5)


async def test_an_endpoint_that_does_not_stream_is_understood(
    provider: Provider, model: llm.ChatModel
) -> None:
    body = {"choices": [{"message": {"content": "whole"}, "finish_reason": "length"}]}
    provider.script(Raw(json.dumps(body).encode()))
    assert await everything(model) == [llm.Text("whole"), llm.Finish("length", llm.Usage())]


async def test_a_connection_serves_the_next_request_after_a_stream(
    provider: Provider, model: llm.ChatModel
) -> None:
    for _ in range(3):
        await everything(model)
    assert len(transport.connector()._conns) == 1  # one idle connection, used three times


@pytest.mark.parametrize("clean", [True, False])
async def test_a_stream_that_breaks_off_never_ends_normally(
    provider: Provider, model: llm.ChatModel, clean: bool
) -> None:
    now = threading.Event()
    provider.script(Break("text", clean=clean, now=now))
    seen: list[llm.Delta] = []
    with pytest.raises(llm.ModelInterrupted):
        async for deltas in model.stream(ASK):
            seen += deltas
            now.set()
    assert seen == [llm.Text("Half an ans")]
    assert len(provider.calls) == 1  # what was seen cannot be taken back, so there is no second try


@pytest.mark.parametrize(
    "step", [Break("start"), Break("headers"), Break("headers", clean=True), Fail(503), Fail(429)]
)
async def test_a_stream_that_fails_before_its_first_delta_is_tried_again(
    provider: Provider, model: llm.ChatModel, step: Any
) -> None:
    provider.script(step, "there you go")
    assert text_of(await everything(model)) == "there you go"
    assert len(provider.calls) == 2


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "a secret question", "type": "server_error"}, llm.ModelInterrupted),
        ({"message": "a secret question", "code": 429}, llm.ModelRateLimited),
        ({"message": "a secret question", "code": "400"}, llm.ModelRejected),
        ("a secret question", llm.ModelInterrupted),
    ],
)
async def test_an_error_in_mid_stream_raises(
    provider: Provider, model: llm.ChatModel, error: Any, kind: type[llm.ModelError]
) -> None:
    provider.default = Say("Half an ans", error=error)
    with pytest.raises(kind) as caught:
        await everything(model)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [
        b"data: {no json}\n\n",
        b"data: [1]\n\n",
        b'data: {"choices": [{"delta": {"content": {"x": 1}}}]}\n\n',
        b'data: {"choices": 5}\n\n',
    ],
)
async def test_a_garbled_stream_raises(provider: Provider, model: llm.ChatModel, raw: bytes) -> None:
    provider.script(Raw(raw, content_type="text/event-stream"))
    with pytest.raises(llm.ModelGarbled):
        await everything(model)


async def test_a_page_in_place_of_a_stream_raises(provider: Provider, model: llm.ChatModel) -> None:
    provider.script(Raw(b"<html>", content_type="text/html"))
    with pytest.raises(llm.ModelGarbled, match="api_base"):
        await everything(model)


async def test_an_endless_stream_is_cut_off(
    provider: Provider, model: llm.ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "MAX_ANSWER_BYTES", 1024 * 1024)
    provider.script(Endless())
    with pytest.raises(llm.ModelGarbled, match="too long"):
        await everything(model)
    assert await asyncio.to_thread(provider.calls[0].gone.wait, 5)


async def test_closing_the_stream_closes_the_request(
    provider: Provider, model: llm.ChatModel, settings: Settings
) -> None:
    provider.script(Endless())
    async with aclosing(model.stream(ASK)) as stream:
        await anext(stream)
    assert await asyncio.to_thread(provider.calls[0].gone.wait, 5)
    assert transport.stream_limit(model.endpoint).free == settings.MODEL_STREAMS


async def test_cancelling_the_reader_closes_the_request(provider: Provider, model: llm.ChatModel) -> None:
    hold = Hold()
    provider.script(hold)
    reading = asyncio.create_task(everything(model))
    assert await asyncio.to_thread(hold.reached.wait, 5)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert await asyncio.to_thread(hold.gone.wait, 5)


# ── Structured output ───────────────────────────────────────────────────────────────────────────────────


async def test_structured_output_is_asked_for_by_schema(provider: Provider, model: llm.ChatModel) -> None:
    provider.script({"a": 1})
    found = await model.structured(ASK, name="thing", schema=SCHEMA)
    assert found.value == {"a": 1} and found.usage == llm.Usage(7, 5)
    assert provider.last["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "thing", "schema": SCHEMA},
    }


async def test_an_endpoint_that_refuses_schemas_gets_them_in_the_prompt_and_is_remembered(
    provider: Provider, model: llm.ChatModel
) -> None:
    provider.refuses_response_format = True
    provider.default = 'Sure!\n```json\n{"a": 2}\n```\nAnything else?'
    for _ in range(2):
        assert (await model.structured(ASK, name="thing", schema=SCHEMA)).value == {"a": 2}
    wishes = [call.body.get("response_format", {}).get("type") for call in provider.calls]
    assert wishes == ["json_schema", "json_object", None, None]
    wish = provider.last["messages"][0]
    assert wish["role"] == "system" and '"required":["a"]' in wish["content"]
    assert provider.last["messages"][1:] == ASK


async def test_another_refusal_is_no_reason_to_change_the_prompt(
    provider: Provider, model: llm.ChatModel
) -> None:
    provider.script(Fail(400, code="context_length_exceeded"))
    with pytest.raises(llm.ModelRejected, match="context window") as caught:
        await model.structured(ASK, name="thing", schema=SCHEMA)
    assert len(provider.calls) == 1 and caught.value.code == "model_context_exceeded"


# ── What an endpoint takes ──────────────────────────────────────────────────────────────────────────────

OPTIONAL = ("stream", "stream_options", "response_format", "temperature", "max_tokens")


def refuses(*parts: str, names: bool = False, schema_only: bool = False) -> Callable[[Request], Any]:
    """A step of an endpoint that refuses requests with any of these, and says which or does not."""

    def step(request: Request) -> Any:
        found = [part for part in parts if part in request.body]
        if schema_only and (request.body.get("response_format") or {}).get("type") == "json_object":
            found.remove("response_format")
        if found:
            return Fail(422, message=f"no {found[0]} here" if names else "Ungültige Anfrage")
        return {"a": 1}

    return step


async def ask_for_all(model: llm.ChatModel) -> llm.StructuredReply:
    return await model.structured(ASK, name="thing", schema=SCHEMA, max_tokens=9, temperature=0.0)


@pytest.mark.parametrize("names", [True, False])
@pytest.mark.parametrize("part", OPTIONAL)
async def test_what_an_endpoint_refuses_is_left_out_and_the_rest_comes_back(
    provider: Provider, model: llm.ChatModel, part: str, names: bool
) -> None:
    provider.default = refuses(part, names=names)
    for _ in range(8):
        assert (await ask_for_all(model)).value == {"a": 1}
    used = {each for each in OPTIONAL if each in provider.last}
    assert used == set(OPTIONAL) - {part} - ({"stream_options"} if part == "stream" else set())
    before = len(provider.calls)
    await ask_for_all(model)
    assert len(provider.calls) == before + 1  # nothing is tried any more


async def test_json_mode_is_used_where_schemas_are_refused(provider: Provider, model: llm.ChatModel) -> None:
    provider.default = refuses("response_format", schema_only=True)
    for _ in range(6):
        await ask_for_all(model)
    assert provider.last["response_format"] == {"type": "json_object"}
    assert '"required":["a"]' in provider.last["messages"][0]["content"]


@given(refused=st.sets(st.sampled_from(OPTIONAL)), names=st.booleans())
def test_any_endpoint_is_learnt_within_a_few_requests(refused: set[str], names: bool) -> None:
    async def learn() -> None:
        forget_all()
        with Provider(default=refuses(*refused, names=names)) as provider:
            model = llm.chat_model(provider.settings())
            for _ in range(8):
                assert (await ask_for_all(model)).value == {"a": 1}
            before = len(provider.calls)
            await ask_for_all(model)
            assert len(provider.calls) == before + 1
            left_out = refused | ({"stream_options"} if "stream" in refused else set())
            assert {each for each in OPTIONAL if each in provider.last} == set(OPTIONAL) - left_out
            await llm.aclose()

    asyncio.run(learn())


async def test_a_streams_request_is_adapted_too(provider: Provider, model: llm.ChatModel) -> None:
    provider.default = refuses("stream_options")
    for _ in range(3):
        assert text_of(await everything(model)) == '{"a": 1}'
    assert "stream_options" not in provider.last and provider.last["stream"] is True


async def test_llama_cpps_refusal_tells_the_window(provider: Provider, model: llm.ChatModel) -> None:
    error = {"code": 400, "message": "the request exceeds the available context size", "n_ctx": 4096}
    provider.script(Raw(json.dumps({"error": error}).encode(), status=400))
    with pytest.raises(llm.ModelRejected, match="context window") as caught:
        await model.complete(ASK)
    assert caught.value.window == 4096


async def test_an_answer_without_json_is_bad_output(provider: Provider, model: llm.ChatModel) -> None:
    provider.script(Say('{"a": [1, 2', finish="length"))
    with pytest.raises(llm.BadOutput, match="length limit") as caught:
        await model.structured(ASK, name="thing", schema=SCHEMA)
    assert caught.value.text == '{"a": [1, 2' and caught.value.usage == llm.Usage(7, 5)
    assert caught.value.text not in str(caught.value)


# ── Embeddings and configuration ────────────────────────────────────────────────────────────────────────


async def test_embeddings_come_in_order_and_in_batches(provider: Provider) -> None:
    embeddings = llm.embedding_model(provider.settings("vectors"))
    texts = ["x" * size for size in range(150)]
    found = await embeddings.embed(texts)
    assert [vector[0] for vector in found] == [1.0, *(float(size) for size in range(1, 150))]
    assert [len(call.body["input"]) for call in provider.calls] == [64, 64, 22]
    assert embeddings.name == "openai/vectors"
    assert await embeddings.embed([]) == []
    await llm.aclose()


@pytest.mark.parametrize("configured", [{}, {"model": ""}, {"model": "openai/"}])
def test_without_a_name_there_is_no_model(configured: dict[str, str]) -> None:
    with pytest.raises(llm.ModelNotConfigured, match="ADIUVA_MODEL"):
        llm.chat_model(configured)


@pytest.mark.parametrize("configured", [{}, {"model": ""}, {"model": "lexical"}])
async def test_without_a_configured_name_embeddings_are_lexical_and_send_no_request(
    configured: dict[str, str],
) -> None:
    model = llm.embedding_model(configured)
    assert (model.name, model.provider) == ("lexical", "")
    one, other = await model.embed(["the invoices of Anna", "Anna's invoice"])
    assert sum(a * b for a, b in zip(one, other, strict=True)) > 0.3


@pytest.mark.parametrize(
    ("name", "base", "provider"),
    [
        ("openai/gpt-5", "", "openai"),
        ("openai/anything", "http://127.0.0.1:9/v1", "127.0.0.1"),
        ("anthropic/claude", "", "anthropic"),
        ("anthropic/claude", "https://gateway.example/v1", "gateway.example"),
    ],
)
def test_a_model_names_the_provider_that_reads_its_requests(name: str, base: str, provider: str) -> None:
    configured = {"model": name, "api_base": base}
    assert llm.chat_model(configured).provider == llm.embedding_model(configured).provider == provider


@pytest.mark.parametrize(
    "base", ["ftp://x/v1", "not an address", "http://name:secret@host/v1", "http://[bad"]
)
def test_an_unusable_address_is_refused_without_repeating_it(base: str) -> None:
    with pytest.raises(llm.ModelNotConfigured) as caught:
        llm.chat_model({"model": "openai/x", "api_base": base})
    assert base not in str(caught.value)


def test_a_key_that_would_end_its_header_is_refused_without_repeating_it() -> None:
    with pytest.raises(llm.ModelNotConfigured) as caught:
        llm.chat_model(
            {"model": "openai/x", "api_base": "http://host/v1", "api_key": "secret\r\nX-More: yes"}
        )
    assert "secret" not in str(caught.value)


async def test_the_query_of_an_address_is_kept(provider: Provider) -> None:
    seen: list[str] = []

    def answer(request: Request) -> str:
        seen.append(request.path)
        return "ok"

    provider.script(answer)
    base = f"{provider.url}/?api-version=1"
    await llm.chat_model({"model": "openai/x", "api_base": base}).complete(ASK)
    assert seen == ["/v1/chat/completions?api-version=1"]
    await llm.aclose()
