"""USAD: one student predicts, layer by layer, the hidden states of several trained encoders.

Chang et al. 2025, arXiv 2506.18843, section III; the loss is DistilHuBERT's (Chang et al. 2022, arXiv
2110.01900). Three things differ from USAD. Targets are what blocks give, not their feed-forward networks
alone. Heads are linear by default, as DistilHuBERT's; see `head_width`. And where frame rates differ, targets
are interpolated at the student's frames: USAD averages pairs of the student's for its slower teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.base import Floor, Objective, effective_rank, moments
from speech_ssl.objectives.masking import take
from speech_ssl.types import Batch, Frames, LossSum


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationConfig:
    """Defaults: section III.B, but for the heads."""

    teachers: int = 2
    layers: int = 4
    """K: so many states of each encoder are compared, see `chosen_layers`."""
    head_width: int = 0
    """0: linear heads. More: heads of two layers with a ReLU and so many values between, as section IV.A
    has, which does not say how many."""
    normalize: bool = False
    """Bring each frame's target to mean 0 and variance 1 first."""

    def build(self, encoder: Encoder) -> Distillation:
        return Distillation(encoder, self)


def chosen_layers(depth: int, count: int) -> list[int]:
    """floor(k * depth / count) for k = 1 .. count, as `Encoder.hidden_states` numbers them. The last is
    final; of an encoder with fewer blocks than `count` some occur twice, and 0 is what enters its blocks."""
    return [k * depth // count for k in range(1, count + 1)]


def at_frames_of(student: Encoder, size: int, teacher: Encoder, states: Frames) -> Tensor:
    """A teacher's states (B, U, E) at the middles of `size` frames of the student: (B, size, E).

    Between the middles of two of its frames they are interpolated, before the first and after a row's last
    valid one they are those. Where both encoders have the same frames they are the states themselves.
    """
    if (student.hop, student.receptive_field) == (teacher.hop, teacher.receptive_field):
        return states.x_BTD[:, :size]
    samples_T = torch.arange(size, device=states.x_BTD.device, dtype=torch.float64) * student.hop
    at_T = (samples_T + (student.receptive_field - teacher.receptive_field) / 2) / teacher.hop
    last_B1 = (states.lengths_B[:, None] - 1).clamp(min=0)
    at_BT = torch.minimum(at_T.clamp(min=0), last_B1.double())
    before_BT = at_BT.long()
    after_BT = torch.minimum(before_BT + 1, last_B1)
    share_BT1 = (at_BT - before_BT)[:, :, None].to(states.x_BTD.dtype)
    return torch.lerp(take(states.x_BTD, before_BT), take(states.x_BTD, after_BT), share_BT1)


class Distance(NamedTuple):
    """Of each frame."""

    l1_BT: Tensor
    cosine_BT: Tensor

    @property
    def loss_BT(self) -> Tensor:
        """Section III.B: |z' - z|_1 / D - log sigmoid(cos(z', z))."""
        return self.l1_BT - F.logsigmoid(self.cosine_BT)


def distance(predicted_BTE: Tensor, target_BTE: Tensor) -> Distance:
    return Distance(
        (predicted_BTE - target_BTE).abs().mean(-1), F.cosine_similarity(predicted_BTE, target_BTE, dim=-1)
    )


class Distillation(Objective):
    """The student, and a head for each chosen layer and teacher. Teachers are given by `learn_from`."""

    def __init__(self, encoder: Encoder, config: DistillationConfig) -> None:
        super().__init__()
        if not 1 <= config.layers <= encoder.config.depth:
            raise ValueError(
                f"layers must be from 1 to the student's depth, {encoder.config.depth}, not {config.layers}"
            )
        if config.teachers < 1 or config.head_width < 0:
            raise ValueError(
                f"teachers must be at least 1 and head_width at least 0, not {config.teachers} and "
                f"{config.head_width}"
            )
        self.encoder, self.config, self.teachers = encoder, config, config.teachers
        encoder.hidden_vector.requires_grad_(False)  # no frame is hidden
        self.layers = chosen_layers(encoder.config.depth, config.layers)
        self.heads = nn.ModuleList()
        self._teachers: list[Encoder] = []  # a list: no modules of this one, and not in its state dict

    def learn_from(self, teachers: Sequence[Encoder]) -> None:
        """Any encoders; they are frozen, and follow the batches from device to device. Heads are made here,
        for they are as wide as what they predict."""
        super().learn_from(teachers)
        self._teachers = [teacher.eval().requires_grad_(False) for teacher in teachers]
        self.heads = nn.ModuleList(
            nn.ModuleList(self._head(teacher.config.width) for _ in self.layers) for teacher in teachers
        )

    def _head(self, width: int) -> nn.Module:
        D, hidden = self.encoder.config.width, self.config.head_width
        if not hidden:
            return nn.Linear(D, width)
        return nn.Sequential(nn.Linear(D, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, batch: Batch, *, generator: torch.Generator) -> LossSum:
        """The mean over layers and teachers, summed over frames: those of rows in which every teacher has a
        frame too. Raises ValueError if the batch is too short for a frame of one of the encoders."""
        assert len(self._teachers) == self.teachers, "learn_from was not called"
        features = self.encoder.normalized(self.encoder.convolve(batch.wave_BS, batch.lengths_B))
        states = list(self.encoder.blockwise(features))
        learned = [states[layer].float() for layer in self.layers]
        targets = [self._targets(teacher, batch, states[0].shape[1]) for teacher in self._teachers]
        heard_B = torch.stack([frames_B > 0 for _, frames_B in targets]).all(0)
        weight_BT = (features.valid_BT & heard_B[:, None]).float()
        with torch.autocast(batch.wave_BS.device.type, enabled=False):
            apart = [
                [distance(head(x), z) for head, x, z in zip(_list(heads), learned, zs, strict=True)]
                for heads, (zs, _) in zip(self.heads, targets, strict=True)
            ]
            every = [one for of_teacher in apart for one in of_teacher]
            total = (_mean([one.loss_BT for one in every]) * weight_BT).sum()
            spread = moments(learned[-1], weight_BT)
        metrics = {"l1": (_mean([one.l1_BT for one in every]) * weight_BT).sum(), **spread}
        for number, (of_teacher, (zs, _)) in enumerate(zip(apart, targets, strict=True), 1):
            blind = [F.cosine_similarity(_mean_over(z, weight_BT), z, dim=-1) for z in zs]
            cosine_BT, blind_BT = _mean([one.cosine_BT for one in of_teacher]), _mean(blind)
            metrics[f"cosine_{number}"] = (cosine_BT * weight_BT).sum()
            metrics[f"blind_{number}"] = (blind_BT * weight_BT).sum()
            first, second = moments(zs[-1], weight_BT).values()
            metrics |= {f"teacher_{number}_moment_1": first, f"teacher_{number}_moment_2": second}
        return LossSum(total, weight_BT.sum(), {name: value.detach() for name, value in metrics.items()})

    @torch.no_grad()
    def _targets(self, teacher: Encoder, batch: Batch, size: int) -> tuple[list[Tensor], Tensor]:
        """The states to predict, (B, size, E) each, and how many frames of its own each row has."""
        teacher.to(batch.wave_BS.device)
        frames_B = teacher.frame_count(batch.lengths_B)
        states = teacher.hidden_states(batch.wave_BS, batch.lengths_B)
        layers = chosen_layers(teacher.config.depth, self.config.layers)
        chosen = [Frames(states[layer].float(), frames_B) for layer in layers]
        if self.config.normalize:
            chosen = [Frames(F.layer_norm(x, x.shape[-1:]), frames_B) for x, _ in chosen]
        return [at_frames_of(self.encoder, size, teacher, each) for each in chosen], frames_B

    def report(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """`cosine_1`, `cosine_2`, ...: with the states of each teacher, as `learn_from` got them. `blind_1`,
        ...: what each row's mean state would reach, which is high where few values are large and constant.
        `effective_rank`: of the student's final states; `teacher_rank`: the highest of the teachers'; and
        `rank_share`, the first by the second."""
        rank = effective_rank(means["moment_1"], means["moment_2"])
        taught = max(
            effective_rank(means[f"teacher_{number}_moment_1"], means[f"teacher_{number}_moment_2"])
            for number in range(1, self.teachers + 1)
        )
        ranks = {"effective_rank": rank, "teacher_rank": taught, "rank_share": rank / max(taught, 1.0)}
        return super().report(means) | ranks

    def floors(self) -> Mapping[str, Floor]:
        """Relative to the teachers: the states of some of them have few directions of their own."""
        return {
            "rank_share": Floor(
                0.2,
                "the student's states vary in far fewer directions than its teachers': it gives nearly the "
                "same vector for every frame. Lower the peak learning rate and lengthen the warm-up",
            )
        }


def _list(module: nn.Module) -> nn.ModuleList:
    assert isinstance(module, nn.ModuleList)
    return module


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean(0)


def _mean_over(x_BTD: Tensor, weight_BT: Tensor) -> Tensor:
    """Of each row, (B, 1, D)."""
    weight_BT1 = weight_BT[:, :, None]
    return (x_BTD * weight_BT1).sum(1, keepdim=True) / weight_BT1.sum(1, keepdim=True).clamp(min=1)
