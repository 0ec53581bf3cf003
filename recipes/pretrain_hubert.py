"""HuBERT pre-training (Hsu et al. 2021) on the audio of one or more manifests, in two runs.

    python -m recipes.pretrain_hubert VARIANT --manifest M.tsv --out runs/NAME [--teacher ARTIFACT]

The first run predicts clusters of MFCCs. The second starts from scratch and predicts clusters of a middle
layer of a trained encoder, given by --teacher: the first run's artifact, or any other with as many frames a
second.
Clusters are fitted before the first step.

smoke        15 s of one CPU core: shows that everything runs; learns nothing of use.
tiny         5.1 M parameters, log-mel frames of 40 ms, for two CPU cores (0.6 s a step in fp32):
             100 clusters of MFCCs.
tiny_second  the same encoder: 500 clusters of the teacher's layer 3 of 6.
tiny_after   tiny's encoder, begun by another method: --init runs/mae/artifact (see its docstring).
base         94.4 M parameters, the published BASE: 100 clusters of MFCCs; 47 minutes of audio a step.
base_second  its second iteration: 500 clusters of the teacher's layer 6 of 12.

On several GPUs: torchrun --nproc-per-node 8 -m recipes.pretrain_hubert base ... The run is the same on any
number of GPUs that divides batches_per_step.
"""

from __future__ import annotations

from dataclasses import replace

from recipes import sizes
from speech_ssl.data.batching import DataConfig
from speech_ssl.model import presets
from speech_ssl.objectives.hubert import HuBERTConfig
from speech_ssl.runs import Run, command
from speech_ssl.training.config import TrainConfig

A_TENTH = 17_000_000
"""Frames in a tenth of LibriSpeech, on which the paper fits its clusters."""


def base() -> Run:
    """As published: 32 batches of 87.5 s, 250,000 steps; all parameters decay, as in fairseq."""
    return Run(
        name="hubert-base",
        encoder=presets.base(),
        objective=HuBERTConfig(fit_frames=A_TENTH),
        data=DataConfig(crop_s=15.625, batch_s=87.5, min_s=2.0, workers=6),
        train=TrainConfig(steps=250_000, batches_per_step=32, peak_lr=5e-4, warmup=0.08, decay_vectors=True),
    )


def base_second() -> Run:
    """As published: 500 clusters of layer 6, 400,000 steps."""
    first = base()
    return replace(
        first,
        name="hubert-base-second",
        objective=HuBERTConfig(units=6, clusters=500, fit_frames=A_TENTH),
        train=replace(first.train, steps=400_000),
    )


def tiny() -> Run:
    """Spans of 200 ms, as in the paper, fewer of them, and half of the loss is of visible frames: it teaches
    from the first step on, and keeps what tells voices apart."""
    return Run(
        name="hubert-tiny",
        encoder=presets.tiny_mel(),
        objective=HuBERTConfig(
            fit_frames=100_000, hidden_share=0.65, hidden_span=5, alpha=0.5, feature_penalty=0.0
        ),
        data=sizes.TINY_FRAMES,
        train=sizes.tiny_training(),
    )


def tiny_second() -> Run:
    """Of the middle layer, as in the paper."""
    return replace(
        tiny(),
        name="hubert-tiny-second",
        objective=replace(tiny().objective, units=3, clusters=500),
    )


def tiny_after() -> Run:
    """For an encoder that `recipes.pretrain_mae` has begun: clusters of MFCCs normalised by the clip, which
    tell less of voices and rooms than MFCCs do. Two hours of one CPU core with bf16 (0.55 s a step)."""
    return replace(
        tiny(),
        name="hubert-tiny-after",
        objective=replace(tiny().objective, by_clip=True),
        train=sizes.tiny_training(steps=13_000),
    )


def smoke() -> Run:
    """Two narrow layers, a second of audio a row, with dropout and LayerDrop so that all chance is used."""
    encoder = replace(presets.tiny(), depth=2, width=64, ffn_width=128, dropout=0.1, layer_drop=0.1)
    return Run(
        name="hubert-smoke",
        encoder=encoder,
        objective=HuBERTConfig(clusters=32, fit_frames=1_600, final_width=64, feature_penalty=0.0),
        data=sizes.SMOKE,
        train=sizes.smoke_training(batches_per_step=2),
    )


main = command.pretraining(smoke, tiny, tiny_second, tiny_after, base, base_second, doc=__doc__)

if __name__ == "__main__":
    main()
