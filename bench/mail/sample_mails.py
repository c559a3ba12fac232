"""Sample mails: plain, very large, and malformed in ways that mail programs produce.

Each contains one line `task: …`, from which follows the row that the device must hold.
"""

from __future__ import annotations

import base64
from typing import Any, Final

_LINE: Final = (
    "Lorem ipsum dolor sit amet, consetetur sadipscing elitr, sed diam nonumy eirmod tempor invidunt. " * 2
)
_MEGABYTE: Final = 1 << 20


def plain(title: str) -> bytes:
    return _head(f"About {title}") + f"\nHello,\n\ntask: {title}\n\nBea\n".encode()


def filler(size: int) -> str:
    """About `size` characters in lines without a task."""
    return f"{_LINE}\n" * (size // (len(_LINE) + 1))


def large(about: str) -> list[tuple[str, bytes]]:
    """(title of the task, mail) for mails with 1 and 10 MB of text, and one with a 10 MB attachment."""
    sizes = {f"{about} of {size} MB": size * _MEGABYTE for size in (1, 10)}
    mails = [
        (title, _head("Long") + f"\ntask: {title}\n\n{filler(size)}".encode())
        for title, size in sizes.items()
    ]
    title = f"{about} with a film"
    film = base64.encodebytes(b"\xff\xd8" * (5 * _MEGABYTE))
    parts = [
        _head("With a film", "Content-Type: multipart/mixed; boundary=b"),
        f"\n--b\nContent-Type: text/plain\n\ntask: {title}\n".encode(),
        b'--b\nContent-Type: video/mp4; name="film.mp4"\nContent-Transfer-Encoding: base64\n\n',
        film,
        b"--b--\n",
    ]
    return [*mails, (title, b"".join(parts))]


def oversized() -> bytes:
    """A mail whose text is larger than the limit of what is read."""
    return _head("Endless") + b"\n" + filler(20 * _MEGABYTE).encode()


def malformed(about: str) -> list[tuple[str, bytes]]:
    """(title of the task, mail) for mails that violate the standards."""
    mixed, deep = "Content-Type: multipart/mixed; boundary=b", b""
    for depth in range(60):
        deep += b"--b%d\nContent-Type: multipart/mixed; boundary=b%d\n\n" % (depth, depth + 1)
    heads = [
        b"",
        b"\xff\xfe\x00\n",
        _head("=?utf-8?b?w7/Dv8O?="),
        _head("No end", mixed) + b"\n--b\n",
        _head("No part", "Content-Type: multipart/alternative"),
        _head("Deep", f"{mixed}0") + b"\n" + deep + b"--b60\n",
        _head("Charset", "Content-Type: text/plain; charset=no-such-charset") + b"\n\xe4\xf6",
        _head("Codec", "Content-Type: text/plain; charset=idna"),
        _head("Two kinds", "Content-Type: text/plain", "Content-Type: text/html"),
        _head("Quoted", "Content-Transfer-Encoding: quoted-printable") + b"\n=ZZ=\n",
        _head("Nothing" * 3_000),
        b"".join(b"X-%d: y\n" % number for number in range(5_000)),
        _head("Controls") + b"\n\x00\x01\x02",
        _head("Page", "Content-Type: text/html") + b"\n" + b"<div>" * 3_000 + b"<br>",
        _head(b"Of many tongues \xe6\x97\xa5\xe6\x9c\xac \xd7\xa9\xd7\x9c\xd7\x95\xd7\x9d \xe4"),
    ]
    titles = [f"{about} {number}" for number in range(len(heads) + 1)]
    mails = [head + f"\ntask: {title}\n".encode() for head, title in zip(heads, titles[:-1], strict=True)]
    coded = base64.b64encode(f"task: {titles[-1]}\n".encode())
    mails.append(_head("Base64", "Content-Transfer-Encoding: base64") + b"\n!!" + coded + b"=\n")
    return list(zip(titles, mails, strict=True))


def malformed_rows(about: str) -> list[tuple[str, dict[str, Any]]]:
    """(title of the task, message) in Graph's form, with fields of wrong types and values."""

    def html(before: str, after_runs: str = "") -> dict[str, Any]:
        return {"body": {"contentType": "html", "content": f"{before}<p>task: %s</p>{after_runs}"}}

    rows: list[dict[str, Any]] = [
        {"subject": None},
        {"from": None},
        {"from": {"emailAddress": None}},
        {"toRecipients": [None, {}, 7]},
        {"subject": ["a", "list"]},
        {"subject": "x" * 100_000},
        {"receivedDateTime": "yesterday"},
        {"attachments": [None, {"name": None, "size": "large"}]},
        {"body": {"contentType": 7, "content": "task: %s"}},
        html("<div>" * 3_000),
        html("<b><i><table><tr></p><!-- -->", "</td></i>"),
        html("<style>p { }</style><script>1</script>", "<![CDATA[" * 1_000),
    ]
    made = []
    for number, row in enumerate(rows):
        title = f"{about} {number}"
        body = row.get("body", {"contentType": "text", "content": "task: %s"})
        made.append((title, {**row, "body": {**body, "content": body["content"].replace("%s", title)}}))
    return made


def _head(subject: str | bytes, *more: str) -> bytes:
    """Headers, without the line that ends them."""
    text = subject if isinstance(subject, bytes) else subject.encode()
    lines = [b"From: Bea <bea@example.com>", b"To: ann@example.com", b"Subject: " + text]
    return b"\n".join([*lines, *(each.encode() for each in more)]) + b"\n"
