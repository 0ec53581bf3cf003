"""Autoregressive predictive coding (Chung et al. 2019): predict the log-mel frame some steps ahead.

    python -m recipes.pretrain_apc VARIANT --manifest M.tsv --out runs/NAME [--resume [--set NAME=VALUE]]

smoke   seconds on 2 CPU cores: shows that everything runs; learns nothing of use.
tiny    5.1 M parameters, log-mel frames of 40 ms, for two CPU cores
        (0.5 s a step in fp32) and a causal encoder. Not run to its end yet.

On several GPUs: torchrun --nproc-per-node 8 -m recipes.pretrain_apc tiny ...
"""

from __future__ import annotations

from dataclasses import replace

from recipes import sizes
from speech_ssl.model import presets
from speech_ssl.objectives.apc import APCConfig
from speech_ssl.runs import Run, command


def tiny() -> Run:
    """Of frames of 40 ms, the second next."""
    return Run(
        name="apc-tiny",
        encoder=presets.tiny_mel().changed(block={"causal": True}),
        objective=APCConfig(ahead=2),
        data=sizes.TINY_FRAMES,
        train=sizes.tiny_training(),
    )


def smoke() -> Run:
    """Two narrow layers, a second of audio a row, in fp32."""
    encoder = tiny().encoder.changed(depth=2, width=64, ffn_width=128, dropout=0.1)
    return replace(
        tiny(),
        name="apc-smoke",
        encoder=encoder,
        objective=APCConfig(ahead=2),
        data=sizes.SMOKE,
        train=sizes.smoke_training(),
    )


main = command.pretraining(smoke, tiny, doc=__doc__)

if __name__ == "__main__":
    main()
