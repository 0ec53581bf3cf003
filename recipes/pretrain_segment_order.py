"""Segment order (Noroozi & Favaro 2016; Carr et al. 2021): in which order are the pieces of a clip?

    python -m recipes.pretrain_segment_order VARIANT --manifest M.tsv --out runs/NAME [--resume]

smoke   42 s on 2 busy CPU cores (9 s of one): shows that everything runs; learns nothing of use.
tiny    5.1 M parameters, log-mel frames of 40 ms, for two CPU cores. Not shown to learn yet: after
        75 steps of a trial with convolutions the accuracy was that of guessing, 1 / 6.

On several GPUs: torchrun --nproc-per-node 8 -m recipes.pretrain_segment_order tiny ...
"""

from __future__ import annotations

from dataclasses import replace

from recipes import sizes
from speech_ssl.model import presets
from speech_ssl.objectives.segment_order import SegmentOrderConfig
from speech_ssl.runs import Run, command


def tiny() -> Run:
    """At a tenth of the usual learning rate: a row is one target, and a
    vague one."""
    return Run(
        name="segment-order-tiny",
        encoder=presets.tiny_mel(),
        objective=SegmentOrderConfig(),
        data=sizes.TINY_FRAMES,
        train=sizes.tiny_training(peak_lr=1e-4),
    )


def smoke() -> Run:
    """Two narrow layers, a second of audio a row, in fp32."""
    return replace(
        tiny(),
        name="segment-order-smoke",
        encoder=presets.tiny().changed(depth=2, width=64, ffn_width=128, dropout=0.1),
        objective=SegmentOrderConfig(head_width=64),
        data=sizes.SMOKE,
        train=sizes.smoke_training(),
    )


main = command.pretraining(smoke, tiny, doc=__doc__)

if __name__ == "__main__":
    main()
