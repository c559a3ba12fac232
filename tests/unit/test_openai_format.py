"""The parts of the model client that read untrusted bytes and text, by property."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adiuva import llm
from adiuva.llm.json_extraction import read_json
from adiuva.llm.openai_format import DeltaAssembler, EventStreamParser, loads
from tests.sampling import fewer

TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e9, 1e9) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
CONTAINERS = st.lists(VALUES, max_size=4) | st.dictionaries(TEXTS, VALUES, max_size=4)
PROSE = st.text(st.characters(codec="utf-8", exclude_characters='[]{}<>"'), max_size=60)

# How fast the machine is at the moment is no fact about the code.
steady = settings(deadline=None, max_examples=fewer(200), suppress_health_check=[HealthCheck.too_slow])


def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def read(pieces: list[bytes]) -> tuple[str, list[llm.Delta]]:
    """The text of a stream that came in these pieces, and what ended it."""
    lines, deltas = EventStreamParser(), DeltaAssembler()
    found: list[llm.Delta] = []
    for piece in pieces:
        found += deltas.feed(lines.feed(piece))
    found += deltas.feed(lines.close())
    return "".join(delta.text for delta in found if isinstance(delta, llm.Text)), deltas.finish()


def cut(raw: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(raw) + 1) for place in places} | {len(raw)})
    return [raw[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@steady
@given(
    texts=st.lists(TEXTS, max_size=8),
    arguments=TEXTS,
    newline=st.sampled_from(["\n", "\r\n"]),
    noise=st.sampled_from([": keep alive", "event: message", "id: 5", "retry: 10", "unknown", ""]),
    escaped=st.booleans(),
    places=st.lists(st.integers(0, 4000), max_size=40),
    ended=st.booleans(),
)
def test_a_stream_says_the_same_however_it_is_cut(
    texts: list[str], arguments: str, newline: str, noise: str, escaped: bool, places: list[int], ended: bool
) -> None:
    half = len(arguments) // 2
    call = {"index": 0, "id": "c1", "function": {"name": "look", "arguments": arguments[:half]}}
    rest = {"index": 0, "function": {"arguments": arguments[half:]}}
    events = [
        *(chunk({"content": text}) for text in texts),
        chunk({"tool_calls": [call]}),
        chunk({"tool_calls": [rest]}),
        chunk({}, "tool_calls"),
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}},
    ]
    dumped = [f"data: {json.dumps(event, ensure_ascii=escaped)}{newline}{noise}{newline}" for event in events]
    raw = newline.join([*dumped, *(["data: [DONE]", "", ""] if ended else [])]).encode()

    assert read(cut(raw, places)) == (
        "".join(texts),
        [llm.ToolCall("c1", "look", arguments or "{}"), llm.Finish("tool_calls", llm.Usage(3, 4))],
    )


@steady
@given(raw=st.binary(max_size=300), places=st.lists(st.integers(0, 300), max_size=10))
def test_any_bytes_raise_a_model_error_or_nothing(raw: bytes, places: list[int]) -> None:
    try:
        read(cut(b"data: " + raw + b"\n\ndata:" + raw, places))
    except llm.ModelError:
        pass


def test_an_event_of_several_data_lines_is_one() -> None:
    lines = EventStreamParser()
    assert lines.feed(b'data: {\ndata:"a": 1}\n\n:x\n\n') == [b'{\n"a": 1}']


def test_an_event_without_end_is_garbled() -> None:
    lines = EventStreamParser()
    with pytest.raises(llm.ModelGarbled):
        for _ in range(100):
            lines.feed(b"x" * 100_000)
    lines = EventStreamParser()
    with pytest.raises(llm.ModelGarbled):
        for _ in range(100):
            lines.feed(b"data: " + b"x" * 100_000 + b"\n")


def test_calls_with_the_same_index_and_other_ids_are_several() -> None:
    deltas = DeltaAssembler()
    for name in ("one", "two"):
        deltas.feed_chunks(
            [chunk({"tool_calls": [{"index": 0, "id": f"id-{name}", "function": {"name": name}}]})]
        )
    deltas.feed_chunks([chunk({"tool_calls": [{"function": {"arguments": "{}"}}]}, "tool_calls")])
    assert [(c.id, c.name) for c in deltas.finish()[:2] if isinstance(c, llm.ToolCall)] == [
        ("id-one", "one"),
        ("id-two", "two"),
    ]


def called(*pieces: Any) -> list[tuple[str, str]]:
    """Name and arguments of the calls that a stream makes with these lists of pieces."""
    deltas = DeltaAssembler()
    for each in pieces:
        deltas.feed_chunks([chunk({"tool_calls": each})])
    deltas.feed_chunks([chunk({}, "tool_calls")])
    return [(c.name, c.arguments) for c in deltas.finish() if isinstance(c, llm.ToolCall)]


def piece(arguments: str | None = None, **given: Any) -> dict[str, Any]:
    name = {"name": given.pop("name")} if "name" in given else {}
    return {**given, "function": {**name, "arguments": arguments}}


@pytest.mark.parametrize(
    "pieces",
    [
        [
            [piece("", index=0, id="a", name="look")],
            [piece('{"at"', index=0, id="b")],
            [piece(":1}", index=0, id="c")],
        ],
        [[piece('{"at"', index=0, id="a", name="look")], [piece(":1}", index=0, id="b", name="look")]],
        [[piece('{"at"', name="look")], [piece(":1}")]],
        [[piece('{"at"', name="look", id="")], [piece(":1}", name="")]],
        [[piece('{"at"', id="a", name="look")], [piece(":1}", id="b")]],
        [[piece(None, index=3, id=None, name="look"), None], [piece('{"at":1}', index=3)]],
        [[piece('{"at":1}', index=0, id="a", name="look")], [piece("", index=1)]],
    ],
    ids=[
        "new ids",
        "new ids and names",
        "no id or index",
        "empty id",
        "ids, no index",
        "nulls",
        "an empty call",
    ],
)
def test_the_pieces_of_one_call_are_one_call_whatever_they_are_called(pieces: Any) -> None:
    assert called(*pieces) == [("look", '{"at":1}')]


@pytest.mark.parametrize(
    "pieces",
    [
        [[piece('{"at":1}', name="look"), piece('{"at":2}', name="look")]],
        [[piece('{"at"', name="look"), piece('{"at"', name="look")], [piece(":1}"), piece(":2}")]],
        [[piece('{"at":1}', name="look")], [piece('{"at":2}', name="look")]],
        [
            [piece('{"at":1}', index=0, id="a", name="look")],
            [piece('{"at":2}', index=0, id="b", name="look")],
        ],
        [
            [piece("", index=0, id="same", name="look")],
            [piece("", index=1, id="same", name="look")],
            [piece('{"at":2}', index=1), piece('{"at":1}', index=0)],
        ],
    ],
    ids=["one chunk", "by position", "one after the other", "index 0 twice", "the same id"],
)
def test_two_calls_are_two_without_ids_and_indexes(pieces: Any) -> None:
    assert called(*pieces) == [("look", '{"at":1}'), ("look", '{"at":2}')]


def test_content_may_come_in_parts_and_thoughts_are_none_of_it() -> None:
    deltas = DeltaAssembler()
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "text", "text": "Hel"},
        {"type": "reference", "reference_ids": [1]},
    ]
    said = deltas.feed_chunks(
        [chunk({"content": parts}), chunk({"content": "lo"}), chunk({"content": [parts[0]]})]
    )
    assert said == [llm.Text("Hello")]


@pytest.mark.parametrize(
    ("reasons", "counts"),
    [
        (["stop", "stop"], "stop"),
        (["stop", "tool_calls"], "tool_calls"),
        (["length", "stop"], "length"),
        (["content_filter", "stop"], "content_filter"),
    ],
)
def test_of_two_finishes_the_graver_one_counts(reasons: list[str], counts: str) -> None:
    deltas = DeltaAssembler()
    deltas.feed_chunks([chunk({}, reason) for reason in reasons])
    assert deltas.finish() == [llm.Finish(counts, llm.Usage())]


def test_a_refusal_ends_as_filtered() -> None:
    deltas = DeltaAssembler()
    assert deltas.feed_chunks([chunk({"refusal": "I can't"}), chunk({}, "stop")]) == []
    assert deltas.finish() == [llm.Finish("content_filter", llm.Usage())]


def test_half_a_surrogate_pair_is_replaced_not_fatal() -> None:
    assert loads(b'{"a": "x\\ud83d"}') == {"a": "x?"}


# ── JSON in free text ───────────────────────────────────────────────────────────────────────────────────


@steady
@given(value=CONTAINERS, before=PROSE, after=PROSE, fenced=st.booleans(), thought=st.none() | TEXTS)
def test_json_is_found_in_prose_fences_and_after_thoughts(
    value: Any, before: str, after: str, fenced: bool, thought: str | None
) -> None:
    text = json.dumps(value, ensure_ascii=False)
    if fenced:
        text = f"```json\n{text}\n```"
    thinking = (
        "" if thought is None else f'<think>{thought.replace("think>", "")} {{"draft": [1, 2, 3]}}</think>'
    )
    assert llm.find_json(f"{thinking}{before}\n{text}\n{after}") == value


# Texts that look like tags, comments or ends to those who look for them.
TRICKY = TEXTS | st.sampled_from(
    ["</think>", "<think>", "//", "/*", "*/", ",]", "```", '"{', "\\u12", "tru", "[1]"]
)
TRICKY_VALUES = st.recursive(
    VALUES | TRICKY,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TRICKY, inner, max_size=4),
    max_leaves=8,
)


@settings(deadline=None, max_examples=fewer(400), suppress_health_check=[HealthCheck.too_slow])
@given(
    values=st.lists(st.dictionaries(TRICKY, TRICKY_VALUES, min_size=1, max_size=4), min_size=1, max_size=4),
    data=st.data(),
    escaped=st.booleans(),
    before=st.sampled_from(["", "Here you are: ", "```json\n", "<think>[1]</think>"]),
)
def test_of_a_value_that_breaks_off_the_whole_items_are_found_and_nothing_else(
    values: list[Any], data: st.DataObject, escaped: bool, before: str
) -> None:
    texts = [json.dumps(value, ensure_ascii=escaped) for value in values]
    text = '{"records": [' + ", ".join(texts) + "]}"
    length = data.draw(st.integers(0, len(text) - 1))
    found = read_json(before + text[:length])
    assert found.values == ()
    ends = list(itertools.accumulate((len(each) + 2 for each in texts), initial=len('{"records": [') - 2))[1:]
    whole = [value for value, end in zip(values, ends, strict=True) if end <= length]
    assert (found.cut or {}).get("records", []) == whole


@steady
@given(st.text(max_size=200))
def test_any_text_holds_json_or_raises(text: str) -> None:
    try:
        json.dumps(llm.find_json(text), ensure_ascii=False).encode()
    except ValueError:
        pass


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('See [1] and [ ] below: {"a": [1, 2]}', {"a": [1, 2]}),
        ('thinking with the opening tag cut</think>{"a": 1}', {"a": 1}),
        ('{"a": "a line\nbreak"}', {"a": "a line\nbreak"}),
        ('Take {this}, [that: {"a": NaN} ok', {"a": None}),
        ("```\n[1,\n2]\n```", [1, 2]),
        ("42", 42),
        ('{"a": "</think>"}', {"a": "</think>"}),
        ('Here: {"a": "</think>", "b": [1]} ok', {"a": "</think>", "b": [1]}),
        (
            '{"a": 1, // one\n "b": "http://x", /* two */ "c": [1, 2,],}',
            {"a": 1, "b": "http://x", "c": [1, 2]},
        ),
        ('{"a": [1]} {"b": 2}', {"a": [1]}),
    ],
)
def test_json_is_found(text: str, value: Any) -> None:
    assert llm.find_json(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON here",
        '<think>{"a": 1}',
        "[" * 200_000,
        '{"a":' * 200_000,
        "[1,[x " * 200_000,
        "{  " * 200_000,
        "[" + "9" * 5_000 + "]",
        '{"records": [{"a": 1}, {"b": ',
    ],
)
def test_a_text_without_json_is_refused_however_long(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        llm.find_json(text)
