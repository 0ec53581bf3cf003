"""What the GPU benchmarks share: their options, and batches."""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Sequence

import torch

from speech_ssl.types import SAMPLE_RATE, Batch


def make_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: cuda)")
    parser.add_argument("--tiny", action="store_true", help="a small form, to see that it runs")
    return parser


def find_device(name: str) -> torch.device | None:
    """None, after a line that says so, where there is no such GPU."""
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("not measured: no CUDA device")
        return None
    return device


def describe(device: torch.device) -> str:
    """What the figures were measured on."""
    if device.type != "cuda":
        return f"cpu, {torch.get_num_threads()} threads, torch {torch.__version__}"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = "unknown"
    return f"{torch.cuda.get_device_name(device)}, driver {driver}, torch {torch.__version__}"


def noise_batch(seconds: Sequence[float], seed: int = 0) -> Batch:
    """Noise with a slowly changing loudness, a row for each of `seconds`, padded with zeros."""
    generator = torch.Generator().manual_seed(seed)
    lengths_B = torch.tensor([round(s * SAMPLE_RATE) for s in seconds])
    wave_BS = torch.zeros(len(seconds), int(lengths_B.max()))
    for row_S, length in zip(wave_BS, lengths_B.tolist(), strict=True):
        loudness = torch.rand(length // 1_600 + 1, generator=generator).repeat_interleave(1_600)[:length]
        row_S[:length] = 0.1 * loudness * torch.randn(length, generator=generator)
    return Batch(wave_BS, lengths_B)
