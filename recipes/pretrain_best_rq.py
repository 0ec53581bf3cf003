"""BEST-RQ pre-training (Chiu et al. 2022) on the audio of one or more manifests.

    python -m recipes.pretrain_best_rq VARIANT --manifest M.tsv --out runs/NAME [--resume [--set NAME=VALUE]]

The encoders hear log-mel bins, as in the paper. With a front end of convolutions the method works too: the
targets are then of the log-mel bins of the same wave.

smoke   9 s of one CPU core: shows that everything runs; learns nothing of use.
tiny    5.1 M parameters, log-mel frames of 40 ms, for two CPU cores (0.5 s a step in fp32), and 1,024
        entries. Not run to its end yet.
base    89 M parameters: frames of 40 ms and a Conformer of 12 blocks, as in the open reproduction of Whetten
        et al. 2024 (arXiv 2405.04296); 2 h of audio a step. The paper's own has 0.6 B.

On several GPUs: torchrun --nproc-per-node 6 -m recipes.pretrain_best_rq base ... The run is the same on any
number of GPUs that divides batches_per_step.
"""

from __future__ import annotations

from dataclasses import replace

from recipes import sizes
from speech_ssl.data.batching import DataConfig
from speech_ssl.model import presets
from speech_ssl.model.config import Conformer, EncoderConfig, LogMel, Sinusoidal
from speech_ssl.objectives.best_rq import BestRQConfig
from speech_ssl.runs import Run, command
from speech_ssl.training.config import TrainConfig


def base() -> Run:
    """The reproduction's numbers, with spans of 160 ms; but its frames come of two more convolutions, and
    after the warm-up its learning rate falls with the root of the step, where this one falls linearly."""
    encoder = EncoderConfig(
        frontend=LogMel(stacked=4),
        positions=Sinusoidal(),
        block=Conformer(),
        width=576,
        depth=12,
        heads=8,
        ffn_width=2048,
        layer_drop=0.0,
        feature_grad_scale=1.0,
    )
    return Run(
        name="best-rq-base",
        encoder=encoder,
        objective=BestRQConfig(hidden_share=0.6, hidden_span=4),
        data=DataConfig(crop_s=30.0, batch_s=400.0, min_s=2.0, workers=6),
        train=TrainConfig(
            steps=300_000, batches_per_step=18, peak_lr=8e-4, warmup=0.083, eps=1e-9, clip_norm=10.0
        ),
    )


def tiny() -> Run:
    """For two CPU cores: spans of 400 ms, as in the paper, and fewer entries."""
    return Run(
        name="best-rq-tiny",
        encoder=presets.tiny_mel(),
        objective=BestRQConfig(entries=1024),
        data=sizes.TINY_FRAMES,
        train=sizes.tiny_training(),
    )


def smoke() -> Run:
    """Two narrow layers, a second of audio a row, with dropout and LayerDrop so that all chance is used."""
    encoder = replace(tiny().encoder, depth=2, width=64, ffn_width=128, dropout=0.1, layer_drop=0.1)
    return Run(
        name="best-rq-smoke",
        encoder=encoder,
        objective=BestRQConfig(entries=256, hidden_span=20),
        data=sizes.SMOKE,
        train=sizes.smoke_training(batches_per_step=2),
    )


main = command.pretraining(smoke, tiny, base, doc=__doc__)

if __name__ == "__main__":
    main()
