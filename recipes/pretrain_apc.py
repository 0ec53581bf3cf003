"""Autoregressive predictive coding (Chung et al. 2019): predict the log-mel frame some steps ahead.

    python -m recipes.pretrain_apc VARIANT --manifest M.tsv --out runs/NAME [--resume [--set NAME=VALUE]]

smoke   seconds on 2 CPU cores: shows that everything runs; learns nothing of use.
tiny    3.6 M parameters: log-mel frames and a causal encoder, for two CPU cores.

On several GPUs: torchrun --nproc-per-node 8 -m recipes.pretrain_apc tiny ...
"""

from __future__ import annotations

from dataclasses import replace

from speech_ssl.data.batching import DataConfig
from speech_ssl.model import presets
from speech_ssl.model.config import LogMel, Transformer
from speech_ssl.objectives.apc import APCConfig
from speech_ssl.runs import Run, command
from speech_ssl.training.config import TrainConfig


def tiny() -> Run:
    """Short crops and many small steps."""
    return Run(
        name="apc-tiny",
        encoder=replace(presets.tiny(), frontend=LogMel(), block=Transformer(pre_norm=True, causal=True)),
        objective=APCConfig(),
        data=DataConfig(crop_s=2.6, batch_s=15.6, min_s=1.0, workers=1),
        train=TrainConfig(
            steps=19_500, peak_lr=1e-3, log_every=100, valid_every=1_000, save_every=500, warmup=0.02
        ),
    )


def smoke() -> Run:
    """Two narrow layers, a second of audio a row, in fp32."""
    encoder = tiny().encoder.changed(depth=2, width=64, ffn_width=128, dropout=0.1)
    return replace(
        tiny(),
        name="apc-smoke",
        encoder=encoder,
        objective=APCConfig(ahead=2),
        data=DataConfig(crop_s=1.0, batch_s=4.0, min_s=0.5, workers=1),
        train=TrainConfig(
            steps=30, precision="fp32", peak_lr=1e-3, log_every=5, valid_every=10, save_every=5
        ),
    )


main = command.pretraining(smoke, tiny, doc=__doc__)

if __name__ == "__main__":
    main()
