"""data2vec 2.0 pre-training (Baevski et al. 2022, arXiv 2212.07525) on the audio of one or more manifests.

    python -m recipes.pretrain_data2vec2 VARIANT --manifest M.tsv --out runs/NAME [--resume]

smoke   13 s of processor time (CPU): shows that everything runs; learns nothing of use.
tiny    5.1 M parameters, log-mel frames of 40 ms, for two CPU cores (0.9 s a step in fp32). Not run
        to its end yet.
base    93.2 M parameters, the published Base without its ALiBi; 8.3 min of audio a step, each hidden in
        8 ways. Not run.

`explained` is the share of the targets' variance that is predicted. The loss alone says little: it also falls
where the targets become alike, which `target_std` and `target_rank` tell.
"""

from __future__ import annotations

from dataclasses import replace

from recipes import sizes
from speech_ssl.data.batching import DataConfig
from speech_ssl.model import presets
from speech_ssl.objectives.data2vec2 import Data2Vec2Config
from speech_ssl.runs import Run, command
from speech_ssl.training.config import TrainConfig


def base() -> Run:
    """As published, but that the learning rate falls linearly, not as a cosine: 8 batches of 62.5 s."""
    return Run(
        name="data2vec2-base",
        encoder=presets.data2vec_base(),
        objective=Data2Vec2Config(),
        data=DataConfig(crop_s=20.0, batch_s=62.5, min_s=2.0, workers=6),
        train=TrainConfig(steps=400_000, batches_per_step=8, peak_lr=7.5e-4, warmup=0.02, decay_vectors=True),
    )


def tiny() -> Run:
    """Blocks of about 100 ms, as in base. The teacher follows faster than in a run of 400,000 steps."""
    return Run(
        name="data2vec2-tiny",
        encoder=presets.tiny_mel_near(),
        objective=Data2Vec2Config(
            copies=4,
            block=3,
            top=4,
            decoder_width=128,
            decoder_layers=3,
            decoder_dropout=0.0,
            ema=(0.99, 0.999),
            ema_warmup=0.3,
        ),
        data=sizes.TINY_FRAMES,
        train=sizes.tiny_training(),
    )


def smoke() -> Run:
    """Two narrow layers, a second of audio a row, with dropout and LayerDrop so that all chance is used."""
    encoder = replace(presets.tiny_near(), depth=2, width=64, ffn_width=128, dropout=0.1, layer_drop=0.1)
    return Run(
        name="data2vec2-smoke",
        encoder=encoder,
        objective=Data2Vec2Config(copies=2, top=2, decoder_width=64, decoder_layers=2, ema=(0.9, 0.99)),
        data=sizes.SMOKE,
        train=sizes.smoke_training(batches_per_step=2),
    )


main = command.pretraining(smoke, tiny, base, doc=__doc__)

if __name__ == "__main__":
    main()
