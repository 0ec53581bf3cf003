"""wav2vec 2.0 pre-training (Baevski et al. 2020) on the audio of one or more manifests.

    python -m recipes.pretrain_wav2vec2 VARIANT --manifest M.tsv --out runs/NAME [--resume [--set NAME=VALUE]]

smoke   seconds on 2 CPU cores: shows that everything runs; learns nothing of use.
tiny    4.2 M parameters, 100 minutes on 2 CPU cores with bf16 products, shared with other work; in fp32
        on cores without (0.72 s a step) about 4 hours. On 15.6 h of speech the contrastive loss fell from
        4.62 to 4.03, held out to 3.81; held-out accuracy 0.137, code perplexity 361 (LOG.md has the run).
small   20.3 M parameters, about an hour on one GPU (not measured).
base    94.4 M parameters, the published BASE; 1.6 h of audio a step.
large   315.4 M parameters, the published LARGE (LV-60k); 2.7 h of audio a step.

On several GPUs: torchrun --nproc-per-node 8 -m recipes.pretrain_wav2vec2 base ... The run is the same on
any number of GPUs that divides batches_per_step.
"""

from __future__ import annotations

from dataclasses import replace

from recipes import sizes
from speech_ssl.data.batching import DataConfig
from speech_ssl.model import presets
from speech_ssl.objectives.wav2vec2 import Wav2Vec2Config
from speech_ssl.runs import Run, command
from speech_ssl.training.config import TrainConfig


def base() -> Run:
    """As published: 64 batches of 87.5 s, 400,000 steps; all parameters decay, as in fairseq."""
    return Run(
        name="wav2vec2-base",
        encoder=presets.base(),
        objective=Wav2Vec2Config(),
        data=DataConfig(crop_s=15.625, batch_s=87.5, min_s=2.0, workers=6),
        train=TrainConfig(steps=400_000, batches_per_step=64, peak_lr=5e-4, warmup=0.08, decay_vectors=True),
    )


def large() -> Run:
    """As published for LV-60k: 128 batches of 75 s, 600,000 steps, peak learning rate 3e-4 as in the
    paper (fairseq's file says 0.005)."""
    return Run(
        name="wav2vec2-large",
        encoder=presets.large(),
        objective=Wav2Vec2Config(
            code_width=768,
            final_width=768,
            feature_penalty=0.0,
            temperature=(2.0, 0.1),
            temperature_decay=0.999995**600_000,
            target_dropout=0.0,
        ),
        data=DataConfig(crop_s=20.0, batch_s=75.0, min_s=2.0, workers=6),
        train=TrainConfig(
            steps=600_000, batches_per_step=128, peak_lr=3e-4, warmup=0.053, decay_vectors=True
        ),
    )


def small() -> Run:
    """For one GPU-hour: short crops and many steps."""
    return Run(
        name="wav2vec2-small",
        encoder=presets.small(),
        objective=replace(tiny().objective, target_dropout=0.05),
        data=DataConfig(crop_s=5.2, batch_s=124.8, min_s=1.0, workers=12),
        train=replace(tiny().train, steps=40_000, peak_lr=7e-4),
    )


def tiny() -> Run:
    """For two CPU cores: short crops and many small steps, where a short run learns most."""
    return Run(
        name="wav2vec2-tiny",
        encoder=presets.tiny(),
        objective=Wav2Vec2Config(diversity_weight=0.5, feature_penalty=0.0, target_dropout=0.1),
        data=DataConfig(crop_s=2.6, batch_s=15.6, min_s=1.0, workers=1),
        train=TrainConfig(
            steps=19_500, peak_lr=1e-3, log_every=100, valid_every=1_000, save_every=500, warmup=0.02
        ),
    )


def smoke() -> Run:
    """Two narrow layers, a second of audio a row, with dropout and LayerDrop so that all chance is used.
    In fp32, so that its losses are the same on every machine."""
    encoder = replace(presets.tiny(), depth=2, width=64, ffn_width=128, dropout=0.1, layer_drop=0.1)
    return Run(
        name="wav2vec2-smoke",
        encoder=encoder,
        objective=Wav2Vec2Config(
            entries=32,
            code_width=64,
            final_width=64,
            logit_std=0.1,
            diversity_weight=0.5,
            feature_penalty=0.0,
        ),
        data=sizes.SMOKE,
        train=sizes.smoke_training(batches_per_step=2),
    )


main = command.pretraining(smoke, tiny, small, base, large, doc=__doc__)

if __name__ == "__main__":
    main()
