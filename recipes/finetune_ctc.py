"""CTC fine-tuning (Baevski et al. 2020, section 4.3): transcription from few labels.

    python -m recipes.finetune_ctc VARIANT --manifest M.tsv --out runs/NAME --init ARTIFACT \\
        [--resume [--set NAME=VALUE]]

The manifest needs the column `text`. Texts are brought into normal form (lower case, letters, digits and
apostrophes; `speech_ssl.text.normalize`), and their characters are the vocabulary, unless --vocabulary
names a file with one a line. Rows with split `test` give the figures at the end, else those that choose
the checkpoint do. Without --init it is trained from random weights, for comparison.

smoke         seconds on 2 CPU cores: shows that everything runs; learns nothing of use.
tiny          for the `tiny` encoder and an hour or three of labels, on 2 CPU cores (LOG.md has a run).
ten_minutes, one_hour, ten_hours, full
              wav2vec 2.0 BASE with as much of Libri-Light or LibriSpeech, as published (table 6), on a GPU
              or several. The paper's word errors on test-clean, without a language model: 46.9, 24.5,
              11.1 and 3.4 % (not run here).
"""

from __future__ import annotations

from dataclasses import replace

from speech_ssl.data.batching import DataConfig
from speech_ssl.model import presets
from speech_ssl.objectives.ctc import CTCConfig
from speech_ssl.runs import FineTuning, command
from speech_ssl.training.config import TrainConfig


def ten_hours() -> FineTuning:
    """As published: 8 GPUs with 200 s each, tri-stage schedule, the head alone for 10,000 updates."""
    return FineTuning(
        name="wav2vec2-ctc-10h",
        objective=CTCConfig(
            head_only=10_000 / 20_000, hidden_share=0.65, channel_share=0.256, channel_span=64, dropout=0.0
        ),
        data=DataConfig(batch_s=200.0, min_s=0.4, workers=6),
        train=TrainConfig(
            steps=20_000,
            batches_per_step=8,
            peak_lr=5e-5,
            warmup=0.1,
            hold=0.4,
            decay="exponential",
            final_lr_scale=0.05,
            eps=1e-8,
            weight_decay=0.0,
            valid_every=1_000,
            watch_after=0.3,
        ),
        encoder={
            "dropout": 0.0,
            "feature_dropout": 0.0,
            "attention_dropout": 0.0,
            "activation_dropout": 0.1,
            "layer_drop": 0.05,
        },
        scratch=presets.base(),
    )


def ten_minutes() -> FineTuning:
    base = ten_hours()
    return replace(
        base,
        name="wav2vec2-ctc-10m",
        objective=replace(base.objective, head_only=10_000 / 12_000, hidden_share=0.75, channel_share=0.512),
        train=replace(base.train, steps=12_000),
    )


def one_hour() -> FineTuning:
    base = ten_hours()
    return replace(
        base,
        name="wav2vec2-ctc-1h",
        objective=replace(base.objective, head_only=10_000 / 13_000, hidden_share=0.75),
        train=replace(base.train, steps=13_000),
    )


def full() -> FineTuning:
    """All 960 hours of LibriSpeech; the encoder learns from the start, as published."""
    base = ten_hours()
    return replace(
        base,
        name="wav2vec2-ctc-960h",
        objective=replace(base.objective, head_only=0.0, hidden_share=0.5, channel_share=0.1024),
        train=replace(base.train, steps=320_000, peak_lr=1e-4, valid_every=5_000),
        encoder={**base.encoder, "layer_drop": 0.1},
    )


def tiny() -> FineTuning:
    """For two CPU cores. What helps large encoders that were trained for long hinders this one: it learns
    with its front end, with hardly anything hidden, in many small steps and at a high rate (LOG.md)."""
    return FineTuning(
        name="tiny-ctc",
        objective=CTCConfig(
            head_only=0.02, train_frontend=True, hidden_share=0.1, channel_share=0.0, dropout=0.1
        ),
        data=DataConfig(batch_s=24.0, min_s=0.4, workers=1),
        train=TrainConfig(
            steps=3_000,
            peak_lr=1e-3,
            warmup=0.05,
            hold=0.45,
            decay="exponential",
            final_lr_scale=0.05,
            eps=1e-8,
            clip_norm=5.0,
            log_every=50,
            valid_every=250,
            save_every=500,
            watch_after=0.3,
        ),
    )


def smoke() -> FineTuning:
    """A few steps on a few seconds, in fp32 so that its losses are the same on every machine."""
    base = tiny()
    return replace(
        base,
        name="smoke-ctc",
        data=DataConfig(batch_s=12.0, min_s=0.4, workers=1),
        train=replace(
            base.train, steps=12, precision="fp32", log_every=4, valid_every=6, save_every=4, watch_after=0.9
        ),
        scratch=replace(presets.tiny(), depth=2, width=64, ffn_width=128),
    )


main = command.transcription(smoke, tiny, ten_minutes, one_hour, ten_hours, full, doc=__doc__)

if __name__ == "__main__":
    main()
