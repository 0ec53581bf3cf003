"""Audio hours per GPU-hour and peak memory of BASE pre-training, beside transformers.

    python -m benchmarks.gpu.pretrain_throughput [--manifest M.tsv] [--steps 20]

Both train the same sizes with the same AdamW on the same batches, 87.5 s of crops of 15.6 s (of noise,
without a manifest), in bf16 autocast. transformers' Wav2Vec2ForPreTraining draws its masks and negatives
with `_compute_mask_indices` and `_sample_negative_indices`, on the CPU, as its example script does; its
speed with these prepared beforehand is told too, since a data loader's workers could do that. Ends with
status 1 if a loss is not finite. Needs transformers for the peer's rows.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.gpu.machine import describe, find_device, make_parser, noise_batch
from speech_ssl.checkpoints.transformers.transformer import write_config
from speech_ssl.data.batching import DataConfig
from speech_ssl.data.loader import Loader, LoaderState
from speech_ssl.data.manifest import read_manifest
from speech_ssl.model import presets
from speech_ssl.model.config import EncoderConfig
from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.wav2vec2 import Wav2Vec2, Wav2Vec2Config
from speech_ssl.training.config import TrainConfig
from speech_ssl.training.loop import seeded
from speech_ssl.training.optim import build_optimizer
from speech_ssl.types import SAMPLE_RATE, Batch

DATA = DataConfig(crop_s=15.6, batch_s=87.5, min_s=2.0)
TRAIN = TrainConfig(steps=1, peak_lr=1e-5)

LossOf = Callable[[int, Batch], Tensor]
"""Of the batch at a step: the loss as a mean, ready for backward."""


class Speed(NamedTuple):
    hours_per_hour: float
    peak_bytes: int
    """0 where the device does not tell."""
    finite: bool


def measure(module: nn.Module, loss_of: LossOf, batches: Sequence[Batch], warmup: int) -> Speed:
    """Train on the batches in turn; the first `warmup` do not count for the time."""
    device = next(module.parameters()).device
    optimizer = build_optimizer(module, TRAIN)
    for group in optimizer.param_groups:
        group["lr"] = TRAIN.peak_lr
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    losses, samples, began = [], 0, time.perf_counter()
    for step, batch in enumerate(batches):
        if step == warmup:
            samples, began = 0, now(device)
        samples += int(batch.lengths_B.sum())
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(step, batch.to(device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    elapsed = now(device) - began
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else 0
    return Speed(samples / SAMPLE_RATE / elapsed, peak, bool(torch.stack(losses).isfinite().all()))


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure_ours(
    config: EncoderConfig, method: Wav2Vec2Config, batches: Sequence[Batch], device: torch.device, warmup: int
) -> Speed:
    torch.manual_seed(0)
    objective = Wav2Vec2(Encoder(config), method).to(device).train()
    print(f"speech_ssl: {count_parameters(objective):,} parameters")

    def loss_of(step: int, batch: Batch) -> Tensor:
        loss = objective(batch, generator=seeded(0, step, 0, device))
        return loss.total / loss.count  # type: ignore[no-any-return]

    return measure(objective, loss_of, batches, warmup)


def peer_config(config: EncoderConfig, method: Wav2Vec2Config) -> Any:
    """The same model, in transformers' words."""
    from transformers import Wav2Vec2Config as PeerConfig

    fields = {
        **write_config(config, "wav2vec2"),
        "mask_time_prob": method.hidden_share,
        "mask_time_length": method.hidden_span,
        "num_codevectors_per_group": method.entries,
        "num_codevector_groups": method.groups,
        "contrastive_logits_temperature": method.kappa,
        "feat_quantizer_dropout": method.target_dropout,
        "num_negatives": method.distractors,
        "codevector_dim": method.code_width,
        "proj_codevector_dim": method.final_width,
        "diversity_loss_weight": method.diversity_weight,
    }
    return PeerConfig.from_dict(fields)


class Sampled(NamedTuple):
    attention_BS: Tensor | None
    hidden_BT: Tensor
    negatives_BTK: Tensor


def sample(model: Any, batch: Batch, lengths_B: Tensor, device: torch.device) -> Sampled:
    """What transformers' example script prepares for a batch, on the CPU with numpy. `lengths_B` is on the
    CPU, as in its collator, so that nothing waits for the device."""
    from transformers.models.wav2vec2.modeling_wav2vec2 import (
        _compute_mask_indices,
        _sample_negative_indices,
    )

    rows, samples = batch.wave_BS.shape
    frames = int(model._get_feat_extract_output_lengths(samples))
    attention_BS = attention_BT = None
    if int(lengths_B.min()) < samples:
        attention_BS = (torch.arange(samples) < lengths_B[:, None]).long()
        attention_BT = model._get_feature_vector_attention_mask(frames, attention_BS)
    share, span = model.config.mask_time_prob, model.config.mask_time_length
    hidden = _compute_mask_indices((rows, frames), share, span, attention_mask=attention_BT)
    negatives = _sample_negative_indices((rows, frames), model.config.num_negatives, mask_time_indices=hidden)
    return Sampled(
        None if attention_BS is None else attention_BS.to(device),
        torch.from_numpy(hidden).to(device),
        torch.from_numpy(negatives).to(device),
    )


def measure_peer(config: Any, batches: Sequence[Batch], warmup: int, device: torch.device) -> list[Speed]:
    """As in the example script; and with masks and negatives prepared beforehand."""
    from transformers import Wav2Vec2ForPreTraining

    torch.manual_seed(0)
    model = Wav2Vec2ForPreTraining(config).to(device).train()
    print(f"transformers: {count_parameters(model):,} parameters")

    def loss_of(sampled: Sampled, batch: Batch) -> Tensor:
        attention_BS, hidden_BT, negatives_BTK = sampled
        answer = model(
            batch.wave_BS,
            attention_mask=attention_BS,
            mask_time_indices=hidden_BT,
            sampled_negative_indices=negatives_BTK,
        )
        return answer.loss / hidden_BT.sum()  # type: ignore[no-any-return]

    lengths = [batch.lengths_B.cpu() for batch in batches]
    as_scripted = measure(
        model, lambda i, batch: loss_of(sample(model, batch, lengths[i], device), batch), batches, warmup
    )
    prepared = [sample(model, *pair, device) for pair in zip(batches, lengths, strict=True)]
    return [as_scripted, measure(model, lambda i, batch: loss_of(prepared[i], batch), batches, warmup)]


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def make_batches(manifest: Path | None, data: DataConfig, number: int) -> list[Batch]:
    if manifest is None:
        assert data.crop_s is not None
        rows = int(data.batch_s / data.crop_s)
        return [noise_batch([data.crop_s] * rows, seed) for seed in range(number)]
    loader = Loader(read_manifest(manifest), data, seed=0)
    return [batch for batch, _ in islice(loader.iterate(LoaderState()), number)]


def show(name: str, speed: Speed) -> None:
    memory = f"{speed.peak_bytes / 2**30:.1f} GiB at the peak" if speed.peak_bytes else "memory not measured"
    print(f"{name:48} {speed.hours_per_hour:8.1f} audio hours an hour, {memory}", flush=True)


def release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser("Speed and memory of BASE pre-training beside transformers.")
    parser.add_argument("--manifest", type=Path, help="audio to train on (default: noise)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=5, help="steps before these, not timed")
    options = parser.parse_args(arguments)
    device = find_device(options.device)
    if device is None:
        return 0
    config, method, data = presets.base(), Wav2Vec2Config(), DATA
    if options.tiny:
        config = config.changed(frontend={"channels": (16,) * 7}, width=32, depth=2, heads=2, ffn_width=64)
        method = replace(method, entries=16, code_width=16, final_width=16)
        data = DataConfig(crop_s=1.0, batch_s=2.0, workers=0)
    print(describe(device))
    batches = make_batches(options.manifest, data, options.warmup + options.steps)
    ours = measure_ours(config, method, batches, device, options.warmup)
    release(device)
    show("speech_ssl", ours)
    try:
        peers = measure_peer(peer_config(config, method), batches, options.warmup, device)
    except ImportError:
        print("transformers is not installed: the peer was not measured")
        return 0 if ours.finite else 1
    for name, peer in zip(("as its example script", "masks and negatives prepared"), peers, strict=True):
        show(f"transformers, {name}", peer)
        memory = f", {peer.peak_bytes / ours.peak_bytes:.2f}x less memory" if ours.peak_bytes else ""
        print(f"{'':48} {ours.hours_per_hour / peer.hours_per_hour:8.2f}x faster here{memory}")
    finite = all(speed.finite for speed in (ours, *peers))
    print("all losses are finite" if finite else "a loss is not finite")
    return 0 if finite else 1


if __name__ == "__main__":
    sys.exit(main())
