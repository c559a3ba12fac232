"""Files of every kind in twelve languages, half of them damaged, in one run of the device: each is read or listed."""

from __future__ import annotations

from pathlib import Path

from tests.unit.documents.sample_files import DeviceRun, run_device, sample_files, share_of_words


async def test_each_file_is_read_or_listed_with_its_reason(tmp_path: Path) -> None:
    files = sample_files(84, seed=20_261_128)
    for file in files:
        (tmp_path / file.name).write_bytes(file.raw)
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8")
    run = await run_device(tmp_path)
    assert run.files.keys() | run.problems.keys() == {file.name for file in files}
    # Of a damaged mailbox, some mails may be read and others not.
    assert not {name for name in run.files.keys() & run.problems.keys() if not name.endswith(".mbox")}
    assert all(run.problems.values())
    assert run.passed_over == {".jpg": 1}
    for file in files:
        if not file.damage:
            assert share_of_words(file, shown(run, file.name)) == 1.0, file.name
        elif file.name in run.files:
            shown(run, file.name).encode()


def shown(run: DeviceRun, name: str) -> str:
    return "\n".join(file.content for file in run.files[name])
