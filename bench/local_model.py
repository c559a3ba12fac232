"""The product's prompts on a real llama.cpp server: `python -m bench.local_model`

TEST_LLAMA_SERVER names llama.cpp's `llama-server`, TEST_LLAMA_MODEL a GGUF file; without them the bench says so and
ends. It says what it ran on, and prints for extraction and for the chat's first call: tokens, how many of them the
server had in its cache, and times. How good the answers are is what `make eval` tells.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import secrets
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adiuva.embedded.ports import free_port
from bench.harness import BenchServers, bench_servers, listens, median, record, show

if TYPE_CHECKING:  # needs Django, which is set up on servers of the bench's own
    from adiuva import llm

PROGRAM: Final = os.environ.get("TEST_LLAMA_SERVER", "")
MODEL: Final = os.environ.get("TEST_LLAMA_MODEL", "")
_DOCUMENTS: Final = 4
_ANSWER_TOKENS: Final = 128
_WINDOW: Final = 8_192
_START_S: Final = 180


def main(servers: BenchServers) -> None:
    from django.conf import settings

    from adiuva import llm

    base, key = _start(servers)
    _say_what_it_is(base, key)
    settings.MODEL = {"model": "openai/local", "api_base": f"{base}/v1", "api_key": key}
    settings.MODEL_TIMEOUT_S = 600.0

    async def measure() -> None:
        await _extract(llm.chat_model())
        await _chat(llm.chat_model())
        await llm.aclose()

    asyncio.run(measure())


def _start(servers: BenchServers) -> tuple[str, str]:
    from adiuva.embedded.processes import Child

    port, key = free_port(), secrets.token_hex(8)
    arguments = ["-m", MODEL, "--host", "127.0.0.1", "--port", str(port), "--api-key", key, "--jinja"]
    arguments += ["-c", str(_WINDOW), "-np", "1", "-t", str(max(1, (os.cpu_count() or 2) // 2))]
    child = Child(
        "llama", [PROGRAM, *arguments], servers.folder / "llama.log", env=os.environ, cwd=servers.folder
    )
    child.start()
    servers.exit_stack.callback(child.stop)
    child.wait_until(lambda: listens(port) and _is_ready(port), within_s=_START_S)
    return f"http://127.0.0.1:{port}", key


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
            return True
    except OSError:
        return False


def _say_what_it_is(base: str, key: str) -> None:
    request = urllib.request.Request(f"{base}/v1/models", headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        about = json.load(answer)["data"][0]["meta"]
    cpu = next(
        (line for line in _lines("/proc/cpuinfo") if line.startswith("model name")), platform.processor()
    )
    print(f"{Path(MODEL).name}: {about['n_params'] / 1e6:.0f} million parameters, {about.get('ftype', '')}")
    print(f"on {os.cpu_count()} cores, {cpu.partition(':')[2].strip()}, load {os.getloadavg()[0]:.1f}")


def _lines(file: str) -> list[str]:
    try:
        return Path(file).read_text().splitlines()
    except OSError:
        return []


async def _extract(model: llm.ChatModel) -> None:
    """Documents one after the other, as a run asks for them: what is the same in all must come from the cache."""
    import jsonschema

    from adiuva.documents import cut_into_parts
    from agents.extraction import Extractor
    from agents.record_validation import RecordRules
    from bench.evaluation.cases import ZONE, load_cases, sample

    rules = RecordRules(("tasks", "timelines", "notes"), {"a": "Keller website"}, ZONE)
    extractor, schema = Extractor(model, "What there is to do.", rules), rules.schema()
    given, cached, seconds, valid = [], [], [], 0
    for document in sample(load_cases().documents, _DOCUMENTS):
        part = cut_into_parts(document.text, most_chars=8_000)[0]
        began = time.monotonic()
        messages = extractor.messages(f"{document.id}.md", part, ())
        reply, usage = await _structured(model, messages, schema)
        seconds.append(time.monotonic() - began)
        given.append(usage.input_tokens)
        cached.append(usage.cached_tokens)
        valid += reply is not None and not list(jsonschema.Draft202012Validator(schema).iter_errors(reply))
    show("extraction: tokens in, of the median document", f"{median(given):,.0f}")
    show("of them cached, after the first document", f"{median(cached[1:]):,.0f}")
    record("extraction of a document", seconds, "s")
    show(f"whole answers within {_ANSWER_TOKENS} tokens that keep to the schema", f"{valid} of {len(given)}")


async def _structured(model: llm.ChatModel, messages: Any, schema: Any) -> tuple[Any, llm.Usage]:
    from adiuva import llm

    try:
        reply = await model.structured(messages, name="records", schema=schema, max_tokens=_ANSWER_TOKENS)
    except llm.BadOutput as error:
        return None, error.usage
    return (None if reply.cut is not None else reply.value), reply.usage


async def _chat(model: llm.ChatModel) -> None:
    """Home's first call, with its prompt and tools, twice: how long until the first word."""
    from adiuva import llm
    from chat.assistants import HOME

    for turn in ("first turn", "second turn"):
        messages: list[llm.Message] = [
            {"role": "system", "content": HOME.prompt.text},
            {"role": "user", "content": f"Hello, this is my {turn}."},
        ]
        began, first, usage = time.monotonic(), 0.0, llm.Usage()
        async for deltas in model.stream(messages, tools=HOME.schemas, max_tokens=_ANSWER_TOKENS):
            first = first or time.monotonic() - began
            for delta in deltas:
                if isinstance(delta, llm.Finish):
                    usage = delta.usage
        show(f"chat, {turn}: tokens in", f"{usage.input_tokens:,}")
        show("of them cached", f"{usage.cached_tokens:,}")
        record(f"chat, {turn}: until the first of it", first, "s")
        took = time.monotonic() - began - first
        show("tokens a second after that", f"{usage.output_tokens / took:.0f}" if took > 0.1 else "–")


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if not PROGRAM or not MODEL:
        print("Skipped: TEST_LLAMA_SERVER and TEST_LLAMA_MODEL name no llama.cpp server and model.")
    else:
        with bench_servers() as started:
            main(started)
