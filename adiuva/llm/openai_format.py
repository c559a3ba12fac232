"""Tolerant parser of the OpenAI wire format: server-sent events, streamed chunks, whole answers.

This is the hot path of every chat: splitting off, parsing and merging a chunk takes a few microseconds.
"""

from __future__ import annotations

import json
import uuid
from typing import Any, Final

import orjson

from adiuva.llm import errors
from adiuva.llm.types import Delta, Finish, Reply, Text, ToolCall, Usage

MAX_EVENT_BYTES = 4 * 1024 * 1024
DONE = b"[DONE]"


def loads(raw: bytes | str) -> Any:
    """Parse JSON, also with lone surrogates: some providers split an escaped pair. Raises ValueError."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        try:
            text = raw if isinstance(raw, str) else raw.decode("utf-8", "replace")
            return replace_lone_surrogates(json.loads(text, parse_constant=lambda _: None))
        except RecursionError:
            raise ValueError("nested too deeply") from None


def replace_lone_surrogates(value: Any) -> Any:
    """Return the JSON value with lone surrogates replaced, so that it can be stored and sent on."""
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError:
        return json.loads(text.encode("utf-8", "replace"))
    return value


class EventStreamParser:
    """Parser that turns the bytes of an event stream into the data of its events, however the bytes are split.

    It follows https://html.spec.whatwg.org/multipage/server-sent-events.html, except that a lone CR does not end a
    line.
    """

    def __init__(self) -> None:
        # The start of a line, and the data of an event, whose ends have not arrived yet.
        self._rest: list[bytes] = []
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> list[bytes]:
        if (
            piece[:5] == b"data:"
            and piece[-2:] == b"\n\n"
            and not (self._rest or self._data)
            and len(piece) <= MAX_EVENT_BYTES
        ):
            events = piece[:-2].split(b"\n\n")  # whole events of one line each, as nearly always
            if piece.count(b"\n") == 2 * len(events) and all(event[:5] == b"data:" for event in events):
                return [event[5:].strip() for event in events]
        end = piece.rfind(b"\n")
        if end < 0:
            self._rest.append(piece)
            self._check_size(len(piece))
            return []
        head = piece[:end]
        if self._rest:
            self._rest.append(head)
            head = b"".join(self._rest)
        self._rest = [piece[end + 1 :]] if end + 1 < len(piece) else []
        self._size = len(piece) - end - 1
        return self._lines(head)

    def close(self) -> list[bytes]:
        """End the stream; return the data of its last event, which may be incomplete."""
        found = self._lines(b"".join(self._rest) + b"\n")
        self._rest = []
        return found

    def _lines(self, block: bytes) -> list[bytes]:
        found: list[bytes] = []
        data = self._data
        for line in block.split(b"\n"):
            if line[:5] == b"data:":
                data.append(line[5:].strip())
            elif data and (not line or line == b"\r"):
                found.append(data[0] if len(data) == 1 else b"\n".join(data))
                data.clear()
            # Comments, `event:`, `id:` and `retry:` are not needed.
        if data:
            self._check_size(sum(map(len, data)))
        return found

    def _check_size(self, more: int) -> None:
        self._size += more
        if self._size > MAX_EVENT_BYTES:
            raise errors.ModelGarbled("the model's stream holds an endless event")


# A later finish reason does not override these: some providers send a second, milder reason.
_FINAL_REASONS: Final = frozenset({"content_filter", "length"})


class _PartialToolCall:
    __slots__ = ("arguments", "id", "name")

    def __init__(self) -> None:
        self.id, self.name, self.arguments = "", "", ""

    @property
    def is_complete(self) -> bool:
        try:
            orjson.loads(self.arguments)
        except orjson.JSONDecodeError:
            return False
        return True


class DeltaAssembler:
    """Assembler that turns the data of events into deltas: text at once, tool calls and the finish at the end.

    A refusal that comes as a text of its own (`delta.refusal`) is no answer: the finish is then "content_filter".
    """

    def __init__(self) -> None:
        self.done = False  # True once [DONE] has arrived
        self.reason = ""
        self._usage = Usage()
        self._calls: list[_PartialToolCall] = []
        self._by_index: dict[Any, _PartialToolCall] = {}

    def feed(self, events: list[bytes]) -> list[Delta]:
        """Return the text in these events as one delta. Raises the error that an error object among them describes."""
        text = self.text_of(events)
        return [Text(text)] if text else []

    def feed_chunks(self, chunks: list[Any]) -> list[Delta]:
        """Return the text in parsed chunks as one delta."""
        text = self._text_of_chunks(chunks)
        return [Text(text)] if text else []

    def text_of(self, events: list[bytes]) -> str:
        """Return the text in parsed chunks, "" without any."""
        chunks: list[Any] = []
        for data in events:
            if data == DONE:
                self.done = True
                break
            try:
                chunks.append(orjson.loads(data))
            except orjson.JSONDecodeError:
                chunks.append(_parse_chunk(data))
        return self._text_of_chunks(chunks)

    def _text_of_chunks(self, chunks: list[Any]) -> str:
        texts: list[str] = []
        try:
            for chunk in chunks:
                choices = chunk.get("choices")
                if choices:
                    choice = choices[0]
                    delta = choice.get("delta")
                    if delta:
                        text = delta.get("content")
                        if text:
                            texts.append(text if type(text) is str else _text_of_parts(text))
                        if calls := delta.get("tool_calls"):
                            # Text Generation Inference sends a single call in place of a list.
                            self._take_calls([calls] if isinstance(calls, dict) else calls)
                        elif call := delta.get("function_call"):  # the form before tools
                            self._take_calls([{"function": call}])
                        if delta.get("refusal"):
                            self.reason = "content_filter"
                    if choice.get("finish_reason") and self.reason not in _FINAL_REASONS:
                        self.reason = str(choice["finish_reason"])
                if chunk.get("usage"):
                    self._usage = parse_usage(chunk["usage"])
                if chunk.get("error"):
                    raise errors.from_error_object(chunk["error"])
            return "".join(texts)
        except (AttributeError, TypeError, LookupError):
            raise errors.ModelGarbled("the model's stream holds a chunk of an unknown shape") from None

    def finish(self) -> list[Delta]:
        """Return the tool calls and the finish. Raises ModelInterrupted if the stream broke off."""
        if not self.reason and not self.done:
            raise errors.ModelInterrupted("the model's answer broke off")
        named = [call for call in self._calls if call.name or call.arguments]
        calls = [make_tool_call(call.id, call.name, call.arguments) for call in named]
        reason = self.reason or ("tool_calls" if calls else "stop")
        return [*calls, Finish(reason, self._usage)]

    def _take_calls(self, pieces: list[Any]) -> None:
        for place, piece in enumerate(pieces):
            if not isinstance(piece, dict):
                continue
            index = piece.get("index")
            function = piece.get("function") or {}
            call_id, name = str(piece.get("id") or ""), str(function.get("name") or "")
            # Without an index, several pieces belong to the calls in order, and a single one to the last call.
            if index is None and len(pieces) == 1 and self._calls:
                call: _PartialToolCall | None = self._calls[-1]
            else:
                call = self._by_index.get(index := place if index is None else index)
            if call is None or _begins_another(call, call_id, name):
                call = _PartialToolCall()
                self._calls.append(call)
                self._by_index[index] = call
            call.id = call.id or call_id
            call.name = call.name or name
            call.arguments += _arguments(function.get("arguments"))


def _begins_another(call: _PartialToolCall, call_id: str, name: str) -> bool:
    """Return whether a piece at the place of `call` begins another call.

    Providers give all calls the index 0, or none; others give each piece of one call a new id. So only a piece with a
    name begins a call, and not if it repeats the name of a call that is not complete yet.
    """
    if not name or not call.name or (call_id and call_id == call.id):
        return False
    return name != call.name or call.is_complete


def parse_completion(body: Any) -> Reply:
    """Parse a whole chat completion. Raises ModelGarbled if it is none, or the error that it describes."""
    if isinstance(body, dict) and body.get("error"):
        raise errors.from_error_object(body["error"])
    try:
        choice = body["choices"][0]
        message = choice["message"]
        calls = tuple(
            make_tool_call(
                str(call.get("id") or ""),
                str(call["function"].get("name") or ""),
                _arguments(call["function"].get("arguments")),
            )
            for call in message.get("tool_calls") or ()
        )
        text, refusal = _content(message.get("content")), str(message.get("refusal") or "")
        reason = str(choice.get("finish_reason") or ("tool_calls" if calls else "stop"))
        if refusal and not text:
            text, reason = refusal, "content_filter"
        return Reply(text, calls, reason, parse_usage(body.get("usage")))
    except (AttributeError, TypeError, LookupError):
        raise errors.ModelGarbled("the model's answer is no chat completion") from None


def embedding_tokens(body: Any) -> int:
    """Return the tokens that an embeddings answer counts; 0 if it counts none."""
    return parse_usage(body.get("usage")).input_tokens if isinstance(body, dict) else 0


def parse_embeddings(body: Any, count: int) -> list[list[float]]:
    """Return the vectors of an embeddings answer in the order of the texts, all of the same length."""
    if isinstance(body, dict) and body.get("error"):
        raise errors.from_error_object(body["error"])
    try:
        rows = {row.get("index", place): row["embedding"] for place, row in enumerate(body["data"])}
        found = [[float(x) for x in rows[place]] for place in range(count)]
    except (AttributeError, TypeError, ValueError, LookupError):
        found = []
    if len(found) != count or len({len(vector) for vector in found}) > 1 or not all(found):
        raise errors.ModelGarbled("the embedding model's answer does not fit the question")
    return found


def parse_usage(body: Any) -> Usage:
    if not isinstance(body, dict):
        return Usage()
    details = body.get("prompt_tokens_details")
    return Usage(
        _count(body.get("prompt_tokens")),
        _count(body.get("completion_tokens")),
        _count(details.get("cached_tokens")) if isinstance(details, dict) else 0,
        _count(body.get("cache_creation_input_tokens")),  # LiteLLM's name for Anthropic's count
    )


def make_tool_call(call_id: str, name: str, arguments: str) -> ToolCall:
    if not name:
        raise errors.ModelGarbled("the model called a tool without naming it")
    return ToolCall(call_id or f"call_{uuid.uuid4().hex}", name, arguments or "{}")


def _parse_chunk(data: bytes) -> Any:
    try:
        return loads(data)
    except ValueError:
        raise errors.ModelGarbled("the model's stream holds a chunk that is no JSON") from None


def _content(content: Any) -> str:
    if isinstance(content, list):
        return _text_of_parts(content)
    return content if isinstance(content, str) else ""


def _text_of_parts(parts: Any) -> str:
    """Return the text of a content in parts, without thoughts and references. TypeError if it has no parts."""
    if not isinstance(parts, list):
        raise TypeError("content is a text or a list")
    return "".join(
        part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)
    )


def _arguments(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
