"""Encoder: texts become vectors of length 1 that lie close together when the texts mean the same."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from adiuva.local_embeddings import DIMENSIONS
from adiuva.local_embeddings.tokenizer import Tokenizer
from adiuva.local_embeddings.weights import Floats, Weights, dequantize

# The rest of a longer text is not read: 2,040 tokens are some 8,000 characters, and cost two seconds.
MAX_CHARS: Final = 10_000
_MAX_WINDOWS: Final = 4


class _Layer(NamedTuple):
    """Layer of the model. Matrices are transposed, so that rows of activations are multiplied from the left."""

    attention_in: Floats  # queries, keys and values side by side
    attention_in_bias: Floats
    attention_out: Floats
    attention_out_bias: Floats
    attention_norm: tuple[Floats, Floats]
    feed_in: Floats
    feed_in_bias: Floats
    feed_out: Floats
    feed_out_bias: Floats
    feed_norm: tuple[Floats, Floats]


class Encoder:
    """Encoder of texts. One text of 30 tokens takes some 30 ms of one core."""

    def __init__(self, weights: Weights) -> None:
        self._tokenizer = Tokenizer(weights.vocabulary)
        self._begin, self._end = weights.vocabulary.begin_id, weights.vocabulary.end_id
        self._heads, self._epsilon = weights.heads, weights.epsilon
        self._window = weights.max_tokens - 2
        self._word_blocks = weights.word_blocks
        self._positions = (
            weights.tensor("emb.pos").reshape(-1, DIMENSIONS) + weights.tensor("emb.type")[:DIMENSIONS]
        )
        self._norm = weights.tensor("emb.ln.w"), weights.tensor("emb.ln.b")
        self._layers = [_layer(weights, number) for number in range(weights.layers)]

    def embed(self, text: str) -> tuple[Floats, int]:
        """Return a text's vector and count of tokens. A long text's vector is the mean over windows of 510 tokens."""
        # The model was trained with "query: " before questions and "passage: " before answers. The first for both finds
        # more here, because entries of a memory are as short as questions about them (bench.memory_meaning).
        ids = self._tokenizer.tokenize(f"query: {text[:MAX_CHARS]}")[: _MAX_WINDOWS * self._window]
        total = np.zeros(DIMENSIONS, np.float32)
        for start in range(0, len(ids), self._window):
            window = ids[start : start + self._window]
            total += len(window) * self._hidden([self._begin, *window, self._end]).mean(axis=0)
        return total / max(float(np.linalg.norm(total)), 1e-12), len(ids)

    def _hidden(self, ids: list[int]) -> Floats:
        """Return the last hidden states of up to 512 tokens."""
        hidden = self._normalize(dequantize(self._word_blocks[ids]) + self._positions[: len(ids)], self._norm)
        for layer in self._layers:
            attended = self._attend(hidden @ layer.attention_in + layer.attention_in_bias)
            hidden = self._normalize(
                hidden + attended @ layer.attention_out + layer.attention_out_bias, layer.attention_norm
            )
            fed = _gelu(hidden @ layer.feed_in + layer.feed_in_bias)
            hidden = self._normalize(hidden + fed @ layer.feed_out + layer.feed_out_bias, layer.feed_norm)
        return hidden

    def _attend(self, projected: Floats) -> Floats:
        tokens = len(projected)
        # From (queries, keys and values) to heads × tokens × width of a head.
        split = projected.reshape(tokens, 3, self._heads, -1).transpose(1, 2, 0, 3)
        queries, keys, values = split
        scores = queries @ keys.transpose(0, 2, 1) / np.float32(np.sqrt(queries.shape[-1]))
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        attended: Floats = (scores @ values).transpose(1, 0, 2).reshape(tokens, -1)
        return attended

    def _normalize(self, values: Floats, scale_and_shift: tuple[Floats, Floats]) -> Floats:
        scale, shift = scale_and_shift
        centred = values - values.mean(axis=-1, keepdims=True)
        variance = np.square(centred).mean(axis=-1, keepdims=True)
        normalized: Floats = centred / np.sqrt(variance + np.float32(self._epsilon)) * scale + shift
        return normalized


def _layer(weights: Weights, number: int) -> _Layer:
    def matrix(name: str, outputs: int) -> Floats:
        return weights.tensor(f"l{number}.{name}.w").reshape(outputs, -1)

    def bias(name: str) -> Floats:
        return weights.tensor(f"l{number}.{name}.b")

    def norm(name: str) -> tuple[Floats, Floats]:
        return weights.tensor(f"l{number}.{name}.w"), bias(name)

    inner = len(bias("fi"))
    return _Layer(
        np.ascontiguousarray(np.concatenate([matrix(each, DIMENSIONS) for each in "qkv"]).T),
        np.concatenate([bias(each) for each in "qkv"]),
        np.ascontiguousarray(matrix("ao", DIMENSIONS).T),
        bias("ao"),
        norm("aln"),
        np.ascontiguousarray(matrix("fi", inner).T),
        bias("fi"),
        np.ascontiguousarray(matrix("fo", DIMENSIONS).T),
        bias("fo"),
        norm("oln"),
    )


def _gelu(x: Floats) -> Floats:
    """Return x times the normal distribution's share below x; erf by Abramowitz and Stegun 7.1.26, within 2e-7."""
    z = np.abs(x) * np.float32(0.70710678)
    t = 1 / (1 + np.float32(0.3275911) * z)
    polynomial = t * (
        0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))
    )
    erf = np.copysign(1 - polynomial * np.exp(-z * z), x)
    result: Floats = (0.5 * x * (1 + erf)).astype(np.float32, copy=False)
    return result
