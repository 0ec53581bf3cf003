"""The methods of two views over a narrow encoder; `quiet`: with the same two views of a row each time."""

from __future__ import annotations

from speech_ssl.model.config import EncoderConfig
from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.barlow_twins import BarlowTwinsConfig
from speech_ssl.objectives.base import Objective
from speech_ssl.objectives.byol import BYOLConfig
from speech_ssl.objectives.instance_discrimination import InstanceDiscriminationConfig
from speech_ssl.objectives.moco import MoCoConfig
from speech_ssl.objectives.simclr import COLAConfig, SimCLRConfig
from speech_ssl.objectives.simsiam import SimSiamConfig
from speech_ssl.objectives.swav import SwAVConfig
from speech_ssl.objectives.two_views import ViewsConfig
from speech_ssl.objectives.vicreg import VICRegConfig
from speech_ssl.objectives.whitening import WhiteningConfig
from tests.objectives.narrow import ENCODER


def views(quiet: bool) -> ViewsConfig:
    return ViewsConfig(crop=(0.6, 0.9), speed=(0.9, 1.1), mixup=0.2, fixed=quiet)


def simclr(encoder: EncoderConfig = ENCODER, quiet: bool = False) -> Objective:
    return SimCLRConfig(views=views(quiet), hidden_width=32, width=16, tau=0.5).build(Encoder(encoder))


def cola(encoder: EncoderConfig = ENCODER, quiet: bool = False) -> Objective:
    return COLAConfig(views=views(quiet), width=32).build(Encoder(encoder))


def moco(encoder: EncoderConfig = ENCODER, quiet: bool = False) -> Objective:
    config = MoCoConfig(views=views(quiet), hidden_width=32, width=16, queue=24, momentum=0.9)
    return config.build(Encoder(encoder))


def instance_discrimination(encoder: EncoderConfig = ENCODER, quiet: bool = False) -> Objective:
    config = InstanceDiscriminationConfig(views=views(quiet), width=16, slots=64, proximal=0.1)
    return config.build(Encoder(encoder))


def swav(encoder: EncoderConfig = ENCODER, quiet: bool = False) -> Objective:
    config = SwAVConfig(views=views(quiet), hidden_width=32, width=16, prototypes=6, queue=8, queue_from=0.5)
    return config.build(Encoder(encoder))


def byol(encoder: EncoderConfig = ENCODER, quiet: bool = False) -> Objective:
    return BYOLConfig(views=views(quiet), hidden_width=32, width=16).build(Encoder(encoder))


def simsiam(encoder: EncoderConfig = ENCODER, quiet: bool = False) -> Objective:
    return SimSiamConfig(views=views(quiet), width=32, bottleneck=16).build(Encoder(encoder))


def barlow_twins(encoder: EncoderConfig = ENCODER, quiet: bool = False) -> Objective:
    return BarlowTwinsConfig(views=views(quiet), width=8).build(Encoder(encoder))


def vicreg(encoder: EncoderConfig = ENCODER, quiet: bool = False) -> Objective:
    return VICRegConfig(views=views(quiet), width=16).build(Encoder(encoder))


def whitening(encoder: EncoderConfig = ENCODER, quiet: bool = False) -> Objective:
    config = WhiteningConfig(views=views(quiet), hidden_width=32, width=4, shrinkage=0.1)
    return config.build(Encoder(encoder))


TWO_VIEWS = [
    simclr,
    cola,
    moco,
    instance_discrimination,
    swav,
    byol,
    simsiam,
    barlow_twins,
    vicreg,
    whitening,
]
