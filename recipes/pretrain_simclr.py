"""SimCLR (Chen et al. 2020) and COLA (Saeed et al. 2020) on the audio of one or more manifests.

    python -m recipes.pretrain_simclr VARIANT --manifest M.tsv --out runs/NAME [--resume]

smoke   about 6 s of one CPU core: shows that everything runs; learns nothing of use.
tiny    5.1 M parameters, log-mel frames of 40 ms, for two CPU cores; 32 rows of 2 s a step, of each of
        which two halves are taken. Not run to its end yet.
cola    the same with COLA's views and similarity. Not run to its end yet.

A row is compared with its batch alone. The papers' have 4096 and 1024 rows, of convolutional networks: there
is no published size to repeat here. With more memory, take more rows: batch_s of `data`.
"""

from __future__ import annotations

from dataclasses import replace

from recipes import sizes
from speech_ssl.model import presets
from speech_ssl.objectives.simclr import COLAConfig, SimCLRConfig
from speech_ssl.objectives.two_views import ViewsConfig
from speech_ssl.runs import Run, command


def tiny() -> Run:
    """For two CPU cores: log-mel frames, and many short rows rather than few long ones."""
    return Run(
        name="simclr-tiny",
        encoder=presets.tiny_mel(),
        objective=SimCLRConfig(views=ViewsConfig(crop=(0.5, 0.5)), hidden_width=512),
        data=sizes.TINY_CLIPS,
        train=sizes.tiny_training(peak_lr=5e-4),
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
        data=sizes.SMOKE_CLIPS,
        train=sizes.smoke_training(steps=20, save_every=10),
    )


main = command.pretraining(smoke, tiny, cola, doc=__doc__)

if __name__ == "__main__":
    main()
