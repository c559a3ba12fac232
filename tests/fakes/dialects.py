"""Streams of the families of endpoints, as steps of tests.fakes.provider: each speaks its own OpenAI API.

    ollama = DIALECTS["ollama"]
    provider.script(ollama("", [Call("create_task", {"title": "Call Bob"})]), ollama("Created."))

A dialect is a function of an answer's text and tool calls. The forms are those of the servers' own streams.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

from tests.fakes.provider import Call, Raw

Dialect = Callable[[str, Sequence[Call]], Raw]


def _stream(*lines: Any, newline: str = "\n", done: bool = True) -> Raw:
    """Chunks as events; texts as lines of their own, such as comments."""
    said = [line if isinstance(line, str) else f"data: {json.dumps(line)}" for line in lines]
    body = "".join(f"{line}{newline * 2}" for line in [*said, *(["data: [DONE]"] if done else [])])
    return Raw(body.encode(), content_type="text/event-stream; charset=utf-8")


def _chunk(delta: Any, finish: Any = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": "m",
        "choices": [choice],
        **more,
    }


def _call(call: Call, place: int, arguments: Any, **more: Any) -> dict[str, Any]:
    return {
        "index": place,
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
        **more,
    }


def _finish(calls: Sequence[Call]) -> str:
    return "tool_calls" if calls else "stop"


_USAGE: Final = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
NO_CALLS: Final[Sequence[Call]] = ()


def openai(text: str, calls: Sequence[Call] = NO_CALLS) -> Raw:
    """Calls in pieces, the usage in a last chunk without choices."""
    pieces: list[Any] = [_chunk({"role": "assistant", "content": None if calls else ""})]
    pieces += [_chunk({"content": word}) for word in text.split(" ")] if text else []
    for place, call in enumerate(calls):
        said = json.dumps(call.arguments)
        pieces.append(_chunk({"tool_calls": [_call(call, place, "", id=f"call_{place}")]}))
        pieces += [
            _chunk({"tool_calls": [{"index": place, "function": {"arguments": part}}]})
            for part in (said[:3], said[3:])
        ]
    return _stream(*pieces, _chunk({}, _finish(calls)), {**_chunk({}), "choices": [], "usage": _USAGE})


def azure(text: str, calls: Sequence[Call] = NO_CALLS) -> Raw:
    """A first chunk with the filter's results alone, and filter results in every choice."""
    first = {"choices": [], "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": {}}]}
    last = _chunk({}, _finish(calls))
    last["choices"][0]["content_filter_results"] = {"hate": {"filtered": False}}
    made = [
        _call(call, place, json.dumps(call.arguments), id=f"call_{place}") for place, call in enumerate(calls)
    ]
    return _stream(
        first, _chunk({"content": text or None, "tool_calls": made or None, "refusal": None}), last
    )


def ollama(text: str, calls: Sequence[Call] = NO_CALLS) -> Raw:
    """All calls in one chunk with the index 0, the finish "stop" all the same, no usage."""
    made = [
        _call(call, 0, json.dumps(call.arguments), id=f"call_{place}") for place, call in enumerate(calls)
    ]
    delta = {"role": "assistant", "content": text} | ({"tool_calls": made} if made else {})
    return _stream(_chunk(delta), _chunk({"role": "assistant", "content": ""}, "stop"))


def arguments_as_object(text: str, calls: Sequence[Call] = NO_CALLS) -> Raw:
    """Small servers hand on what the model wrote: arguments as an object, no ids, no type."""
    made = [{"function": {"name": call.name, "arguments": call.arguments}} for call in calls]
    return _stream(_chunk({"content": text, "tool_calls": made}, _finish(calls)))


def llama_cpp(text: str, calls: Sequence[Call] = NO_CALLS) -> Raw:
    """A null content first, the first piece of a call with a brace, timings beside the usage."""
    pieces: list[Any] = [_chunk({"role": "assistant", "content": None})]
    pieces += [_chunk({"content": text})] if text else []
    for place, call in enumerate(calls):
        said = json.dumps(call.arguments)
        pieces.append(
            _chunk({"tool_calls": [_call(call, place, said[:1], id="fRnJ0DvqyzTBGDhyYNt8sIbnI9tKZqBS")]})
        )
        pieces.append(_chunk({"tool_calls": [{"index": place, "function": {"arguments": said[1:]}}]}))
    last = {**_chunk({}), "choices": [], "usage": _USAGE, "timings": {"prompt_n": 7, "predicted_ms": 12.5}}
    return _stream(*pieces, _chunk({}, _finish(calls)), last)


def vllm(text: str, calls: Sequence[Call] = NO_CALLS) -> Raw:
    """Reasoning in a field of its own, the usage so far in every chunk."""
    pieces = [
        _chunk({"role": "assistant", "content": ""}, usage=_USAGE),
        _chunk({"reasoning_content": "They want me to act."}, usage=_USAGE),
        _chunk({"content": text or None}, usage=_USAGE),
    ]
    for place, call in enumerate(calls):
        made = _call(call, place, json.dumps(call.arguments), id=f"chatcmpl-tool-{place}")
        pieces.append(_chunk({"tool_calls": [made]}, usage=_USAGE))
    return _stream(*pieces, _chunk({"content": ""}, _finish(calls), usage=_USAGE, stop_reason=None))


def deepseek(text: str, calls: Sequence[Call] = NO_CALLS) -> Raw:
    """Comments while it is busy, a null content beside the reasoning, the usage in the chunk with the finish."""
    pieces = [
        ": keep-alive",
        ": keep-alive",
        _chunk({"role": "assistant", "content": None, "reasoning_content": "Hm."}),
    ]
    pieces += [_chunk({"content": text, "reasoning_content": None})] if text else []
    made = [
        _call(call, place, json.dumps(call.arguments), id=f"call_{place}_")
        for place, call in enumerate(calls)
    ]
    pieces += [_chunk({"tool_calls": [one]}) for one in made]
    return _stream(
        *pieces, _chunk({"content": ""}, _finish(calls), usage=_USAGE | {"prompt_cache_hit_tokens": 3})
    )


def mistral(text: str, calls: Sequence[Call] = NO_CALLS) -> Raw:
    """Content in parts, among them thoughts; the calls in the chunk with the finish; ids of nine letters."""
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "Let me act."}]}
    parts: list[Any] = [thought, *([{"type": "text", "text": text}] if text else [])]
    made = [
        _call(call, place, json.dumps(call.arguments), id="D681PevKs") for place, call in enumerate(calls)
    ]
    last = _chunk(
        {"content": "", "tool_calls": made} if made else {"content": ""}, _finish(calls), usage=_USAGE
    )
    return _stream(_chunk({"role": "assistant", "content": parts}), last)


def gemini(text: str, calls: Sequence[Call] = NO_CALLS) -> Raw:
    """No index, an empty id, the finish "stop", the role in every chunk."""
    made = [
        {
            "extra_content": {"google": {}},
            "function": {"name": one.name, "arguments": json.dumps(one.arguments)},
            "id": "",
        }
        for one in calls
    ]
    delta = (
        {"role": "assistant"} | ({"content": text} if text else {}) | ({"tool_calls": made} if made else {})
    )
    return _stream(_chunk(delta), _chunk({"role": "assistant", "content": ""}, "stop", usage=_USAGE))


def openrouter(text: str, calls: Sequence[Call] = NO_CALLS) -> Raw:
    """A comment that it is busy, reasoning under another name, and choices in the chunk with the usage."""
    made = [
        _call(call, place, json.dumps(call.arguments), id=f"toolu_{place}")
        for place, call in enumerate(calls)
    ]
    delta = {"role": "assistant", "content": text, "reasoning": None}
    finish = _chunk({"content": ""}, _finish(calls), provider="Somebody")
    finish["choices"][0]["native_finish_reason"] = "end_turn"
    return _stream(
        ": OPENROUTER PROCESSING",
        _chunk({"role": "assistant", "content": "", "reasoning": "Think."}),
        _chunk(delta | ({"tool_calls": made} if made else {})),
        finish,
        _chunk({"content": ""}, usage=_USAGE),
    )


def lm_studio(text: str, calls: Sequence[Call] = NO_CALLS) -> Raw:
    """Lines that end with CRLF, no usage, and a stream that ends without [DONE]."""
    made = [_call(call, place, json.dumps(call.arguments), id=str(place)) for place, call in enumerate(calls)]
    delta = {"content": text} if text else {"tool_calls": made}
    return _stream("event: message", _chunk(delta), _chunk({}, _finish(calls)), newline="\r\n", done=False)


def odd_finish(text: str, calls: Sequence[Call] = NO_CALLS) -> Raw:
    """A finish of the server's own, and numbers of tokens that are no numbers."""
    made = [
        _call(call, place, json.dumps(call.arguments), id=f"c{place}") for place, call in enumerate(calls)
    ]
    usage = {"prompt_tokens": None, "completion_tokens": "5", "total_tokens": -1}
    return _stream(_chunk({"content": text, "tool_calls": made}), _chunk({}, "eos_token", usage=usage))


def no_finish(text: str, calls: Sequence[Call] = NO_CALLS) -> Raw:
    """Nothing says why it ended but [DONE]."""
    made = [
        _call(call, place, json.dumps(call.arguments), id=f"c{place}") for place, call in enumerate(calls)
    ]
    return _stream(_chunk({"content": text, "tool_calls": made}), _chunk({}, ""))


def text_generation_inference(text: str, calls: Sequence[Call] = NO_CALLS) -> Raw:
    """A call that is no list, in pieces."""
    pieces = [_chunk({"role": "assistant", "content": text})] if text else []
    for call in calls:
        said = json.dumps(call.arguments)
        pieces += [
            _chunk({"role": "assistant", "tool_calls": _call(call, 0, part, id="")})
            for part in (said[:5], said[5:])
        ]
    return _stream(*pieces, _chunk({}, "eos_token"))


def function_call(text: str, calls: Sequence[Call] = NO_CALLS) -> Raw:
    """The form before tools: one function call, in pieces."""
    pieces = [_chunk({"role": "assistant", "content": text or None})]
    for call in calls:
        said = json.dumps(call.arguments)
        pieces.append(_chunk({"function_call": {"name": call.name, "arguments": ""}}))
        pieces += [_chunk({"function_call": {"arguments": part}}) for part in (said[:4], said[4:])]
    return _stream(*pieces, _chunk({}, "function_call" if calls else "stop"))


# These call tools.
DIALECTS: Final[dict[str, Dialect]] = {
    made.__name__: made
    for made in (
        openai, azure, ollama, arguments_as_object, llama_cpp, vllm, deepseek, mistral, gemini, openrouter,
        lm_studio, odd_finish, no_finish, text_generation_inference, function_call,
    )
}  # fmt: skip

# How models write a call where their server does not know their template.
CALLS_AS_TEXT: Final[dict[str, Callable[[Call], str]]] = {
    "bare JSON": lambda call: json.dumps({"name": call.name, "arguments": call.arguments}),
    "fenced": lambda call: f"```json\n{json.dumps({'name': call.name, 'arguments': call.arguments})}\n```",
    "Hermes, Qwen": lambda call: (
        f"<tool_call>\n{json.dumps({'name': call.name, 'arguments': call.arguments})}\n</tool_call>"
    ),
    "Llama 3": lambda call: f"<|python_tag|>{json.dumps({'name': call.name, 'parameters': call.arguments})}",
    "Mistral": lambda call: f"[TOOL_CALLS][{json.dumps({'name': call.name, 'arguments': call.arguments})}]",
    "gpt-oss": lambda call: (
        f"<|channel|>commentary to=functions.{call.name} <|constrain|>json<|message|>"
        f"{json.dumps(call.arguments)}<|call|>"
    ),
    "GLM": lambda call: "<tool_call>{}\n{}</tool_call>".format(
        call.name,
        "\n".join(f"<arg_key>{k}</arg_key>\n<arg_value>{v}</arg_value>" for k, v in call.arguments.items()),
    ),
    "Qwen coder": lambda call: "<tool_call>\n<function={}>\n{}\n</function>\n</tool_call>".format(
        call.name, "\n".join(f"<parameter={k}>\n{v}\n</parameter>" for k, v in call.arguments.items())
    ),
    "DeepSeek": lambda call: (
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>{call.name}\n```json\n"
        f"{json.dumps(call.arguments)}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    ),
    "MiniMax": lambda call: (
        '<minimax:tool_call>\n<invoke name="{}">\n{}\n</invoke>\n</minimax:tool_call>'.format(
            call.name, "\n".join(f'<parameter name="{k}">{v}</parameter>' for k, v in call.arguments.items())
        )
    ),
    "Gemma": lambda call: "```tool_code\n{}({})\n```".format(
        call.name, ", ".join(f"{k}={v!r}" for k, v in call.arguments.items())
    ),
}
