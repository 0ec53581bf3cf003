"""Contrastive predictive coding (van den Oord et al. 2018): tell the features of the next frames from others.

    python -m recipes.pretrain_cpc VARIANT --manifest M.tsv --out runs/NAME [--resume [--set NAME=VALUE]]

smoke   seconds on 2 CPU cores: shows that everything runs; learns nothing of use.
tiny    4.2 M parameters and a causal encoder, for two CPU cores.

On several GPUs: torchrun --nproc-per-node 8 -m recipes.pretrain_cpc tiny ...
"""

from __future__ import annotations

from dataclasses import replace

from speech_ssl.data.batching import DataConfig
from speech_ssl.model import presets
from speech_ssl.objectives.cpc import CPCConfig
from speech_ssl.runs import Run, command
from speech_ssl.training.config import TrainConfig


def tiny() -> Run:
    """Short crops and many small steps. The front end learns at the full rate: without targets that are
    quantized, what it makes is what is predicted."""
    return Run(
        name="cpc-tiny",
        encoder=presets.tiny().changed(block={"causal": True}),
        objective=CPCConfig(),
        data=DataConfig(crop_s=2.6, batch_s=15.6, min_s=1.0, workers=1),
        train=TrainConfig(
            steps=19_500, peak_lr=1e-3, log_every=100, valid_every=1_000, save_every=500, warmup=0.02
        ),
    )


def smoke() -> Run:
    """Two narrow layers, a second of audio a row, in fp32."""
    encoder = presets.tiny().changed(depth=2, width=64, ffn_width=128, dropout=0.1, block={"causal": True})
    return replace(
        tiny(),
        name="cpc-smoke",
        encoder=encoder,
        objective=CPCConfig(steps=4, negatives=16),
        data=DataConfig(crop_s=1.0, batch_s=4.0, min_s=0.5, workers=1),
        train=TrainConfig(
            steps=30, precision="fp32", peak_lr=1e-3, log_every=5, valid_every=10, save_every=5
        ),
    )


main = command.pretraining(smoke, tiny, doc=__doc__)

if __name__ == "__main__":
    main()
