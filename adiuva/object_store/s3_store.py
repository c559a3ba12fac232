"""Objects in S3, or in a service that speaks like it.

Bytes go up in parts of 8 MiB; a smaller object is one request. When a writer pauses, a small object beside it
(`<name>.tail`) keeps the rest of the last part, since a part must have 5 MiB; it is deleted once the object is whole.
`If-None-Match: *` makes the service refuse to overwrite. Bodies are signed, so the service compares each with its
SHA-256.

boto3 takes a second to import, so it is imported at first use.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import Iterator
from functools import cached_property
from types import TracebackType
from typing import Any, Final, Self

from django.conf import settings

from adiuva.object_store.store import PIECE_BYTES, Listed, ObjectMissing, Progress, StorageAway, StorageFull

_PART_BYTES: Final = 8 * 1024 * 1024
_TAIL: Final = ".tail"
_MISSING: Final = ("404", "NoSuchKey", "NoSuchUpload", "NotFound")
_FULL: Final = ("507", "QuotaExceeded", "XMinioStorageFull", "InsufficientStorage")
# Services without versions give this as an object's version.
_NOT_THERE: Final = ("NotImplemented", "MethodNotAllowed", "501", "405")


def _code(error: Exception) -> str:
    found: dict[str, Any] = getattr(error, "response", {})
    return str(found.get("Error", {}).get("Code", ""))


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turn errors of the service into errors of a store."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = _code(error)
        if code in _MISSING:
            raise ObjectMissing from None
        raise (StorageFull if code in _FULL else StorageAway)() from error
    except (BotoCoreError, OSError) as error:
        raise StorageAway from error


class S3Store:
    def __init__(self, *, bucket: str, prefix: str) -> None:
        self.bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""

    @cached_property
    def client(self) -> Any:
        import boto3
        from botocore.config import Config

        given = settings.STORE
        config = Config(
            signature_version="s3v4",
            connect_timeout=5,
            read_timeout=60,
            retries={"mode": "standard", "total_max_attempts": 3},
            max_pool_connections=20,
            request_checksum_calculation="when_required",  # other services do not know AWS's newer ones
            response_checksum_validation="when_required",
            s3={"addressing_style": "path" if given["endpoint"] else "auto", "payload_signing_enabled": True},
        )
        return boto3.client(
            "s3",
            endpoint_url=given["endpoint"] or None,
            region_name=given["region"] or None,
            aws_access_key_id=given["access_key"] or None,
            aws_secret_access_key=given["secret_key"] or None,
            config=config,
        )

    def located(self, name: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._prefix + name}

    def sink(self, name: str, progress: Progress | None = None) -> S3Sink:
        return S3Sink(self, name, progress or Progress())

    def size(self, name: str) -> int:
        """Return an object's size. Raises ObjectMissing."""
        with _told():
            return int(self.client.head_object(**self.located(name))["ContentLength"])

    def read(self, name: str, start: int, end: int) -> Iterator[bytes]:
        if start >= end:
            self.size(name)
            return
        with _told():
            answer = self.client.get_object(**self.located(name), Range=f"bytes={start}-{end - 1}")
            left = end - start
            with contextlib.closing(answer["Body"]) as body:
                while left > 0 and (piece := body.read(min(PIECE_BYTES, left))):
                    left -= len(piece)
                    yield piece
        if left:
            raise ObjectMissing

    def delete(self, name: str) -> None:
        with _told():
            for upload in self._uploads(name):
                self.client.abort_multipart_upload(**self.located(name), UploadId=upload)
            for place in (name, name + _TAIL):
                self._delete_object(place)

    def delete_tail(self, name: str) -> None:
        with _told():
            self._delete_object(name + _TAIL)

    def _delete_object(self, name: str) -> None:
        self._delete_versions(name)
        self.client.delete_object(**self.located(name))

    def _uploads(self, name: str) -> list[str]:
        found = self.client.list_multipart_uploads(Bucket=self.bucket, Prefix=self._prefix + name)
        key = self._prefix + name
        return [upload["UploadId"] for upload in found.get("Uploads", ()) if upload["Key"] == key]

    def _delete_versions(self, name: str) -> None:
        from botocore.exceptions import ClientError

        try:
            found = self.client.list_object_versions(Bucket=self.bucket, Prefix=self._prefix + name)
        except ClientError as error:
            if _code(error) in _NOT_THERE:
                return
            raise
        for version in (*found.get("Versions", ()), *found.get("DeleteMarkers", ())):
            if version["Key"] == self._prefix + name and version["VersionId"] != "null":
                self.client.delete_object(**self.located(name), VersionId=version["VersionId"])

    def list(self, shard: str) -> Iterator[Listed]:
        with _told():
            beginning = f"{self._prefix}{shard}/"
            objects = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=beginning
            )
            for page in objects:
                for each in page.get("Contents", ()):
                    yield self._listed(each["Key"], each["LastModified"])
            uploads = self.client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.bucket, Prefix=beginning
            )
            for page in uploads:
                for each in page.get("Uploads", ()):
                    yield self._listed(each["Key"], each["Initiated"])

    def room(self) -> None:
        return None

    def _listed(self, key: str, modified: Any) -> Listed:
        return Listed(key[len(self._prefix) :].removesuffix(_TAIL), modified)


class S3Sink:
    def __init__(self, store: S3Store, name: str, progress: Progress) -> None:
        self._store, self._name = store, name
        self._upload: str = progress.state.get("upload", "")
        self._parts: list[tuple[str, int]] = [(etag, size) for etag, size in progress.state.get("parts", ())]
        self._pending = bytearray()
        self._had_tail = "tail" in progress.state  # also one of no bytes: an older one may be there
        self._finished: Progress | None = None
        if tail := progress.state.get("tail", 0):
            self._read_tail(tail, progress)

    def _read_tail(self, size: int, progress: Progress) -> None:
        try:
            self._pending += b"".join(self._store.read(self._name + _TAIL, 0, size))
        except ObjectMissing:
            # The object was finished already, and the answer was lost: its tail is deleted.
            if self._store.size(self._name) != progress.offset:
                raise
            self._finished = progress
            return
        if hashlib.sha256(self._pending).hexdigest() != progress.state["tail_sha256"]:
            raise ObjectMissing

    def write(self, data: bytes) -> None:
        assert self._finished is None or not data
        left = memoryview(data)
        while left:
            room = _PART_BYTES - len(self._pending)
            self._pending += left[:room]
            left = left[room:]
            if len(self._pending) == _PART_BYTES:
                self._send_part()

    def _send_part(self) -> None:
        client, place = self._store.client, self._store.located(self._name)
        with _told():
            if not self._upload:
                self._upload = client.create_multipart_upload(**place)["UploadId"]
            body = bytes(self._pending)
            answer = client.upload_part(
                **place,
                UploadId=self._upload,
                PartNumber=len(self._parts) + 1,
                Body=body,
                ContentMD5=_md5(body),
            )
        self._parts.append((answer["ETag"], len(body)))
        self._pending.clear()

    def _progress(self, tail: bytes) -> Progress:
        if self._finished is not None:
            return self._finished
        state: dict[str, Any] = {"upload": self._upload, "parts": [list(part) for part in self._parts]}
        if self._had_tail:
            state |= {"tail": len(tail), "tail_sha256": hashlib.sha256(tail).hexdigest()}
        return Progress(sum(size for _, size in self._parts) + len(tail), state)

    def checkpoint(self) -> Progress:
        return self._progress(b"")

    def save(self) -> Progress:
        tail = bytes(self._pending)
        if tail:
            with _told():
                place = self._store.located(self._name + _TAIL)
                self._store.client.put_object(**place, Body=tail, ContentMD5=_md5(tail))
            self._had_tail = True
        return self._progress(tail)

    def finish(self) -> None:
        if self._finished is None:
            self._make_whole()
        if self._had_tail:
            self._store.delete_tail(self._name)

    def _make_whole(self) -> None:
        client, place = self._store.client, self._store.located(self._name)
        from botocore.exceptions import ClientError

        size = sum(size for _, size in self._parts) + len(self._pending)
        try:
            if self._upload and self._pending:
                self._send_part()
            with _told():
                try:
                    if self._upload:
                        parts = [
                            {"ETag": etag, "PartNumber": number}
                            for number, (etag, _) in enumerate(self._parts, 1)
                        ]
                        client.complete_multipart_upload(
                            **place, UploadId=self._upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
                        )
                    else:
                        body = bytes(self._pending)
                        client.put_object(**place, Body=body, ContentMD5=_md5(body), IfNoneMatch="*")
                except ClientError as error:
                    if _code(error) not in ("PreconditionFailed", "412"):
                        raise
                    raise ObjectMissing from None  # it is there already: this was a retry of ours, or of boto3's
        except ObjectMissing:
            if self._store.size(self._name) != size:
                raise

    def close(self) -> None:
        self._pending.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _md5(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
