"""Runs over a mailbox: readings that break off, and transient faults."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adiuva.core import db
from agents import journal, runs
from agents.models import Run
from tests.agents.mailbox_scenario import TIMEOUT_S, Inbox, create_inbox, tasks_from_lines
from tests.fakes.google import Google
from tests.fakes.identity import Identity
from tests.fakes.mailboxes import Change, Clip, Fail, Fault
from tests.fakes.provider import Hold, Provider

State = Run.State


@pytest.fixture(scope="module")
def google() -> Iterator[Google]:
    with Google() as server:
        yield server


@pytest.fixture(scope="module")
def identity() -> Iterator[Identity]:
    with Identity() as identity:
        yield identity


@pytest.fixture(autouse=True)
def configured(
    settings: Any, google: Google, identity: Identity, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Workers of other tests do not know these providers.
    monkeypatch.setattr(runs, "wake_workers", lambda: None)
    settings.GOOGLE = {**identity.google(), "api": google.url}
    settings.MODEL = provider.settings()
    provider.default = tasks_from_lines


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not holds():
            await asyncio.sleep(0.02)


def loop(answer: dict[str, Any]) -> dict[str, Any]:
    return {"nextPageToken": "2"}


# How the second page of two goes wrong, and what the run that meets it says.
BREAKS: list[tuple[Fault, str]] = [
    (Change(loop), "page_loop"),
    (Fail(403, "forbidden"), "provider_refused"),
    (Fail(404, "notFound"), "not_there"),
]


@pytest.mark.parametrize(("fault", "code"), BREAKS, ids=[code for _, code in BREAKS])
async def test_what_was_read_before_a_reading_broke_off_is_not_read_in_vain(
    web: str, google: Google, tmp_path: Path, provider: Provider, fault: Fault, code: str
) -> None:
    inbox: Inbox = await create_inbox(web, google, tmp_path, mails=4)
    inbox.box.page = 2
    inbox.box.fault("pageToken=", fault)
    held = Hold(tasks_from_lines)
    provider.default = held
    async with inbox.device():
        work = asyncio.create_task(inbox.run())
        await until(lambda: work.done() or any("pageToken=" in path for path in inbox.box.asked))
        held.release()
        run = await work
        assert (run.state, run.items_created) == (State.ERROR, 2)
        assert code in await inbox.codes(run)
        # `errors` says in a sentence why it is no success.
        (why,) = await db.run(
            lambda: [journal.problem_text(each) for each in journal.problems_of([run])[run.pk]]
        )
        assert " " in why and why != code
        provider.default = tasks_from_lines
        again = await inbox.run()
        assert (again.state, again.items_created, again.files_unchanged) == (State.SUCCESS, 2, 2)
        assert len(inbox.titles()) == 4


async def test_a_message_whose_answer_was_cut_several_times_in_a_row_is_read_all_the_same(
    web: str, google: Google, tmp_path: Path
) -> None:
    inbox = await create_inbox(web, google, tmp_path, mails=2)
    inbox.box.fault("/messages/m000001", Clip(), Clip(0.9))
    async with inbox.device():
        run = await inbox.run()
        assert (run.state, run.items_created, run.problems) == (State.SUCCESS, 2, 0)
