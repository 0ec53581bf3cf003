"""From the outputs of an events head to labels, in NumPy, since answering needs no PyTorch.
`model.heads.head` has the same for training, on batches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from speech_ssl.model.heads.specs import EventsSpec

Array = NDArray[np.float32]

LABELS, ROWS = 16, 1024
"""Frames processed at a time: for hundreds of labels over an hour, each copy would be a gigabyte."""


def frame_logits(outputs_TO: Array, spec: EventsSpec) -> Array:
    """Logits of each label for each frame: (T, K)."""
    return outputs_TO[:, : len(spec.labels)]


def clip_logits(outputs_TO: Array, spec: EventsSpec) -> Array:
    """Logits of each label for the whole clip: (K,)."""
    logits_TK = frame_logits(outputs_TO, spec)
    if spec.pooling == "max":
        return np.asarray(logits_TK.max(0))
    if spec.pooling == "mean":
        return np.asarray(logits_TK.mean(0))
    attention_TK = outputs_TO[:, len(spec.labels) :]
    logits_K = np.empty(len(spec.labels), dtype=np.float32)
    for first in range(0, len(logits_K), LABELS):
        some = slice(first, first + LABELS)
        logits_K[some] = (logits_TK[:, some] * _softmax(attention_TK[:, some], axis=0)).sum(0)
    return logits_K


def probabilities(logits_NK: Array, spec: EventsSpec) -> Array:
    """Probabilities of labels; exclusive ones sum to 1."""
    if not spec.exclusive:
        return _sigmoid(logits_NK)
    rows_NK = logits_NK.reshape(-1, logits_NK.shape[-1])
    shares_NK = np.empty_like(rows_NK)
    for first in range(0, len(rows_NK), ROWS):
        some = slice(first, first + ROWS)
        shares_NK[some] = _softmax(rows_NK[some], axis=-1)
    return shares_NK.reshape(logits_NK.shape)


def _softmax(x: Array, axis: int) -> Array:
    """Not scipy's, whose import would lengthen the start of the service's process by a sixth."""
    shares = np.exp(x - x.max(axis, keepdims=True))
    return np.asarray(shares / shares.sum(axis, keepdims=True))


def _sigmoid(x: Array) -> Array:
    y = np.negative(x)
    np.logaddexp(0, y, out=y)
    return np.exp(np.negative(y, out=y), out=y)
