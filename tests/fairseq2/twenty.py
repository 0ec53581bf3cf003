"""The run that both engines take: `python -m tests.fairseq2.twenty VARIANT ...`, as any recipe."""

from __future__ import annotations

from dataclasses import replace

from recipes.pretrain_wav2vec2 import smoke
from speech_ssl.runs.command import pretraining as command
from speech_ssl.training.run import Run


def twenty() -> Run:
    """Twenty steps of two batches, every one logged, without LayerDrop, as sharding on the CPU asks for."""
    run = smoke()
    return replace(
        run,
        encoder=replace(run.encoder, layer_drop=0.0),
        data=replace(run.data, workers=0),
        train=replace(run.train, steps=20, log_every=1, valid_every=10, save_every=5, clip_norm=1.0),
    )


def dropping() -> Run:
    """The same with LayerDrop."""
    run = twenty()
    return replace(run, encoder=replace(run.encoder, layer_drop=0.3))


main = command(twenty, dropping, doc=__doc__)

if __name__ == "__main__":
    main()
