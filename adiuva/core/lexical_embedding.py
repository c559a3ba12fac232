"""Embeddings by words and letters: hashed n-grams. They find shared words and their forms, not shared meaning."""

from __future__ import annotations

import math
import re
import unicodedata
from hashlib import blake2b
from itertools import pairwise
from zlib import crc32

DIMENSIONS = 512
_WORD = re.compile(r"\w+")
_MOST_CHARS = 100_000


def embed(text: str, key: bytes = b"") -> list[float]:
    """Return a vector of length 1 (of zeros for a text without words), the same in every process.

    With a key (of at most 64 bytes), only vectors of the same key can be compared. Without the key nobody can tell
    whether a vector belongs to a certain text.
    """
    found: dict[int, float] = {}  # most components of a short text's vector are zero
    words = _WORD.findall(unicodedata.normalize("NFKC", text[:_MOST_CHARS]).casefold())
    counts: dict[str, int] = {}
    for feature in _features(words):
        counts[feature] = counts.get(feature, 0) + 1
    for feature, count in counts.items():
        raw = feature.encode("utf-8", "surrogatepass")
        number = int.from_bytes(blake2b(raw, digest_size=4, key=key).digest(), "big") if key else crc32(raw)
        weight = _weight(feature) * (1 + math.log(count))
        # A sign of the hash keeps features that meet in one component from adding up.
        place = number % DIMENSIONS
        found[place] = found.get(place, 0.0) + (weight if number & 0x8000_0000 else -weight)
    vector = [0.0] * DIMENSIONS
    if length := math.sqrt(sum(x * x for _, x in sorted(found.items()))):
        for place, x in found.items():
            vector[place] = round(x / length, 7)
    return vector


def _features(words: list[str]) -> list[str]:
    found = [f"w {word}" for word in words]
    found += [f"p {first} {second}" for first, second in pairwise(words)]
    for word in words:
        framed = f"<{word[:40]}>"
        found += [f"c {framed[start : start + 4]}" for start in range(max(1, len(framed) - 3))]
    return found


def _weight(feature: str) -> float:
    kind, _, rest = feature.partition(" ")
    if kind == "w":
        return 1.0 if len(rest) > 3 else 0.3  # short words are mostly grammar
    return 0.5 if kind == "p" else 0.35
