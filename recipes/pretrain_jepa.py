"""JEPA on waveforms pre-training (WavJEPA, Yuksel et al. 2025) on the audio of one or more manifests.

    python -m recipes.pretrain_jepa VARIANT --manifest M.tsv --out runs/NAME [--resume [--set NAME=VALUE]]

smoke   15 s of processor time (CPU): shows that everything runs; learns nothing of use.
tiny    5.1 M parameters, log-mel frames of 40 ms, for two CPU cores. Not run to its end yet.
base    as published for audio of any kind: 100 frames a second, crops of 2 s; 17 min of audio a step.
        Not run.

`explained` is the share of the targets' variance that is predicted. The loss alone says little: it also falls
where the targets become alike, which `target_std` and `target_rank` tell.
"""

from __future__ import annotations

from dataclasses import replace

from recipes import sizes
from speech_ssl.data.batching import DataConfig
from speech_ssl.model import presets
from speech_ssl.model.config import Convolutions, EncoderConfig
from speech_ssl.objectives.jepa import JEPAConfig
from speech_ssl.runs import Run, command
from speech_ssl.training.config import TrainConfig


def base() -> Run:
    """As the published code, but that the learning rate falls linearly, not as a cosine. The front end is
    that of wav2vec 2.0 without its last convolution."""
    return Run(
        name="jepa-base",
        encoder=EncoderConfig(
            frontend=Convolutions(
                channels=(512,) * 6,
                kernels=(10, 3, 3, 3, 3, 2),
                strides=(5, 2, 2, 2, 2, 2),
                norm="layer",
                normalize_wave=True,
            ),
            dropout=0.0,
            attention_dropout=0.0,
            feature_dropout=0.0,
            layer_drop=0.0,
            feature_grad_scale=1.0,
        ),
        objective=JEPAConfig(),
        data=DataConfig(crop_s=2.01, batch_s=128.64, min_s=2.0, workers=12),
        train=TrainConfig(steps=400_000, batches_per_step=8, peak_lr=7.5e-4, warmup=0.25, decay_vectors=True),
    )


def tiny() -> Run:
    """More is visible than in base, as in the published code for speech: short runs learn little from a fifth
    of the frames. Spans are about as long as in base, which has four times the frames, and the teacher
    follows faster than in a run of 400,000 steps."""
    return Run(
        name="jepa-tiny",
        encoder=presets.tiny_mel_near(),
        objective=JEPAConfig(
            context_share=None,
            target_share=0.15,
            target_span=3,
            top=4,
            predictor_width=128,
            predictor_layers=2,
            predictor_heads=4,
            ema=(0.99, 0.999),
            ema_warmup=0.3,
        ),
        data=sizes.TINY_FRAMES,
        train=sizes.tiny_training(),
    )


def smoke() -> Run:
    """Two narrow layers, a second of audio a row, with dropout and LayerDrop so that all chance is used."""
    encoder = replace(presets.tiny_near(), depth=2, width=64, ffn_width=128, dropout=0.1, layer_drop=0.1)
    return Run(
        name="jepa-smoke",
        encoder=encoder,
        objective=JEPAConfig(
            top=2, targets=2, predictor_width=64, predictor_layers=1, predictor_heads=2, ema=(0.9, 0.99)
        ),
        data=sizes.SMOKE,
        train=sizes.smoke_training(batches_per_step=2),
    )


main = command.pretraining(smoke, tiny, base, doc=__doc__)

if __name__ == "__main__":
    main()
