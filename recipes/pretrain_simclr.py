"""SimCLR (Chen et al. 2020) and COLA (Saeed et al. 2020) on the audio of one or more manifests.

    python -m recipes.pretrain_simclr VARIANT --manifest M.tsv --out runs/NAME [--resume]

smoke   about 6 s of one CPU core: shows that everything runs; learns nothing of use.
tiny    3.7 M parameters with a log-mel front end; 24 rows of 2 s a step, of each of which two halves are
        taken: about a second on one CPU core in fp32. Not run to its end yet.
cola    the same with COLA's views and similarity. Not run to its end yet.

A row is compared with its batch alone. The papers' have 4096 and 1024 rows, of convolutional networks: there
is no published size to repeat here. With more memory, take more rows: batch_s of `data`.
"""

from __future__ import annotations

from dataclasses import replace

from speech_ssl.data.batching import DataConfig
from speech_ssl.model import presets
from speech_ssl.model.config import LogMel
from speech_ssl.objectives.simclr import COLAConfig, SimCLRConfig
from speech_ssl.objectives.two_views import ViewsConfig
from speech_ssl.runs import Run, command
from speech_ssl.training.config import TrainConfig


def tiny() -> Run:
    """For two CPU cores: a log-mel front end, and many short rows rather than few long ones."""
    return Run(
        name="simclr-tiny",
        encoder=presets.tiny().changed(frontend=LogMel(bins=64)),
        objective=SimCLRConfig(views=ViewsConfig(crop=(0.5, 0.5)), hidden_width=512),
        data=DataConfig(crop_s=2.0, batch_s=48.0, min_s=1.0, workers=1),
        train=TrainConfig(
            steps=20_000, peak_lr=5e-4, log_every=100, valid_every=1_000, save_every=500, warmup=0.02
        ),
    )


def cola() -> Run:
    """The same with COLA's views, two crops and nothing else, and its bilinear similarity."""
    return replace(tiny(), name="cola-tiny", objective=COLAConfig(width=256))


def smoke() -> Run:
    """Two narrow layers and small batches. In fp32, so that its losses are the same on every machine."""
    return Run(
        name="simclr-smoke",
        encoder=replace(tiny().encoder, depth=2, width=64, ffn_width=128, dropout=0.1, layer_drop=0.1),
        objective=replace(tiny().objective, hidden_width=64, width=32),
        data=DataConfig(crop_s=1.0, batch_s=8.0, min_s=0.5, workers=1),
        train=TrainConfig(
            steps=20, precision="fp32", peak_lr=1e-3, log_every=5, valid_every=10, save_every=10
        ),
    )


main = command.pretraining(smoke, tiny, cola, doc=__doc__)

if __name__ == "__main__":
    main()
