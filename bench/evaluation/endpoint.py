"""An HTTP server on loopback between the product and the model's endpoint: it counts what is asked, and may record it.

A recording holds requests by their hash, and the answers; neither headers nor keys. From a recording it answers without
an endpoint. What differs between runs (random marks, ids, the day) is left out of the hash. A request that is not in
the recording gets the answer to one in which the same was said: prompts, tools and what is recalled may differ.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import gzip
import hashlib
import json
import re
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

import aiohttp
import orjson
from aiohttp import web

from bench.evaluation.cases import ZONE

_WAIT_S: Final = 60.0
# Requests to the endpoint may take as long as the product waits for them.
_NO_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=30)
# What differs between two runs of the same cases.
_VARYING: Final = re.compile(
    r"\b(?:(?:data|app)-[0-9a-f]{16}|ref-[0-9a-f]{24}|call_[0-9A-Za-z]+|[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|[0-9a-f]{32})\b"
)
# Parts of prompts that say what is known and not what is asked. What is recalled depends on a user's own random keys.
_BACKGROUND: Final = re.compile(
    r"\[turn …\].*?\[turn ends …\]|\[begin (memory|known|freelancer) …\].*?\[end \1 …\]"
)
_NOT_HASHED: Final = {"model", "user", "prompt_cache_key", "stream_options"}
_KEPT_HEADERS: Final = ("Content-Type", "Retry-After")
_NOT_RECORDED: Final = {401, 403}
NOT_IN_RECORDING: Final = "not_in_recording"


@dataclass
class Use:
    """What one purpose cost: calls, tokens, seconds until the end of the answers, and refusals by status."""

    calls: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    without_usage: int = 0
    seconds: float = 0.0
    failures: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, usage: Mapping[str, Any] | None, seconds: float, status: int) -> None:
        self.calls += 1
        self.seconds += seconds
        if status >= 400:
            self.failures[str(status)] += 1
        elif usage is None:
            self.without_usage += 1
        else:
            self.input_tokens += usage.get("prompt_tokens") or usage.get("input_tokens") or 0
            self.output_tokens += usage.get("completion_tokens") or usage.get("output_tokens") or 0
            self.cached_tokens += (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0

    def break_off(self, seconds: float) -> None:
        self.calls += 1
        self.seconds += seconds
        self.failures["broken off"] += 1


@dataclass(frozen=True)
class RecordedAnswer:
    status: int
    headers: Mapping[str, str]
    body: str


class Recording:
    """Answers by the hash of their request. The same request may have several: they are given in turn."""

    def __init__(self) -> None:
        self._answers: defaultdict[str, deque[RecordedAnswer]] = defaultdict(deque)
        self._by_words: defaultdict[str, deque[RecordedAnswer]] = defaultdict(deque)

    @classmethod
    def read(cls, file: Path) -> Self:
        found = cls()
        with _open(file, "rt") as lines:
            for line in lines:
                row = json.loads(line)
                answer = RecordedAnswer(row["status"], row["headers"], row["body"])
                found.add(row["request"], row["words"], answer)
        return found

    def write(self, file: Path) -> None:
        words = {id(answer): key for key, each in self._by_words.items() for answer in each}
        rows = [
            {"request": key, "words": words[id(answer)], **asdict(answer)}
            for key, each in sorted(self._answers.items())
            for answer in each
        ]
        with _open(file, "wt") as out:
            out.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)

    def add(self, key: str, words: str, answer: RecordedAnswer) -> None:
        self._answers[key].append(answer)
        self._by_words[words].append(answer)

    def take(self, key: str, words: str) -> tuple[RecordedAnswer | None, bool]:
        """The answer to a request, and whether to exactly that one."""
        for found, is_exact in ((self._answers.get(key), True), (self._by_words.get(words), False)):
            if found:
                return (found.popleft() if len(found) > 1 else found[0]), is_exact
        return None, False

    def __len__(self) -> int:
        return sum(map(len, self._answers.values()))


def _open(file: Path, mode: str) -> Any:
    return (
        gzip.open(file, mode, encoding="utf-8") if file.suffix == ".gz" else file.open(mode, encoding="utf-8")
    )


def request_hash(path: str, body: bytes, *, today: dt.date) -> str:
    """Equal for two requests that ask the same, on whatever day and with whatever ids."""
    return _hash([path, _body(body)], today)


def words_hash(path: str, body: bytes, *, today: dt.date) -> str:
    """Equal for two requests in which the same was said, whatever the prompts, the tools and the memory."""
    asked = _body(body)
    said = [
        message for message in asked.get("messages", ()) if message.get("role") not in {"system", "developer"}
    ]
    return _hash(
        [path, purpose_of(path, asked), asked.get("stream"), said, asked.get("input")], today, _BACKGROUND
    )


def _body(body: bytes) -> dict[str, Any]:
    try:
        asked = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {"bytes": body.hex()}
    return {name: value for name, value in asked.items() if name not in _NOT_HASHED}


def _hash(asked: Any, today: dt.date, left_out: re.Pattern[str] | None = None) -> str:
    text = _VARYING.sub("…", json.dumps(asked, sort_keys=True, ensure_ascii=False))
    if left_out is not None:
        text = left_out.sub("", text)
    same = re.sub(rf"(?:\b\w{{3}} )?{today}(?: \d\d:\d\d)?", "today", text)
    return hashlib.sha256(same.encode("utf-8", "surrogatepass")).hexdigest()


def usage_in(body: str, *, streamed: bool) -> dict[str, Any] | None:
    """The usage that an answer of the OpenAI API tells, whole or as a stream."""
    found = None
    for part in _events(body) if streamed else [body]:
        try:
            value = json.loads(part)
        except ValueError:
            continue
        if isinstance(value, dict) and isinstance(value.get("usage"), dict):
            found = value["usage"]
    return found


def _events(body: str) -> Iterator[str]:
    for line in body.splitlines():
        if line.startswith("data:"):
            yield line.removeprefix("data:").strip()


def purpose_of(path: str, body: Any) -> str:
    """What a request is for: the name of its schema, "chat" or "embeddings"."""
    if not path.endswith("/completions"):
        return "embeddings" if "embedding" in path else "other"
    wish = (body or {}).get("response_format") or {}
    name = wish.get("json_schema", {}).get("name")
    return str(name or ("JSON" if wish else "chat"))


class Endpoint:
    """Serves in a thread while it is entered. `url` is what the product is told; `use` what was asked, by purpose.

    Without `upstream` it answers from the recording alone. `missing`: requests that the recording does not hold;
    `by_words`: those that got the answer to another in which the same was said.
    """

    def __init__(self, upstream: str = "", *, recording: Recording | None = None, key: str = "") -> None:
        self.use: defaultdict[str, Use] = defaultdict(Use)
        self.missing = self.by_words = 0
        self.recording = recording
        given = urlsplit(upstream or "http://127.0.0.1/v1")
        self._upstream = f"{given.scheme}://{given.netloc}" if upstream else ""
        self._path, self._key = given.path.rstrip("/"), key
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(_WAIT_S):
            raise TimeoutError("the counting endpoint did not start")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_WAIT_S)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}{self._path}"
        async with aiohttp.ClientSession(timeout=_NO_TIMEOUT, auto_decompress=True) as self._http:
            self._ready.set()
            await self._stop.wait()
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path, body, began = f"/{request.match_info['path']}", await request.read(), time.monotonic()
        try:
            asked = orjson.loads(body) if body else None
        except orjson.JSONDecodeError:
            asked = None
        today = dt.datetime.now(ZONE).date()
        keys = request_hash(path, body, today=today), words_hash(path, body, today=today)
        use = self.use[purpose_of(path, asked if isinstance(asked, dict) else None)]
        if self._upstream:
            try:
                response, answer = await self._forward(request, path, body)
            except (aiohttp.ClientError, ConnectionError, asyncio.CancelledError):
                use.break_off(time.monotonic() - began)
                raise
            if self.recording is not None and answer.status not in _NOT_RECORDED:
                self.recording.add(*keys, answer)
        else:
            response, answer = self._replay(*keys)
        streamed = "event-stream" in answer.headers.get("Content-Type", "")
        use.add(usage_in(answer.body, streamed=streamed), time.monotonic() - began, answer.status)
        return response

    async def _forward(
        self, request: web.Request, path: str, body: bytes
    ) -> tuple[web.StreamResponse, RecordedAnswer]:
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower()
            not in {"host", "content-length", "transfer-encoding", "connection", "accept-encoding"}
        }
        url = self._upstream + path + (f"?{request.query_string}" if request.query_string else "")
        async with self._http.request(request.method, url, data=body or None, headers=headers) as given:
            kept = {name: given.headers[name] for name in _KEPT_HEADERS if name in given.headers}
            response = web.StreamResponse(status=given.status, headers=kept)
            await response.prepare(request)
            pieces: list[bytes] = []
            try:
                async for piece in given.content.iter_any():
                    pieces.append(piece)
                    await response.write(piece)
                await response.write_eof()
            except (ConnectionError, asyncio.CancelledError):
                # Whoever has read the last event may hang up before the stream ends.
                if b"data: [DONE]" not in b"".join(pieces[-2:]):
                    raise
        text = b"".join(pieces).decode("utf-8", "replace")
        return response, RecordedAnswer(
            given.status, kept, text.replace(self._key, "…") if self._key else text
        )

    def _replay(self, key: str, words: str) -> tuple[web.StreamResponse, RecordedAnswer]:
        answer, is_exact = self.recording.take(key, words) if self.recording is not None else (None, False)
        self.by_words += answer is not None and not is_exact
        if answer is None:
            self.missing += 1
            error = {"message": "the recording does not hold this request", "code": NOT_IN_RECORDING}
            answer = RecordedAnswer(404, {"Content-Type": "application/json"}, json.dumps({"error": error}))
        return web.Response(text=answer.body, status=answer.status, headers=dict(answer.headers)), answer
