"""USAD (Chang et al. 2025): a student learns the hidden states of two trained encoders, layer by layer.

    python -m recipes.pretrain_distillation VARIANT --teacher A --teacher B --manifest M.tsv --out runs/NAME
        [--resume [--set NAME=VALUE]]

A and B are artifacts, folders of transformers, or `default`, the packaged model: for one that knows speech
and one that knows other sounds, train on audio of both kinds. They may have other widths, depths and frame
rates than the student. Give the same ones, in the same order, to resume.

smoke   50 seconds on 2 CPU cores shared with other work: shows that everything runs; learns nothing of use.
tiny    4.2 M parameters, for two CPU cores; not run to its end yet.

On several GPUs: torchrun --nproc-per-node 8 -m recipes.pretrain_distillation tiny ...
"""

from __future__ import annotations

from dataclasses import replace

from speech_ssl.data.batching import DataConfig
from speech_ssl.model import presets
from speech_ssl.objectives.distillation import DistillationConfig
from speech_ssl.runs import Run, command
from speech_ssl.training.config import TrainConfig


def tiny() -> Run:
    """Short crops and many small steps; every second block is compared."""
    return Run(
        name="distillation-tiny",
        encoder=presets.tiny(),
        objective=DistillationConfig(layers=2),
        data=DataConfig(crop_s=2.6, batch_s=15.6, min_s=1.0, workers=1),
        train=TrainConfig(
            steps=19_500, peak_lr=1e-3, log_every=100, valid_every=1_000, save_every=500, warmup=0.02
        ),
    )


def smoke() -> Run:
    """Two narrow layers, a second of audio a row, in fp32."""
    encoder = tiny().encoder.changed(depth=2, width=64, ffn_width=128, dropout=0.1)
    return replace(
        tiny(),
        name="distillation-smoke",
        encoder=encoder,
        data=DataConfig(crop_s=1.0, batch_s=4.0, min_s=0.5, workers=1),
        train=TrainConfig(
            steps=30, precision="fp32", peak_lr=1e-3, log_every=5, valid_every=10, save_every=5
        ),
    )


main = command.pretraining(smoke, tiny, doc=__doc__)

if __name__ == "__main__":
    main()
