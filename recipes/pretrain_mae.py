"""Masked auto-encoder (Huang et al. 2022; Baade et al. 2022): from a quarter of the frames to the others.

    python -m recipes.pretrain_mae VARIANT --manifest M.tsv --out runs/NAME [--resume [--set NAME=VALUE]]

smoke   27 s on 2 busy CPU cores (7 s of one): shows that everything runs; learns nothing of use.
tiny    5.1 M parameters, log-mel frames of 40 ms, for two CPU cores (0.3 s a step in fp32), and
        0.5 M of the decoder.
base    90.0 M parameters and 15.0 M of the decoder: MAE-AST of frames, 0.8 h of audio a step.

On several GPUs: torchrun --nproc-per-node 8 -m recipes.pretrain_mae base ...
"""

from __future__ import annotations

from dataclasses import replace

from recipes import sizes
from speech_ssl.data.batching import DataConfig
from speech_ssl.model import presets
from speech_ssl.model.config import LogMel
from speech_ssl.objectives.mae import MAEConfig
from speech_ssl.runs import Run, command
from speech_ssl.training.config import TrainConfig


def base() -> Run:
    """MAE-AST of frames of 128 bins and 20 ms, with the numbers of its authors' configuration: crops of
    15.6 s, 32 batches of 87.5 s a step. The positions are convolutions, not sinusoids."""
    return Run(
        name="mae-base",
        encoder=replace(presets.base(), frontend=LogMel(bins=128)),
        objective=MAEConfig(),
        data=DataConfig(crop_s=15.625, batch_s=87.5, min_s=2.0, workers=6),
        train=TrainConfig(
            steps=400_000, batches_per_step=32, peak_lr=1e-4, warmup=0.08, clip_norm=10.0, decay_vectors=True
        ),
    )


def tiny() -> Run:
    """Chunks of three frames: single ones follow from their neighbours. A hundred times the uniformity of
    U-MAE: without it clips differ in three directions alone, and voices are lost."""
    return Run(
        name="mae-tiny",
        encoder=presets.tiny_mel(),
        objective=MAEConfig(hidden_span=3, decoder_width=128, decoder_heads=4, uniformity=1.0),
        data=sizes.TINY_FRAMES,
        train=sizes.tiny_training(),
    )


def smoke() -> Run:
    """Two narrow layers, a second of audio a row, in fp32."""
    return replace(
        tiny(),
        name="mae-smoke",
        encoder=tiny().encoder.changed(depth=2, width=64, ffn_width=128, dropout=0.1),
        objective=MAEConfig(decoder_depth=1, decoder_width=32, decoder_heads=2),
        data=sizes.SMOKE,
        train=sizes.smoke_training(),
    )


main = command.pretraining(smoke, tiny, base, doc=__doc__)

if __name__ == "__main__":
    main()
