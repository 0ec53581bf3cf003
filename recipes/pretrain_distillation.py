"""USAD (Chang et al. 2025): a student learns the hidden states of two trained encoders, layer by layer.

    python -m recipes.pretrain_distillation VARIANT --teacher A --teacher B --manifest M.tsv --out runs/NAME
        [--resume [--set NAME=VALUE]]

A and B are artifacts, folders of transformers, or `default`, the packaged model: for one that knows speech
and one that knows other sounds, train on audio of both kinds. They may have other widths, depths and frame
rates than the student. Give the same ones, in the same order, to resume.

smoke   50 seconds on 2 CPU cores shared with other work: shows that everything runs; learns nothing of use.
tiny    5.1 M parameters, log-mel frames of 40 ms, for two CPU cores. Not run to its end yet.

On several GPUs: torchrun --nproc-per-node 8 -m recipes.pretrain_distillation tiny ...
"""

from __future__ import annotations

from dataclasses import replace

from recipes import sizes
from speech_ssl.model import presets
from speech_ssl.objectives.distillation import DistillationConfig
from speech_ssl.runs import Run, command


def tiny() -> Run:
    """Every third block is compared."""
    return Run(
        name="distillation-tiny",
        encoder=presets.tiny_mel(),
        objective=DistillationConfig(layers=2),
        data=sizes.TINY_FRAMES,
        train=sizes.tiny_training(),
    )


def smoke() -> Run:
    """Two narrow layers, a second of audio a row, in fp32."""
    encoder = tiny().encoder.changed(depth=2, width=64, ffn_width=128, dropout=0.1)
    return replace(
        tiny(),
        name="distillation-smoke",
        encoder=encoder,
        data=sizes.SMOKE,
        train=sizes.smoke_training(),
    )


main = command.pretraining(smoke, tiny, doc=__doc__)

if __name__ == "__main__":
    main()
