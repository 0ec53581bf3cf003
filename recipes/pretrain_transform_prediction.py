"""Transform prediction (Gidaris et al. 2018 for images): was a clip reversed, sped up, filtered?

    python -m recipes.pretrain_transform_prediction VARIANT --manifest M.tsv --out runs/NAME [--resume]

smoke   45 s on 2 busy CPU cores (9 s of one): shows that everything runs; learns nothing of use.
tiny    4.2 M parameters, for two CPU cores. Not run to its end yet: in a trial with recordings of one
        voice the accuracy in training was 0.8 after 100 steps. Much shorter runs may do.

On several GPUs: torchrun --nproc-per-node 8 -m recipes.pretrain_transform_prediction tiny ...
"""

from __future__ import annotations

from dataclasses import replace

from speech_ssl.data.batching import DataConfig
from speech_ssl.model import presets
from speech_ssl.objectives.transforms import TransformPredictionConfig
from speech_ssl.runs import Run, command
from speech_ssl.training.config import TrainConfig


def tiny() -> Run:
    """Short crops and many small steps, at half of the usual learning rate: a step has one target a row."""
    return Run(
        name="transform-prediction-tiny",
        encoder=presets.tiny(),
        objective=TransformPredictionConfig(),
        data=DataConfig(crop_s=2.6, batch_s=15.6, min_s=1.0, workers=1),
        train=TrainConfig(
            steps=19_500, peak_lr=5e-4, log_every=100, valid_every=1_000, save_every=500, warmup=0.02
        ),
    )


def smoke() -> Run:
    """Two narrow layers, a second of audio a row, in fp32."""
    return replace(
        tiny(),
        name="transform-prediction-smoke",
        encoder=presets.tiny().changed(depth=2, width=64, ffn_width=128, dropout=0.1),
        data=DataConfig(crop_s=1.0, batch_s=4.0, min_s=0.5, workers=1),
        train=TrainConfig(
            steps=30, precision="fp32", peak_lr=1e-3, log_every=5, valid_every=10, save_every=5
        ),
    )


main = command.pretraining(smoke, tiny, doc=__doc__)

if __name__ == "__main__":
    main()
