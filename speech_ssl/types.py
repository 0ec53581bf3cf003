"""The values that cross packages, and the one legend of shape suffixes.

Tensors and arrays carry their shape in their name (`x_BTD`)::

    B  rows of a batch            S  samples of a wave at 16 kHz     T  frames
    C  channels of a convolution  D  width of a frame vector         H  attention heads
    L  layers                     M  hidden frames of a row          K  distractors
    G  codebooks (groups)         V  entries of a codebook           U  target units of a row
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # it takes seconds to load, and processes that only decode audio need none of it
    import torch
    from torch import Tensor

SAMPLE_RATE = 16_000

Waveform: TypeAlias = NDArray[np.float32]
"""One channel of audio, shape (S,), float32, 16 kHz, nominally within [-1, 1]."""

Pooling: TypeAlias = Literal["mean", "max"]


def valid_mask(lengths_B: Tensor, size: int) -> Tensor:
    """True where a padded row holds real content: shape (B, size), bool."""
    import torch

    return torch.arange(size, device=lengths_B.device) < lengths_B[:, None]


def pad(waves: Sequence[Waveform]) -> tuple[NDArray[np.float32], list[int]]:
    """A batch of them, zero-padded to the longest (B, S), and how many samples of each row are real."""
    lengths = [len(wave) for wave in waves]
    padded_BS = np.zeros((len(waves), max(lengths, default=0)), dtype=np.float32)
    for row_S, wave in zip(padded_BS, waves, strict=True):
        row_S[: len(wave)] = wave
    return padded_BS, lengths


Units = TypeVar("Units", "NDArray[np.integer]", "Tensor")


def least_frames(units: Units) -> Units:
    """The fewest frames that can say units (..., U), padded with zeros, in CTC: one a unit, and a blank
    between equal ones. Shape (...,)."""
    said = units != 0
    repeated = (units[..., 1:] == units[..., :-1]) & said[..., 1:]
    least: Units = said.sum(-1) + repeated.sum(-1)
    return least


class Frames(NamedTuple):
    """Padded frame vectors, and how many frames of each row are real."""

    x_BTD: Tensor
    lengths_B: Tensor

    @property
    def valid_BT(self) -> Tensor:
        return valid_mask(self.lengths_B, self.x_BTD.shape[1])


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Of rows (R, N): how many they are, their mean, and the sum of the products of their deviations from it.

    The sum of two is that of all rows together (Chan et al. 1979): what is long can be measured part by part,
    and how it was parted changes no more than float64's last digits.
    """

    count: int
    mean_N: NDArray[np.float64]
    scatter_NN: NDArray[np.float64]

    @classmethod
    def of(cls, rows_RN: NDArray[np.floating]) -> Moments:
        rows_RN = np.asarray(rows_RN, dtype=np.float64)
        mean_N = rows_RN.mean(axis=0) if len(rows_RN) else np.zeros(rows_RN.shape[1])
        centred_RN = rows_RN - mean_N
        # Not a product of matrices: BLAS would wake threads for it, and the cores are busy.
        return cls(len(rows_RN), mean_N, np.einsum("ri,rj->ij", centred_RN, centred_RN))

    def __add__(self, other: Moments) -> Moments:
        count = self.count + other.count
        if not count:
            return self
        apart_N = other.mean_N - self.mean_N
        between_NN = np.outer(apart_N, apart_N) * (self.count * other.count / count)
        mean_N = self.mean_N + apart_N * (other.count / count)
        return Moments(count, mean_N, self.scatter_NN + other.scatter_NN + between_NN)

    def scaled(self, shift: float, factor: float) -> Moments:
        """Of the same rows, each value less `shift` and then times `factor`."""
        return Moments(self.count, (self.mean_N - shift) * factor, self.scatter_NN * factor**2)

    @property
    def covariance_NN(self) -> NDArray[np.float64]:
        """Divided by the count, as normalisations do."""
        return self.scatter_NN / max(self.count, 1)


Levels: TypeAlias = Sequence["Moments | None"]
"""For each row of a batch, what its front end normalises it by: the moments of the clip that it is a window
of. None, or an empty sequence: the row's own."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What the loader makes and objectives read. Rows are zero-padded to the longest."""

    wave_BS: Tensor
    lengths_B: Tensor
    targets_BU: Tensor | None = None
    target_lengths_B: Tensor | None = None
    names: tuple[str, ...] = ()
    """For messages: what each row was read from."""

    @property
    def seconds(self) -> float:
        """Padded seconds: what the batch costs."""
        return self.wave_BS.numel() / SAMPLE_RATE

    def to(self, device: torch.device) -> Batch:
        if self.wave_BS.device == device:
            return self
        padded = ("wave_BS", "lengths_B", "targets_BU", "target_lengths_B")
        here = {name: tensor for name in padded if (tensor := getattr(self, name)) is not None}
        return replace(self, **{k: v.to(device, non_blocking=True) for k, v in here.items()})


@dataclass(frozen=True, slots=True)
class LossSum:
    """A loss as a sum over `count` targets, so that micro-batches and ranks add exactly.

    `metrics` are sums over the same targets, scalars or tensors (histograms, moments): divide by
    the summed count for the mean.
    """

    total: Tensor
    count: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)

    def __add__(self, other: LossSum) -> LossSum:
        metrics = {k: v + other.metrics[k] for k, v in self.metrics.items()}
        return LossSum(self.total + other.total, self.count + other.count, metrics)

    def map(self, change: Callable[[Tensor], Tensor]) -> LossSum:
        """The same sums with `change` applied to each tensor."""
        metrics = {k: change(v) for k, v in self.metrics.items()}
        return LossSum(change(self.total), change(self.count), metrics)


WarningCode: TypeAlias = Literal["truncated", "unfinished_header", "opposite_phase"]


class AudioWarning(NamedTuple):
    """What is wrong with audio that is used all the same.

    code: for programs. `truncated`: it is used up to where it is damaged or cut off. `unfinished_header`:
        there is more audio than its header says, and all is used. `opposite_phase`: its channels cancel each
        other out in their mean, which is used.
    message: for people: one line, which names the file.
    """

    code: WarningCode
    message: str


@dataclass(frozen=True, slots=True)
class Features:
    """The encoder's answer for one clip.

    frames: (T, D) float32, of the layer that was asked for, or of the last of several. Frame t describes the
        samples around `t * hop_s` seconds.
    duration_s: length of the clip.
    hop_s: seconds between frames.
    warnings: what is wrong with the clip's audio, see AudioWarning.
    layers: frames (T, D) of each layer that was asked for, by the number that it was asked by.
    """

    frames: NDArray[np.float32]
    duration_s: float
    hop_s: float
    warnings: tuple[AudioWarning, ...] = ()
    layers: Mapping[int, NDArray[np.float32]] = field(default_factory=dict)

    def pooled(self, how: Pooling = "mean", *, layer: int | None = None) -> NDArray[np.float32]:
        """One vector (D,) for the clip: the mean or the maximum over its frames. layer: one of `layers`, by
        the number that it was asked by. Raises ValueError for another."""
        frames = self.frames if layer is None else self.layers.get(layer)
        if frames is None:
            asked = ", ".join(map(str, self.layers))
            raise ValueError(f"layer {layer} was not asked for: there are the frames of {asked}")
        if how == "mean":
            return np.asarray(frames.mean(axis=0, dtype=np.float64), dtype=np.float32)
        if how == "max":
            return np.asarray(frames.max(axis=0), dtype=np.float32)
        raise ValueError(f"pooling must be 'mean' or 'max', not {how!r}")
