"""A narrow one of every objective, which its contract is tried on. A new one is a function and a line in
OBJECTIVES."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from speech_ssl.model.config import EncoderConfig, LogMel, Transformer, WideConvolution
from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.apc import APCConfig
from speech_ssl.objectives.base import Objective
from speech_ssl.objectives.best_rq import BestRQConfig
from speech_ssl.objectives.cpc import CPCConfig
from speech_ssl.objectives.ctc import CTCConfig
from speech_ssl.objectives.data2vec import Data2VecConfig
from speech_ssl.objectives.data2vec2 import Data2Vec2Config
from speech_ssl.objectives.dinosr import DinoSRConfig
from speech_ssl.objectives.distillation import DistillationConfig
from speech_ssl.objectives.events import EventsConfig
from speech_ssl.objectives.hubert import HuBERTConfig
from speech_ssl.objectives.jepa import JEPAConfig
from speech_ssl.objectives.spidr import SpidRConfig
from speech_ssl.objectives.views import Mixing
from speech_ssl.objectives.wav2vec2 import Wav2Vec2Config
from tests.objectives.narrow import ENCODER, QUIET
from tests.objectives.reconstruction_methods import RECONSTRUCTION
from tests.objectives.two_view_methods import TWO_VIEWS


def wav2vec2(encoder: EncoderConfig = ENCODER) -> Objective:
    config = Wav2Vec2Config(entries=32, code_width=32, final_width=32, distractors=20, feature_penalty=0.1)
    return config.build(Encoder(encoder))


def hubert(encoder: EncoderConfig = ENCODER) -> Objective:
    """Its second iteration: of a layer of a teacher, with rows mixed and a part of the loss on all frames."""
    config = HuBERTConfig(
        units=1, clusters=8, fit_frames=400, final_width=32, alpha=0.8, feature_penalty=0.1, mixing=Mixing()
    )
    objective = config.build(Encoder(encoder))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        objective.learn_from([Encoder(replace(QUIET, depth=1))])
    return objective


def best_rq(encoder: EncoderConfig = ENCODER) -> Objective:
    return BestRQConfig(bins=20, entries=32, mixing=Mixing()).build(Encoder(encoder))


def cpc(encoder: EncoderConfig = ENCODER) -> Objective:
    return CPCConfig(steps=4, negatives=20).build(Encoder(causal(encoder)))


def apc(encoder: EncoderConfig = ENCODER) -> Objective:
    return APCConfig(ahead=2).build(Encoder(mel(causal(encoder))))


def causal(encoder: EncoderConfig) -> EncoderConfig:
    block = Transformer(pre_norm=True, causal=True)
    return replace(encoder, block=block, positions=WideConvolution(kernel=16))


def mel(encoder: EncoderConfig) -> EncoderConfig:
    """With log-mel frames in place of convolutions: for methods that need some."""
    return replace(encoder, frontend=LogMel(bins=16))


def distillation(encoder: EncoderConfig = ENCODER) -> Objective:
    """Of teachers with random weights, the same ones whatever the seed, as a resumed run is given them again:
    one has more width and other frames than the student."""
    objective = DistillationConfig(layers=2).build(Encoder(encoder))
    with torch.random.fork_rng():
        torch.manual_seed(7)
        objective.learn_from([Encoder(ENCODER), Encoder(mel(ENCODER).changed(width=48, depth=2))])
    return objective


def ctc(encoder: EncoderConfig = ENCODER) -> Objective:
    config = CTCConfig(vocabulary=("<blank>", "a", "b", " "), head_only=0.0, hidden_share=0.3)
    return config.build(Encoder(encoder))


LABELS = ("silence", "tone", "chirp", "noise")


def events(encoder: EncoderConfig = ENCODER) -> Objective:
    config = EventsConfig(
        labels=LABELS,
        head_only=0.0,
        mixup=0.5,
        noise=0.5,
        gain_db=6.0,
        shift_s=0.1,
        class_weights=(1, 2, 1, 1),
    )
    return config.build(Encoder(encoder))


def events_frozen(encoder: EncoderConfig = ENCODER) -> Objective:
    return EventsConfig(labels=LABELS, head_only=1.0, pooling="mean").build(Encoder(encoder))


def events_timed(encoder: EncoderConfig = ENCODER) -> Objective:
    config = EventsConfig(
        labels=LABELS, head_only=0.0, timed=True, exclusive=False, pooling="max", gain_db=3.0
    )
    return config.build(Encoder(encoder))


def data2vec(encoder: EncoderConfig = ENCODER) -> Objective:
    return Data2VecConfig(top=2).build(Encoder(encoder))


def of_transformer(encoder: EncoderConfig) -> EncoderConfig:
    """Where only visible frames are encoded, no Conformer will do."""
    return encoder if isinstance(encoder.block, Transformer) else ENCODER


def data2vec2(encoder: EncoderConfig = ENCODER) -> Objective:
    config = Data2Vec2Config(top=2, copies=2, decoder_width=32, decoder_layers=2)
    return config.build(Encoder(of_transformer(encoder)))


def dinosr(encoder: EncoderConfig = ENCODER) -> Objective:
    return DinoSRConfig(top=2, entries=16).build(Encoder(encoder))


def spidr(encoder: EncoderConfig = ENCODER) -> Objective:
    return SpidRConfig(top=2, entries=16).build(Encoder(encoder))


def jepa(encoder: EncoderConfig = ENCODER) -> Objective:
    config = JEPAConfig(top=2, targets=2, predictor_width=32, predictor_layers=1, predictor_heads=2)
    return config.build(Encoder(of_transformer(encoder)))


OBJECTIVES: list[Callable[..., Objective]] = [
    wav2vec2,
    hubert,
    best_rq,
    cpc,
    apc,
    distillation,
    ctc,
    events,
    events_frozen,
    events_timed,
    data2vec,
    data2vec2,
    dinosr,
    spidr,
    jepa,
    *TWO_VIEWS,
    *RECONSTRUCTION,
]
