"""The model client against real servers. Skipped unless the environment names their programs:

- TEST_LLAMA_SERVER: llama.cpp's `llama-server`; TEST_LLAMA_MODEL: a GGUF file of a small chat model.
- TEST_LITELLM: the `litellm` program of an installation of `litellm[proxy]`.

What models say is not judged here (`make eval` does that), only that the servers and the client understand each other.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from adiuva import llm
from adiuva.embedded.ports import free_port
from adiuva.llm import transport
from adiuva.llm.errors import ModelContextExceeded
from tests.fakes.provider import Call, Fail, Provider, Raw, Request, Say
from tests.llm.learnt import forget_all

LLAMA = os.environ.get("TEST_LLAMA_SERVER", ""), os.environ.get("TEST_LLAMA_MODEL", "")
LITELLM = os.environ.get("TEST_LITELLM", "")
needs_llama = pytest.mark.skipif(
    not all(LLAMA), reason="TEST_LLAMA_SERVER and TEST_LLAMA_MODEL name no server"
)
needs_litellm = pytest.mark.skipif(not LITELLM, reason="TEST_LITELLM names no program")
KEY = "sk-a-key-of-the-tests"
WINDOW = 2_048
START_S = 180
ASK: list[llm.Message] = [
    {"role": "system", "content": "You are a helpful assistant. " + "Answer briefly and kindly. " * 20},
    {"role": "user", "content": "Say hello to Ada."},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "create_task",
            "description": "Create a task.",
            "parameters": {
                "type": "object",
                "properties": {"title": {"type": "string"}},
                "required": ["title"],
            },
        },
    }
]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"records": {"type": "array", "maxItems": 2, "items": {"type": "integer"}}},
    "required": ["records"],
    "additionalProperties": False,
}


@pytest.fixture(autouse=True)
def unlearnt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "FIRST_BACKOFF_S", 0.01)
    forget_all()


@contextmanager
def server(command: list[str], log: Path, is_up: Callable[[], bool], **env: str) -> Iterator[None]:
    with log.open("wb") as out:
        # Not the databases of the tests, which the proxy would use as its own.
        own = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        process = subprocess.Popen(command, stdout=out, stderr=out, env=own | env)
    try:
        until = time.monotonic() + START_S
        while not is_up():
            if process.poll() is not None or time.monotonic() > until:
                raise AssertionError(
                    f"{command[0]} did not start: {log.read_text(errors='replace')[-2_000:]}"
                )
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


async def everything(model: llm.ChatModel, messages: list[llm.Message], **more: Any) -> list[llm.Delta]:
    return [delta async for deltas in model.stream(messages, max_tokens=40, **more) for delta in deltas]


def text_of(deltas: list[llm.Delta]) -> str:
    return "".join(delta.text for delta in deltas if isinstance(delta, llm.Text))


def usage_of(deltas: list[llm.Delta]) -> llm.Usage:
    assert isinstance(deltas[-1], llm.Finish)
    return deltas[-1].usage


# ── llama.cpp ───────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def llama_server(folder: Path, *options: str) -> Iterator[str]:
    port = free_port()
    program, model = LLAMA
    command = [program, "-m", model, "--host", "127.0.0.1", "--port", str(port), "--api-key", KEY]
    command += ["-c", str(WINDOW), "-np", "1", "-t", "2", *options]
    with server(command, folder / "log", lambda: answers(f"http://127.0.0.1:{port}/health")):
        yield f"http://127.0.0.1:{port}/v1"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with llama_server(tmp_path_factory.mktemp("llama"), "--jinja") as url:
        yield url


@pytest.fixture
async def local(llama: str) -> AsyncIterator[llm.ChatModel]:
    yield llm.chat_model({"model": "openai/local", "api_base": llama, "api_key": KEY})
    await llm.aclose()


@needs_llama
async def test_llama_cpp_streams_tells_its_usage_and_keeps_the_prefix(local: llm.ChatModel) -> None:
    first = await everything(local, ASK)
    assert text_of(first).strip()
    assert usage_of(first).input_tokens > 50
    again = await everything(local, [ASK[0], {"role": "user", "content": "Say good night to Ada."}])
    assert usage_of(again).cached_tokens > 50


@needs_llama
async def test_llama_cpp_keeps_to_a_schema(local: llm.ChatModel) -> None:
    reply = await local.structured(ASK, name="records", schema=SCHEMA, max_tokens=200)
    jsonschema.validate(reply.value, SCHEMA)


@needs_llama
async def test_llama_cpp_takes_tools_whatever_the_template_says(local: llm.ChatModel) -> None:
    deltas = await everything(local, ASK, tools=TOOLS)
    assert isinstance(deltas[-1], llm.Finish)
    called: list[llm.Message] = [
        *ASK,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [llm.ToolCall("c1", "create_task", '{"title": "a"}').wire()],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "Created."},
    ]
    assert isinstance((await everything(local, called, tools=TOOLS))[-1], llm.Finish)


@needs_llama
async def test_llama_cpp_says_what_is_wrong_in_words_that_help(local: llm.ChatModel, llama: str) -> None:
    stranger = llm.chat_model({"model": "openai/local", "api_base": llama, "api_key": "wrong"})
    with pytest.raises(llm.ModelRejected, match="ADIUVA_MODEL_API_KEY"):
        await everything(stranger, ASK)
    with pytest.raises(ModelContextExceeded) as caught:
        await everything(local, [{"role": "user", "content": "word " * 2 * WINDOW}])
    assert caught.value.window == WINDOW


@needs_llama
async def test_llama_cpp_without_templates_answers_without_tools(tmp_path: Path) -> None:
    with llama_server(tmp_path, "--no-jinja") as url:
        model = llm.chat_model({"model": "openai/local", "api_base": url, "api_key": KEY})
        deltas = await everything(model, ASK, tools=TOOLS)
        assert text_of(deltas).strip()
        assert isinstance(deltas[-1], llm.Finish) and deltas[-1].lacks_tools
        await llm.aclose()


# ── LiteLLM's proxy, with fake providers behind it ──────────────────────────────────────────────────────


class Anthropic:
    """Answers of Anthropic's API: a text, or a call of the first tool, streamed where that is asked for."""

    def __call__(self, request: Request) -> Raw:
        tools = request.body.get("tools") or []
        asked = request.body["messages"][-1]["content"]
        answered = isinstance(asked, list) and any(part.get("type") == "tool_result" for part in asked)
        block: dict[str, Any] = {"type": "text", "text": "Hello, Ada."}
        if tools and not answered:
            block = {
                "type": "tool_use",
                "id": "toolu_1",
                "name": tools[0]["name"],
                "input": {"title": "Call Bob"},
            }
        stop = "tool_use" if block["type"] == "tool_use" else "end_turn"
        message = {
            "id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "content": [block],
            "stop_reason": stop, "stop_sequence": None, "usage": {"input_tokens": 7, "output_tokens": 5},
        }  # fmt: skip
        if not request.body.get("stream"):
            return Raw(json.dumps(message).encode())
        is_text = block["type"] == "text"
        delta = (
            {"type": "text_delta", "text": block["text"]}
            if is_text
            else {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        )
        events = [
            {"type": "message_start", "message": message | {"content": [], "stop_reason": None}},
            {
                "type": "content_block_start",
                "index": 0,
                "content_block": {"type": "text", "text": ""} if is_text else block | {"input": {}},
            },
            {"type": "content_block_delta", "index": 0, "delta": delta},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": stop}, "usage": {"output_tokens": 5}},
            {"type": "message_stop"},
        ]
        body = "".join(f"event: {each['type']}\ndata: {json.dumps(each)}\n\n" for each in events)
        return Raw(body.encode(), content_type="text/event-stream")


@pytest.fixture(scope="module")
def upstream() -> Iterator[Provider]:
    with Provider() as running:
        yield running


@pytest.fixture(scope="module")
def proxy(upstream: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port, folder = free_port(), tmp_path_factory.mktemp("litellm")
    base = upstream.url.removesuffix("/v1")
    models = {
        "plain": {"model": "openai/scripted", "api_base": upstream.url, "api_key": "k"},
        "claude": {"model": "anthropic/claude-sonnet-4-5", "api_base": base, "api_key": "k"},
        "vectors": {"model": "openai/scripted-embedding", "api_base": upstream.url, "api_key": "k"},
    }
    config = {
        "model_list": [{"model_name": name, "litellm_params": given} for name, given in models.items()],
        "litellm_settings": {"num_retries": 0, "telemetry": False, "drop_params": True},
        "router_settings": {"num_retries": 0, "allowed_fails": 1_000, "disable_cooldowns": True},
        "general_settings": {"master_key": KEY},
    }
    (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    command = [LITELLM, "--config", str(folder / "config.yaml"), "--host", "127.0.0.1", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_DOCS": "True"}
    with server(command, folder / "log", lambda: answers(f"{url}/health/liveliness"), **env):
        yield f"{url}/v1"


@pytest.fixture
async def behind(proxy: str, upstream: Provider) -> AsyncIterator[Callable[[str], llm.ChatModel]]:
    upstream.reset()
    yield lambda name, key=KEY: llm.chat_model(  # type: ignore[misc]
        {"model": f"openai/{name}", "api_base": proxy, "api_key": key}
    )
    await llm.aclose()


@needs_litellm
@pytest.mark.parametrize("name", ["plain", "claude"])
async def test_the_proxy_streams_text_and_calls(behind: Any, upstream: Provider, name: str) -> None:
    if name == "claude":
        upstream.default = Anthropic()
    else:
        upstream.script(Call("create_task", {"title": "Call Bob"}), "Hello, Ada.")
    deltas = await everything(behind(name), ASK, tools=TOOLS)
    calls = [delta for delta in deltas if isinstance(delta, llm.ToolCall)]
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [
        ("create_task", {"title": "Call Bob"})
    ]
    told: list[llm.Message] = [
        *ASK,
        {"role": "assistant", "content": "", "tool_calls": [calls[0].wire()]},
        {"role": "tool", "tool_call_id": calls[0].id, "content": "Created."},
    ]
    deltas = await everything(behind(name), told, tools=TOOLS)
    assert (text_of(deltas), usage_of(deltas)) == ("Hello, Ada.", llm.Usage(7, 5))


@needs_litellm
async def test_the_proxy_hands_on_schemas_and_vectors(behind: Any, proxy: str, upstream: Provider) -> None:
    upstream.script({"records": [1]})
    reply = await behind("plain").structured(ASK, name="records", schema=SCHEMA)
    assert reply.value == {"records": [1]}
    assert upstream.chats[-1].schema == "records"
    vectors = llm.embedding_model({"model": "openai/vectors", "api_base": proxy, "api_key": KEY})
    assert await vectors.embed(["a", "bb"]) == [upstream.vector("a"), upstream.vector("bb")]


@needs_litellm
async def test_the_proxys_refusals_are_told_in_words_that_help(behind: Any, upstream: Provider) -> None:
    with pytest.raises(llm.ModelRejected, match="ADIUVA_MODEL_API_KEY"):
        await behind("plain", "sk-wrong").complete(ASK)
    with pytest.raises(llm.ModelRejected, match=r"no such model .*ADIUVA_MODEL"):
        await behind("nobody").complete(ASK)
    assert upstream.chats == []
    upstream.default = Fail(429, message="slow down")
    with pytest.raises(llm.ModelRateLimited):
        await behind("plain").complete(ASK)
    upstream.default = Fail(
        400, "context_length_exceeded", "This model's maximum context length is 4096 tokens."
    )
    with pytest.raises(ModelContextExceeded):
        await behind("plain").complete(ASK)
    upstream.default = Say("ok")
    assert (await behind("plain").complete(ASK)).text == "ok"
