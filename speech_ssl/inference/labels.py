"""What a clip's outputs of an events head say of it, in NumPy: `model.heads` has the same for training, on
batches, and answering needs no PyTorch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from speech_ssl.model.specs import EventsSpec

Array = NDArray[np.float32]


def frame_logits(outputs_TO: Array, spec: EventsSpec) -> Array:
    """Logits of each label in each frame: (T, K)."""
    return outputs_TO[:, : len(spec.labels)]


def clip_logits(outputs_TO: Array, spec: EventsSpec) -> Array:
    """Logits of each label for the whole clip: (K,)."""
    logits_TK = frame_logits(outputs_TO, spec)
    if spec.pooling == "max":
        return np.asarray(logits_TK.max(0))
    if spec.pooling == "mean":
        return np.asarray(logits_TK.mean(0))
    return np.asarray((logits_TK * softmax(outputs_TO[:, len(spec.labels) :], axis=0)).sum(0))


def probabilities(logits_NK: Array, spec: EventsSpec) -> Array:
    """Of labels: they sum to 1 where labels are exclusive."""
    return np.asarray(softmax(logits_NK, axis=-1) if spec.exclusive else expit(logits_NK))
