"""HEAR's heads find what was planted, and never see the fold that is tested."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speech_ssl.evaluation.hear.heads import FoldScores, Point, Schedule, linear, shallow

pytestmark = pytest.mark.numerical

QUICK = {"grid": (Point(1e-2, width=64),), "schedule": Schedule(epochs=150, patience=10)}
FOLDS = [f"fold{i % 5:02}" for i in range(200)]


def rings(clips: int = 200) -> tuple[np.ndarray, list[str]]:
    """Of two classes: near and far from the middle, which no line can tell apart. One value is 1e4 times as
    large as the others, and one never varies."""
    generator = np.random.default_rng(0)
    y_N = generator.integers(0, 2, clips)
    angle_N = generator.uniform(0, 2 * np.pi, clips)
    radius_N = 1.0 + 2.0 * y_N + 0.1 * generator.standard_normal(clips)
    x_ND = np.stack([1e4 * radius_N * np.cos(angle_N), radius_N * np.sin(angle_N), np.full(clips, 3.0)], 1)
    return x_ND.astype(np.float32)[:, None], [("near", "far")[y] for y in y_N]


def test_a_hidden_layer_knows_what_a_linear_head_cannot() -> None:
    x_NLD, labels = rings()
    assert shallow(x_NLD, labels, FOLDS, **QUICK).mean > 0.95  # type: ignore[arg-type]
    assert linear(x_NLD, labels, FOLDS).mean < 0.7


def test_scores_are_means_over_the_folds_that_were_tested() -> None:
    x_NLD, labels = rings()
    labels[0::5] = ["near"] * 40  # fold00 has a single class
    for found in (shallow(x_NLD, labels, FOLDS, **QUICK), linear(x_NLD, labels, FOLDS)):  # type: ignore[arg-type]
        assert found.skipped == ["fold00"] and sorted(found.accuracies) == FOLDS[1:5]
        assert len(found.predictions) == len(found.tested) == 160
        right = [guess == labels[i] for guess, i in zip(found.predictions, found.tested, strict=True)]
        assert found.mean == pytest.approx(np.mean(right))  # folds of one size
        assert found.deviation == pytest.approx(np.std(list(found.accuracies.values())))


def test_the_tested_folds_own_labels_change_no_prediction_for_it() -> None:
    """Of noise with more values than clips, which a head knows by heart: with the tested fold in training the
    labels themselves would come back."""
    x_NLD, labels = memorable()
    swapped = {"a": "b", "b": "a"}
    others = [swapped[x] if fold == "fold02" else x for x, fold in zip(labels, FOLDS, strict=True)]
    before, after = (shallow(x_NLD, each, FOLDS, **QUICK) for each in (labels, others))  # type: ignore[arg-type]
    assert of_fold(before, "fold02") == of_fold(after, "fold02")


def memorable() -> tuple[np.ndarray, list[str]]:
    x_NLD = np.random.default_rng(1).standard_normal((200, 2, 150)).astype(np.float32)
    return x_NLD, [("a", "b")[i % 2] for i in range(200)]


def of_fold(found: FoldScores, name: str) -> list[str]:
    return [guess for guess, i in zip(found.predictions, found.tested, strict=True) if FOLDS[i] == name]


def test_the_same_seed_gives_the_same_and_leaves_torchs_state() -> None:
    x_NLD, labels = rings()
    state = torch.get_rng_state()
    first, second = (shallow(x_NLD, labels, FOLDS, **QUICK, seed=3) for _ in range(2))  # type: ignore[arg-type]
    assert first.predictions == second.predictions
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_is_chance() -> None:
    x_NLD, labels = memorable()
    assert abs(shallow(x_NLD, labels, FOLDS, **QUICK).mean - 0.5) < 0.15  # type: ignore[arg-type]


def test_two_folds_are_too_few() -> None:
    x_NLD, labels = rings()
    with pytest.raises(ValueError, match="needs three folds"):
        shallow(x_NLD, labels, [fold if fold < "fold02" else "fold01" for fold in FOLDS])
