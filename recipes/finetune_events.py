"""Fine-tuning for sound events: labels of clips, or events with their times.

    python -m recipes.finetune_events VARIANT --manifest M.tsv --out runs/NAME --init ARTIFACT \\
        [--resume [--set NAME=VALUE]]

The manifest needs the column `label`; several labels of a row are separated by ";". With --folds split or
--folds speaker each value of that column is the test set once (the protocol of ESC; leave one speaker
out), each fold is a run in a folder of its own, and the figures are those of all folds together. Rows with
split `test` give the figures at the end, else those that choose the checkpoint do. Without --init it is
trained from random weights, for comparison.

smoke    seconds on 2 CPU cores: shows that everything runs; learns nothing of use.
tiny     one label a clip, for the `tiny` encoder on 2 CPU cores: some minutes (LOG.md has runs).
frozen   the same with the encoder as it is: the head is added to the artifact, beside those it has.
tags     any number of labels a clip.
timed    events: a row is a label from `start` to `end` in a file; files without events have one row.
base     one label a clip, for encoders of BASE's or LARGE's size, on a GPU (not measured).
"""

from __future__ import annotations

from dataclasses import replace

from speech_ssl.data.batching import DataConfig
from speech_ssl.model import presets
from speech_ssl.objectives.events import EventsConfig
from speech_ssl.runs import FineTuning, command
from speech_ssl.training.config import TrainConfig

LINEAR = EventsConfig(
    head_only=0.0,
    train_frontend=True,
    pooling="mean",
    hidden=0,
    hidden_share=0.0,
    channel_share=0.0,
    dropout=0.1,
    gain_db=6.0,
    shift_s=0.5,
)


def tiny() -> FineTuning:
    """For sets of some hundred clips: a linear head that starts as a probe, then all of the network with it.
    Mixed, noisy or hidden input only slowed such short runs (LOG.md): of augmentation gain and shifts are
    left."""
    return FineTuning(
        name="tiny-events",
        objective=LINEAR,
        data=DataConfig(batch_s=30.0, min_s=0.2, workers=1),
        train=TrainConfig(
            steps=400,
            peak_lr=1e-3,
            warmup=0.1,
            hold=0.3,
            clip_norm=5.0,
            log_every=25,
            valid_every=25,
            valid_at_start=True,
            save_every=100,
        ),
    )


def frozen() -> FineTuning:
    objective = replace(LINEAR, head_only=1.0, train_frontend=False)
    return replace(tiny(), name="frozen-events", objective=objective)


def tags() -> FineTuning:
    return replace(tiny(), name="tiny-tags", objective=replace(LINEAR, exclusive=False))


def timed() -> FineTuning:
    """Windows of ten seconds at most; each frame is taught by itself."""
    objective = replace(
        LINEAR, exclusive=False, timed=True, pooling="max", hidden=256, shift_s=0.0, head_only=0.1
    )
    return replace(tiny(), name="tiny-timed", objective=objective)


def base() -> FineTuning:
    """Learning rates as for transcription with large encoders."""
    small = tiny()
    return replace(
        small,
        name="base-events",
        objective=replace(
            LINEAR,
            head_only=0.1,
            train_frontend=False,
            pooling="attentive",
            hidden=256,
            hidden_share=0.5,
            channel_share=0.256,
            mixup=0.5,
            noise=0.3,
        ),
        data=DataConfig(batch_s=160.0, min_s=0.2, workers=6),
        train=replace(small.train, steps=4_000, peak_lr=5e-5, valid_every=100, save_every=500),
        encoder={"dropout": 0.0, "activation_dropout": 0.1},
        scratch=presets.base(),
    )


def smoke() -> FineTuning:
    small = tiny()
    return replace(
        small,
        name="smoke-events",
        data=replace(small.data, batch_s=12.0),
        train=replace(small.train, steps=12, precision="fp32", log_every=4, valid_every=6, save_every=4),
        scratch=replace(presets.tiny(), depth=2, width=64, ffn_width=128),
    )


main = command.sound_events(smoke, tiny, frozen, tags, timed, base, doc=__doc__)

if __name__ == "__main__":
    main()
