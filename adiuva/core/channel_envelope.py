"""Binary format of a batch of messages from one process to another: JSON for each, and its body as raw bytes.

    batch = version ‖ length of the sender's name ‖ name ‖ message …
    message = number ‖ lengths of channel, head and body ‖ channel ‖ head ‖ body

The head is the message as JSON without its body, which is carried as it is. So a process passes a device's frame on
without reading it, or writing it as JSON within JSON. Lengths are in bytes, numbers big-endian.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import Struct, error
from typing import Any, Final

import orjson

Message = dict[str, Any]

_VERSION: Final = 1
_BATCH: Final = Struct("!BH")
_MESSAGE: Final = Struct("!QHII")
_BATCH_BYTES: Final = _BATCH.size
_MESSAGE_BYTES: Final = _MESSAGE.size


def pack(channel: str, message: Message, body: bytes = b"", number: int = 0) -> bytes:
    """Return one message for a channel of the process that gets the batch. It has a number if its sender wants to know
    its fate. Raises TypeError if JSON cannot represent the message."""
    head, name = orjson.dumps(message), channel.encode()
    return _MESSAGE.pack(number, len(name), len(head), len(body)) + name + head + body


def pack_batch(sender: str, messages: Iterable[bytes]) -> bytes:
    """Return packed messages as a batch, in order. `sender` is where the sender can be told of them; "" if nowhere."""
    name = sender.encode()
    return b"".join((_BATCH.pack(_VERSION, len(name)), name, *messages))


def unpack_batch(batch: bytes) -> tuple[str, Iterator[tuple[int, str, Message]]]:
    """Return the sender, and each message with its number and channel. A message's body is the bytes `body` in it.

    Raises ValueError, as does the iterator, if this is no batch.
    """
    try:
        version, length = _BATCH.unpack_from(batch)
    except error:
        raise ValueError("too short for a batch") from None
    if version != _VERSION:
        raise ValueError("a batch of another version")
    start = _BATCH_BYTES + length
    return batch[_BATCH_BYTES:start].decode(), _messages(batch, start)


def _messages(batch: bytes, at: int) -> Iterator[tuple[int, str, Message]]:
    end = len(batch)
    while at < end:
        try:
            number, of_name, of_head, of_body = _MESSAGE.unpack_from(batch, at)
        except error:
            raise ValueError("a batch that is cut off") from None
        at += _MESSAGE_BYTES
        head_at = at + of_name
        body_at = head_at + of_head
        name = batch[at:head_at].decode()
        at = body_at + of_body
        if at > end:
            raise ValueError("a batch that is cut off")
        message = orjson.loads(batch[head_at:body_at])
        if of_body:
            message["body"] = batch[body_at:at]
        yield number, name, message
