"""Devices that send too much, too fast, or not what they were asked for. No server process holds a whole folder."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest

from tests.agents.device_owner import END_STATES, DeviceOwner, counts_add_up, document_text, tasks_from_lines
from tests.fakes.provider import Hold, Provider, Request
from tests.sampling import few
from tests.socket_client import Socket

Frame = dict[str, Any]


class Script:
    """A device that takes records and answers calls. What it does with a run is written in subclasses."""

    mostly_empty = False  # its files cost no call of the model

    def __init__(self, socket: Socket) -> None:
        self.socket = socket
        self.titles: list[str] = []
        self.errors: list[Frame] = []
        self.run_id = ""

    async def play(self) -> Frame:
        """Until the run has ended; the last progress."""
        while True:
            frame = await self.socket.receive()
            match frame["type"]:
                case "tool_call":
                    await self.socket.send({"type": "tool_result", **self.apply(frame)})
                case "tool_batch":
                    results = [self.apply(call) for call in frame["calls"]]
                    await self.socket.send({"type": "tool_batch_result", "results": results})
                case "agent_run":
                    self.run_id = frame["run_id"]
                    await self.begin()
                case "agent_fetch":
                    await self.asked(frame["paths"])
                case "agent_ack":
                    await self.acknowledged(frame["batch"])
                case "error":
                    self.errors.append(frame)
                case "agent_progress" if frame["state"] in END_STATES:
                    return frame

    def apply(self, call: Frame) -> Frame:
        if call["action"] != "insert":
            return {"id": call["id"], "rows": []}
        self.titles.append(call["data"]["title"])
        return {"id": call["id"], "row": {"id": f"row of {call['id']}"}}

    async def begin(self) -> None:
        raise NotImplementedError

    async def asked(self, paths: list[str]) -> None:
        raise NotImplementedError

    async def acknowledged(self, batch: int) -> None:
        pass

    async def offer(self, paths: list[str], *, last: bool) -> None:
        files = [{"path": path, "sha256": _hash(path), "size": 1, "mtime": 0} for path in paths]
        await self.socket.send(
            {"type": "agent_manifest", "run_id": self.run_id, "files": files, "last": last}
        )

    async def give(self, paths: list[str], *, batch: int | None, padding: int = 0) -> None:
        text = "x" * padding
        files = [{"path": path, "name": path, "content": f"do {path}\n{text}"} for path in paths]
        if self.mostly_empty:
            files = [file | {"content": "" if number % 50 else "do it"} for number, file in enumerate(files)]
        frame: Frame = {"type": "agent_data", "run_id": self.run_id, "files": files}
        await self.socket.send(frame if batch is None else frame | {"batch": batch})

    async def complete(self, files_read: int, errors: list[Any] | None = None) -> None:
        frame = {"type": "agent_complete", "run_id": self.run_id, "files_read": files_read}
        await self.socket.send(frame | {"errors": errors or []})


def _hash(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()


async def test_a_device_that_waits_for_no_acknowledgement_is_stopped(
    desk: DeviceOwner, provider: Provider
) -> None:
    hold = Hold({"records": []})
    provider.default = hold

    class Hasty(Script):
        async def begin(self) -> None:
            await self.offer([f"{number}.md" for number in range(200)], last=True)

        async def asked(self, paths: list[str]) -> None:
            for number, path in enumerate(paths):
                await self.give([path], batch=number)

    agent = await desk.agent()
    async with Socket(desk.web, desk.person.access_token) as socket:
        await socket.hello(device_id="desk")
        run = await desk.start(agent)
        device = Hasty(socket)
        last = await device.play()
        assert await socket.is_alive()
    assert last["state"] == "error"
    assert {"type": "error", "code": "flow_exceeded"}.items() <= device.errors[0].items()
    assert device.errors[0]["ref"] == run
    seen = await desk.see(run)
    assert (seen["journal"][-1]["code"], seen["items_created"]) == ("flow_exceeded", 0)
    # Old clients read nothing but these sentences.
    assert "unacknowledged" in seen["errors"][0]


@pytest.mark.parametrize("numbered", few([False, True], 1))
async def test_a_device_that_cannot_wait_is_read_whole_and_answers_meanwhile(
    desk: DeviceOwner, provider: Provider, numbered: bool
) -> None:
    """Protocol 1 has no acknowledgement: 80 files of 15 KB are here before the first is read.

    `numbered`: the device also sends keys of protocol 2, which do not hold it to that protocol's flow control.
    """
    hold = Hold()
    sent = asyncio.Event()
    loop = asyncio.get_running_loop()

    def answer(request: Request) -> Any:
        return tasks_from_lines(request) if sent.is_set() or "do 0.md" in document_text(request) else hold

    provider.default = answer
    hold.step = tasks_from_lines

    class Old(Script):
        async def begin(self) -> None:
            for number in range(80):
                await self.give([f"{number}.md"], batch=number if numbered else None, padding=15_000)
            await self.complete(80)
            loop.call_soon(sent.set)
            hold.release()

    agent = await desk.agent()
    async with Socket(desk.web, desk.person.access_token) as socket:
        await socket.hello(1, device_id="desk")
        run = await desk.start(agent)
        device = Old(socket)
        playing = asyncio.create_task(device.play())  # it is told of no progress
        seen = await desk.until(run, lambda seen: seen["state"] in END_STATES)
        playing.cancel()
    assert (seen["state"], seen["items_created"], counts_add_up(seen)) == ("success", 80, True)
    assert sorted(device.titles) == sorted(f"{number}.md" for number in range(80))


async def test_a_device_is_asked_for_a_large_folder_bit_by_bit(desk: DeviceOwner, provider: Provider) -> None:
    provider.default = {"records": []}
    most = 0

    class Large(Script):
        mostly_empty = True
        waiting: list[str]
        batch = -1

        async def begin(self) -> None:
            self.waiting = []
            for start in range(0, 3_000, 500):
                await self.offer([f"{n}.md" for n in range(start, start + 500)], last=start == 2_500)

        async def asked(self, paths: list[str]) -> None:
            nonlocal most
            self.waiting += paths
            most = max(most, len(self.waiting))
            if self.batch < 0 and len(self.waiting) >= 2_000:
                await self.acknowledged(-1)

        async def acknowledged(self, batch: int) -> None:
            if self.waiting:
                self.batch += 1
                paths, self.waiting = self.waiting[:250], self.waiting[250:]
                await self.give(paths, batch=self.batch)
            elif batch == self.batch:
                await self.complete(3_000)

    agent = await desk.agent()
    async with Socket(desk.web, desk.person.access_token) as socket:
        await socket.hello(device_id="desk")
        run = await desk.start(agent)
        last = await asyncio.wait_for(Large(socket).play(), 120)
    assert (last["state"], last["files_seen"], last["files_done"]) == ("success", 3_000, 3_000)
    assert most <= 2_500
    assert counts_add_up(await desk.see(run))


async def test_a_device_that_can_read_nothing_of_what_it_was_asked_for_is_asked_for_the_rest(
    desk: DeviceOwner, provider: Provider
) -> None:
    provider.default = {"records": []}

    class Torn(Script):
        offered = 0

        async def begin(self) -> None:
            self.seen: list[str] = []
            for start in range(0, 3_000, 500):
                await self.offer([f"{n}.md" for n in range(start, start + 500)], last=start == 2_500)

        async def asked(self, paths: list[str]) -> None:
            self.seen += paths
            if len(self.seen) == 3_000:
                await self.complete(0, [{"path": path, "reason": "gone"} for path in self.seen])

    agent = await desk.agent()
    async with Socket(desk.web, desk.person.access_token) as socket:
        await socket.hello(device_id="desk")
        run = await desk.start(agent)
        last = await Torn(socket).play()
    assert (last["state"], last["files_seen"], last["files_done"]) == ("error", 3_000, 3_000)
    assert counts_add_up(await desk.see(run))


async def test_files_that_were_offered_and_never_asked_for_are_missed(
    desk: DeviceOwner, provider: Provider
) -> None:
    provider.default = {"records": []}

    class Impatient(Script):
        async def begin(self) -> None:
            for start in range(0, 3_000, 500):
                await self.offer([f"{n}.md" for n in range(start, start + 500)], last=start == 2_500)
            await self.complete(0)

        async def asked(self, paths: list[str]) -> None:
            pass

    agent = await desk.agent()
    async with Socket(desk.web, desk.person.access_token) as socket:
        await socket.hello(device_id="desk")
        run = await desk.start(agent)
        last = await Impatient(socket).play()
    assert (last["state"], last["files_seen"]) == ("error", 3_000)
    assert counts_add_up(await desk.see(run))
