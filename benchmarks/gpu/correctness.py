"""Whether a GPU computes what a CPU does, and a clip's frames depend on the clip alone there too.

    python -m benchmarks.gpu.correctness

In fp32 without TF32: encoders `tiny`, `small` and `base` on the CPU and on the GPU; a clip alone and in a
batch; the contrastive loss and its gradients from the same hidden frames and draws. In bf16: how far
from fp32. Last, whether the same seed trains the same weights twice. Ends with status 1 if a figure is
above its limit.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.machine import describe, find_device, make_parser, noise_batch
from speech_ssl.model import presets
from speech_ssl.model.config import Convolutions, EncoderConfig
from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.masking import hidden_positions, hide_spans
from speech_ssl.objectives.wav2vec2 import (
    Wav2Vec2,
    Wav2Vec2Config,
    contrastive_loss,
    draw_distractors,
)
from speech_ssl.training.config import TrainConfig
from speech_ssl.training.loop import autocast, seeded
from speech_ssl.training.optim import build_optimizer
from speech_ssl.types import Batch

SECONDS = (3.1, 2.0, 0.7)
SAME_DEVICE = 1e-4
"""Largest absolute difference of a clip's frames, alone and in a batch: what the product promises."""
OTHER_DEVICE = 1e-3
BF16 = 0.1
"""Norm of the difference from fp32, as a share of the norm."""


class Row(NamedTuple):
    """One figure, and the most it may be; no limit: for information."""

    name: str
    value: float
    limit: float | None

    @property
    def good(self) -> bool:
        return self.limit is None or self.value <= self.limit  # NaN is not


def build(config: EncoderConfig) -> Encoder:
    torch.manual_seed(0)
    return Encoder(config).eval()


@torch.no_grad()
def encode(encoder: Encoder, batch: Batch, device: torch.device) -> list[Tensor]:
    """Each clip's frames, without padding."""
    batch = batch.to(device)
    frames = encoder.to(device)(batch.wave_BS, batch.lengths_B)
    return [x_TD[:n].float().cpu() for x_TD, n in zip(frames.x_BTD, frames.lengths_B.tolist(), strict=True)]


def furthest(ones: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """Largest absolute difference; NaN if there is one anywhere."""
    differences = [(one - other).abs().max() for one, other in zip(ones, others, strict=True)]
    return float(torch.stack(differences).max())


def relative(ones: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """Norm of the difference over the norm of the first, all tensors taken as one vector."""
    one_N, other_N = (torch.cat([t.flatten() for t in tensors]) for tensors in (ones, others))
    return float((one_N - other_N).norm() / one_N.norm())


def check_encoder(name: str, config: EncoderConfig, device: torch.device) -> Iterator[Row]:
    batch = noise_batch(SECONDS)
    encoder = build(config)
    on_cpu = encode(encoder, batch, torch.device("cpu"))
    together = encode(encoder, batch, device)
    alone = [
        encode(encoder, Batch(wave_S[None, :length], length[None]), device)[0]
        for wave_S, length in zip(batch.wave_BS, batch.lengths_B, strict=True)
    ]
    with torch.autocast(device.type, torch.bfloat16):
        in_bf16 = encode(encoder, batch, device)
    yield Row(f"{name}: frames on cpu and {device.type}, fp32", furthest(on_cpu, together), OTHER_DEVICE)
    yield Row(f"{name}: a clip alone and in a batch, fp32", furthest(together, alone), SAME_DEVICE)
    yield Row(f"{name}: bf16 from fp32, relative", relative(together, in_bf16), BF16)


class Draws(NamedTuple):
    """All chance in the objective, drawn beforehand; and the targets' codes, which a rounding may flip."""

    hidden_BT: Tensor
    position_BM: Tensor
    times_BMM: Tensor
    code_BM: Tensor

    def to(self, device: torch.device) -> Draws:
        return Draws(*(tensor.to(device) for tensor in self))


def make_draws(config: Wav2Vec2Config, lengths_B: Tensor) -> tuple[Draws, Tensor]:
    """For rows of so many frames, on the CPU; and which of the positions are real, (B, M)."""
    generator = torch.Generator().manual_seed(0)
    size = int(lengths_B.max())
    hidden_BT = hide_spans(
        lengths_B, size, share=config.hidden_share, span=config.hidden_span, generator=generator
    )
    position_BM, chosen_BM = hidden_positions(hidden_BT, int(hidden_BT.sum(1).max()))
    times_BMM = draw_distractors(chosen_BM, config.distractors, generator)
    code_BM = torch.randint(config.entries, position_BM.shape, generator=generator)
    return Draws(hidden_BT, position_BM, times_BMM, code_BM), chosen_BM


def loss_and_gradients(
    objective: Wav2Vec2, batch: Batch, draws: Draws, chosen_BM: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """The contrastive loss with the given draws: encoder, codebook entries, projections, equation 3."""
    encoder, quantizer = objective.encoder, objective.quantizer
    features = encoder.normalized(encoder.convolve(batch.wave_BS, batch.lengths_B))
    context = encoder.contextualize(features, hidden_BT=draws.hidden_BT)
    index_BMD = draws.position_BM[:, :, None].expand(-1, -1, context.x_BTD.shape[2])
    target_BMD = torch.cat([entries_VD[draws.code_BM] for entries_VD in quantizer.codebook_GVD], -1)
    loss_BM = contrastive_loss(
        objective.project_context(context.x_BTD.gather(1, index_BMD)),
        objective.project_target(target_BMD),
        draws.times_BMM,
        draws.code_BM,
        objective.config.kappa,
    ).loss_BM
    loss = (loss_BM * chosen_BM).sum() / chosen_BM.sum()
    parameters = [p for p in objective.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return loss.detach().cpu(), [g.cpu() for g in gradients if g is not None]


def check_loss(name: str, config: EncoderConfig, device: torch.device) -> Iterator[Row]:
    batch = noise_batch(SECONDS)
    torch.manual_seed(0)
    objective = Wav2Vec2(Encoder(config), Wav2Vec2Config()).eval()
    frames_B = objective.encoder.frame_count(batch.lengths_B)
    assert isinstance(frames_B, Tensor)
    draws, chosen_BM = make_draws(objective.config, frames_B)
    loss, gradients = loss_and_gradients(objective, batch, draws, chosen_BM)
    there = copy.deepcopy(objective).to(device)
    other, others = loss_and_gradients(there, batch.to(device), draws.to(device), chosen_BM.to(device))
    yield Row(f"{name}: contrastive loss, relative", relative([loss], [other]), OTHER_DEVICE)
    yield Row(f"{name}: its gradients, relative", relative(gradients, others), 10 * OTHER_DEVICE)


def train_steps(config: EncoderConfig, device: torch.device, steps: int = 3) -> list[Tensor]:
    """The weights after a few steps in bf16, with dropout and all other chance of the objective."""
    train = TrainConfig(steps=steps, peak_lr=1e-4, precision="bf16")
    torch.manual_seed(0)
    objective = Wav2Vec2(Encoder(config), Wav2Vec2Config()).to(device).train()
    optimizer = build_optimizer(objective, train)
    for group in optimizer.param_groups:
        group["lr"] = train.peak_lr
    for step in range(steps):
        batch = noise_batch(SECONDS, seed=step).to(device)
        generator = seeded(train.seed, step, 0, device)
        with autocast(train, device):
            loss = objective(batch, generator=generator)
        (loss.total / loss.count).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return [p.detach().cpu() for p in objective.parameters()]


def check_training(name: str, config: EncoderConfig, device: torch.device) -> Iterator[Row]:
    """On a GPU some sums are added in whatever order the threads come: only told there."""
    first, second = train_steps(config, device), train_steps(config, device)
    same = all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    what = "the same bit for bit" if same else "not the same bit for bit"
    limit = 0.0 if device.type == "cpu" else None
    yield Row(f"{name}: weights of two runs of 3 steps, {what}", furthest(first, second), limit)


Check = Callable[[str, EncoderConfig, torch.device], Iterator[Row]]
CHECKS: tuple[Check, ...] = (check_encoder, check_loss, check_training)


def narrowed(config: EncoderConfig) -> EncoderConfig:
    sizes = {"width": 32, "depth": 2, "heads": 2, "ffn_width": 64}
    assert isinstance(config.frontend, Convolutions)
    return config.changed(frontend={"channels": (16,) * len(config.frontend.channels)}, **sizes)


def show(row: Row) -> None:
    limit = "" if row.limit is None else f"  limit {row.limit:g}  {'ok' if row.good else 'TOO FAR'}"
    print(f"{row.name:60} {row.value:.2e}{limit}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    options = make_parser("CPU = GPU, batch invariance, bf16 and repeatability.").parse_args(arguments)
    device = find_device(options.device)
    if device is None:
        return 0
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    print(describe(device))
    all_good = True
    for preset in (presets.tiny, presets.small, presets.base):
        config = narrowed(preset()) if options.tiny else preset()
        for check in CHECKS:
            for row in check(preset.__name__, config, device):
                show(row)
                all_good = all_good and row.good
    print("all within their limits" if all_good else "some figures are above their limits")
    return 0 if all_good else 1


if __name__ == "__main__":
    sys.exit(main())
