"""A fake model provider: an HTTP server on loopback that speaks the OpenAI API and follows a script.

    with Provider() as provider:                       # runs in a thread; any process may call it
        provider.script("Hello", Fail(429, retry_after=0), Call("list_tasks", {"status": "todo"}))
        model = llm.chat_model(provider.settings())    # or ADIUVA_MODEL_API_BASE=provider.url
        ...
        assert provider.calls[0].body["messages"] == …

Each chat request takes the next step of the script, and the step `provider.default` once the script has ended. A worker
asks on behalf of memory at an unpredictable time: these requests get the step `provider.memory`, and are recorded in
`provider.memories`.
A step is one of:
    "text", Say(…)           an answer, streamed where the request asks for that
    {...} or [...]           an answer that is this value as JSON
    Call(name, arguments)    an answer that calls a tool; Say(calls=[…]) for several
    Fail(status, …)          an error status
    Raw(body, …)             exactly these bytes
    Break(…)                 a connection that breaks off
    Endless()                a stream that never ends
    Hold(step)               waits for `.release()`, then takes the step; `.reached`, `.gone` are events
    a function               gets the Request and returns a step (or an awaitable of one)
"""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from collections import deque
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

WAIT_S = 60.0
# The names of the schemas of requests on behalf of memory, after a turn and for consolidations, which workers start.
MEMORY = frozenset({"memory", "episode", "condensed", "patterns"})
AFTER_TURNS = frozenset({"memory", "episode"})
_NOTHING = {"operations": [], "summary": "", "new": [], "confirmed": [], "contradicted": []}


@dataclass
class Request:
    """A request, and the event `gone`: the caller hung up before it had its answer."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    gone: threading.Event = field(default_factory=threading.Event)

    @property
    def schema(self) -> str:
        """The name of the schema that the answer must fit."""
        wish = self.body.get("response_format") or {}
        return str(wish.get("json_schema", {}).get("name", ""))


@dataclass
class Call:
    name: str
    arguments: Any = field(default_factory=dict)
    id: str = ""


@dataclass
class Say:
    """An answer. `pieces` are its streamed chunks; `split` writes the stream in pieces of so many bytes."""

    text: str = ""
    calls: Sequence[Call] = ()
    pieces: Sequence[str] | None = None
    finish: str | None = ""  # "": stop or tool_calls; None: the finish is left out
    usage: tuple[int, int] | None = (7, 5)
    split: int = 0
    done: bool = True
    newline: str = "\n"
    error: dict[str, Any] | None = None  # an error object in mid-stream, after the text


@dataclass
class Fail:
    status: int = 500
    code: str | None = None
    message: str = "The server had an error"
    param: str | None = None
    retry_after: float | str | None = None


@dataclass
class Raw:
    body: bytes = b""
    status: int = 200
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Break:
    """Reset the connection: before the headers, after them, or after this text was streamed.

    `clean` ends the stream in good order instead, but without a finish. `now`, if given, is waited for.
    """

    at: str = "start"  # start, headers, text
    text: str = "Half an ans"
    clean: bool = False
    now: threading.Event | None = None


@dataclass
class Endless:
    chunk: str = "again and "


@dataclass
class Hold:
    step: Any = "released"
    reached: threading.Event = field(default_factory=threading.Event)
    gone: threading.Event = field(default_factory=threading.Event)
    _open: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        self._open.set()

    async def wait(self) -> None:
        self.reached.set()
        try:
            await _set(self._open)
        except asyncio.CancelledError:
            self.gone.set()
            raise


Step = Any


async def _set(event: threading.Event) -> None:
    while not event.is_set():
        await asyncio.sleep(0.005)


class Provider:
    """`calls` holds all requests so far. `peak` is the largest number of chat requests at the same time.

    Requests with one of the schemas `apart` get the step `memory`, the others follow the script.
    """

    def __init__(self, *steps: Step, default: Step = "ok", apart: Set[str] = MEMORY) -> None:
        self.apart = apart
        self.calls: list[Request] = []
        self.memories: list[Request] = []
        self.memory: Step = _NOTHING
        self.peak = 0
        self.default: Step = default
        self.refuses_response_format = False
        self.dimensions = 8
        self._steps: deque[Step] = deque(steps)
        self._running = 0
        self._thread = threading.Thread(target=self._serve, name="provider", daemon=True)
        self._ready = threading.Event()

    def reset(self) -> None:
        """Forget the script, the counts and the settings, for the next test."""
        self.calls.clear()
        self.memories.clear()
        self.memory = _NOTHING
        self._steps.clear()
        self.peak, self.default, self.refuses_response_format = 0, "ok", False

    def script(self, *steps: Step) -> Provider:
        self._steps.extend(steps)
        return self

    @property
    def chats(self) -> list[Request]:
        return [call for call in self.calls if call.path.endswith("/chat/completions")]

    def story(self) -> str:
        """The requests so far in short, for the report of a test that failed: who took which step?"""
        lines = []
        for call in [*self.calls, *self.memories]:
            asked = (call.body.get("messages") or [{}])[-1].get("content", "")
            lines.append(f"{call.path} {call.schema or '-'} …{str(asked)[-200:]!r}")
        return "\n".join(lines[-50:])

    @property
    def last(self) -> dict[str, Any]:
        """The body of the latest request."""
        return self.calls[-1].body

    def settings(self, name: str = "scripted") -> dict[str, str]:
        """For settings.MODEL, or llm.chat_model()."""
        return {"model": f"openai/{name}", "api_base": self.url, "api_key": "a-key-of-the-tests"}

    def __enter__(self) -> Provider:
        self._thread.start()
        assert self._ready.wait(WAIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(WAIT_S)

    def _serve(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/messages", self._chat)  # Anthropic's, for steps that are Raw
        app.router.add_post("/v1/embeddings", self._embed)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _take(self, http: web.Request) -> Request:
        request = Request(http.path_qs, await http.json(), dict(http.headers))
        (self.memories if request.schema in self.apart else self.calls).append(request)
        return request

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        request = await self._take(http)
        if request.schema in self.apart:
            return await _play(self.memory, request, http)
        self._running += 1
        self.peak = max(self.peak, self._running)
        try:
            if self.refuses_response_format and "response_format" in request.body:
                return _fail(Fail(400, "unsupported", "unknown parameter", param="response_format"))
            step = self._steps.popleft() if self._steps else self.default
            return await _play(step, request, http)
        except (asyncio.CancelledError, ConnectionError):
            request.gone.set()
            raise
        finally:
            self._running -= 1

    async def _embed(self, http: web.Request) -> web.StreamResponse:
        request = await self._take(http)
        texts = request.body["input"]
        rows = [
            {"object": "embedding", "index": place, "embedding": self.vector(text)}
            for place, text in enumerate(texts)
        ]
        # Out of order on purpose: `index` is what counts.
        return web.json_response(
            {"object": "list", "data": rows[::-1], "usage": {"prompt_tokens": len(texts)}}
        )

    def vector(self, text: str) -> list[float]:
        """The embedding of a text, computed from its length and letters: equal texts have equal embeddings."""
        letters = [float(text.count(chr(97 + place))) for place in range(self.dimensions - 1)]
        return [float(len(text)), *letters]


async def _play(step: Step, request: Request, http: web.Request) -> web.StreamResponse:
    if isinstance(step, Hold):
        await step.wait()
        return await _play(step.step, request, http)
    if isinstance(step, Callable):  # type: ignore[arg-type]
        made = step(request)
        return await _play(await made if inspect.isawaitable(made) else made, request, http)
    if isinstance(step, Fail):
        return _fail(step)
    if isinstance(step, Raw):
        return web.Response(
            body=step.body, status=step.status, headers={"Content-Type": step.content_type, **step.headers}
        )
    if isinstance(step, Call):
        step = Say(calls=[step])
    if isinstance(step, str):
        step = Say(step)
    if isinstance(step, dict | list):
        step = Say(json.dumps(step))
    if isinstance(step, Break) and step.at == "start":
        assert http.transport is not None
        http.transport.abort()
        return web.Response()
    if isinstance(step, Say) and not request.body.get("stream"):
        return web.json_response(_completion(step))
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(http)
    if isinstance(step, Endless):
        while True:
            await response.write(_event(_chunk({"content": step.chunk}), "\n") * 100)
    if isinstance(step, Break):
        if step.at == "text":
            await response.write(_event(_chunk({"content": step.text}), "\n"))
        if step.now is not None:
            await _set(step.now)
        if not step.clean:
            assert http.transport is not None
            http.transport.abort()
        return response
    raw = b"".join(stream_events(step))
    if step.split:
        for start in range(0, len(raw), step.split):
            await response.write(raw[start : start + step.split])
    else:
        await response.write(raw)
    return response


def _fail(step: Fail) -> web.Response:
    headers = {} if step.retry_after is None else {"Retry-After": str(step.retry_after)}
    error = {"message": step.message, "type": "error", "code": step.code, "param": step.param}
    return web.json_response({"error": error}, status=step.status, headers=headers)


def _completion(step: Say) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": step.text or None}
    if step.calls:
        message["tool_calls"] = [_call(call, place) for place, call in enumerate(step.calls)]
    return {
        "id": "chatcmpl-test",
        "object": "chat.completion",
        "created": 0,
        "model": "scripted",
        "choices": [{"index": 0, "message": message, "finish_reason": _finish(step)}],
        "usage": _usage(step),
    }


def stream_events(step: Say) -> list[bytes]:
    pieces = step.pieces if step.pieces is not None else [word for word in _words(step.text) if word]
    events = [_chunk({"role": "assistant", "content": ""}), *(_chunk({"content": piece}) for piece in pieces)]
    for place, call in enumerate(step.calls):
        whole = _call(call, place)
        arguments = whole["function"]["arguments"]
        half = len(arguments) // 2
        whole["function"]["arguments"] = arguments[:half]
        events.append(_chunk({"tool_calls": [{"index": place, **whole}]}))
        events.append(_chunk({"tool_calls": [{"index": place, "function": {"arguments": arguments[half:]}}]}))
    if step.error:
        events.append({"error": step.error})
    elif step.finish is not None:
        events.append(_chunk({}, _finish(step)))
        if step.usage:
            events.append({**_chunk({}), "choices": [], "usage": _usage(step)})
    raw = [_event(event, step.newline) for event in events]
    if step.done and step.finish is not None and not step.error:
        raw.append(f"data: [DONE]{step.newline * 2}".encode())
    return raw


def _words(text: str) -> list[str]:
    """The text cut into words that keep their blanks."""
    return [word + " " for word in text.split(" ")[:-1]] + [text.split(" ")[-1]]


def _chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {
        "id": "chatcmpl-test",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": "scripted",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }


def _event(body: dict[str, Any], newline: str) -> bytes:
    return f"data: {json.dumps(body, ensure_ascii=False)}{newline * 2}".encode()


def _call(call: Call, place: int) -> dict[str, Any]:
    arguments = call.arguments if isinstance(call.arguments, str) else json.dumps(call.arguments)
    return {
        "id": call.id or f"call_{place}",
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }


def _finish(step: Say) -> str | None:
    return ("tool_calls" if step.calls else "stop") if step.finish == "" else step.finish


def _usage(step: Say) -> dict[str, int] | None:
    if step.usage is None:
        return None
    given, made = step.usage
    return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}
