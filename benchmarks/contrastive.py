"""The contrastive loss as a matrix product per row, beside the usual gather of all distractors.

    python -m benchmarks.contrastive [--device cuda] [--repeats 3]

fairseq and transformers gather the K distractors of every hidden frame into one tensor of shape
(K, B, M, D) and take cosine similarities with it. Here both formulations get the same vectors and the
same drawn indices, for one GPU's batch of BASE and of LARGE: it prints the time of drawing, forward and
backward pass, what the backward pass keeps in memory, and the ratios. Ends with status 1 if losses or
gradients differ. On a CPU the time is that of the process, so that other programs do not count.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from speech_ssl.objectives.wav2vec2 import contrastive_loss, draw_distractors

KAPPA = 0.1
CODES = 400
"""Few enough that many a distractor has the target's own code."""
TOLERANCE = 1e-4


class Size(NamedTuple):
    rows: int
    hidden: int
    width: int
    distractors: int


SIZES = {"BASE": Size(5, 380, 256, 100), "LARGE": Size(3, 490, 768, 100)}
TINY = {"tiny": Size(2, 30, 16, 10)}


class Inputs(NamedTuple):
    context_BMD: Tensor
    target_BMD: Tensor
    code_BM: Tensor


class Cost(NamedTuple):
    loss_BM: Tensor
    gradients: tuple[Tensor, ...]
    seconds: float
    saved_bytes: int


Loss = Callable[[Inputs, int, torch.Generator], Tensor]


def make_inputs(size: Size, device: torch.device) -> Inputs:
    """Equal codes have equal vectors, for the gather knows a distractor that equals the target by that."""
    generator = torch.Generator(device).manual_seed(0)
    options = {"device": device, "generator": generator}
    code_BM = torch.randint(CODES, (size.rows, size.hidden), **options)  # type: ignore[call-overload]
    target_BMD = torch.randn(CODES, size.width, **options)[code_BM]  # type: ignore[call-overload]
    context_BMD = target_BMD + 2 * torch.randn(target_BMD.shape, **options)  # type: ignore[call-overload]
    return Inputs(context_BMD.requires_grad_(), target_BMD.requires_grad_(), code_BM)


def by_product(inputs: Inputs, distractors: int, generator: torch.Generator) -> Tensor:
    chosen_BM = torch.ones_like(inputs.code_BM, dtype=torch.bool)
    times_BMM = draw_distractors(chosen_BM, distractors, generator)
    return contrastive_loss(inputs.context_BMD, inputs.target_BMD, times_BMM, inputs.code_BM, KAPPA).loss_BM


def draw_indices(rows: int, hidden: int, distractors: int, generator: torch.Generator) -> Tensor:
    """(B, M, K): for each frame, `distractors` other frames of its row; the draws of `draw_distractors`."""
    draws_BMK = torch.rand(rows, hidden, distractors, device=generator.device, generator=generator)
    j_BMK = (draws_BMK * (hidden - 1)).long()
    own_1M1 = torch.arange(hidden, device=generator.device)[None, :, None]
    return j_BMK + (j_BMK >= own_1M1)


def by_gather(inputs: Inputs, distractors: int, generator: torch.Generator) -> Tensor:
    context_BMD, target_BMD, _ = inputs
    rows, hidden, width = target_BMD.shape
    j_BMK = draw_indices(rows, hidden, distractors, generator)
    first_B11 = torch.arange(rows, device=j_BMK.device)[:, None, None] * hidden
    gathered_ND = target_BMD.reshape(-1, width)[(j_BMK + first_B11).flatten()]
    others_KBMD = gathered_ND.view(rows, hidden, distractors, width).permute(2, 0, 1, 3)
    same_KBM = (others_KBMD == target_BMD).all(-1)
    candidates_KBMD = torch.cat([target_BMD[None], others_KBMD])
    logits_KBM = torch.cosine_similarity(context_BMD, candidates_KBMD, dim=-1) / KAPPA
    same_KBM = torch.cat([torch.zeros_like(same_KBM[:1]), same_KBM])
    logits_NK = logits_KBM.masked_fill(same_KBM, -torch.inf).flatten(1).T
    first_N = torch.zeros(rows * hidden, dtype=torch.long, device=logits_NK.device)
    return F.cross_entropy(logits_NK, first_N, reduction="none").view(rows, hidden)


def measure(loss: Loss, inputs: Inputs, distractors: int, repeats: int) -> Cost:
    device = inputs.code_BM.device
    saved: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    seconds = []
    for repeat in range(repeats):
        generator = torch.Generator(device).manual_seed(1)
        began = clock(device)
        if repeat == 0:  # the hooks cost next to nothing
            with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                loss_BM = loss(inputs, distractors, generator)
        else:
            loss_BM = loss(inputs, distractors, generator)
        gradients = torch.autograd.grad(loss_BM.sum(), (inputs.context_BMD, inputs.target_BMD))
        seconds.append(clock(device) - began)
    return Cost(loss_BM.detach(), gradients, statistics.median(seconds), sum(saved.values()))


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def relative_difference(one: Tensor, two: Tensor) -> float:
    """Largest difference, as a share of the largest value. NaN differs from everything."""
    difference = float((one - two).abs().max() / two.abs().max())
    return difference if difference == difference else float("inf")


def check_draws(size: Size, device: torch.device) -> bool:
    """Whether both formulations draw the same distractors from the same seed."""
    chosen_BM = torch.ones(size.rows, size.hidden, dtype=torch.bool, device=device)
    times_BMM = draw_distractors(chosen_BM, size.distractors, torch.Generator(device).manual_seed(1))
    j_BMK = draw_indices(*size[:2], size.distractors, torch.Generator(device).manual_seed(1))
    counted_BMM = torch.zeros_like(times_BMM).scatter_add_(
        2, j_BMK, torch.ones_like(j_BMK, dtype=torch.float)
    )
    return torch.equal(times_BMM, counted_BMM)


def compare(name: str, size: Size, device: torch.device, repeats: int) -> bool:
    """Print the figures of one size; whether the two formulations agree."""
    inputs = make_inputs(size, device)
    ours = measure(by_product, inputs, size.distractors, 5 * repeats)
    gather = measure(by_gather, inputs, size.distractors, repeats)
    pairs = zip((ours.loss_BM, *ours.gradients), (gather.loss_BM, *gather.gradients), strict=True)
    loss, *gradients = (relative_difference(one, two) for one, two in pairs)
    print(
        f"{name} ({size.rows} x {size.hidden} hidden frames, {size.distractors} distractors, "
        f"{size.width} wide, {device.type})\n"
        f"  gather   {gather.seconds:9.4f} s  {gather.saved_bytes / 1e6:9.1f} MB saved for backward\n"
        f"  product  {ours.seconds:9.4f} s  {ours.saved_bytes / 1e6:9.1f} MB\n"
        f"  ratio    {gather.seconds / ours.seconds:8.1f}x   {gather.saved_bytes / ours.saved_bytes:8.1f}x\n"
        f"  relative difference: loss {loss:.1e}, gradients {max(gradients):.1e}",
        flush=True,
    )
    agree = check_draws(size, device) and max(loss, *gradients) <= TOLERANCE
    if not agree:
        print(f"  the two differ by more than {TOLERANCE:g}, or in what they draw")
    return agree


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time and memory of the contrastive loss beside a gather.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3, help="passes of the gather; the median counts")
    parser.add_argument("--size", choices=SIZES, action="append", help="default: all of them")
    parser.add_argument("--tiny", action="store_true", help="a small size, to see that it runs")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("not measured: no CUDA device")
        return 0
    sizes = TINY if options.tiny else {name: SIZES[name] for name in options.size or SIZES}
    agree = [compare(name, size, device, options.repeats) for name, size in sizes.items()]
    return 0 if all(agree) else 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
