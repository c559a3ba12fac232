"""The frames: what is taken, what is refused, and that the published contract is the code's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adiuva.devices import codec, protocol, protocol_schema, tool_results
from adiuva.devices.codec import BadFrame

DOCS = Path(__file__).parents[2] / "docs"
CLIENT_TYPES = {
    "device_hello", "pong", "tool_result", "tool_batch_result", "agent_manifest", "agent_data", "agent_complete",
    "home_request", "floating_request", "request_cancel", "request_steer", "stream_resume", "approval_response",
}  # fmt: skip
SERVER_TYPES = {
    "hello_ack", "ping", "error", "tool_call", "tool_batch", "agent_run", "agent_fetch", "agent_ack",
    "agent_progress", "agent_cancel", "floating_domain", "stream_start", "stream_text", "stream_status",
    "approval_request", "stream_end", "turn_started", "run_ended", "conversation_changed",
}  # fmt: skip
PROTOCOL_1_SERVER_TYPES = {
    "ping", "tool_call", "agent_run", "floating_domain", "stream_start", "stream_text", "stream_end",
}  # fmt: skip

VALIDATOR = jsonschema.Draft202012Validator(protocol_schema.json_schema())

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=20)
values = st.recursive(
    scalars | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
fields = st.sampled_from(
    ["type", "id", "device_id", "agent_ids", "protocol", "row", "rows", "error", "run_id", "files", "results",
     "message", "scope", "request_id", "after", "approved", "streams", "conversation_history"]
)  # fmt: skip
frames = st.dictionaries(fields, values, max_size=8) | st.builds(
    lambda kind, rest: {**rest, "type": kind},
    st.sampled_from(sorted(CLIENT_TYPES)),
    st.dictionaries(fields, values, max_size=8),
)


def types_of(union: Any) -> dict[str, Any]:
    return {model.model_fields["type"].default: model for model in protocol_schema._members(union)}


def test_the_vocabulary_is_that_of_the_contract() -> None:
    assert set(types_of(protocol.ClientFrame)) == CLIENT_TYPES
    server = types_of(protocol.ServerFrame)
    assert set(server) == SERVER_TYPES
    assert {
        name for name, model in server.items() if codec.is_in_protocol(model, 1)
    } == PROTOCOL_1_SERVER_TYPES


def test_the_published_contract_is_fresh() -> None:
    for name, content in protocol_schema.files(DOCS.parent).items():
        published = (DOCS.parent / name).read_text("utf-8")
        assert published == content, f"{name}: run `python manage.py protocol`"


def test_the_contract_imports_no_framework() -> None:
    code = "import sys, adiuva.devices.protocol; print(sorted({m.partition('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"django", "channels", "rest_framework", "celery"} & set(json.loads(loaded.replace("'", '"')))


@given(frames | values)
def test_whatever_comes_is_a_frame_or_is_refused_in_words(content: Any) -> None:
    try:
        frame = codec.parse(json.dumps(content))
    except BadFrame as bad:
        assert bad.code and bad.message
        return
    # What was taken also fits the published schema, once the keys that are ignored are gone.
    VALIDATOR.validate(json.loads(codec.dump(frame)))


@given(st.text(max_size=200))
def test_text_that_is_no_frame_is_refused(text: str) -> None:
    with pytest.raises(BadFrame):
        codec.parse(text)


@given(st.dictionaries(st.text(max_size=8), values, max_size=4), st.sampled_from(["insert", "update", "get"]))
def test_a_tool_call_arrives_as_it_was_sent(data: dict[str, Any], action: Any) -> None:
    call = protocol.ToolCall(
        id="call", action=action, table="tasks", data=data, attempt=2, deadline_ms=30_000
    )
    assert codec.parse_server(codec.dump(call)) == call
    old = json.loads(codec.dump(call, 1))
    assert old == {"type": "tool_call", "id": "call", "action": action, "table": "tasks", "data": data}


def test_a_value_that_is_set_to_null_stays_null_on_the_wire() -> None:
    call = protocol.ToolCall(
        id="c", action="update", table="tasks", data={"id": "1", "updates": {"dueDate": None}}
    )
    assert json.loads(codec.dump(call))["data"] == {"id": "1", "updates": {"dueDate": None}}


@pytest.mark.parametrize("number", [2**63 - 1, -(2**63)])
def test_integers_within_64_bits_pass(number: int) -> None:
    frame = codec.parse(json.dumps({"type": "tool_result", "id": "x", "row": {"n": number}}))
    assert isinstance(frame, protocol.ToolResult) and frame.row == {"n": number}


@pytest.mark.parametrize("number", [2**63, 2**64, 10**25, -(2**63) - 1])
def test_integers_beyond_64_bits_are_refused(number: int) -> None:
    with pytest.raises(BadFrame) as refused:
        codec.parse(json.dumps({"type": "tool_result", "id": "x", "row": {"n": number}}))
    assert refused.value.ref == "x"


@pytest.mark.parametrize(("levels", "fits"), [(30, True), (31, False)])
def test_frames_nest_at_most_32_levels(levels: int, fits: bool) -> None:
    text = '{"type": "pong", "x": {"y": ' + "[" * levels + "]" * levels + "}}"
    if fits:
        assert codec.parse(text) == protocol.Pong()
    else:
        with pytest.raises(BadFrame):
            codec.parse(text)


def test_a_yes_to_an_approval_is_a_boolean_and_nothing_like_it() -> None:
    for word in ("yes", 1, "true", [True]):
        with pytest.raises(BadFrame):
            codec.parse(json.dumps({"type": "approval_response", "id": "a", "approved": word}))


def test_only_users_and_assistants_speak_in_a_history() -> None:
    for role in ("system", "tool", "developer"):
        history = [{"role": role, "content": "x"}]
        with pytest.raises(BadFrame):
            codec.parse(
                json.dumps({"type": "home_request", "message": "hi", "conversation_history": history})
            )


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ('{"type":"tool_result","id":"a1","row":{}}', "a1"),
        ('{"id":"a1","type":"tool_result"}', "a1"),
        (' { "type" : "tool_result" , "id" : "a1" }', "a1"),
        ('{"type":"tool_result","id":"é"}', "é"),
        (f'{{"type":"tool_result","id":"{"a" * 200}"}}', "a" * 200),
        (f'{{"type":"tool_result","id":"{"a" * 201}"}}', None),
        ('{"type":"tool_result","id":"a\\u0031"}', None),
        ('{"type":"tool_result","id":""}', None),
        ('{"type":"tool_result","id":"a1', None),
        ('{"type":"tool_result","row":{},"id":"a1"}', None),
        ('{"type":"pong","id":"a1"}', None),
    ],
)
def test_the_call_that_a_result_begins_with_is_told_without_parsing(text: str, call: str | None) -> None:
    assert tool_results.leading_id(text) == call


odd = (
    values | st.text(max_size=3) | st.sampled_from([[], [{}], [{"a": 1}, None], {"b": [1]}, True, 0, "true"])
)


@given(
    st.dictionaries(
        st.sampled_from(["id", "row", "rows", "results", "deleted", "ok", "error", "code", "more"]), odd
    ),
    st.sampled_from(["", "a", "a" * 200, "a" * 201, 1, None]),
)
def test_a_result_that_is_read_at_a_glance_is_read_as_pydantic_would(
    content: dict[str, Any], key: Any
) -> None:
    content = {"type": "tool_result", "id": key, **content}
    try:
        expected = protocol.ToolResult.model_validate(content)
    except ValueError:
        assert codec._plain_result(protocol.ToolResult, content) is None
    else:
        found = codec.parse(json.dumps(content))
        assert type(found) is protocol.ToolResult and vars(found) == vars(expected)
        assert codec.dump(found) == codec.dump(expected) and repr(found) == repr(expected)
        assert found.model_copy(update={"ok": False}) == expected.model_copy(update={"ok": False})


@given(
    st.lists(st.dictionaries(st.sampled_from(["id", "row", "rows", "error", "more"]), odd) | odd, max_size=3)
)
def test_a_batch_that_is_read_at_a_glance_is_read_as_pydantic_would(results: list[Any]) -> None:
    content = {"type": "tool_batch_result", "results": results}
    try:
        expected = protocol.ToolBatchResult.model_validate(content)
    except ValueError:
        assert codec._plain_batch(content) is None
    else:
        found = codec.parse(json.dumps(content))
        assert type(found) is protocol.ToolBatchResult and found.results == expected.results
        assert codec.dump(found) == codec.dump(expected) and repr(found) == repr(expected)
