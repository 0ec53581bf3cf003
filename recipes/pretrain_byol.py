"""BYOL-A (Niizumi et al. 2021) and BYOL-S (Elbanna et al. 2022) on the audio of one or more manifests.

    python -m recipes.pretrain_byol VARIANT --manifest M.tsv --out runs/NAME [--resume]

smoke   about 6 s of one CPU core: shows that everything runs; learns nothing of use.
tiny    4.8 M parameters, log-mel frames of 40 ms of 64 bins, as in the paper, for two CPU cores; 48 rows of a
        second a step, each seen twice. Not run to its end yet.
speech  BYOL-S: the same with 80 bins, for manifests of speech. Not run to its end yet.

The papers' network is convolutional, so that there is no published size to repeat; views, losses, tau and the
learning rate are theirs. Their batches have 256 rows of 0.95 s.
"""

from __future__ import annotations

from dataclasses import replace

from recipes import sizes
from speech_ssl.data.batching import DataConfig
from speech_ssl.model import presets
from speech_ssl.model.config import LogMel
from speech_ssl.objectives.byol import BYOLConfig
from speech_ssl.runs import Run, command


def tiny() -> Run:
    """For two CPU cores: log-mel frames, and many short rows rather than few long ones."""
    return Run(
        name="byol-tiny",
        encoder=presets.tiny_mel().changed(frontend={"bins": 64}),
        objective=BYOLConfig(hidden_width=1024),
        data=DataConfig(crop_s=1.0, batch_s=48.0, min_s=0.95, workers=1),
        train=sizes.tiny_training(peak_lr=3e-4),
    )


def speech() -> Run:
    """BYOL-S is BYOL-A on speech alone; its bins are those of the speech encoders here."""
    encoder = tiny().encoder.changed(frontend=LogMel(bins=80))
    return replace(tiny(), name="byol-s-tiny", encoder=encoder)


def smoke() -> Run:
    """Two narrow layers and small batches. In fp32, so that its losses are the same on every machine."""
    return Run(
        name="byol-smoke",
        encoder=replace(tiny().encoder, depth=2, width=64, ffn_width=128, dropout=0.1, layer_drop=0.1),
        objective=replace(tiny().objective, hidden_width=64, width=32),
        data=sizes.SMOKE_CLIPS,
        train=sizes.smoke_training(steps=20, save_every=10),
    )


main = command.pretraining(smoke, tiny, speech, doc=__doc__)

if __name__ == "__main__":
    main()
