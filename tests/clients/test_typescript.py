"""The TypeScript client: built in strict mode, and used from Node against a running server."""

from __future__ import annotations

from tests.clients import node
from tests.factories import Person
from tests.fakes.provider import Call, Provider, Say


@node.needs_node
def test_the_client_works_against_a_running_server(web: str, person: Person, provider: Provider) -> None:
    provider.script(
        Call("list_tasks"),
        "There is one task.",
        Say("Once upon a time.", pieces=["Once ", "upon ", "a time."]),
    )
    node.run("tsc", "-p", ".")
    printed = node.run("node", "--test", "test/", SERVER=web, EMAIL=person.email, PASSWORD=person.password)
    assert "# fail 0" in printed
    assert any("Call Ada" in str(call.body["messages"]) for call in provider.chats)  # a row of the store
