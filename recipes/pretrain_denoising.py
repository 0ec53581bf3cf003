"""Denoising auto-encoder (Vincent et al. 2008): hear a damaged wave, tell the frames of the clean one.

    python -m recipes.pretrain_denoising VARIANT --manifest M.tsv --out runs/NAME [--resume]

smoke       46 s on 2 busy CPU cores (10 s of one): shows that everything runs; learns nothing of use.
tiny        5.1 M parameters, log-mel frames of 40 ms, for two CPU cores: noise and others' speech are
            added. Not run to its end yet.
bandwidth   tiny, without what is above 1.3 to 4 kHz: the frames of all frequencies are told.
inpainting  tiny, with spans of 100 ms silenced, whose frames are told. Not shown to learn yet: after
            60 steps of a trial the loss was that of the mean.

On several GPUs: torchrun --nproc-per-node 8 -m recipes.pretrain_denoising tiny ...
"""

from __future__ import annotations

from dataclasses import replace

from recipes import sizes
from speech_ssl.model import presets
from speech_ssl.objectives.denoising import DenoisingConfig
from speech_ssl.runs import Run, command


def tiny() -> Run:
    """Noise."""
    return Run(
        name="denoising-tiny",
        encoder=presets.tiny_mel(),
        objective=DenoisingConfig(),
        data=sizes.TINY_FRAMES,
        train=sizes.tiny_training(),
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
        data=sizes.SMOKE,
        train=sizes.smoke_training(),
    )


main = command.pretraining(smoke, tiny, bandwidth, inpainting, doc=__doc__)

if __name__ == "__main__":
    main()
