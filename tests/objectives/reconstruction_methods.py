"""Narrow builds of the methods that reconstruct what was hidden or damaged, or tell what was done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from speech_ssl.model.config import EncoderConfig, LogMel
from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.base import Objective
from speech_ssl.objectives.denoising import DenoisingConfig
from speech_ssl.objectives.mae import MAEConfig
from speech_ssl.objectives.segment_order import SegmentOrderConfig
from speech_ssl.objectives.transforms import TransformPredictionConfig
from tests.objectives.narrow import ENCODER


def mae(encoder: EncoderConfig = ENCODER) -> Objective:
    fitting = replace(encoder, frontend=LogMel(bins=16), block=ENCODER.block, positions=ENCODER.positions)
    config = MAEConfig(hidden_span=2, decoder_depth=1, decoder_width=32, decoder_heads=2)
    return config.build(Encoder(fitting))


def denoising(encoder: EncoderConfig = ENCODER) -> Objective:
    return DenoisingConfig(bins=16).build(Encoder(encoder))


def bandwidth(encoder: EncoderConfig = ENCODER) -> Objective:
    return DenoisingConfig(damage="bandwidth", bins=16).build(Encoder(encoder))


def inpainting(encoder: EncoderConfig = ENCODER) -> Objective:
    return DenoisingConfig(damage="inpainting", bins=16).build(Encoder(encoder))


def transform_prediction(encoder: EncoderConfig = ENCODER) -> Objective:
    return TransformPredictionConfig().build(Encoder(encoder))


def segment_order(encoder: EncoderConfig = ENCODER) -> Objective:
    return SegmentOrderConfig(head_width=32).build(Encoder(encoder))


RECONSTRUCTION: list[Callable[..., Objective]] = [
    mae,
    denoising,
    bandwidth,
    inpainting,
    transform_prediction,
    segment_order,
]
