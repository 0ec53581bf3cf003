"""Subsets, trials on disk, and verdicts on trials whose truth is known."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from speech_ssl.evaluation.labels.efficiency import (
    Confusion,
    Key,
    Point,
    Study,
    Trial,
    load_study,
    load_trials,
    nested_subset,
    save_study,
    save_trial,
    trial_path,
)
from speech_ssl.evaluation.labels.summary import (
    Cell,
    compare,
    labels_to_reach,
    summarise,
    welch_half_width,
)

SHARES = st.floats(0.001, 1.0)


def trial(arm: str, share: float, seed: int, value: float, **other: Any) -> Trial:
    given = {
        "task": "words",
        "labels": round(1000 * share),
        "metric": "accuracy",
        "higher_is_better": True,
        "best_step": 20,
        "steps": 40,
        "seconds": 9.5,
    }
    return Trial(arm=arm, share=share, seed=seed, value=value, **given | other)


def cell(arm: str, *values: float) -> Cell:
    return Cell(arm, 0.1, 100, tuple(range(len(values))), values)


# Subsets

LABELS = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=200)


@settings(deadline=None)
@given(LABELS, SHARES, SHARES, st.integers(0, 9))
def test_smaller_subsets_lie_within_larger_ones(labels, one, other, seed):
    small, large = (nested_subset(labels, share, seed) for share in sorted((one, other)))
    assert set(small) <= set(large)
    assert small == sorted(set(small)) and set(large) <= set(range(len(labels)))


@settings(deadline=None)
@given(LABELS, SHARES, st.integers(0, 9))
def test_subsets_have_the_size_asked_for_and_every_class(labels, share, seed):
    chosen = nested_subset(labels, share, seed)
    assert {labels[i] for i in chosen} == set(labels)
    assert len(chosen) == max(len(set(labels)), round(share * len(labels)))
    assert chosen == nested_subset(labels, share, seed)
    assert nested_subset(labels, 1.0, seed) == list(range(len(labels)))


@settings(deadline=None)
@given(st.lists(st.integers(20, 200), min_size=1, max_size=6), st.floats(0.05, 1.0), st.integers(0, 9))
def test_classes_keep_their_proportions(sizes, share, seed):
    labels = [name for name, size in zip("abcdef", sizes, strict=False) for _ in range(size)]
    counts = Counter(labels[i] for i in nested_subset(labels, share, seed))
    for name, size in zip("abcdef", sizes, strict=False):
        # All classes are cut at one place of their order; the last clip of each lies around it.
        assert abs(counts[name] - share * size) <= 2 + size / np.mean(sizes)


def test_seeds_give_different_clips():
    labels = ["a", "b"] * 50
    drawn = {tuple(nested_subset(labels, 0.1, seed)) for seed in range(5)}
    assert len(drawn) == 5


@pytest.mark.parametrize(("labels", "share"), [(["a"], 0.0), (["a"], 1.1), ([], 0.5)])
def test_a_subset_of_nothing_is_refused(labels, share):
    with pytest.raises(ValueError, match="share|no labels"):
        nested_subset(labels, share, 0)


# Trials on disk


def full_trial(seed: int = 1) -> Trial:
    curve = (Point(0, None, 2.5, 0.1), Point(20, 0.3, 1.25, 0.75))
    confusion = Confusion(("ja", "n\u00f8"), ((3, 1), (0, 4)))
    return trial("frozen", 0.05, seed, 0.875, curve=curve, confusion=confusion, guessing=0.5)


def test_a_trial_comes_back_as_it_was(tmp_path: Path):
    path = save_trial(tmp_path, full_trial())
    assert path == tmp_path / "trials" / "words-frozen-0.05-1.json"
    assert load_trials(tmp_path) == [full_trial()]
    save_trial(tmp_path, trial("scratch", 1.0, 0, 0.5))
    assert trial_path(tmp_path, Key("words", "scratch", 1.0, 0)).name == "words-scratch-1-0.json"
    assert len(load_trials(tmp_path)) == 2


def test_an_interrupted_study_goes_on(tmp_path: Path):
    plan = [Key("words", "scratch", share, seed) for share in (0.01, 1.0) for seed in (0, 1)]
    for key in plan[:3]:
        save_trial(tmp_path, trial(key.arm, key.share, key.seed, 0.5))
    torn = trial_path(tmp_path, plan[1])
    torn.write_bytes(torn.read_bytes()[:100])
    left = [key for key in plan if key not in {t.key for t in load_trials(tmp_path)}]
    assert left == [plan[1], plan[3]]
    for key in left:
        save_trial(tmp_path, trial(key.arm, key.share, key.seed, 0.5))
    assert {t.key for t in load_trials(tmp_path)} == set(plan)


def test_a_crash_while_writing_leaves_the_old_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_trial(tmp_path, full_trial())

    def crash(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(OSError, match="no space"):
        save_trial(tmp_path, dataclasses.replace(full_trial(), value=0.1))
    assert load_trials(tmp_path) == [full_trial()]


def test_losses_that_are_not_finite_become_none(tmp_path: Path):
    diverged = trial("scratch", 1.0, 0, np.float64(0.1), curve=(Point(1, math.nan, math.inf, 0.1),))
    save_trial(tmp_path, dataclasses.replace(diverged, best_step=np.int64(7)))
    (back,) = load_trials(tmp_path)
    assert back.curve == (Point(1, None, None, 0.1),) and back.best_step == 7


def test_files_that_are_no_trials_are_named(tmp_path: Path):
    path = save_trial(tmp_path, full_trial())
    path.with_name("copy.json").write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="words-frozen-0.05-1 in more than one file"):
        load_trials(tmp_path)
    path.with_name("copy.json").write_text('{"task": "words"}')
    with pytest.raises(ValueError, match=r"copy\.json is not a trial"):
        load_trials(tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"task": "../up"}, {"arm": "half"}, {"share": 0.0}, {"share": 5}, {"value": math.nan}]
)
def test_impossible_trials_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        dataclasses.replace(full_trial(), **wrong)
    with pytest.raises(ValueError, match="square"):
        Confusion(("a", "b"), ((1, 2),))


def test_a_study_comes_back_as_it_was(tmp_path: Path):
    assert load_study(tmp_path) == Study()
    study = Study(tasks={"words": "Ten words."}, shares=(0.01, 1.0), seeds=(0, 1, 2), network="Tiny.")
    save_study(tmp_path, study)
    assert load_study(tmp_path) == study
    (tmp_path / "study.json").write_text('{"colour": 1}')
    with pytest.raises(ValueError, match="does not describe a study"):
        load_study(tmp_path)


# Verdicts


@pytest.mark.parametrize(
    ("values", "scratch", "higher", "outcome"),
    [
        ((0.80, 0.82, 0.81), (0.40, 0.45, 0.38), True, "helps"),
        ((0.80, 0.82, 0.81), (0.40, 0.45, 0.38), False, "hurts"),
        ((0.40, 0.45, 0.38), (0.80, 0.82, 0.81), True, "hurts"),
        ((0.50, 0.62, 0.41), (0.48, 0.55, 0.44), True, "no clear difference"),
        ((0.61, 0.62, 0.70), (0.40, 0.52, 0.60), True, "no clear difference"),  # ranges apart, means unsure
        ((0.80, 0.82), (0.40, 0.45, 0.38), True, "too few seeds"),
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), True, "no clear difference"),
    ],
)
def test_verdicts(values, scratch, higher, outcome):
    verdict = compare(cell("finetuned", *values), cell("scratch", *scratch), higher)
    assert verdict.outcome == outcome
    assert verdict.difference == pytest.approx(np.mean(values) - np.mean(scratch))
    assert (verdict.low is None) == (outcome == "too few seeds")


def test_the_interval_is_welchs():
    a, b = (0.80, 0.85, 0.79, 0.9), (0.4, 0.62, 0.38)
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert welch_half_width(a, b) == pytest.approx((interval.high - interval.low) / 2)


@given(st.floats(0, 1), st.integers(1, 5))
@example(0.7372881355932204, 3)
def test_a_mean_lies_within_its_values(value: float, seeds: int):
    """Or the bars of a figure have negative lengths."""
    same = cell("frozen", *[value] * seeds)
    assert same.low <= same.mean <= same.high


@pytest.mark.parametrize("spread", [1.0, 0.3, 0.1])
def test_equal_arms_are_rarely_told_apart(spread):
    """What the rule's documentation promises: 3 to 6 of 100, whatever the ratio of the spreads."""
    generator = np.random.default_rng(0)
    a, b = generator.normal(0, 1, (3000, 3)), generator.normal(0, spread, (3000, 3))
    wrong = [
        compare(cell("frozen", *x), cell("scratch", *y), True).outcome != "no clear difference"
        for x, y in zip(a.tolist(), b.tolist(), strict=True)
    ]
    assert 0.02 < np.mean(wrong) < 0.07


def planted(gains: dict[str, tuple[float, float]], spread: float = 0.002) -> list[Trial]:
    """Scratch rises from 0.3 to 0.9; the others differ from it by the gains at 1 % and at 100 %."""
    jitter = np.random.default_rng(0).normal(0, spread, (3, 2, 3))
    return [
        trial(arm, share, seed, base + gains[arm][j] + jitter[i, j, seed])
        for i, arm in enumerate(gains)
        for j, (share, base) in enumerate(((0.01, 0.3), (1.0, 0.9)))
        for seed in range(3)
    ]


def test_planted_differences_are_found():
    trials = planted({"scratch": (0, 0), "frozen": (0.2, -0.2), "finetuned": (0.4, 0)})
    summary = summarise(trials)
    (task,) = summary.tasks
    outcomes = {(v.arm, v.share): v.outcome for v in task.verdicts}
    assert outcomes == {
        ("frozen", 0.01): "helps",
        ("frozen", 1.0): "hurts",
        ("finetuned", 0.01): "helps",
        ("finetuned", 1.0): "no clear difference",
    }
    found = task.cell("frozen", 0.01)
    values = [t.value for t in trials if (t.arm, t.share) == ("frozen", 0.01)]
    assert (found.mean, found.std) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
    assert (found.low, found.high, found.labels) == (min(values), max(values), 10)
    assert summary.missing == ()


def test_noise_is_no_difference():
    (task,) = summarise(
        planted({"scratch": (0, 0), "frozen": (0.02, 0), "finetuned": (0, 0.02)}, spread=0.05)
    ).tasks
    assert {v.outcome for v in task.verdicts} == {"no clear difference"}


def test_labels_saved():
    curve = [(10, 0.3), (100, 0.5), (1000, 0.9)]
    assert labels_to_reach(curve, 0.7, True) == pytest.approx(10**2.5)
    assert labels_to_reach(curve, 0.2, True) == 10
    assert labels_to_reach(curve, 0.95, True) is None
    assert labels_to_reach([(n, -value) for n, value in curve], -0.7, False) == pytest.approx(10**2.5)
    trials = planted({"scratch": (0, 0), "frozen": (0.1, -0.2), "finetuned": (0.4, 0.2)}, spread=0)
    frozen, finetuned = summarise(trials).tasks[0].savings
    assert frozen.times is None and frozen.by_seed == (None,) * 3
    # From 0.7 with 10 labels to 1.1 with 1000; 0.9 is half of the way, in logarithms.
    assert finetuned.times == pytest.approx(10) and finetuned.by_seed == pytest.approx([10] * 3)


def test_what_is_missing_is_listed():
    trials = [t for t in planted({"scratch": (0, 0), "frozen": (0, 0), "finetuned": (0, 0)}) if t.seed < 2]
    assert summarise(trials).missing == ()
    missing = summarise(trials[1:], Study(tasks={"words": ""}, seeds=(0, 1, 2))).missing
    assert missing[0] == trials[0].key and len(missing) == 1 + 6
    assert len(summarise(trials, Study(tasks={"sounds": ""})).missing) == 12


def test_trials_measured_otherwise_are_refused():
    two = [trial("scratch", 1.0, 0, 0.5), trial("scratch", 1.0, 1, 0.5, metric="CER")]
    with pytest.raises(ValueError, match="not measured alike"):
        summarise(two)
