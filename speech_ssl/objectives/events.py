"""Sound events: the labels of a clip, and their times.

With clip labels alone, attentive pooling learns which frames matter (Kong et al. 2019, arXiv 1903.00765);
timed events give each frame its own targets. Augmentation: mixup (Zhang et al. 2018, arXiv 1710.09412),
noise, gain and shifts of the wave, hidden time spans and channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from speech_ssl.model.encoder import Encoder
from speech_ssl.model.heads.calibration import inverse_temperature
from speech_ssl.model.heads.head import EventsHead, clip_logits, frame_logits
from speech_ssl.model.heads.linear_start import STRONG, WEIGHT_DECAYS, Pooled, fit_linear
from speech_ssl.model.heads.specs import EventPooling, EventsSpec
from speech_ssl.objectives.tuned import FineTuneConfig, Tuned
from speech_ssl.objectives.views import mixup, time_shift
from speech_ssl.types import SAMPLE_RATE, Batch, Frames, LossSum

BINS, FARTHEST = 1024, 20.0
"""Bins of logits from -FARTHEST to FARTHEST: scores near 1 are resolved as finely as scores near 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EventsConfig(FineTuneConfig):
    labels: tuple[str, ...] = ()
    """Recipes leave it empty: the labels are taken from the manifest."""
    exclusive: bool = True
    """True: exactly one label per clip. False: any number."""
    timed: bool = False
    """True: targets are events (label, start, end) in milliseconds. False: labels of clips."""
    pooling: EventPooling = "attentive"
    hidden: int = 256
    """Width of the head's hidden layer. 0: a linear head; with pooling 'mean' it starts as a linear probe."""
    class_weights: tuple[float, ...] = ()
    """A weight per label for its share of the loss; empty: all 1."""
    label_smoothing: float = 0.0

    mixup: float = 0.0
    """Share of the rows that are mixed with another row."""
    mixup_alpha: float = 0.4
    shift_s: float = 0.0

    def __post_init__(self) -> None:
        FineTuneConfig.__post_init__(self)
        moved = self.mixup or self.shift_s or self.speed
        if self.timed and (self.exclusive or moved or self.pooling != "max"):
            raise ValueError(
                "timed events may overlap, must not be shifted and train no attention: turn exclusive, "
                "mixup, shift_s and speed off, and set pooling to 'max'"
            )
        if self.class_weights and len(self.class_weights) != len(self.labels):
            raise ValueError("class_weights needs one weight per label")

    @property
    def spec(self) -> EventsSpec:
        return EventsSpec(
            labels=self.labels,
            exclusive=self.exclusive,
            pooling=self.pooling,
            hidden=self.hidden,
            timed=self.timed,
        )

    def build(self, encoder: Encoder) -> Events:
        return Events(encoder, self)


class _Heard(NamedTuple):
    """Logits and targets of everything that is scored: clips, or valid frames."""

    logits_NK: Tensor
    targets_NK: Tensor


class Events(Tuned):
    """Encoder and head. `targets_BU` holds a row's labels or, if timed, triples of label, start and end."""

    higher_is_better = True

    def __init__(self, encoder: Encoder, config: EventsConfig) -> None:
        spec = config.spec
        super().__init__(encoder, spec.build(encoder.config, config.dropout), config)
        self.config, self.spec = config, spec
        self.best_by = "balanced_accuracy" if config.exclusive else "mean_ap"
        weights = torch.tensor(config.class_weights or [1.0] * len(config.labels))
        self.class_weights_K: Tensor
        self.register_buffer("class_weights_K", weights, persistent=False)

    def forward(self, batch: Batch, *, generator: torch.Generator) -> LossSum:
        """Summed cross-entropy in nats; count: the number of clips or, with `timed`, of frames.

        Raises ValueError if the batch has no targets.
        """
        if self.config.timed:
            outputs = self.outputs(self.augmented(batch, generator), generator)
            heard = self._frames(outputs, self._given(batch))
        else:
            targets_BK = self._targets_of(batch)
            batch = self.augmented(batch, generator)
            batch, targets_BK = self._mixed(batch, targets_BK, generator)
            outputs = self.outputs(batch, generator)
            heard = _Heard(clip_logits(outputs.x_BTD, outputs.valid_BT, self.spec), targets_BK)
        with torch.no_grad():
            measured = self._exclusive(heard) if self.config.exclusive else self._histograms(heard)
        count = heard.logits_NK.new_tensor(float(len(heard.logits_NK)))
        return LossSum(self._loss(heard), count, measured)

    @property
    def starts_linear(self) -> bool:
        """Whether `start_linear` can initialise the head."""
        return self.spec.hidden == 0 and self.spec.pooling == "mean" and not self.config.timed

    def measure(self, batches: Iterable[Batch]) -> None:
        """Measure, on these batches, the statistics that standardise each channel of each layer."""
        training = self.training
        self.eval()
        assert isinstance(self.head, EventsHead)
        self.head.layers.measure((states, valid_BT) for states, valid_BT, _ in self._states(batches))
        self.train(training)

    def start_linear(self, training: Iterable[Batch], valid: Iterable[Batch]) -> float:
        """Initialise the head with `fit_linear`; returns the held-out loss. Call `measure` first."""
        mode = self.training
        self.eval()
        assert isinstance(self.head, EventsHead) and self.starts_linear

        def loss(logits_NK: Tensor, targets_NK: Tensor) -> Tensor:
            return self._loss(_Heard(logits_NK, targets_NK))

        decays = WEIGHT_DECAYS if self.frozen else STRONG
        result = fit_linear(self.head, self._pooled(training), self._pooled(valid), loss, decays)
        self.train(mode)
        return result

    @torch.no_grad()
    def calibrate(self, valid: Iterable[Batch]) -> float:
        """Scale the head's logits by what held-out clips say, see `inverse_temperature`; returns the
        temperature, 1 where there is none: without clips, and for `timed` heads, whose frames are no
        independent examples."""
        mode, heard = self.training, []
        self.eval()
        assert isinstance(self.head, EventsHead)
        for states, valid_BT, batch in () if self.config.timed else self._states(valid):
            logits_BK = clip_logits(self.head(states), valid_BT, self.spec)
            heard.append((logits_BK, self._targets_of(batch)))
        self.train(mode)
        if not heard:
            return 1.0
        logits_NK, targets_NK = (torch.cat(part) for part in zip(*heard, strict=True))
        scale = inverse_temperature(logits_NK, targets_NK, exclusive=self.config.exclusive)
        self.head.scale_logits(scale, self.spec)
        return 1 / scale

    def _pooled(self, batches: Iterable[Batch]) -> Pooled:
        assert isinstance(self.head, EventsHead)
        states = len(self.head.layers.scores)
        means = [self.class_weights_K.new_zeros(0, states, self.encoder.config.width)]
        targets = [self.class_weights_K.new_zeros(0, len(self.spec.labels))]
        for hidden, valid_BT, batch in self._states(batches):
            x_LBTD = self.head.layers.standardised(hidden).masked_fill(~valid_BT[:, :, None], 0.0)
            means.append((x_LBTD.sum(2) / valid_BT.sum(1)[:, None]).transpose(0, 1))
            targets.append(self._targets_of(batch))
        return Pooled(torch.cat(means), torch.cat(targets))

    @torch.no_grad()
    def _states(self, batches: Iterable[Batch]) -> Iterator[tuple[list[Tensor], Tensor, Batch]]:
        for batch in batches:
            batch = batch.to(self.class_weights_K.device)
            features = self.encoder.normalized(self.encoder.convolve(batch.wave_BS, batch.lengths_B))
            yield list(self.encoder.blockwise(features)), features.valid_BT, batch

    def report(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """For exclusive labels `accuracy` and `balanced_accuracy` (the mean recall of labels). Otherwise
        `mean_ap`: the mean over labels of average precision, computed from binned scores; NaN if no label
        occurred."""
        if self.config.exclusive:
            shown_K = means["shown_K"]
            recall_K = means["hits_K"] / shown_K.clamp(min=1e-12)
            return {
                "accuracy": float(means["hits_K"].sum()),
                "balanced_accuracy": float(recall_K[shown_K > 0].mean()),
            }
        return {"mean_ap": mean_average_precision(means["present_KN"], means["absent_KN"])}

    def augmented(self, batch: Batch, generator: torch.Generator) -> Batch:
        if self.training and self.config.shift_s:
            rolled_BS = time_shift(
                batch.wave_BS, batch.lengths_B, most_s=self.config.shift_s, generator=generator
            )
            batch = replace(batch, wave_BS=rolled_BS)
        return Tuned.augmented(self, batch, generator)

    def _mixed(self, batch: Batch, targets_BK: Tensor, generator: torch.Generator) -> tuple[Batch, Tensor]:
        config = self.config
        if not self.training or not config.mixup:
            return batch, targets_BK
        mixed = mixup(
            batch.wave_BS,
            batch.lengths_B,
            alpha=config.mixup_alpha,
            share=config.mixup,
            generator=generator,
        )
        weight_B1 = mixed.weight_B[:, None]
        targets_BK = weight_B1 * targets_BK + (1 - weight_B1) * targets_BK[mixed.partner_B]
        return Batch(mixed.wave_BS, batch.lengths_B), targets_BK

    @staticmethod
    def _given(batch: Batch) -> Frames:
        if batch.targets_BU is None or batch.target_lengths_B is None:
            raise ValueError("sound events need targets: the manifest has no labels")
        return Frames(batch.targets_BU, batch.target_lengths_B)

    def _targets_of(self, batch: Batch) -> Tensor:
        """Labels of each row as 0 and 1: (B, K)."""
        targets, labels = self._given(batch), len(self.spec.labels)
        hits_BUK = F.one_hot(targets.x_BTD.clamp(0, labels - 1), labels) * targets.valid_BT[:, :, None]
        return hits_BUK.sum(1).clamp(max=1).float()

    def _frames(self, outputs: Frames, targets: Frames) -> _Heard:
        """A frame has an event if the event is active at the frame's middle."""
        B, T = outputs.valid_BT.shape
        logits_BTK = frame_logits(outputs.x_BTD, self.spec)
        events_BE3 = targets.x_BTD.view(B, -1, 3)
        real_BE = torch.arange(events_BE3.shape[1], device=outputs.lengths_B.device) < (
            targets.lengths_B[:, None] // 3
        )
        middle_T = torch.arange(T, device=outputs.lengths_B.device) * self.encoder.hop
        middle_T = (middle_T + self.encoder.receptive_field / 2) * 1000 / SAMPLE_RATE
        label_BE, start_BE1, end_BE1 = events_BE3[..., 0], events_BE3[..., 1:2], events_BE3[..., 2:3]
        on_BET = (middle_T >= start_BE1) & (middle_T < end_BE1) & real_BE[..., None]
        onehot_BEK = F.one_hot(label_BE.clamp(0, len(self.spec.labels) - 1), len(self.spec.labels))
        targets_BTK = torch.einsum("bet,bek->btk", on_BET.float(), onehot_BEK.float()).clamp(max=1)
        valid_N1 = outputs.valid_BT.flatten()[:, None].expand(-1, len(self.spec.labels))
        shape = (-1, len(self.spec.labels))
        logits_NK = logits_BTK.flatten(0, 1)[valid_N1].view(shape)
        return _Heard(logits_NK, targets_BTK.flatten(0, 1)[valid_N1].view(shape))

    def _loss(self, heard: _Heard) -> Tensor:
        targets_NK, smoothing = heard.targets_NK, self.config.label_smoothing if self.training else 0.0
        weights_K = self.class_weights_K
        if self.config.exclusive:
            targets_NK = targets_NK * (1 - smoothing) + smoothing / targets_NK.shape[1]
            return -(targets_NK * weights_K * heard.logits_NK.log_softmax(-1)).sum()
        targets_NK = targets_NK * (1 - smoothing) + smoothing / 2
        losses_NK = F.binary_cross_entropy_with_logits(heard.logits_NK, targets_NK, reduction="none")
        return (losses_NK * (1 + targets_NK * (weights_K - 1))).sum() / targets_NK.shape[1]

    def _exclusive(self, heard: _Heard) -> dict[str, Tensor]:
        meant_N, said_N = heard.targets_NK.argmax(-1), heard.logits_NK.argmax(-1)
        shown_NK = F.one_hot(meant_N, len(self.spec.labels)).float()
        return {"shown_K": shown_NK.sum(0), "hits_K": (shown_NK * (meant_N == said_N)[:, None]).sum(0)}

    def _histograms(self, heard: _Heard) -> dict[str, Tensor]:
        """Histograms of the logits of clips or frames with the label, and without: (K, bins) each."""
        labels = len(self.spec.labels)
        logits_NK = heard.logits_NK.nan_to_num(0.0)  # a skipped step may have NaN
        place_NK = ((logits_NK + FARTHEST) * (BINS / (2 * FARTHEST))).clamp(0, BINS - 1).long()
        bin_NK = place_NK + BINS * torch.arange(labels, device=place_NK.device)
        present_NK = heard.targets_NK >= 0.5
        count = BINS * labels
        return {
            "present_KN": torch.bincount(bin_NK[present_NK], minlength=count).view(labels, BINS).float(),
            "absent_KN": torch.bincount(bin_NK[~present_NK], minlength=count).view(labels, BINS).float(),
        }


def mean_average_precision(present_KN: Tensor, absent_KN: Tensor) -> float:
    """From histograms of the scores of positives and negatives, lowest bin first. Labels without a positive
    are left out; NaN if no label has one."""
    hits_KN = present_KN.flip(1).cumsum(1)
    heard_KN = hits_KN + absent_KN.flip(1).cumsum(1)
    precision_KN = hits_KN / heard_KN.clamp(min=1e-12)
    positives_K = present_KN.sum(1)
    ap_K = (precision_KN * present_KN.flip(1)).sum(1) / positives_K.clamp(min=1e-12)
    return float(ap_K[positives_K > 0].mean())
