"""The TypeScript client: built in strict mode, and used from Node against a running server."""

from __future__ import annotations

import asyncio
import io
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path

from adiuva.devices.client import Store
from adiuva.devices.client.account import Account, ServerAddress
from adiuva.devices.client.backup import Backups
from adiuva.devices.client.sealed_file import open_sealed, seal
from tests.accounts.authenticator import Authenticator
from tests.accounts.test_second_factors import add_app, add_passkey, client_of
from tests.agents.device_owner import tasks_from_lines
from tests.clients import node
from tests.factories import Person, confirmed
from tests.fakes.provider import Call, Endless, Provider, Request, Say, Step
from tests.vault.helpers import payer


def reply(request: Request) -> Step:
    """A model that does what the test's last message asks, in one call of a tool at most."""
    if request.schema:
        return tasks_from_lines(request)
    messages = request.body["messages"]
    asked = [str(message["content"]) for message in messages if message["role"] == "user"]
    found = messages[-1]["role"] == "tool"
    match asked[-1].split("\n")[-1].split():
        case ["delete", task] if not found:
            return Call("delete_task", {"task_id": task})
        case ["list", *_] if not found:
            return Call("list_tasks")
        case ["talk", *_]:
            return Endless()
        case ["tell", *_]:
            return Say("Once upon a time.", pieces=["Once ", "upon ", "a time."])
        case ["count", *_]:
            return str(len(asked))
    if added := re.search("only the open ones", asked[-1]):
        return f"You added: {added[0]}"
    return "There is one task."


def back_up_twice(person: Person, web: str, folder: Path) -> None:
    """A device whose newest backup is what changed since the one before; `copy` in its folder is its data."""
    folder.mkdir()
    address = ServerAddress.parse(web)
    backups = Backups(address, Account(address, access_token=person.access_token), folder)
    store = Store(folder / "data.sqlite3")
    for number in range(100):
        store.set_property(f"note {number}", os.urandom(5_000).hex())
    assert asyncio.run(backups.make("correct horse")) is not None
    store.set_property("note 50", os.urandom(5_000).hex())
    made = asyncio.run(backups.make("correct horse"))
    assert made is not None and not made.is_whole
    with (
        closing(sqlite3.connect(folder / "copy")) as copy,
        closing(sqlite3.connect(folder / "data.sqlite3")) as data,
    ):
        data.backup(copy)
    store.close()


@node.needs_node
def test_the_client_works_against_a_running_server(
    web: str, worker: None, person: Person, provider: Provider, tmp_path: Path
) -> None:
    other = confirmed()
    app, codes = add_app(client_of(other), other)
    third, held = confirmed(), Authenticator()
    add_passkey(client_of(third), third, held)
    provider.default = reply
    (tmp_path / "plain").write_bytes(os.urandom(1024 * 1024 + 5))
    with (tmp_path / "by python").open("wb") as sealed:
        seal(tmp_path / "plain", sealed, "correct horse", log_n=14)
    keeper = payer()
    back_up_twice(keeper, web, tmp_path / "device")
    node.run("tsc", "-p", ".")
    printed = node.run(
        "node",
        "--test",
        "test/",
        SERVER=web,
        EMAIL=person.email,
        PASSWORD=person.password,
        OTHER_EMAIL=other.email,
        CODE=app.now(),
        RECOVERY_CODE=codes[0],
        PASSKEY_EMAIL=third.email,
        PASSKEY=held.exported(),
        VAULT_EMAIL=keeper.email,
        FOLDER=str(tmp_path),
        DEVICE=str(tmp_path / "device" / "copy"),
    )
    assert "# fail 0" in printed
    opened = io.BytesIO()
    with (tmp_path / "by node").open("rb") as sealed:
        open_sealed(sealed, opened, "correct horse")
    assert opened.getvalue() == (tmp_path / "plain").read_bytes()
    assert any("Call Ada" in str(call.body["messages"]) for call in provider.chats)  # a row of the store
