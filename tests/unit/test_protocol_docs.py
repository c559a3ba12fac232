"""Consistency of docs/protocol.md and the published types with the socket's code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from adiuva.devices import protocol, protocol_schema, vocabulary
from adiuva.devices.client import query
from adiuva.devices.client.config import DeviceConfig

PROJECT = Path(__file__).parents[2]
CODE = re.compile(r'(?:code(?:, status)? = |code=|BadFrame\(|_refused\(|LimitReached\(|Saved\()"([a-z_]+)"')
# Answers of REST alone, or of a call to its caller in the server.
ELSEWHERE = {
    "conflict",
    "device_cannot_save",
    "device_refused",
    "error",
    "flow_exceeded",
    "invalid",
    "limit",  # a turn's finish, beside which its code stands
    "undo_under_way",
}


def test_each_code_that_the_socket_s_code_raises_is_explained() -> None:
    folders = [PROJECT / "chat", PROJECT / "adiuva" / "devices", PROJECT / "adiuva" / "llm"]
    texts = [path.read_text() for folder in folders for path in folder.glob("*.py")]
    raised = {code for text in texts for code in CODE.findall(text)}
    assert len(raised) > 30
    explained = vocabulary.FRAME_CODES.keys() | vocabulary.STREAM_CODES.keys()
    assert raised - explained - ELSEWHERE == set()


def test_the_filters_are_those_of_the_device_that_comes_with_the_project() -> None:
    assert set(vocabulary.FILTERS) == {*query._FILTERS, "orderBy"}


def test_the_device_that_comes_with_the_project_has_only_capabilities_that_are_explained() -> None:
    config = DeviceConfig(server="http://127.0.0.1", workspace="unused")
    assert set(config.capabilities) <= vocabulary.CAPABILITIES.keys()


def test_all_close_codes_are_explained() -> None:
    codes = {value for name, value in vars(protocol.Close).items() if name.isupper()}
    assert {code for code, _ in vocabulary.CLOSE_CODES.values()} == codes


def test_each_notice_is_explained() -> None:
    assert set(get_args(protocol.Notice)) == vocabulary.NOTICES.keys()


def test_no_exported_type_hides_one_of_the_language() -> None:
    types = protocol_schema.files(PROJECT)[protocol_schema.TYPES_FILE]
    names = re.findall(r"^export (?:interface|type|declare const) (\w+)", types, re.M)
    assert len(names) == len(set(names))
    assert not {"Error", "Object", "Record", "Map", "Set", "Request", "Response"} & set(names)
    assert {"TaskRow", "Rows", "Filters", "CloseCode", "ErrorFrame", "LIMITS"} <= set(names)


def test_the_page_has_every_frame_column_and_block() -> None:
    page = (PROJECT / "docs" / "protocol.md").read_text()
    assert page.count("<!-- made: ") == 11
    for name in protocol_schema.json_schema()["$defs"]:
        if name.endswith("Frame") and name != "ErrorFrame":
            continue
        words = re.sub(r"(?<!^)(?=[A-Z])", "_", name.removesuffix("Frame")).lower()
        assert f"`{name}`" in page or f"`{words}`" in page, name
