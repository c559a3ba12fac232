"""The two requests that bring large bodies: `PUT /backup`, and `PATCH /storage/uploads/{id}`.

Each says what happens before, while and after its bytes come (`adiuva.object_store.bodies.Body`).
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping

from adiuva.core.errors import AdiuvaError
from adiuva.object_store.bodies import Body, BodyResponse, Request
from adiuva.vault import backups, headers, limits, receiving, uploads
from adiuva.vault.backups import Description
from adiuva.vault.errors import BodyIncomplete, InvalidHeader, LengthRequired, TooLong
from adiuva.vault.receiving import Receiver


def length_of(given: Mapping[str, str]) -> int | None:
    """Return the declared length of the body; None if it comes in chunks, or none is declared. Raises Invalid."""
    if "Transfer-Encoding" in given or not given.get("Content-Length"):
        return None
    return headers.whole_number(given, "Content-Length", most=2**63 - 1)


def backup(request: Request) -> Body:
    """Begin `PUT /backup`."""
    user_id, given = request.user_id, request.headers
    limits.count_request(user_id, request.tier)
    if "X-Upload-Id" in given:
        raise InvalidHeader("Not together with a body.", name="X-Upload-Id")
    described = headers.backup(given)
    length = length_of(given)
    if length is None:
        raise LengthRequired
    if backups.is_there(user_id, described):
        return _KnownBackup()
    upload = uploads.begin(user_id=user_id, purpose="backup", length=length, direct=True)
    try:
        receiver = receiving.open_receiver(user_id, upload.pk, offset=0, direct=True)
    except AdiuvaError:
        uploads.abandon(upload)
        raise
    return _NewBackup(user_id, described, receiver)


class _KnownBackup:
    """Body of a backup that is stored already: its bytes are not needed."""

    def write(self, data: bytes) -> None: ...

    def end(self) -> BodyResponse:
        return BodyResponse(200, {"ok": True}, {})

    def break_off(self, error: BaseException | None) -> None: ...


class _NewBackup:
    def __init__(self, user_id: uuid.UUID, described: Description, receiver: Receiver) -> None:
        self._user_id, self._described, self._receiver = user_id, described, receiver

    def write(self, data: bytes) -> None:
        self._receiver.write(data)

    def end(self) -> BodyResponse:
        if self._receiver.room:
            raise BodyIncomplete(self._receiver.upload.length, self._receiver.offset)
        backups.store(self._user_id, self._described, self._receiver.finish())
        self._receiver.close()
        return BodyResponse(200, {"ok": True}, {})

    def break_off(self, error: BaseException | None) -> None:
        try:
            self._receiver.give_up()
        finally:
            self._receiver.close()


def part(request: Request) -> Body:
    """Begin `PATCH /storage/uploads/{id}`."""
    user_id, upload_id, given = request.user_id, request.parameters["upload_id"], request.headers
    limits.count_request(user_id, request.tier)
    uploads.get(user_id, upload_id)
    headers.require_tus(given)
    if given.get("Content-Type", "").partition(";")[0].strip() != "application/offset+octet-stream":
        raise InvalidHeader("application/offset+octet-stream is required.", name="Content-Type")
    offset = headers.whole_number(given, "Upload-Offset", most=2**63 - 1)
    check = headers.part_checksum(given)
    length = length_of(given)
    receiver = receiving.open_receiver(user_id, upload_id, offset=offset, check=check)
    if length is not None and length > receiver.room:
        most = receiver.room
        receiver.give_up()
        receiver.close()
        raise TooLong(most)
    return _Part(receiver)


class _Part:
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._ended = False

    def write(self, data: bytes) -> None:
        self._receiver.write(data)

    def end(self) -> BodyResponse:
        self._ended = True
        offset = self._receiver.end()
        self._receiver.close()
        return BodyResponse(204, None, {"Tus-Resumable": headers.TUS, "Upload-Offset": str(offset)})

    def break_off(self, error: BaseException | None) -> None:
        """Keep the bytes that came before the body broke off, unless the store failed or the request has a checksum."""
        try:
            if self._ended or (error is not None and not isinstance(error, AdiuvaError)):
                self._receiver.give_up()
            else:
                self._receiver.save_rest()
        finally:
            self._receiver.close()
