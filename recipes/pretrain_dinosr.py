"""DinoSR pre-training (Liu et al. 2023) on the audio of one or more manifests.

    python -m recipes.pretrain_dinosr VARIANT --manifest M.tsv --out runs/NAME [--resume [--set NAME=VALUE]]

smoke   12 s of processor time (CPU): shows that everything runs; learns nothing of use.
tiny    5.1 M parameters, log-mel frames of 40 ms, for two CPU cores. Not run to its end yet.
base    93.2 M parameters, as published; 1.1 h of audio a step. Not run.

`information` is by how many nats the loss is below the entropy of the codes. The loss alone says little: it
also falls where few codes are left, which `code_perplexity` tells.
"""

from __future__ import annotations

from dataclasses import replace

from recipes import sizes
from speech_ssl.data.batching import DataConfig
from speech_ssl.model import presets
from speech_ssl.objectives.dinosr import DinoSRConfig
from speech_ssl.runs import Run, command
from speech_ssl.training.config import TrainConfig


def base() -> Run:
    """As published: 16 batches of 237.5 s, 400,000 steps."""
    return Run(
        name="dinosr-base",
        encoder=presets.data2vec_base(),
        objective=DinoSRConfig(),
        data=DataConfig(crop_s=20.0, batch_s=237.5, min_s=2.0, workers=6),
        train=TrainConfig(
            steps=400_000,
            batches_per_step=16,
            peak_lr=5e-4,
            warmup=0.03,
            hold=0.47,
            decay="exponential",
            final_lr_scale=0.01,
            decay_vectors=True,
        ),
    )


def tiny() -> Run:
    """Spans of 200 ms, as in base. The teacher follows faster than in a run of 400,000 steps."""
    return Run(
        name="dinosr-tiny",
        encoder=presets.tiny_mel_near(),
        objective=DinoSRConfig(hidden_span=5, top=4, entries=64, ema=(0.99, 0.999), ema_warmup=0.3),
        data=sizes.TINY_FRAMES,
        train=sizes.tiny_training(),
    )


def smoke() -> Run:
    """Two narrow layers, a second of audio a row, with dropout and LayerDrop so that all chance is used."""
    encoder = replace(presets.tiny_near(), depth=2, width=64, ffn_width=128, dropout=0.1, layer_drop=0.1)
    return Run(
        name="dinosr-smoke",
        encoder=encoder,
        objective=DinoSRConfig(top=2, entries=32, ema=(0.9, 0.99)),
        data=sizes.SMOKE,
        train=sizes.smoke_training(batches_per_step=2),
    )


main = command.pretraining(smoke, tiny, base, doc=__doc__)

if __name__ == "__main__":
    main()
