"""Denoising auto-encoder (Vincent et al. 2008): hear a damaged wave, tell the frames of the clean one.

    python -m recipes.pretrain_denoising VARIANT --manifest M.tsv --out runs/NAME [--resume]

smoke       46 s on 2 busy CPU cores (10 s of one): shows that everything runs; learns nothing of use.
tiny        4.2 M parameters, for two CPU cores: noise and others' speech are added.
            Not run to its end yet: in a trial of 80 steps the loss fell to 0.58, where the mean costs 0.82.
bandwidth   tiny, without what is above 1.3 to 4 kHz: the frames of all frequencies are told.
inpainting  tiny, with spans of 100 ms silenced, whose frames are told. Not shown to learn yet: after
            60 steps of a trial the loss was that of the mean.

On several GPUs: torchrun --nproc-per-node 8 -m recipes.pretrain_denoising tiny ...
"""

from __future__ import annotations

from dataclasses import replace

from speech_ssl.data.batching import DataConfig
from speech_ssl.model import presets
from speech_ssl.objectives.denoising import DenoisingConfig
from speech_ssl.runs import Run, command
from speech_ssl.training.config import TrainConfig


def tiny() -> Run:
    """Short crops and many small steps."""
    return Run(
        name="denoising-tiny",
        encoder=presets.tiny(),
        objective=DenoisingConfig(),
        data=DataConfig(crop_s=2.6, batch_s=15.6, min_s=1.0, workers=1),
        train=TrainConfig(
            steps=19_500, peak_lr=1e-3, log_every=100, valid_every=1_000, save_every=500, warmup=0.02
        ),
    )


def bandwidth() -> Run:
    """Bandwidth extension."""
    return replace(tiny(), name="denoising-bandwidth", objective=DenoisingConfig(damage="bandwidth"))


def inpainting() -> Run:
    """Filling in what is missing, from both sides."""
    return replace(tiny(), name="denoising-inpainting", objective=DenoisingConfig(damage="inpainting"))


def smoke() -> Run:
    """Two narrow layers, a second of audio a row, in fp32."""
    return replace(
        tiny(),
        name="denoising-smoke",
        encoder=presets.tiny().changed(depth=2, width=64, ffn_width=128, dropout=0.1),
        objective=DenoisingConfig(bins=20),
        data=DataConfig(crop_s=1.0, batch_s=4.0, min_s=0.5, workers=1),
        train=TrainConfig(
            steps=30, precision="fp32", peak_lr=1e-3, log_every=5, valid_every=10, save_every=5
        ),
    )


main = command.pretraining(smoke, tiny, bandwidth, inpainting, doc=__doc__)

if __name__ == "__main__":
    main()
