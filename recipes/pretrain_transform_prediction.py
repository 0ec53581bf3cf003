"""Transform prediction (Gidaris et al. 2018 for images): was a clip reversed, sped up, filtered?

    python -m recipes.pretrain_transform_prediction VARIANT --manifest M.tsv --out runs/NAME [--resume]

smoke   45 s on 2 busy CPU cores (9 s of one): shows that everything runs; learns nothing of use.
tiny    5.1 M parameters, log-mel frames of 40 ms, for two CPU cores. Not run to its end yet: in a
        trial with recordings of one voice the accuracy in training was 0.8 after 100 steps. Much shorter runs
        may do.

On several GPUs: torchrun --nproc-per-node 8 -m recipes.pretrain_transform_prediction tiny ...
"""

from __future__ import annotations

from dataclasses import replace

from recipes import sizes
from speech_ssl.model import presets
from speech_ssl.objectives.transforms import TransformPredictionConfig
from speech_ssl.runs import Run, command


def tiny() -> Run:
    """At half of the usual learning rate: a step has one target a row."""
    return Run(
        name="transform-prediction-tiny",
        encoder=presets.tiny_mel(),
        objective=TransformPredictionConfig(),
        data=sizes.TINY_FRAMES,
        train=sizes.tiny_training(peak_lr=5e-4),
    )


def smoke() -> Run:
    """Two narrow layers, a second of audio a row, in fp32."""
    return replace(
        tiny(),
        name="transform-prediction-smoke",
        encoder=presets.tiny().changed(depth=2, width=64, ffn_width=128, dropout=0.1),
        data=sizes.SMOKE,
        train=sizes.smoke_training(),
    )


main = command.pretraining(smoke, tiny, doc=__doc__)

if __name__ == "__main__":
    main()
