"""The teacher that follows its student, an exponential moving average of its weights; and what methods share
that predict what such a teacher says of the whole row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Generic, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_ssl.model.attention import FeedForward
from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.base import Floor, Objective, effective_rank, moments
from speech_ssl.types import Batch, Frames, LossSum

M = TypeVar("M", bound=nn.Module)
Spoken = Literal["feed_forward", "block"]
"""What a layer of the teacher says: the output of its (last) feed-forward before it is added to the residual,
which data2vec's ablation found best for speech; or the output of the block."""


class EMATeacher(nn.Module, Generic[M]):
    """A copy of the student, without dropout and gradients: theta_t <- tau theta_t + (1 - tau) theta_s.

    tau rises linearly from `first` to `last` during `warmup`, a share of the run's steps, and stays there
    (data2vec, Baevski et al. 2022, arXiv 2202.03555, section 3.3). The copy is part of the state dict. Call
    `follow` in `Objective.after_step`. without: the student's modules that the teacher has no copy of, since
    it is given their output; shared: those that are the student's at any time.
    """

    def __init__(
        self,
        student: M,
        *,
        first: float,
        last: float,
        warmup: float = 0.0,
        without: Sequence[str] = (),
        shared: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if not 0 <= first <= last <= 1 or not 0 <= warmup <= 1:
            raise ValueError(
                f"wanted 0 <= first <= last <= 1 and 0 <= warmup <= 1, not {first, last, warmup}"
            )
        left_out = {id(student.get_submodule(name)): nn.Identity() for name in without}
        self.model: M = deepcopy(student, left_out).requires_grad_(False)
        self.first, self.last, self.warmup = first, last, warmup
        self.shared = tuple(f"{name}." for name in shared)
        self.eval()

    def train(self, mode: bool = True) -> EMATeacher[M]:
        """It stays in eval mode, whatever its student does."""
        return super().train(False)

    def tau(self, progress: float) -> float:
        if progress >= self.warmup:
            return self.last
        return self.first + (self.last - self.first) * progress / self.warmup

    @torch.no_grad()
    def follow(self, student: nn.Module, progress: float) -> None:
        """One step towards the student, buffers such as running statistics included."""
        self._approach(student, 1 - self.tau(progress))

    @torch.no_grad()
    def become(self, student: nn.Module) -> None:
        """All the way: where the student's weights were read from a file after the copy was made."""
        self._approach(student, 1.0)

    def _approach(self, student: nn.Module, part: float) -> None:
        mine, its = dict(_numbers(self.model)), dict(_numbers(student))
        for names, weight in (
            ([k for k in mine if not k.startswith(self.shared)], part),
            ([k for k in mine if k.startswith(self.shared)], 1.0),
        ):
            if names:
                torch._foreach_lerp_([mine[k] for k in names], [its[k] for k in names], weight)


def _numbers(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from ((name, buffer) for name, buffer in module.named_buffers() if buffer.is_floating_point())


SHARED = ("feature_norm", "feature_projection")


def encoder_teacher(
    encoder: Encoder, ema: tuple[float, float], warmup: float, *, shares_positions: bool = True
) -> EMATeacher[Encoder]:
    """Of what comes after the front end. Student and teacher share the projection of the features, and also
    the positions if this is said. ema: tau, first and last."""
    shared = (*SHARED, "positions") if shares_positions else SHARED
    return EMATeacher(encoder, first=ema[0], last=ema[1], warmup=warmup, without=("frontend",), shared=shared)


def instance_norm(x_BTD: Tensor, valid_BT: Tensor, eps: float = 1e-5) -> Tensor:
    """Each channel of each row to mean 0 and variance 1 over the row's valid frames, float32. Invalid frames
    are 0."""
    valid_BT1 = valid_BT[:, :, None]
    x_BTD = x_BTD.float().masked_fill(~valid_BT1, 0.0)
    count_B11 = valid_BT1.sum(1, keepdim=True).clamp(min=1)
    centred_BTD = (x_BTD - x_BTD.sum(1, keepdim=True) / count_B11) * valid_BT1
    variance_B1D = centred_BTD.square().sum(1, keepdim=True) / count_B11
    return centred_BTD * (variance_B1D + eps).rsqrt()


@torch.no_grad()
def top_layers(teacher: Encoder, features: Frames, top: int, spoken: Spoken) -> list[Tensor]:
    """What the last `top` layers say of whole rows (B, T, D), each instance-normalised over time."""
    said: list[Tensor] = []
    parts = [[m for m in block.modules() if isinstance(m, FeedForward)][-1] for block in teacher.blocks]
    hooks = [part.register_forward_hook(lambda _, __, output: said.append(output)) for part in parts]
    try:
        _, *states = teacher.blockwise_from(teacher.entering(features))
    finally:
        for hook in hooks:
            hook.remove()
    chosen = said if spoken == "feed_forward" else states
    return [instance_norm(x_BTD, features.valid_BT) for x_BTD in chosen[-top:]]


def beyond_place(x_BTD: Tensor, valid_BT: Tensor) -> Tensor:
    """Which share of instance-normalised vectors' energy does not follow from their places: 1 less the mean
    product with what the other rows have in the same place. Where positions reach as far as a row does, its
    ends tell every frame's place, and a teacher may end up saying nothing else."""
    valid_BT1 = valid_BT[:, :, None]
    x_BTD = x_BTD * valid_BT1
    rows_1T1 = valid_BT1.sum(0, keepdim=True)
    others_BTD = (x_BTD.sum(0, keepdim=True) - x_BTD) / (rows_1T1 - 1).clamp(min=1)
    compared_BTD = x_BTD * (rows_1T1 > 1)
    energy = compared_BTD.square().sum().clamp(min=1e-6)
    return 1 - (compared_BTD * others_BTD).sum() / energy


class Taught(Objective):
    """A student, and the teacher of what comes after its front end, which both share.

    freeze: the share of the run after which neither the teacher nor the front end changes any more.
    """

    def __init__(
        self, encoder: Encoder, teacher: EMATeacher[Encoder], top: int, freeze: float | None = None
    ) -> None:
        super().__init__()
        if not 1 <= top <= encoder.config.depth:
            raise ValueError(f"top must be from 1 to the encoder's {encoder.config.depth} layers, not {top}")
        self.encoder, self.teacher, self.top, self.freeze = encoder, teacher, top, freeze
        self.frozen = False

    def prepare(self, batches: Iterable[Batch], generator: torch.Generator) -> None:
        """The teacher begins as its student, also where that one was read from an artifact."""
        self.teacher.become(self.encoder)

    def set_progress(self, progress: float) -> None:
        self.frozen = self.freeze is not None and progress >= self.freeze

    def after_step(self, progress: float) -> None:
        self.set_progress(progress)
        if not self.frozen:
            self.teacher.follow(self.encoder, progress)

    def features(self, batch: Batch) -> Frames:
        """What student and teacher are both given (B, T, C)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.encoder.normalized(self.encoder.convolve(batch.wave_BS, batch.lengths_B))


PLACES = Floor(
    0.3,
    "the teacher says where in a row a frame is and little else. Use positions of shorter reach (the "
    "encoder's convolutions over time) or longer crops",
)


class Regressing(Taught):
    """Methods whose target is the mean over the teacher's top layers."""

    spoken: Spoken

    def targets(self, features: Frames) -> tuple[Tensor, Tensor]:
        """(B, T, D), float32, and what `beyond_place` says of them."""
        layers = top_layers(self.teacher.model, features, self.top, self.spoken)
        target_BTD = torch.stack(layers).mean(0)
        return target_BTD, beyond_place(target_BTD, features.valid_BT)

    def report(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """`beyond_place` is what that function says of the targets. Adds `explained`: the share of the
        targets' variance that is predicted, 0 for a model that knows nothing; `target_std`: of the targets'
        channels, their mean; `target_rank`, `effective_rank`: in how many directions targets and the context
        vectors of visible frames vary."""
        variance_D = (means["target_2"].diagonal() - means["target_1"].square()).clamp(min=0)
        return super().report(means) | {
            "explained": 1 - float(means["error"] / variance_D.mean().clamp(min=1e-12)),
            "target_std": float(variance_D.sqrt().mean()),
            "target_rank": effective_rank(means["target_1"], means["target_2"]),
            "effective_rank": effective_rank(means["moment_1"], means["moment_2"]),
        }

    def floors(self) -> Mapping[str, Floor]:
        cure = (
            "Raise the teacher's tau (ema) so that it follows more slowly, lower the peak learning rate or "
            "lengthen the warm-up, and hide more"
        )
        return {
            "target_std": Floor(0.1, f"the teacher says the same of all frames. {cure}"),
            "beyond_place": PLACES,
            "target_rank": Floor(2.0, f"the teacher's targets point in one or two directions. {cure}"),
            "effective_rank": Floor(1.1, f"the context vectors point in one direction. {cure}"),
        }


def told(beyond: Tensor, context_BTD: Tensor, seen_BT: Tensor, count: Tensor) -> dict[str, Tensor]:
    """Metrics as sums over `count` targets: what `beyond_place` says of them, and the moments of the context
    vectors of visible frames."""
    weight_BT = seen_BT * (count / seen_BT.sum().clamp(min=1))
    return {"beyond_place": beyond * count, **moments(context_BTD, weight_BT)}


def regression(
    predicted_BMD: Tensor,
    target_BMD: Tensor,
    chosen_BM: Tensor,
    metrics: Mapping[str, Tensor],
    beta: float = 0.0,
) -> LossSum:
    """The squared error of chosen frames, the mean over channels of it: 1 is what a blind model has, if the
    targets' variance is 1. Or, with beta above 0, smooth L1 (data2vec, section 3.4). metrics: further ones.
    Call it without autocast."""
    weight_BM = chosen_BM.float()
    predicted_BMD = predicted_BMD.float()
    error_BM = (predicted_BMD - target_BMD).square().mean(-1)
    loss_BM = error_BM
    if beta > 0:
        loss_BM = F.smooth_l1_loss(predicted_BMD, target_BMD, reduction="none", beta=beta).mean(-1)
    of_targets = moments(target_BMD, weight_BM)
    mine = {
        "error": (error_BM * weight_BM).sum().detach(),
        "target_1": of_targets["moment_1"],
        "target_2": of_targets["moment_2"],
    }
    return LossSum((loss_BM * weight_BM).sum(), weight_BM.sum(), {**mine, **metrics})
