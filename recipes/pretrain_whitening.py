"""W-MSE (Ermolov et al. 2020) on the audio of one or more manifests.

    python -m recipes.pretrain_whitening VARIANT --manifest M.tsv --out runs/NAME [--resume]

smoke   about 6 s of one CPU core: shows that everything runs; learns nothing of use.
tiny    5.1 M parameters, log-mel frames of 40 ms, for two CPU cores; 32 rows of 2 s a step, of each of
        which two halves are taken. Not run to its end yet.

The vectors that are whitened have 12 numbers, half of the batch's rows; the paper has 64 and 128.
"""

from __future__ import annotations

from dataclasses import replace

from recipes import sizes
from speech_ssl.model import presets
from speech_ssl.objectives.two_views import ViewsConfig
from speech_ssl.objectives.whitening import WhiteningConfig
from speech_ssl.runs import Run, command


def tiny() -> Run:
    """For two CPU cores: log-mel frames, and many short rows rather than few long ones."""
    return Run(
        name="whitening-tiny",
        encoder=presets.tiny_mel(),
        objective=WhiteningConfig(views=ViewsConfig(crop=(0.5, 0.5)), hidden_width=512, width=12),
        data=sizes.TINY_CLIPS,
        train=sizes.tiny_training(peak_lr=5e-4),
    )


def smoke() -> Run:
    """Two narrow layers and small batches. In fp32, so that its losses are the same on every machine."""
    return Run(
        name="whitening-smoke",
        encoder=replace(tiny().encoder, depth=2, width=64, ffn_width=128, dropout=0.1, layer_drop=0.1),
        objective=replace(tiny().objective, hidden_width=64, width=4),
        data=sizes.SMOKE_CLIPS,
        train=sizes.smoke_training(steps=20, save_every=10),
    )


main = command.pretraining(smoke, tiny, doc=__doc__)

if __name__ == "__main__":
    main()
