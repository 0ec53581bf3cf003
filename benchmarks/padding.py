"""How much of the batches is padding, for manifests of one's own.

    python -m benchmarks.padding MANIFEST... [--rows 1000000]

Prints the share of padding and how full the batches are for three ways of batching, averaged over
three epochs, and the time to plan an epoch of `--rows` utterances with these lengths.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from speech_ssl.data.batching import DataConfig, plan_epoch
from speech_ssl.data.manifest import read_manifest

CONFIGS = {
    "crops of 2.6 s, batches of 15.6 s": DataConfig(crop_s=2.6, batch_s=15.6),
    "crops of 15.6 s, batches of 87.5 s": DataConfig(crop_s=15.6, batch_s=87.5),
    "whole utterances, batches of 100 s": DataConfig(crop_s=None, batch_s=100),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="The share of padding in batches of these manifests.")
    parser.add_argument("manifests", nargs="+")
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    durations = np.array([u.duration_s for path in options.manifests for u in read_manifest(path)])
    print(f"{len(durations)} utterances, {durations.sum() / 3600:.2f} h")
    many = np.random.default_rng(0).choice(durations, options.rows)
    for name, config in CONFIGS.items():
        plans = [plan_epoch(durations, config, seed=0, epoch=epoch) for epoch in range(3)]
        padding = np.mean([plan.padding for plan in plans])
        full = np.mean([plan.padded_seconds / len(plan) / config.batch_s for plan in plans])
        covered = np.mean([plan.seconds for plan in plans]) / durations.sum()
        started = time.perf_counter()
        plan_epoch(many, config, seed=0, epoch=0)
        seconds = time.perf_counter() - started
        print(
            f"{name}: padding {padding:.1%}, batches {full:.1%} full, an epoch is {covered:.1%} of the "
            f"audio in {len(plans[0])} batches; {options.rows} utterances planned in {seconds:.1f} s"
        )


if __name__ == "__main__":
    main()
