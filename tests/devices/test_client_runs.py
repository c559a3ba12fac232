"""Agent runs of the headless device against a scripted server: what is offered, asked for, sent and said."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from adiuva.devices.client import RunEnded, RunStarted
from adiuva.devices.client.file_access import FoundFile, ReadableArea
from adiuva.devices.codec import PART_BYTES
from adiuva.devices.protocol import (
    AgentAck,
    AgentCancel,
    AgentComplete,
    AgentData,
    AgentFetch,
    AgentFile,
    AgentManifest,
    AgentRun,
    AgentRunConfig,
    Error,
)
from tests.fakes.device_server import DeviceServer, Line


def write(folder: Path, **texts: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.md").write_bytes(text.encode())
    return folder


def agent_run(*folders: Path, run_id: str = "run-1", kinds: list[str] | None = None) -> AgentRun:
    config = AgentRunConfig(
        paths=[str(folder) for folder in folders],
        file_extensions=kinds or [],
        prompt_template="",
        data_types=[],
    )
    return AgentRun(run_id=run_id, agent_id="agent", config=config)


@asynccontextmanager
async def started(server: DeviceServer, folder: Path, **options: Any) -> AsyncIterator[Line]:
    """A device connected to this server, on which the run of this folder was started."""
    async with server, server.device(grants=[folder], **options):
        line = await server.line()
        await line.send(agent_run(folder))
        yield line


async def fetch(line: Line, *paths: str) -> None:
    await line.send(AgentFetch(run_id="run-1", paths=list(paths)))


async def ack(line: Line, batch: int | None) -> None:
    assert batch is not None
    await line.send(AgentAck(run_id="run-1", batch=batch))


async def take_all(line: Line) -> tuple[list[AgentFile], AgentComplete]:
    """Acknowledge batches as they come, until the end."""
    files: list[AgentFile] = []
    while isinstance(frame := await asyncio.wait_for(line.frames.get(), 60), AgentData):
        files += frame.files
        if frame.batch is not None:
            await ack(line, frame.batch)
    assert isinstance(frame, AgentComplete), frame
    return files, frame


async def test_only_what_is_asked_for_is_sent(tmp_path: Path) -> None:
    folder = write(tmp_path / "docs", a="alpha", b="beta", c="gamma")
    server = DeviceServer()
    async with started(server, folder) as line:
        manifest = await line.expect(AgentManifest)
        assert [Path(file.path).name for file in manifest.files] == ["a.md", "b.md", "c.md"]
        assert manifest.files[0].sha256 == hashlib.sha256(b"alpha").hexdigest()
        assert manifest.files[0].size == 5
        assert manifest.last
        await fetch(line, f"{folder}/b.md")
        files, complete = await take_all(line)
    assert [(file.name, file.content) for file in files] == [("b.md", "beta")]
    assert files[0].metadata["type"] == "text/markdown"
    assert (complete.files_read, complete.errors, complete.batches) == (1, [], 1)


async def test_a_run_with_nothing_new_or_nothing_at_all_completes_without_data(tmp_path: Path) -> None:
    for name, texts in (("full", {"a": "alpha"}), ("empty", {})):
        async with started(DeviceServer(), write(tmp_path / name, **texts)) as line:
            manifest = await line.expect(AgentManifest)
            assert (len(manifest.files), manifest.last) == (len(texts), True)
            await fetch(line)
            complete = await line.expect(AgentComplete)
            assert (complete.files_read, complete.batches) == (0, 0)


async def test_never_more_batches_than_allowed_are_unacknowledged(tmp_path: Path) -> None:
    folder = write(tmp_path / "docs", **{f"f{number:02}": "x" * 200_000 for number in range(9)})
    async with started(DeviceServer(max_inflight=3), folder) as line:
        manifest = await line.expect(AgentManifest)
        await fetch(line, *(file.path for file in manifest.files))
        waiting = [(await line.expect(AgentData)).batch for _ in range(3)]
        for number in range(3, 9):
            # A tool call's answer comes behind what the device has sent: no fourth batch was under way.
            await line.send_text(json.dumps({"type": "tool_call", "id": f"c{number}", "action": "select"}))
            assert (await asyncio.wait_for(line.frames.get(), 60)).id == f"c{number}"  # type: ignore[union-attr]
            await ack(line, waiting.pop(0))
            waiting.append((await line.expect(AgentData)).batch)
        assert waiting == [6, 7, 8]
        for batch in waiting[:-1]:
            await ack(line, batch)
        await line.send_text(json.dumps({"type": "tool_call", "id": "last", "action": "select"}))
        assert (await asyncio.wait_for(line.frames.get(), 60)).id == "last"  # type: ignore[union-attr]
        await ack(line, waiting[-1])
        assert (await line.expect(AgentComplete)).batches == 9


async def test_small_files_share_a_batch(tmp_path: Path) -> None:
    folder = write(tmp_path / "docs", **{f"f{number:03}": "short" for number in range(200)})
    async with started(DeviceServer(), folder) as line:
        manifest = await line.expect(AgentManifest)
        await fetch(line, *(file.path for file in manifest.files))
        files, complete = await take_all(line)
    assert len(files) == 200
    assert complete.batches == 1


@pytest.mark.parametrize("piece", ["ß€😀 text\n", '"\n'], ids=["long characters", "what JSON doubles"])
async def test_a_long_text_comes_in_parts_that_make_it_whole(tmp_path: Path, piece: str) -> None:
    text = piece * (1_400_000 // len(piece.encode()))
    async with started(DeviceServer(), write(tmp_path / "docs", long=text, short="s")) as line:
        manifest = await line.expect(AgentManifest)
        await fetch(line, *(file.path for file in manifest.files))
        files, complete = await take_all(line)
    parts = [file for file in files if file.name == "long.md"]
    assert [file.part for file in parts] == list(range(1, len(parts) + 1))
    assert {file.parts for file in parts} == {len(parts)}
    assert max(len(file.content.encode()) for file in parts) <= PART_BYTES
    assert "".join(file.content for file in parts) == text
    assert {file.sha256 for file in parts} == {hashlib.sha256(text.encode()).hexdigest()}
    assert complete.files_read == 2


async def test_a_large_folder_is_offered_in_several_manifests_and_each_answer_counts(tmp_path: Path) -> None:
    folder = write(tmp_path / "docs", **{f"f{number:04}": "x" for number in range(1001)})
    async with started(DeviceServer(), folder) as line:
        offered = [await line.expect(AgentManifest) for _ in range(3)]
        assert [len(manifest.files) for manifest in offered] == [500, 500, 1]
        assert [manifest.last for manifest in offered] == [False, False, True]
        await fetch(line, offered[0].files[0].path)
        await ack(line, (await line.expect(AgentData)).batch)
        await fetch(line)
        await fetch(line, offered[2].files[0].path)
        files, complete = await take_all(line)
    assert complete.files_read == 2
    assert [file.name for file in files] == ["f1000.md"]


async def test_what_cannot_be_read_is_said_with_its_reason_and_path(tmp_path: Path) -> None:
    folder = write(tmp_path / "docs", good="text")
    (folder / "bad.md").write_bytes(b"\0\1\2" * 10)
    (folder / "mail.eml").write_bytes(b"X: y\n\n")
    (folder / "scan.psd").write_bytes(b"8BPS")
    server = DeviceServer()
    async with server, server.device(grants=[folder]):
        line = await server.line()
        await line.send(agent_run(folder, tmp_path / "elsewhere", kinds=["md", "eml", "psd"]))
        manifest = await line.expect(AgentManifest)
        await fetch(line, *(file.path for file in manifest.files), "/etc/passwd")
        files, complete = await take_all(line)
        ended = await server.event(RunEnded)
    assert [file.name for file in files] == ["good.md"]
    said = {error["path"]: error["reason"] for error in complete.errors if isinstance(error, dict)}
    assert said == {
        f"{folder}/bad.md": "it is not text",
        f"{folder}/mail.eml": "there is no text in this mail",
        f"{folder}/scan.psd": "this kind of file cannot be read yet",
        f"{tmp_path}/elsewhere": "it is not in a folder that was granted on this device",
        "/etc/passwd": "the server asked for it, but it had not been offered",
    }
    assert (ended.completed, ended.found, ended.sent, len(ended.problems)) == (True, 3, 1, 5)


async def test_a_file_that_changed_after_it_was_offered_is_left_for_the_next_run(tmp_path: Path) -> None:
    folder = write(tmp_path / "docs", a="before")
    async with started(DeviceServer(), folder) as line:
        manifest = await line.expect(AgentManifest)
        write(folder, a="after!")
        await fetch(line, manifest.files[0].path)
        files, complete = await take_all(line)
    assert files == []
    assert "changed while it was being read" in str(complete.errors)


async def test_an_unchanged_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "docs", old="alpha", new="beta")
    os.utime(folder / "old.md", (1_700_000_000, 1_700_000_000))
    hashed: list[str] = []
    original = ReadableArea.sha256

    def counted(area: ReadableArea, file: FoundFile) -> str:
        hashed.append(file.name)
        return original(area, file)

    monkeypatch.setattr(ReadableArea, "sha256", counted)
    server = DeviceServer()
    async with server, server.device(grants=[folder]):
        line = await server.line()
        for number in range(2):
            await line.send(agent_run(folder, run_id=f"run-{number}"))
            manifest = await line.expect(AgentManifest)
            assert len(manifest.files) == 2
            await line.send(AgentFetch(run_id=f"run-{number}", paths=[]))
            await line.expect(AgentComplete)
    # One that was written a moment ago may be written again within the clock's grain.
    assert hashed == ["new.md", "old.md", "new.md"]


@pytest.mark.parametrize(
    "end", [AgentCancel(run_id="run-1"), Error(code="run_not_active", message="over", ref="run-1")]
)
async def test_a_run_that_is_called_off_ends_without_a_word(tmp_path: Path, end: AgentCancel | Error) -> None:
    server = DeviceServer()
    async with started(server, write(tmp_path / "docs", a="alpha")) as line:
        manifest = await line.expect(AgentManifest)
        await line.send(end)
        assert not (await server.event(RunEnded)).completed
        await fetch(line, manifest.files[0].path)
        await line.send_text(json.dumps({"type": "tool_call", "id": "still there", "action": "select"}))
        assert (await asyncio.wait_for(line.frames.get(), 60)).id == "still there"  # type: ignore[union-attr]


async def test_runs_go_on_beside_each_other(tmp_path: Path) -> None:
    folder = write(tmp_path / "docs", a="alpha")
    server = DeviceServer()
    async with server, server.device(grants=[folder]):
        line = await server.line()
        for number in range(3):
            await line.send(agent_run(folder, run_id=f"run-{number}"))
        offered = {(await line.expect(AgentManifest)).run_id for _ in range(3)}
        for run_id in sorted(offered, reverse=True):
            await line.send(AgentFetch(run_id=run_id, paths=[]))
        assert {(await line.expect(AgentComplete)).run_id for _ in range(3)} == offered


async def test_a_lost_connection_ends_the_run_and_the_server_may_ask_again(tmp_path: Path) -> None:
    folder = write(tmp_path / "docs", a="alpha")
    server = DeviceServer()
    async with server, server.device(grants=[folder]):
        line = await server.line()
        await line.send(agent_run(folder))
        await line.expect(AgentManifest)
        await line.close(1012)
        assert not (await server.event(RunEnded)).completed
        line = await server.line()
        await line.send(agent_run(folder))
        await server.event(RunStarted)
        manifest = await line.expect(AgentManifest)
        await fetch(line, manifest.files[0].path)
        files, _ = await take_all(line)
    assert [file.content for file in files] == ["alpha"]


async def test_protocol_1_sends_all_files_unnumbered_and_names_those_too_large(tmp_path: Path) -> None:
    folder = write(tmp_path / "docs", a="alpha", b="x" * 600_000, c="x" * 1_100_000)
    async with started(DeviceServer(), folder, protocol=1) as line:
        files, complete = await take_all(line)
        marked = {"batch", "batches", "part", "parts", "sha256", "protocol", "capabilities"}
        assert not any(f'"{name}":' in text for text in line.texts for name in marked)
    assert [(file.name, len(file.content)) for file in files] == [("a.md", 5), ("b.md", 600_000)]
    assert complete.files_read == 2
    assert complete.errors == [
        {"path": f"{folder}/c.md", "reason": "it is too large for one frame of protocol 1"}
    ]


async def test_more_errors_than_a_frame_holds_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    deep = folder.joinpath(*["d" * 200] * 12)
    deep.mkdir(parents=True)
    for number in range(500):
        (deep / f"{number:04}{'n' * 200}.psd").touch()
    server = DeviceServer()
    async with server, server.device(grants=[folder]):
        line = await server.line()
        await line.send(agent_run(folder, kinds=["psd"]))
        await line.expect(AgentManifest)
        await fetch(line)
        complete = await line.expect(AgentComplete)
    assert str(complete.errors[-1]) == f"{500 - len(complete.errors) + 1} more files could not be read"
