"""Errors with which the vault refuses a request, and their reasons."""

from __future__ import annotations

from adiuva.core.errors import AdiuvaError, Conflict, Invalid, NotFound, Text


class NotStored(NotFound):
    def __init__(self) -> None:
        super().__init__("there is nothing here, or it is not yours")


class ChecksumMismatch(AdiuvaError):
    """Error for bytes that do not match their checksum. None of them is kept."""

    code, status = "checksum_mismatch", 400

    def __init__(self, expected: str, found: str) -> None:
        super().__init__("the bytes do not have this checksum", expected=expected, found=found)


class InvalidChecksum(Invalid):
    def __init__(self, name: str) -> None:
        problem = "A SHA-256 in 64 hexadecimal digits."
        super().__init__("the checksum is not valid", fields={name: [problem]})


class ChangedMeanwhile(AdiuvaError):
    """Error for a stored version that the client did not expect. `checksum` and `version` name the stored one; a backup
    has no version."""

    code, status = "changed_meanwhile", 412

    def __init__(self, *, checksum: str | None, version: int | None, deleted: bool) -> None:
        super().__init__(
            "it was changed meanwhile: read it first",
            checksum=checksum,
            version=version,
            deleted=deleted,
        )


class IdTaken(Conflict):
    def __init__(self) -> None:
        super().__init__("there is another record with this id")


class TimestampTaken(Conflict):
    def __init__(self) -> None:
        super().__init__("there is another backup of this time")


class BaseMissing(Conflict):
    """Error for a base that is not there. Another one may do, or none."""

    code = "base_missing"

    def __init__(self) -> None:
        super().__init__("the backup that this one builds on is not there")


class OthersBuildOnIt(Conflict):
    def __init__(self) -> None:
        super().__init__("other backups build on this one: delete them first")


class OffsetMismatch(AdiuvaError):
    """Error for a wrong offset. `offset` says how much is there."""

    code, status = "offset_mismatch", 409

    def __init__(self, offset: int) -> None:
        super().__init__("the upload goes on at another place", offset=offset)


class UploadIncomplete(AdiuvaError):
    code, status = "upload_incomplete", 409

    def __init__(self, offset: int, length: int) -> None:
        super().__init__("the upload is not complete yet", offset=offset, length=length)


class WrongPurpose(Conflict):
    def __init__(self) -> None:
        super().__init__("this upload was begun for something else")


class UploadExpired(AdiuvaError):
    code, status = "upload_expired", 410

    def __init__(self) -> None:
        super().__init__("this upload is over: begin a new one")


class UploadBusy(AdiuvaError):
    code, status = "upload_busy", 423

    def __init__(self) -> None:
        super().__init__("another request is at this upload: try again", retry_after_s=5)


class LengthRequired(AdiuvaError):
    code, status = "length_required", 411

    def __init__(self) -> None:
        super().__init__("say how long it is first")


class TooLong(AdiuvaError):
    code, status = "too_large", 413

    def __init__(self, most: int) -> None:
        super().__init__(Text("the body of this request may have at most {most} bytes", most=most))


class BodyIncomplete(AdiuvaError):
    code, status = "body_incomplete", 400

    def __init__(self, expected: int, found: int) -> None:
        super().__init__("the body ended before its length", expected=expected, found=found)


class TooManyUploads(AdiuvaError):
    code, status = "too_many_uploads", 429

    def __init__(self, most: int) -> None:
        super().__init__(Text("you may have {most} uploads at once", most=most), retry_after_s=10)


class Corrupt(AdiuvaError):
    """Error for stored bytes that are not those that were sent. Only the client's own copy can repair them."""

    code, status = "corrupt", 409

    def __init__(self) -> None:
        super().__init__("the stored bytes are damaged: send them again from your device")


class RangeNotSatisfiable(AdiuvaError):
    code, status = "range_not_satisfiable", 416

    def __init__(self, size: int) -> None:
        super().__init__("there are fewer bytes than this range asks for", size=size)


class TusVersion(AdiuvaError):
    code, status = "tus_version", 412

    def __init__(self) -> None:
        super().__init__("uploads speak tus 1.0.0: send Tus-Resumable")


class UploadChecksumMismatch(AdiuvaError):
    """Error with tus' own status: the bytes of this request are thrown away, and can be sent again."""

    code, status = "checksum_mismatch", 460

    def __init__(self) -> None:
        super().__init__("the bytes of this request do not have its Upload-Checksum")


class InvalidHeader(Invalid):
    def __init__(self, message: str, *, name: str) -> None:
        super().__init__("a header is not valid", fields={name: [message]})


class VectorRefused(Invalid):
    """Error for a vector. `reason`: dimensions, not_finite, too_large, zero, or not_numbers."""

    def __init__(self, reason: str, problem: str, *, field: str = "vector", **more: object) -> None:
        super().__init__("the vector is not valid", fields={field: [problem]}, reason=reason, **more)


class TooManyVectors(AdiuvaError):
    code, status = "too_many_vectors", 409

    def __init__(self, most: int) -> None:
        super().__init__(Text("this server keeps at most {most} vectors of an account", most=most))
