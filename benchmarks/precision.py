"""Each precision on this processor: a training step and inference, and what `auto` took.

    python -m benchmarks.precision [--device cpu] [--tiny]

- Training: a step of `tiny` (forward, backward, AdamW) on 10 s of speech, in fp16 with a scaled loss. The
  loss must be finite and within 2 % of fp32's, its gradients finite.
- Inference: a pass of `tiny` and of BASE, with random weights, over 10 s of speech. The last layer's frames
  must be within 3 % of fp32's (relative, L2): the error that `auto` keeps to. int8 stands apart: it changes
  frames more, `auto` never takes it, and it may be the fastest.

The precisions take turns, so that what else the machine does hits all alike; the median counts. One whose
first pass takes longer than 3 s is not repeated. Ends with status 1 if `auto` takes more than 1.1 times the
best, or an error is larger than it may be.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

import speech_ssl
from speech_ssl import audio
from speech_ssl.inference.arithmetic import AUTO_ERROR, Precision
from speech_ssl.inference.engines import TorchEngine
from speech_ssl.model import presets
from speech_ssl.model.config import EncoderConfig
from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.wav2vec2 import Wav2Vec2, Wav2Vec2Config
from speech_ssl.precision import Float, native, resolve
from speech_ssl.training.config import TrainConfig
from speech_ssl.training.loop import autocast, seeded
from speech_ssl.training.optim import build_optimizer
from speech_ssl.types import SAMPLE_RATE, Batch, Waveform

FLOATS: tuple[Float, ...] = ("fp32", "bf16", "fp16")
LIMIT = 1.1
"""Of the time that `auto` takes to that of the fastest."""
LOSS_ERROR = 0.02
LOSS_SCALE = 2.0**10
REPEATS = 5
LONGEST_S = 3.0

T = TypeVar("T")


@dataclass(frozen=True)
class Timed(Generic[T]):
    seconds: float
    value: T


@dataclass(frozen=True)
class Step:
    """What a training step found: its mean loss, and the norm of its gradients."""

    loss: float
    norm: float


def in_turns(passes: Mapping[str, Callable[[], T]], repeats: int = REPEATS) -> dict[str, Timed[T]]:
    """The median of each pass's times but for its first, which warms up, and what the first one gave."""
    times: dict[str, list[float]] = {}
    values: dict[str, T] = {}
    for number in range(repeats + 1):
        for name, run in passes.items():
            if number and times[name][0] > LONGEST_S:
                continue
            began = time.perf_counter()
            value = run()
            times.setdefault(name, []).append(time.perf_counter() - began)
            values.setdefault(name, value)
    return {name: Timed(statistics.median(times[name][1:] or times[name]), values[name]) for name in passes}


def training(size: EncoderConfig, wave: Waveform, device: torch.device) -> dict[str, Callable[[], Step]]:
    """A step in each precision, from the same weights: nothing is learned, the learning rate is 0."""
    torch.manual_seed(0)
    method = Wav2Vec2Config(diversity_weight=0.5, feature_penalty=0.0)
    objective = Wav2Vec2(Encoder(size), method).train()
    row_S = torch.from_numpy(wave)
    batch = Batch(row_S[None], torch.tensor([len(row_S)])).to(device)

    def stepping(precision: Float) -> Callable[[], Step]:
        module = copy.deepcopy(objective).to(device)
        config = TrainConfig(steps=1, precision=precision)
        optimizer = build_optimizer(module, config)
        scale = LOSS_SCALE if precision == "fp16" else 1.0

        def step() -> Step:
            with autocast(config, device):
                found = module(batch, generator=seeded(0, 0, 0, device))
            loss = found.total / found.count
            (loss * scale).backward()
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, 1 / scale)
            norm = torch.nn.utils.get_total_norm(gradients)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return Step(loss.item(), norm.item())

        return step

    return {precision: stepping(precision) for precision in FLOATS}


def inference(
    encoder: Encoder, wave: Waveform, device: torch.device
) -> dict[str, Callable[[], NDArray[np.float32]]]:
    """A pass in each precision: the last layer's frames."""
    last = encoder.config.depth

    def passing(precision: Precision) -> Callable[[], NDArray[np.float32]]:
        engine = TorchEngine(encoder, str(device), precision)
        return lambda: engine.run([wave], [last])[0].frames

    others: tuple[Precision, ...] = ("int8",) if device.type == "cpu" else ()
    return {precision: passing(precision) for precision in (*FLOATS, *others)}


def told(
    title: str, seconds: Mapping[str, float], errors: Mapping[str, float], auto: str, allowed: float
) -> list[str]:
    """Prints a table; the claims that do not hold. errors: to fp32, relative."""
    best = min((name for name in seconds if name in FLOATS), key=lambda name: seconds[name])
    ratio = seconds[auto] / seconds[best]
    print(title)
    for name, time_s in seconds.items():
        marks = [mark for mark, is_so in (("auto", name == auto), ("best", name == best)) if is_so]
        marks += [] if name in FLOATS else ["apart"]
        line = f"  {name:<5} {time_s:9.4f} s   {errors[name]:8.4%} off fp32   {', '.join(marks)}"
        print(line.rstrip())
    print(f"  auto / best {ratio:.2f} (limit {LIMIT:g})", flush=True)
    broken = [f"{title}: auto takes {ratio:.2f} times the best"] if ratio > LIMIT else []
    too_far = [name for name in seconds if name in FLOATS and not errors[name] <= allowed]
    return broken + [
        f"{title}: {name} is {errors[name]:.2%} off fp32, more than {allowed:.0%}" for name in too_far
    ]


def measure_training(config: EncoderConfig, wave: Waveform, device: torch.device, repeats: int) -> list[str]:
    timed = in_turns(training(config, wave, device), repeats)
    exact = timed["fp32"].value.loss
    errors = {
        name: abs(step.value.loss - exact) / exact if math.isfinite(step.value.norm) else math.nan
        for name, step in timed.items()
    }
    title = f"training step, {len(wave) / SAMPLE_RATE:g} s of speech, loss {exact:.3f} in fp32"
    auto = resolve(TrainConfig(steps=1).precision, device)
    return told(title, {name: t.seconds for name, t in timed.items()}, errors, auto, LOSS_ERROR)


def measure_inference(
    name: str, config: EncoderConfig, wave: Waveform, device: torch.device, repeats: int
) -> list[str]:
    torch.manual_seed(0)
    encoder = Encoder(config)
    auto = TorchEngine(encoder, str(device), "auto").precision
    timed = in_turns(inference(encoder, wave, device), repeats)
    exact_TD = timed["fp32"].value
    errors = {
        precision: float(np.linalg.norm(pass_.value - exact_TD) / np.linalg.norm(exact_TD))
        for precision, pass_ in timed.items()
    }
    title = f"inference, {name}, {len(wave) / SAMPLE_RATE:g} s of speech"
    return told(title, {name: t.seconds for name, t in timed.items()}, errors, auto, AUTO_ERROR)


def speech(seconds: float) -> Waveform:
    """Shipped prompts, one after the other."""
    folder = Path(speech_ssl.__file__).parent / "assets" / "prompts" / "audio"
    parts: list[Waveform] = []
    for path in sorted(folder.glob("*.flac")):
        parts.append(audio.decode(path))
        if sum(map(len, parts)) >= seconds * SAMPLE_RATE:
            break
    return np.concatenate(parts)[: round(seconds * SAMPLE_RATE)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Each precision here, and what `auto` took.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="a small form, to see that it runs")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("not measured: no CUDA device")
        return 0
    print(
        f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}: {native(device)} is native"
    )
    tiny = presets.tiny()
    narrow = tiny.changed(frontend={"channels": (16,) * 7}, width=64, depth=2, ffn_width=128)
    sizes = {"tiny": narrow} if options.tiny else {"tiny": tiny, "base": presets.base()}
    wave, repeats = (speech(1.0), 1) if options.tiny else (speech(10.0), REPEATS)
    broken = measure_training(sizes["tiny"], wave, device, repeats)
    for name, config in sizes.items():
        broken += measure_inference(name, config, wave, device, repeats)
    for claim in broken:
        print(claim)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
