"""Transform prediction: the cross-entropy by hand, and what each transform does to a tone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.transforms import CLASSES, TransformPrediction, TransformPredictionConfig
from speech_ssl.types import Batch
from tests.objectives.narrow import ENCODER
from tests.test_objective_contract import fresh, tones

pytestmark = pytest.mark.numerical


def built(**numbers: object) -> TransformPrediction:
    config = TransformPredictionConfig(**numbers)  # type: ignore[arg-type]
    objective = fresh(lambda: config.build(Encoder(ENCODER))).eval()
    assert isinstance(objective, TransformPrediction)
    return objective


def test_the_loss_is_equation_3_of_the_transform_that_was_drawn() -> None:
    objective, batch = built(), tones(1, rows=5)
    with torch.no_grad():
        found = objective(batch, generator=torch.Generator().manual_seed(5))
        generator = torch.Generator().manual_seed(5)
        class_B = torch.randint(6, (5,), generator=generator)
        wave_BS, lengths_B = objective.transformed(batch, class_B, generator)
        context = objective.encoder(wave_BS, lengths_B)
        total, right = 0.0, [0.0] * 6
        for row, drawn in enumerate(class_B.tolist()):
            mean_D = context.x_BTD[row, : int(context.lengths_B[row])].double().mean(0)
            logits_K = (objective.answer.weight.double() @ mean_D + objective.answer.bias).tolist()
            total += math.log(sum(map(math.exp, logits_K))) - logits_K[drawn]
            right[drawn] += max(logits_K) == logits_K[drawn]
    assert float(found.count) == 5
    assert float(found.total) == pytest.approx(total, rel=1e-5)
    assert found.metrics["right"].tolist() == right
    assert found.metrics["drawn"].tolist() == torch.bincount(class_B, minlength=6).tolist()


def test_who_answers_nothing_pays_the_logarithm_of_six() -> None:
    objective = built()
    torch.nn.init.zeros_(objective.answer.weight)
    torch.nn.init.zeros_(objective.answer.bias)
    found = objective(tones(1), generator=torch.Generator())
    assert float(found.total.detach() / found.count) == pytest.approx(math.log(6))
    reported = objective.report({k: v / found.count for k, v in found.metrics.items()})
    assert reported["answer_perplexity"] == pytest.approx(6)
    assert reported.keys() >= {f"accuracy_{name}" for name in CLASSES}


def transformed(kind: str, wave_S: Tensor, **numbers: object) -> Tensor:
    batch = Batch(wave_S[None], torch.tensor([len(wave_S)]))
    class_B = torch.tensor([CLASSES.index(kind)])
    wave_BS, lengths_B = built(**numbers).transformed(batch, class_B, torch.Generator().manual_seed(3))
    return wave_BS[0, : int(lengths_B)]


EXACT = {"jitter": 0.0, "speed": (1.25, 1.25)}


def test_each_transform_does_what_it_is_called() -> None:
    at_S = torch.arange(16_000)
    ramp_S = at_S / 16_000
    assert torch.allclose(transformed("plain", ramp_S, **EXACT).diff(), torch.tensor(1 / 16_000), atol=1e-5)
    assert torch.allclose(
        transformed("reversed", ramp_S, **EXACT).diff(), torch.tensor(-1 / 16_000), atol=1e-5
    )
    heard = {}
    for kind in CLASSES:
        chord_S = torch.sin(at_S * 0.04) + torch.sin(at_S * 1.6)  # 102 and 4,074 Hz
        wave_S = transformed(kind, chord_S, **EXACT)
        power_F = torch.fft.rfft(wave_S * torch.hann_window(len(wave_S)), n=16_000).abs()
        heard[kind] = (int(power_F[:1_000].argmax()), float(power_F[:1_000].max() / power_F[1_000:].max()))
    hertz = {kind: lowest for kind, (lowest, _) in heard.items()}
    assert hertz["plain"] == pytest.approx(102, abs=2)
    assert hertz["faster"] == pytest.approx(127, abs=3) and hertz["slower"] == pytest.approx(81, abs=3)
    assert heard["low_passed"][1] > 5 * heard["plain"][1] > 25 * heard["high_passed"][1]


def test_neither_length_nor_place_tells_the_class() -> None:
    objective = built()
    batch = Batch(torch.randn(60, 8_000), torch.linspace(4_000, 8_000, 60).long())
    lengths = [
        objective.transformed(batch, torch.full((60,), k), torch.Generator().manual_seed(0))[1].tolist()
        for k in range(6)
    ]
    assert all(each == lengths[0] for each in lengths)
    assert lengths[0] == [int(length / 1.35) for length in batch.lengths_B.tolist()]


def test_rows_too_short_for_a_frame_are_no_targets() -> None:
    batch = Batch(torch.randn(2, 8_000), torch.tensor([8_000, 300]))
    found = built()(batch, generator=torch.Generator())
    assert float(found.count) == 1 and bool(found.total.isfinite())


def test_speeds_that_jitter_could_hide_are_refused() -> None:
    with pytest.raises(ValueError, match="above 1"):
        TransformPredictionConfig(speed=(1.02, 1.3))
