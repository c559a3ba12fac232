"""LiteLLM: never imported for `openai/…`, and behind the same interface for every other name.

In processes of their own: what a process has imported cannot be asked once another test has imported more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from tests.fakes.provider import Break, Call, Endless, Fail, Provider, Raw, Say

OPENAI = """
import asyncio, sys
from adiuva import llm

async def main():
    model = llm.chat_model()
    async for deltas in model.stream([{"role": "user", "content": "hello"}]):
        pass
    await model.complete([{"role": "user", "content": "hello"}])
    await llm.aclose()
    assert deltas[-1].reason == "stop"

asyncio.run(main())
heavy = [name for name in ("litellm", "langchain", "langchain_core", "openai") if name in sys.modules]
assert not heavy, heavy
"""

OTHERS = """
import asyncio, json
from django.conf import settings
from adiuva import llm
from adiuva.llm import transport

transport.FIRST_BACKOFF_S = 0.01
ASK = [{"role": "user", "content": "a secret question"}]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
found = {}

async def failure(name, work):
    try:
        await work
        found[name] = "no error"
    except llm.ModelError as error:
        found[name] = [type(error).__name__, str(error)]

async def drain(stream):
    return [delta async for deltas in stream for delta in deltas]

async def main():
    model = llm.chat_model()
    deltas = await drain(model.stream(ASK, tools=TOOLS))
    found["text"] = "".join(delta.text for delta in deltas if isinstance(delta, llm.Text))
    found["calls"] = [[d.name, json.loads(d.arguments)] for d in deltas if isinstance(d, llm.ToolCall)]
    found["finish"] = [deltas[-1].reason, deltas[-1].usage.input_tokens]
    found["complete"] = (await model.complete(ASK, max_tokens=9)).text
    found["structured"] = (await model.structured(ASK, name="thing", schema={"type": "object"})).value
    found["retried"] = (await model.complete(ASK)).text
    await failure("rejected", model.complete(ASK))
    await failure("broken", model.complete(ASK))
    stream = model.stream(ASK)
    await anext(stream)
    await stream.aclose()
    await llm.aclose()

async def ask_anthropic():
    settings.MODEL_EXTRAS = {"top_k": 5}
    base = settings.MODEL["api_base"].removesuffix("/v1")
    model = llm.chat_model({"model": "anthropic/claude-sonnet-4-5", "api_base": base, "api_key": "a-key-of-the-tests"})
    asked = [{"role": "system", "content": "Be brief."}, *ASK]
    deltas = await drain(model.stream(asked, tools=TOOLS, max_tokens=77, temperature=0.3))
    reply = await model.complete(asked, max_tokens=9, temperature=0.0)
    found["anthropic"] = [reply.text, await model.find_window()]
    found["cached"] = [[one.input_tokens, one.cached_tokens] for one in (deltas[-1].usage, reply.usage)]

async def again():
    await ask_anthropic()
    found["another loop"] = (await llm.chat_model().complete(ASK)).text
    found["vectors"] = await llm.embedding_model().embed(["a", "bb"])
    await llm.aclose()

asyncio.run(main())
asyncio.run(again())
print(json.dumps(found))
"""


ANTHROPIC: dict[str, Any] = {
    "id": "m",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-4-5",
    "content": [{"type": "text", "text": "Hi"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {
        "input_tokens": 3,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 1200,
        "output_tokens": 2,
    },
}


def anthropic_stream() -> Raw:
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**ANTHROPIC, "content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    ]
    body = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
    return Raw(body.encode(), content_type="text/event-stream")


def run(code: str, provider: Provider, name: str) -> str:
    """What a process of its own prints, with a model of this name at the provider."""
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "adiuva.settings",
        "ADIUVA_LOG_LEVEL": "INFO",
        **{f"ADIUVA_{kind}": name for kind in ("MODEL", "EMBEDDING_MODEL")},
        **{f"ADIUVA_{kind}_API_BASE": provider.url for kind in ("MODEL", "EMBEDDING_MODEL")},
        **{f"ADIUVA_{kind}_API_KEY": "a-key-of-the-tests" for kind in ("MODEL", "EMBEDDING_MODEL")},
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "secret" not in done.stdout + done.stderr and "a-key-of" not in done.stdout + done.stderr
    return done.stdout


def test_a_chat_through_an_openai_name_never_imports_litellm() -> None:
    with Provider() as provider:
        run(OPENAI, provider, "openai/scripted")
        assert len(provider.calls) == 2


def test_another_providers_model_is_asked_through_litellm() -> None:
    with Provider() as provider:
        provider.script(
            Say("Let me look. ", pieces=["-"] * 150, calls=[Call("look", {"at": "ü"})]),
            "whole",
            'Here: {"a": 1}',
            Fail(503),
            "after a retry",
            Fail(400, code="bad", message="a secret question"),
            Break("start"),
            Break("start"),
            Break("start"),
            Endless(),
            anthropic_stream(),
            Raw(json.dumps(ANTHROPIC).encode()),
        )
        found: dict[str, Any] = json.loads(run(OTHERS, provider, "hosted_vllm/scripted").splitlines()[-1])
        closed = provider.chats[-2].gone.wait(60)
        streamed, whole = (call.body for call in provider.calls if call.path == "/v1/messages")

    assert found["text"] == "-" * 150
    assert found["calls"] == [["look", {"at": "ü"}]]
    assert found["finish"] == ["tool_calls", 7]
    assert found["complete"] == "whole"
    assert found["structured"] == {"a": 1}
    assert found["retried"] == "after a retry"
    assert found["rejected"][0] == "ModelRejected"
    assert found["broken"][0] == "ModelUnavailable"
    assert found["another loop"] == "ok"
    assert found["vectors"] == [provider.vector("a"), provider.vector("bb")]
    assert found["anthropic"] == ["Hi", 200_000]
    assert found["cached"] == [[1_203, 1_200]] * 2
    marked = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    assert streamed["system"] == whole["system"] == marked
    assert [streamed["max_tokens"], streamed["temperature"]] == [77, 0.3]
    assert [whole["max_tokens"], whole["temperature"]] == [9, 0.0]
    assert streamed["top_k"] == whole["top_k"] == 5 and "extra_body" not in streamed | whole
    assert closed  # the endless stream's request, when its reader closed it
