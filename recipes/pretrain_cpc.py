"""Contrastive predictive coding (van den Oord et al. 2018): tell the features of the next frames from others.

    python -m recipes.pretrain_cpc VARIANT --manifest M.tsv --out runs/NAME [--resume [--set NAME=VALUE]]

smoke   seconds on 2 CPU cores: shows that everything runs; learns nothing of use.
tiny    5.1 M parameters, log-mel frames of 40 ms, for two CPU cores, and a causal encoder; the
        paper's hears waves. Not run to its end yet.

On several GPUs: torchrun --nproc-per-node 8 -m recipes.pretrain_cpc tiny ...
"""

from __future__ import annotations

from dataclasses import replace

from recipes import sizes
from speech_ssl.model import presets
from speech_ssl.objectives.cpc import CPCConfig
from speech_ssl.runs import Run, command


def tiny() -> Run:
    """Six frames of 40 ms ahead are predicted; the paper's twelve are of 10 ms."""
    return Run(
        name="cpc-tiny",
        encoder=presets.tiny_mel().changed(block={"causal": True}),
        objective=CPCConfig(steps=6),
        data=sizes.TINY_FRAMES,
        train=sizes.tiny_training(),
    )


def smoke() -> Run:
    """Two narrow layers, a second of audio a row, in fp32."""
    encoder = presets.tiny().changed(depth=2, width=64, ffn_width=128, dropout=0.1, block={"causal": True})
    return replace(
        tiny(),
        name="cpc-smoke",
        encoder=encoder,
        objective=CPCConfig(steps=4, negatives=16),
        data=sizes.SMOKE,
        train=sizes.smoke_training(),
    )


main = command.pretraining(smoke, tiny, doc=__doc__)

if __name__ == "__main__":
    main()
