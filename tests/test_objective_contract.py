"""What every objective promises, whatever its method. A new one is one line in OBJECTIVES.

Those whose loss does not add (`Objective.adds`) are built with `quiet=True` where ranks are compared: without
random views, so that two ranks and one process compute of the same rows.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor

from speech_ssl.model import presets
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
from speech_ssl.training.checkpoint import RunState
from speech_ssl.training.config import TrainConfig
from speech_ssl.training.guard import Guard
from speech_ssl.training.loop import accumulate, seeded, train
from speech_ssl.training.meter import Meter
from speech_ssl.training.optim import scale_gradients
from speech_ssl.training.ranks import Ranks, joined_ranks
from speech_ssl.types import Batch

pytestmark = pytest.mark.numerical

ENCODER = presets.tiny().changed(
    frontend={"channels": (16,) * 7},
    depth=3,
    width=32,
    heads=2,
    ffn_width=64,
    positions={"kernel": 16},
    dropout=0.1,
    layer_drop=0.3,
)
QUIET = replace(ENCODER, dropout=0.0, layer_drop=0.0)


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
    ctc,
    events,
    events_frozen,
    events_timed,
    data2vec,
    data2vec2,
    dinosr,
    spidr,
    jepa,
    distillation,
]
every_objective = pytest.mark.parametrize("build", OBJECTIVES)

CPU = Ranks(0, 1, torch.device("cpu"))


def fresh(build: Callable[..., Objective], seed: int = 0, **options: Any) -> Objective:
    torch.manual_seed(seed)
    objective = build(**options)
    objective.prepare((tones(number) for number in count()), torch.Generator().manual_seed(seed))
    return objective


def tones(number: int, rows: int = 3, samples: int = 16_000) -> Batch:
    """Rows of a few steady tones each, which change half-way: predictable from their surroundings."""
    generator = torch.Generator().manual_seed(number)
    t_S = torch.arange(samples) / 16_000
    hertz_B21 = 200 + 3_000 * torch.rand(rows, 2, 1, generator=generator)
    halves_BS = torch.sin(2 * torch.pi * hertz_B21 * t_S).transpose(0, 1)
    wave_BS = torch.where(t_S < 0.5, *halves_BS) + 0.01 * torch.randn(rows, samples, generator=generator)
    lengths_B = torch.randint(samples // 2, samples + 1, (rows,), generator=generator)
    lengths_B[0] = samples
    targets_BU = torch.randint(1, 4, (rows, 6), generator=generator)
    target_lengths_B = torch.randint(2, 6, (rows,), generator=generator)
    valid_BS = torch.arange(samples) < lengths_B[:, None]
    return Batch(wave_BS * valid_BS, lengths_B, targets_BU, target_lengths_B)


def endless(state: dict[str, int] | None):  # type: ignore[no-untyped-def]
    number = 0 if state is None else state["number"]
    while True:
        number += 1
        yield tones(number), {"number": number}


def loss_of(objective: Objective, batch: Batch, number: int = 0):  # type: ignore[no-untyped-def]
    return objective(batch, generator=seeded(0, 0, number, torch.device("cpu")))


@every_objective
def test_gradients_reach_every_parameter_and_nothing_frozen(build: Callable[[], Objective]) -> None:
    objective = fresh(build)
    objective.encoder.config = replace(ENCODER, layer_drop=0.0)
    frozen = {k: v.clone() for k, v in objective.named_parameters() if not v.requires_grad}
    loss_of(objective, tones(1)).total.backward()
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
            assert parameter.grad.isfinite().all(), name
        else:
            assert parameter.grad is None, name
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
    optimizer.step()
    now = dict(objective.named_parameters())
    for name, value in frozen.items():
        assert torch.equal(now[name], value), name


@every_objective
def test_sums_of_two_batches_add(build: Callable[[], Objective]) -> None:
    objective = fresh(build)
    first, second = loss_of(objective, tones(1), 1), loss_of(objective, tones(2), 2)
    both = first + second
    assert float(both.count) == float(first.count) + float(second.count) > 0
    torch.testing.assert_close(both.total, first.total + second.total)
    for name in first.metrics:
        torch.testing.assert_close(both.metrics[name], first.metrics[name] + second.metrics[name])
        assert not first.metrics[name].requires_grad, f"{name} is not detached: it would keep the graph"
    with torch.no_grad():
        held_out = loss_of(objective.eval(), tones(1))
    reported = objective.report({k: v / held_out.count for k, v in held_out.metrics.items()})
    assert objective.best_by == "loss" or objective.best_by in reported
    assert objective.floors().keys() <= reported.keys()


@every_objective
def test_total_and_metrics_are_sums_over_the_count(build: Callable[[], Objective]) -> None:
    """Four times the rows are about four times each sum: a mean in disguise would stay as it is."""
    objective = fresh(build).eval()
    if not objective.adds:
        pytest.skip("its rows are compared with each other: more rows are more to compare with")
    one = tones(1, rows=12)
    assert one.targets_BU is not None and one.target_lengths_B is not None
    four = Batch(
        one.wave_BS.repeat(4, 1),
        one.lengths_B.repeat(4),
        one.targets_BU.repeat(4, 1),
        one.target_lengths_B.repeat(4),
    )
    with torch.no_grad():
        few, many = loss_of(objective, one), loss_of(objective, four)
    assert float(many.count) == pytest.approx(4 * float(few.count), rel=0.2)
    for name, value in {"total": few.total, **few.metrics}.items():
        ours = {"total": many.total, **many.metrics}[name]
        assert float(ours.abs().sum()) == pytest.approx(4 * float(value.abs().sum()), rel=0.5), name


@every_objective
def test_the_same_seed_gives_the_same_loss_and_another_another(build: Callable[[], Objective]) -> None:
    objective = fresh(build)
    first, again, other = (float(loss_of(objective, tones(1), n).total.detach()) for n in (1, 1, 2))
    assert first == again != other


@every_objective
def test_padding_does_not_change_the_loss(build: Callable[[], Objective]) -> None:
    objective = fresh(build).eval()
    batch = tones(1)
    longest = int(batch.lengths_B.max())
    assert longest == batch.wave_BS.shape[1]
    changed_BS = batch.wave_BS + 100.0 * (torch.arange(longest) >= batch.lengths_B[:, None])
    changed = replace(batch, wave_BS=changed_BS)
    with torch.no_grad():
        torch.testing.assert_close(
            loss_of(objective, batch).total, loss_of(objective, changed).total, rtol=1e-4, atol=0
        )


def gradients(build: Callable[..., Objective], ranks: Ranks) -> dict[str, Tensor]:
    """Of one step over four batches, shared among the ranks. Where rows are compared across a batch: of two,
    without chance, whose rows one process has in one batch."""
    objective = fresh(build)
    if not objective.adds:
        objective = fresh(build, encoder=QUIET, quiet=True)
    model = ranks.wrap(objective)
    batches = 4 if objective.adds else ranks.world
    config = TrainConfig(steps=1, batches_per_step=batches, precision="fp32")
    if objective.adds or ranks.world == 2:
        mine = ((tones(number), {}) for number in range(ranks.rank, batches, ranks.world))
    else:
        mine = ((joined(tones(0), tones(1)), {}) for _ in range(1))
    guard = Guard(config, RunState(), ranks, Path("never written"))
    sums = accumulate(model, mine, RunState(), config, ranks, Meter(ranks), guard)
    scale_gradients(objective.parameters(), ranks.world / ranks.all_sum(sums.count.clone()))
    return {k: p.grad for k, p in objective.named_parameters() if p.grad is not None}


def joined(first: Batch, second: Batch) -> Batch:
    waves = torch.cat([first.wave_BS, second.wave_BS])
    return Batch(waves, torch.cat([first.lengths_B, second.lengths_B]))


def _one_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = (folder / "port").read_text()
    with joined_ranks("cpu") as ranks:
        found = {build.__name__: gradients(build, ranks) for build in OBJECTIVES}
        torch.save(found, folder / f"{rank}.pt")
    os._exit(0)  # what torch's own threads do while Python ends is not what is tested


@pytest.fixture(scope="module")
def gradients_of_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """Those that each of two ranks has, by objective: the same two processes for all of them."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        (folder / "port").write_text(str(probe.getsockname()[1]))
    multiprocessing.start_processes(_one_rank, (folder,), nprocs=2, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@every_objective
def test_two_ranks_give_the_gradients_of_one_process(
    build: Callable[[], Objective], gradients_of_two: list[dict[str, dict[str, Tensor]]]
) -> None:
    alone = gradients(build, CPU)
    for found in gradients_of_two:
        shared = found[build.__name__]
        assert shared.keys() == alone.keys()
        for name, gradient in alone.items():
            torch.testing.assert_close(shared[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


SHORT = TrainConfig(steps=8, peak_lr=1e-3, warmup=0.2, save_every=3, log_every=2, valid_every=4)


@every_objective
def test_resume_is_bit_exact(build: Callable[[], Objective], tmp_path: Path) -> None:
    class Crash(Exception):
        pass

    def crashing(state: dict[str, int] | None):  # type: ignore[no-untyped-def]
        for batch, after in endless(state):
            if after["number"] == 6:
                raise Crash
            yield batch, after

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    reference = fresh(build)
    train(reference, endless, lambda: [tones(99)], SHORT, out=whole, ranks=CPU)
    with pytest.raises(Crash):
        train(fresh(build), crashing, lambda: [tones(99)], SHORT, out=broken, ranks=CPU)
    resumed = fresh(build, seed=1)  # its own weights do not matter
    train(resumed, endless, lambda: [tones(99)], SHORT, out=broken, ranks=CPU)
    for name, value in reference.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert (whole / "last.safetensors").read_bytes() == (broken / "last.safetensors").read_bytes()


@every_objective
def test_a_batch_can_be_learnt_by_heart_without_collapse(build: Callable[[], Objective]) -> None:
    """With the same draws in each step the loss can but fall, however the processor rounds: over five seeds
    to 0.68 of what it was, or less. With others in each, that of wav2vec 2.0 may rise at first: with more
    codes in use there are more distractors."""
    objective = fresh(build)
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=2e-3)
    batch = tones(1)

    def loss() -> Tensor:
        sums = loss_of(objective, batch)
        return sums.total / sums.count

    before = float(loss().detach())
    for _ in range(30):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        objective.after_step(1.0)
    assert float(loss().detach()) < 0.85 * before
    with torch.no_grad():
        outputs = objective.eval().encoder(batch.wave_BS, batch.lengths_B).x_BTD
    assert outputs.std(dim=(0, 1)).min() > 0
