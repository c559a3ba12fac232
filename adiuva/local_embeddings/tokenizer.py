"""Tokenizer: splits a text into the pieces that the model knows, the most probable way, as SentencePiece's unigram
model does."""

from __future__ import annotations

import re
from typing import Final

from adiuva.local_embeddings.weights import Vocabulary

# Stands for a space, and begins each piece that begins a word.
_WORD_START: Final = "\u2581"
_SPACES: Final = re.compile(" {2,}")
# An unknown character is less probable than the least probable piece by this logarithm.
_UNKNOWN_PENALTY: Final = 10.0


class Tokenizer:
    def __init__(self, vocabulary: Vocabulary) -> None:
        self._unknown_id = vocabulary.unknown_id
        self._replacements = vocabulary.replacements
        self._ids, self._scores = vocabulary.ids, vocabulary.scores
        self._unknown_score = min(self._scores) - _UNKNOWN_PENALTY
        self._longest = max(map(len, self._ids))

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of the pieces of a text, in order. Time grows with the text's length, whatever its words."""
        text = _SPACES.sub(" ", text.translate(self._replacements))
        text = (text if text.startswith(" ") else f" {text}").replace(" ", _WORD_START)
        # For each position: the best score of a split up to it, the last piece of that split and where it begins.
        best = [0.0] + [float("-inf")] * len(text)
        last: list[tuple[int, int]] = [(0, 0)] * (len(text) + 1)
        for start in range(len(text)):
            so_far = best[start]
            if so_far + self._unknown_score > best[start + 1]:
                best[start + 1] = so_far + self._unknown_score
                last[start + 1] = self._unknown_id, start
            for end in range(start + 1, min(start + self._longest, len(text)) + 1):
                if (piece := self._ids.get(text[start:end])) is not None:
                    score = so_far + self._scores[piece]
                    if score > best[end]:
                        best[end], last[end] = score, (piece, start)
        ids = []
        at = len(text)
        while at:
            number, at = last[at]
            ids.append(number)
        return ids[::-1]
