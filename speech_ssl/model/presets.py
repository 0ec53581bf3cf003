"""Encoder sizes. `base` and `large` are as published; `tiny` and `small` are ours, for small machines."""

from __future__ import annotations

from dataclasses import replace

from speech_ssl.model.config import (
    Convolutions,
    EncoderConfig,
    LogMel,
    StackedConvolutions,
    Transformer,
    WideConvolution,
)


def tiny() -> EncoderConfig:
    """4.2 M parameters, for two CPU cores: the first convolutions, with the most frames, are narrow."""
    return EncoderConfig(
        frontend=Convolutions(
            channels=(64, 64, 128, 128, 256, 256, 256), norm="layer", bias=True, normalize_wave=True
        ),
        width=256,
        depth=4,
        heads=4,
        ffn_width=1024,
        block=Transformer(pre_norm=True),
        dropout=0.0,
        attention_dropout=0.0,
        feature_dropout=0.0,
        layer_drop=0.0,
        feature_grad_scale=1.0,
        init="smooth",
    )


def tiny_near() -> EncoderConfig:
    """`tiny`, but with positions that reach a quarter of a second. In short crops those of `tiny` tell each
    frame how far the ends are, and a teacher that follows its student may end up saying nothing else."""
    return replace(tiny(), positions=StackedConvolutions(layers=3, kernel=9))


def tiny_mel() -> EncoderConfig:
    """5.1 M parameters, 25 frames a second of 128 log-mel bins: on two CPU cores it trains two to four times
    as fast as `tiny`, half of whose time goes into its convolutions. The level of each frame is kept, for
    voices and sounds differ by it: bins are normalised by the clip, and no layer norm comes before the
    projection. With the stem's two convolutions its clip vectors tell more at random than log-mel does
    (LOG.md)."""
    return tiny().changed(
        frontend=LogMel(bins=128, stacked=4, norm="clip", channels=(32, 32)),
        feature_norm=False,
        positions=WideConvolution(kernel=31),
        depth=6,
        init="published",
    )


def tiny_mel_near() -> EncoderConfig:
    """`tiny_mel` with positions that reach a third of a second, as `tiny_near`."""
    return replace(tiny_mel(), positions=StackedConvolutions(layers=2, kernel=9))


def small() -> EncoderConfig:
    """20.3 M parameters, for about one GPU-hour."""
    return EncoderConfig(
        frontend=Convolutions(
            channels=(128, 128, 256, 256, 384, 384, 384), norm="layer", bias=True, normalize_wave=True
        ),
        width=384,
        depth=10,
        heads=6,
        ffn_width=1536,
        block=Transformer(pre_norm=True),
        dropout=0.05,
        attention_dropout=0.05,
        feature_dropout=0.05,
        layer_drop=0.0,
        feature_grad_scale=1.0,
        init="smooth",
    )


def base() -> EncoderConfig:
    """wav2vec 2.0 BASE: 94.4 M parameters, 95.0 M with the pre-training heads."""
    return EncoderConfig()


def data2vec_base() -> EncoderConfig:
    """data2vec's Base, also that of DinoSR and SpidR: layer norms in front, positions by several
    convolutions."""
    return EncoderConfig(
        frontend=Convolutions(norm="layer", normalize_wave=True),
        positions=StackedConvolutions(),
        feature_dropout=0.0,
        feature_grad_scale=1.0,
    )


def large() -> EncoderConfig:
    """wav2vec 2.0 LARGE as trained on LV-60k: 315.4 M parameters, 317.4 M with the pre-training heads.

    Layer norm everywhere, and normalised waves."""
    return EncoderConfig(
        frontend=Convolutions(norm="layer", bias=True, normalize_wave=True),
        width=1024,
        depth=24,
        heads=16,
        ffn_width=4096,
        block=Transformer(pre_norm=True),
        dropout=0.0,
        attention_dropout=0.0,
        feature_dropout=0.0,
        layer_drop=0.0,
        feature_grad_scale=1.0,
    )
