"""Reader of the file with the model's weights and vocabulary.

The file begins with the magic E5S1 and a version, followed by the model's sizes, the vocabulary, the table that
normalises characters, and a directory of named tensors. Numbers are little-endian. Large matrices are in blocks of 32
weights: a scale of 16 bits, then 16 bytes with two weights of 4 bits each.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from adiuva.local_embeddings import DIMENSIONS, WeightsMissing

_SHA256: Final = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
_MAGIC: Final = b"E5S1"
_BLOCK: Final = np.dtype([("scale", "<f2"), ("weights", "u1", 16)])
_BLOCK_WEIGHTS: Final = 32
_FLOAT32: Final = 0

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Pieces of words by their text, with their log probabilities, and the replacements of some characters."""

    ids: dict[str, int]
    scores: array[float]
    begin_id: int
    end_id: int
    unknown_id: int
    replacements: dict[int, str]


@dataclass(frozen=True, slots=True)
class Weights:
    """Sizes, vocabulary and tensors of the model. A row of `word_blocks` is one word's vector."""

    layers: int
    heads: int
    max_tokens: int
    epsilon: float
    vocabulary: Vocabulary
    word_blocks: NDArray[Any]
    _data: mmap.mmap
    _directory: dict[str, tuple[int, int, int]]

    def tensor(self, name: str) -> Floats:
        """Return a tensor's numbers. Matrices have a row for each output."""
        kind, count, offset = self._directory[name]
        if kind == _FLOAT32:
            return np.frombuffer(self._data, "<f4", count, offset)
        return dequantize(np.frombuffer(self._data, _BLOCK, count // _BLOCK_WEIGHTS, offset))


def open_weights(path: Path) -> Weights:
    """Check the file and read its vocabulary; tensors are read at their first use. Raises WeightsMissing."""
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != _SHA256:
            raise WeightsMissing(f"{path.name} is not the file that this version of Adiuva was written for")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    reader = _Reader(data)
    if reader.take(4) != _MAGIC:
        raise WeightsMissing(f"{path.name} does not hold this model")
    _version, width, layers, heads, _inner, words, max_tokens, _types = reader.unpack("<I7i")
    epsilon, block_weights = reader.unpack("<fi")
    if (width, block_weights) != (DIMENSIONS, _BLOCK_WEIGHTS):
        raise WeightsMissing(f"{path.name} holds a model of other sizes")
    vocabulary = _read_vocabulary(reader)
    directory = _read_directory(reader)
    blocks = np.frombuffer(data, _BLOCK, words * width // _BLOCK_WEIGHTS, directory["emb.word"][2])
    return Weights(layers, heads, max_tokens, epsilon, vocabulary, blocks.reshape(words, -1), data, directory)


def dequantize(blocks: NDArray[Any]) -> Floats:
    """Return the weights of blocks in any shape; the last axis grows by the 32 weights of a block."""
    nibbles = np.concatenate([blocks["weights"] & 0x0F, blocks["weights"] >> 4], axis=-1)
    weights = (nibbles.astype(np.float32) - 8) * blocks["scale"].astype(np.float32)[..., None]
    return weights.reshape(*blocks.shape[:-1], -1)


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> bytes:
        self._at += size
        return self._data[self._at - size : self._at]

    def unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))


def _read_vocabulary(reader: _Reader) -> Vocabulary:
    count, begin_id, end_id, _padding_id, unknown_id = reader.unpack("<5i")
    (size,) = reader.unpack("<Q")
    offsets = reader.unpack(f"<{count + 1}I")
    scores = array("f", reader.take(count * 4))
    text = reader.take(size)
    ids = {text[offsets[i] : offsets[i + 1]].decode(): i for i in range(count)}
    replacements = {}
    rows, _ = reader.unpack("<iI")
    for _ in range(rows):
        character, length = reader.unpack("<IB")
        replacements[character] = "".join(map(chr, reader.unpack(f"<{length}I")))
    return Vocabulary(ids, scores, begin_id, end_id, unknown_id, replacements)


def _read_directory(reader: _Reader) -> dict[str, tuple[int, int, int]]:
    """Return name → kind of number, count of numbers, offset in the file."""
    directory = {}
    (count,) = reader.unpack("<i")
    for _ in range(count):
        name = reader.take(reader.unpack("<H")[0]).decode()
        kind, numbers, offset, _size = reader.unpack("<BIQQ")
        directory[name] = kind, numbers, offset
    return directory
