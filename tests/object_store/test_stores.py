"""Both stores: whole objects or none, gone on with after a crash, deleted without a trace."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adiuva.object_store import file_store
from adiuva.object_store.store import (
    SHARDS,
    ObjectMissing,
    Progress,
    StorageAway,
    StorageFull,
    Store,
    new_name,
    store,
)
from tests.fakes.s3 import S3

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with S3(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(params=["file", "s3"])
def objects(request: pytest.FixtureRequest, tmp_path: Path, settings: Any) -> Store:
    return _store(request.param, request, tmp_path, settings)


def _store(kind: str, request: pytest.FixtureRequest, tmp_path: Path, settings: Any) -> Store:
    settings.STORE = {**settings.STORE, "url": tmp_path.as_uri()}
    if kind == "s3":
        fake: S3 = request.getfixturevalue("s3")
        settings.STORE |= {
            "url": f"s3://bucket/{tmp_path.name}",
            "endpoint": fake.url,
            "region": "eu-south-1",
            "access_key": fake.KEY,
            "secret_key": fake.SECRET,
        }
    return store()


def read(objects: Store, name: str, start: int, end: int) -> bytes:
    return b"".join(objects.read(name, start, end))


def listed(objects: Store, name: str) -> list[str]:
    return [each.name for each in objects.list(name.rpartition("/")[0])]


@pytest.mark.parametrize("size", [0, 1, 8 * MIB, 17 * MIB + 3])
def test_an_object_is_read_as_it_was_written(objects: Store, size: int) -> None:
    data, name = os.urandom(size), new_name()
    with objects.sink(name) as sink:
        for begin in range(0, size, MIB):
            sink.write(data[begin : begin + MIB])
        with pytest.raises(ObjectMissing):
            read(objects, name, 0, max(1, size))
        sink.finish()
    assert read(objects, name, 0, size) == data
    if size > 10:
        assert read(objects, name, 7, size - 3) == data[7:-3]
    assert listed(objects, name) == [name]
    objects.delete(name)
    objects.delete(name)
    assert listed(objects, name) == []
    with pytest.raises(ObjectMissing):
        read(objects, name, 0, max(1, size))


def test_a_writer_goes_on_from_what_was_saved(objects: Store) -> None:
    data, name, progress = os.urandom(21 * MIB), new_name(), Progress()
    for size in (3 * MIB, 9 * MIB, 1):
        with objects.sink(name, progress) as sink:
            sink.write(data[progress.offset : progress.offset + size])
            before = progress.offset
            progress = sink.save()
            assert progress.offset == before + size
            sink.write(b"lost in a crash")
    with objects.sink(name, progress) as sink:
        sink.write(data[progress.offset :])
        progress = sink.save()
        sink.finish()
    with objects.sink(name, progress) as again:  # the answer was lost
        again.finish()
    found = b"".join(objects.read(name, 0, len(data)))
    assert hashlib.sha256(found).digest() == hashlib.sha256(data).digest()
    objects.delete(name)
    assert listed(objects, name) == []


@pytest.mark.parametrize("sizes", [[MIB], [3 * MIB, 5 * MIB], [3 * MIB, 6 * MIB], [9 * MIB, 1]])
def test_a_finished_object_is_stored_once(
    objects: Store, sizes: list[int], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    data, name, progress = os.urandom(sum(sizes)), new_name(), Progress()
    for size in sizes:
        with objects.sink(name, progress) as sink:
            sink.write(data[progress.offset : progress.offset + size])
            progress = sink.save()
    for _ in range(2):  # the first answer was lost
        with objects.sink(name, progress) as sink:
            assert sink.save().offset == progress.offset == len(data)
            sink.finish()
    assert read(objects, name, 0, len(data)) == data
    if objects.room() is None:
        keys = [key for key in request.getfixturevalue("s3").names() if tmp_path.name in key.split("/")]
    else:
        keys = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    assert [key[-len(name) :] for key in keys] == [name]
    objects.delete(name)


@pytest.mark.parametrize("begun", [0, 9 * MIB])
def test_an_object_is_written_once_also_for_a_database_that_is_older(objects: Store, begun: int) -> None:
    data, name = os.urandom(10 * MIB), new_name()
    with objects.sink(name) as sink:
        sink.write(data[:begun])
        older = sink.save()
        sink.write(data[begun:])
        sink.finish()
    with pytest.raises(ObjectMissing), objects.sink(name, older) as again:
        again.write(bytes(11 * MIB - begun))
        again.finish()
    assert read(objects, name, 0, len(data)) == data


def test_what_was_never_finished_is_listed_and_deleted(objects: Store) -> None:
    name = new_name()
    with objects.sink(name) as sink:
        sink.write(bytes(9 * MIB))
        progress = sink.save()
    assert set(listed(objects, name)) == {name}
    objects.delete(name)
    assert listed(objects, name) == []
    with pytest.raises(ObjectMissing), objects.sink(name, progress) as sink:
        sink.finish()


def test_names_say_nothing() -> None:
    names = {new_name() for _ in range(100)}
    assert len(names) == 100 and {name.rpartition("/")[0] for name in names} <= set(SHARDS)


# ── Files ───────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_written_elsewhere_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    files, name = file_store.FileStore(str(tmp_path)), new_name()
    with files.sink(name) as sink:
        sink.write(b"x")
        (part,) = (tmp_path / name).parent.iterdir()
        assert (part.name, part.stat().st_mode & 0o777) == ((tmp_path / name).name + ".part", 0o600)
        sink.finish()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no room")

    with file_store.FileStore(str(tmp_path)).sink(new_name()) as sink:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(StorageFull):
            sink.write(b"x")


def test_the_disk_keeps_its_least_free_space(tmp_path: Path) -> None:
    full = file_store.FileStore(str(tmp_path / "none yet"), least_free=2**62)
    assert full.room() < 0
    with full.sink(new_name()) as sink, pytest.raises(StorageFull):
        sink.write(b"x")
    assert 0 < file_store.FileStore(str(tmp_path / "none yet")).room() < 2**62


def test_bytes_that_the_disk_lost_are_missed(tmp_path: Path) -> None:
    files, name = file_store.FileStore(str(tmp_path)), new_name()
    with files.sink(name) as sink:
        sink.write(bytes(100))
        progress = sink.save()
    os.truncate(tmp_path / (name + ".part"), 50)
    with pytest.raises(ObjectMissing):
        files.sink(name, progress)


# ── S3 ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def bucket(request: pytest.FixtureRequest, tmp_path: Path, settings: Any) -> Store:
    return _store("s3", request, tmp_path, settings)


def test_an_object_is_never_overwritten(bucket: Store) -> None:
    name = new_name()
    for size, refused in ((1, False), (2, True)):
        with bucket.sink(name) as sink:
            sink.write(bytes(size))
            if refused:
                with pytest.raises(ObjectMissing):
                    sink.finish()
            else:
                sink.finish()
    assert read(bucket, name, 0, 1) == b"\0"


@pytest.mark.parametrize("size", [MIB, 9 * MIB])
def test_lost_answers_and_short_outages_are_outlived(bucket: Store, s3: S3, size: int) -> None:
    name = new_name()
    with bucket.sink(name) as sink:
        sink.write(bytes(size))
        s3.lose_answers(1)
        sink.finish()
    s3.fail(1)
    assert read(bucket, name, 0, size) == bytes(size)


def test_a_bucket_says_nothing_of_its_room(bucket: Store) -> None:
    assert bucket.room() is None


def test_an_outage_is_told(bucket: Store, s3: S3) -> None:
    s3.fail(3)
    with bucket.sink(new_name()) as sink, pytest.raises(StorageAway):
        sink.write(bytes(8 * MIB))


def test_old_versions_are_deleted_as_well(tmp_path: Path, settings: Any) -> None:
    with S3(tmp_path, versioned=True) as fake:
        settings.STORE = {
            **settings.STORE,
            "url": f"s3://versioned/{tmp_path.name}",
            "endpoint": fake.url,
            "region": "eu-south-1",
            "access_key": fake.KEY,
            "secret_key": fake.SECRET,
        }
        name = new_name()
        with store().sink(name) as sink:
            sink.write(b"x")
            sink.finish()
        store().delete(name)
        store().delete(name)
        assert not any(path.is_file() for path in tmp_path.rglob("*"))
