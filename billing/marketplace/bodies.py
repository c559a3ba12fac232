"""The request that brings a package: `POST /plugins/{id}/versions` (`adiuva.object_store.bodies.Body`)."""

from __future__ import annotations

import contextlib
import tempfile
from typing import IO, Final
from uuid import UUID

from adiuva.core.errors import AdiuvaError, Text
from adiuva.object_store.bodies import Body, BodyResponse, Request
from billing import request_limits
from billing.marketplace import drafts, own_plugins
from billing.marketplace.package import MAX_PACKAGE_BYTES

# The type that a ZIP file is sent as depends on the browser and the system; some name none.
_MEDIA_TYPES: Final = ("", "application/zip", "application/x-zip-compressed", "application/octet-stream")


class PackageTooLarge(AdiuvaError):
    code, status = "too_large", 413

    def __init__(self) -> None:
        super().__init__(Text("a package has at most {most} MiB", most=MAX_PACKAGE_BYTES >> 20))


class NoPackage(AdiuvaError):
    """Refused before the checks, which would only say that a form containing the file is no ZIP file."""

    code, status = "unsupported_media_type", 415

    def __init__(self) -> None:
        super().__init__("send the package alone, as application/zip")


def package(request: Request) -> Body:
    """Begin to read a package. Raises the reason to refuse it by its headers and its path."""
    request_limits.require(request.user_id, request.tier)
    if request.headers.get("Content-Type", "").partition(";")[0].strip().lower() not in _MEDIA_TYPES:
        raise NoPackage
    length = request.headers.get("Content-Length", "")
    if length.isdecimal() and int(length) > MAX_PACKAGE_BYTES:
        raise PackageTooLarge
    plugin_id: UUID = request.parameters["plugin_id"]
    drafts.may_upload(user_id=request.user_id, plugin_id=plugin_id)
    return PackageBody(request.user_id, plugin_id)


class PackageBody:
    """A package, kept in a file of this machine until it is checked, since a ZIP file is read from its end."""

    def __init__(self, user_id: UUID, plugin_id: UUID) -> None:
        self._user_id, self._plugin_id = user_id, plugin_id
        self._file: Final[IO[bytes]] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `end` or `break_off`
        self._size = 0

    def write(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > MAX_PACKAGE_BYTES:
            raise PackageTooLarge
        self._file.write(data)

    def end(self) -> BodyResponse:
        with self._file:
            self._file.flush()
            version = drafts.upload(user_id=self._user_id, plugin_id=self._plugin_id, package=self._file)
        return BodyResponse(201, own_plugins.version_body(version), {})

    def break_off(self, error: BaseException | None) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
