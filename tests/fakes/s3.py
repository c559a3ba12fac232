"""S3 on loopback: objects, multipart uploads and versions in a folder, with the rules that matter to a writer.

with S3(folder) as s3:
    settings.STORE |= {"url": "s3://bucket", "endpoint": s3.url, "access_key": s3.KEY, "secret_key": s3.SECRET}
    s3.fail(3)          # the next three requests are answered with 503
    s3.lose_answers(1)  # the next one is carried out, and its connection cut

Each signature (AWS's version 4), each SHA-256 of a body and each Content-MD5 is checked. A part but the last has at
least 5 MiB; `If-None-Match: *` refuses to overwrite. `python -m tests.fakes.s3 PORT FOLDER` runs it by itself.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import shutil
import sys
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

LEAST_PART = 5 * 1024 * 1024
_PIECE = 1024 * 1024
_NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
_WHEN = "2020-01-01T00:00:00.000Z"


class Refused(Exception):
    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status, self.code = status, code


class S3:
    KEY, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI"

    def __init__(self, folder: Path, *, port: int = 0, versioned: bool = False) -> None:
        self.folder, self.versioned = folder, versioned
        self.calls: list[str] = []
        self.lock = threading.Lock()
        self._failing = self._losing = 0
        for name in ("objects", "uploads", "versions"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        handler = type("Handler", (_Handler,), {"s3": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> S3:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve(self) -> None:
        self._server.serve_forever()

    def fail(self, count: int) -> None:
        self._failing = count

    def lose_answers(self, count: int) -> None:
        self._losing = count

    def takes_fault(self, name: str) -> bool:
        with self.lock:
            left: int = getattr(self, name)
            setattr(self, name, max(0, left - 1))
            return left > 0

    def place(self, kind: str, key: str) -> Path:
        return self.folder / kind / quote(key, safe="")

    def names(self, kind: str = "objects") -> list[str]:
        return sorted(unquote(path.name) for path in (self.folder / kind).iterdir())


class _Handler(BaseHTTPRequestHandler):
    s3: ClassVar[S3]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_PUT(self) -> None:
        self._serve()

    do_GET = do_HEAD = do_POST = do_DELETE = do_PUT

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        self.query = dict(parse_qsl(parts.query, keep_blank_values=True))
        _, _, key = unquote(parts.path).lstrip("/").partition("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.s3.calls.append(f"{self.command} {' '.join(sorted(self.query))}".strip())
        try:
            if self.s3.takes_fault("_failing"):
                raise Refused(503, "SlowDown")
            self._check(parts.path, parts.query, body)
            answer = self._do(key, body)
        except Refused as refused:
            self._answer(refused.status, f"<Error><Code>{refused.code}</Code></Error>".encode())
            return
        if self.s3.takes_fault("_losing"):
            self.close_connection = True
            return
        if answer is not None:
            status, body, headers = (*answer, b"", {})[:3] if len(answer) == 1 else (*answer, {})[:3]
            self._answer(status, body, **headers)

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    # ── What every request must have ────────────────────────────────────────────────────────────────────

    def _check(self, path: str, query: str, body: bytes) -> None:
        given = self.headers
        if given["x-amz-content-sha256"] != hashlib.sha256(body).hexdigest():
            raise Refused(400, "XAmzContentSHA256Mismatch")
        if (md5 := given["Content-MD5"]) and base64.b64decode(md5) != hashlib.md5(body).digest():
            raise Refused(400, "BadDigest")
        found = re.fullmatch(
            r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d+)/([^/]+)/s3/aws4_request, "
            r"SignedHeaders=([^,]+), Signature=([0-9a-f]{64})",
            given["Authorization"] or "",
        )
        if found is None or found[1] != self.s3.KEY:
            raise Refused(403, "InvalidAccessKeyId")
        _, day, region, names, signature = found.groups()
        pairs = sorted(
            (quote(name, safe="-_.~"), quote(value, safe="-_.~"))
            for name, value in parse_qsl(query, keep_blank_values=True)
        )
        signed = "".join(f"{name}:{(given[name] or '').strip()}\n" for name in names.split(";"))
        lines = [self.command, path, "&".join(f"{name}={value}" for name, value in pairs), signed, names]
        canonical = "\n".join([*lines, given["x-amz-content-sha256"]])
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        to_sign = f"AWS4-HMAC-SHA256\n{given['x-amz-date']}\n{day}/{region}/s3/aws4_request\n{digest}"
        key = f"AWS4{self.s3.SECRET}".encode()
        for part in (day, region, "s3", "aws4_request", to_sign):
            key = hmac.digest(key, part.encode(), "sha256")
        if key.hex() != signature:
            raise Refused(403, "SignatureDoesNotMatch")

    # ── What it does ────────────────────────────────────────────────────────────────────────────────────

    def _do(self, key: str, body: bytes) -> tuple[Any, ...] | None:
        match self.command:
            case "GET" if not key:
                return self._list()
            case "GET" | "HEAD":
                return self._get(key)
            case "PUT" if "partNumber" in self.query:
                return self._put_part(key, body)
            case "PUT":
                return self._put(key, body)
            case "POST" if "uploads" in self.query:
                return self._create_upload(key)
            case "POST":
                return self._complete(key, body)
            case "DELETE" if "uploadId" in self.query:
                shutil.rmtree(self._upload(key))
            case "DELETE":
                self._delete(key)
        return (204,)

    def _put(self, key: str, body: bytes) -> tuple[Any, ...]:
        with self.s3.lock:
            self._require_new(key)
            self.s3.place("objects", key).write_bytes(body)
        return 200, b"", {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}

    def _require_new(self, key: str) -> None:
        if self.headers["If-None-Match"] == "*" and self.s3.place("objects", key).exists():
            raise Refused(412, "PreconditionFailed")

    def _get(self, key: str) -> None:
        place = self.s3.place("objects", key)
        if not place.exists():
            raise Refused(404, "NoSuchKey")
        size = place.stat().st_size
        start, end, status = 0, size, 200
        if found := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or ""):
            start, end, status = int(found[1]), min(size, int(found[2]) + 1), 206
        if start >= size and size:
            raise Refused(416, "InvalidRange")
        self._answer(status, Content_Length=str(end - start), ETag='"x"')
        if self.command == "HEAD":
            return
        with place.open("rb") as file:
            file.seek(start)
            while start < end:
                piece = file.read(min(_PIECE, end - start))
                start += len(piece)
                self.wfile.write(piece)

    def _create_upload(self, key: str) -> tuple[Any, ...]:
        name = uuid.uuid4().hex
        (self.s3.place("uploads", key) / name).mkdir(parents=True)
        return 200, _xml("InitiateMultipartUploadResult", f"<UploadId>{name}</UploadId>")

    def _upload(self, key: str) -> Path:
        place = self.s3.place("uploads", key) / self.query["uploadId"]
        if not place.exists():
            raise Refused(404, "NoSuchUpload")
        return place

    def _put_part(self, key: str, body: bytes) -> tuple[Any, ...]:
        (self._upload(key) / self.query["partNumber"]).write_bytes(body)
        return 200, b"", {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}

    def _complete(self, key: str, body: bytes) -> tuple[Any, ...]:
        upload = self._upload(key)
        numbers = [int(number) for number in re.findall(rb"<PartNumber>(\d+)</PartNumber>", body)]
        parts = [upload / str(number) for number in numbers]
        if not parts or numbers != sorted(set(numbers)) or not all(part.exists() for part in parts):
            raise Refused(400, "InvalidPart")
        if any(part.stat().st_size < LEAST_PART for part in parts[:-1]):
            raise Refused(400, "EntityTooSmall")
        with self.s3.lock:
            self._require_new(key)
            with self.s3.place("objects", key).open("wb") as whole:
                for part in parts:
                    with part.open("rb") as file:
                        shutil.copyfileobj(file, whole, _PIECE)
        shutil.rmtree(upload)
        return 200, _xml("CompleteMultipartUploadResult", '<ETag>"x"</ETag>')

    def _delete(self, key: str) -> None:
        place = self.s3.place("objects", key)
        version = self.query.get("versionId")
        if version is not None:
            (self.s3.place("versions", key) / version).unlink(missing_ok=True)
        elif place.exists() and self.s3.versioned:
            old = self.s3.place("versions", key)
            old.mkdir(exist_ok=True)
            place.rename(old / uuid.uuid4().hex)
        else:
            place.unlink(missing_ok=True)

    def _list(self) -> tuple[Any, ...]:
        prefix = self.query.get("prefix", "")
        if "versions" in self.query:
            return 200, _xml("ListVersionsResult", "".join(self._versions(prefix)))
        if "uploads" in self.query:
            found = [
                f"<Upload><Key>{escape(key)}</Key><UploadId>{each.name}</UploadId>"
                f"<Initiated>{_WHEN}</Initiated></Upload>"
                for key in self.s3.names("uploads")
                if key.startswith(prefix)
                for each in self.s3.place("uploads", key).iterdir()
            ]
            return 200, _xml(
                "ListMultipartUploadsResult", "<IsTruncated>false</IsTruncated>" + "".join(found)
            )
        found = [
            f"<Contents><Key>{escape(key)}</Key><LastModified>{_WHEN}</LastModified><Size>1</Size></Contents>"
            for key in self.s3.names()
            if key.startswith(prefix)
        ]
        return 200, _xml("ListBucketResult", "<IsTruncated>false</IsTruncated>" + "".join(found))

    def _versions(self, prefix: str) -> Iterator[str]:
        for key in self.s3.names("versions"):
            if key.startswith(prefix):
                for each in self.s3.place("versions", key).iterdir():
                    yield f"<Version><Key>{escape(key)}</Key><VersionId>{each.name}</VersionId></Version>"


def _xml(name: str, inner: str) -> bytes:
    return f'<?xml version="1.0" encoding="UTF-8"?><{name} {_NAMESPACE}>{inner}</{name}>'.encode()


if __name__ == "__main__":
    S3(Path(sys.argv[2]), port=int(sys.argv[1])).serve()
