"""Probes find what was planted, where it was planted, and nothing in noise; the tested clips stay unseen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from speech_ssl.evaluation.probes import linear as probes
from speech_ssl.evaluation.probes.linear import (
    Standard,
    cross_validate,
    fit,
    folds,
    held_out_parts,
    per_layer,
    probe,
)
from speech_ssl.evaluation.probes.linear import scores as accuracy_and_uar
from speech_ssl.evaluation.probes.speakers import probe_verification, trials

pytestmark = pytest.mark.numerical

CLASSES, LAYERS, WIDTH, PLANTED = 4, 5, 12, 3


def planted(clips: int, strength: float = 6.0, y_N: np.ndarray | None = None) -> tuple[np.ndarray, list[str]]:
    """Noise in all layers; in layer PLANTED a direction for each class. Layers differ in scale."""
    generator = np.random.default_rng(0)
    y_N = np.arange(clips) % CLASSES if y_N is None else y_N
    x_NLD = generator.standard_normal((clips, LAYERS, WIDTH))
    x_NLD[:, PLANTED, :CLASSES] += strength * np.eye(CLASSES)[y_N]
    x_NLD *= np.array([100.0, 1.0, 1e-3, 0.01, 10.0])[:, None]
    return x_NLD.astype(np.float32), [f"class {y}" for y in y_N]


def test_the_weights_gather_on_the_layer_that_knows() -> None:
    x_NLD, labels = planted(200)
    found = probe(x_NLD[:100], labels[:100], x_NLD[100:], labels[100:])
    assert found.accuracy > 0.97 and found.uar > 0.97
    assert found.layer_weights_L[PLANTED] > 0.9
    assert found.layer_weights_L.sum() == pytest.approx(1, abs=1e-5)


def test_each_layer_alone() -> None:
    x_NLD, labels = planted(200)
    found = per_layer(x_NLD[:100], labels[:100], x_NLD[100:], labels[100:])
    assert [one.accuracy > 0.97 for one in found] == [layer == PLANTED for layer in range(LAYERS)]
    assert all(one.accuracy < 0.45 for layer, one in enumerate(found) if layer != PLANTED)
    assert min(range(LAYERS), key=lambda layer: found[layer].held_out) == PLANTED


def test_noise_is_chance() -> None:
    x_NLD, labels = planted(600, strength=0.0)
    found = probe(x_NLD[:200], labels[:200], x_NLD[200:], labels[200:])
    assert abs(found.accuracy - 1 / CLASSES) < 0.09  # four standard deviations


def test_the_head_is_logistic_regression() -> None:
    """One layer, one penalty: scikit-learn finds the same coefficients."""
    x_NLD, labels = planted(200, strength=1.0)
    y_N = np.array([int(label[-1]) for label in labels])
    x_NLD = Standard.of(x_NLD).apply(x_NLD)[:, [PLANTED]]
    head = fit(x_NLD, y_N, CLASSES, 0.01)
    reference = LogisticRegression(C=1 / (0.01 * len(y_N)), tol=1e-8, max_iter=1000).fit(x_NLD[:, 0], y_N)
    np.testing.assert_allclose(head.weight_CD.numpy(), reference.coef_, atol=2e-3)


def test_a_mix_of_layers_ends_where_autograd_finds_no_slope() -> None:
    x_NLD, labels = planted(200, strength=1.0)
    y_N = np.array([int(label[-1]) for label in labels])
    x_NLD = Standard.of(x_NLD).apply(x_NLD)
    head = fit(x_NLD, y_N, CLASSES, 0.01)
    learned = [part.clone().requires_grad_() for part in head]
    logits_NC = type(head)(*learned).logits(probes.layers_first(x_NLD))
    loss = torch.nn.functional.cross_entropy(logits_NC, torch.from_numpy(y_N))
    (loss + 0.005 * learned[1].square().sum()).backward()  # type: ignore[no-untyped-call]
    assert all(part.grad is not None and part.grad.abs().max() < 1e-3 for part in learned)
    assert head.mix_L.std() > 0.1


def test_a_rare_class_counts_as_much_in_uar() -> None:
    labels = ["a"] * 8 + ["b"] * 2
    accuracy, uar = accuracy_and_uar(["a"] * 10, labels)
    assert (accuracy, uar) == (0.8, 0.5)
    guesses = ["a", "b"] * 5
    assert accuracy_and_uar(guesses, labels)[1] == pytest.approx(balanced_accuracy_score(labels, guesses))


def test_a_tested_class_that_training_lacks_is_an_error() -> None:
    x_NLD, labels = planted(80)
    tested = ["unheard", *labels[41:]]
    found = probe(x_NLD[:40], labels[:40], x_NLD[40:], tested)
    assert found.accuracy == pytest.approx(
        np.mean([a == b for a, b in zip(found.predictions, tested, strict=True)])
    )
    assert "unheard" not in found.predictions
    assert found.uar < 0.85  # one of five classes at zero


def test_tested_clips_change_nothing_but_their_own_predictions() -> None:
    x_NLD, labels = planted(300, strength=1.5)
    one = probe(x_NLD[:200], labels[:200], x_NLD[200:], labels[200:])
    shifted = np.concatenate([x_NLD[200:250], 1e3 + 50 * x_NLD[250:]])
    other = probe(x_NLD[:200], labels[:200], shifted, labels[200:])
    assert other.predictions[:50] == one.predictions[:50]
    assert other.layer_weights_L.tobytes() == one.layer_weights_L.tobytes()
    assert (other.weight_decay, other.held_out) == (one.weight_decay, one.held_out)


def test_the_penalty_is_chosen_without_a_look_at_the_held_out_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every head for choosing is fitted, and standardised, on the other training clips alone."""
    x_NLD, labels = planted(100)
    parts = held_out_parts(labels, None, 0)
    seen: list[np.ndarray] = []
    honest = probes.fit

    def watched(x: np.ndarray, *rest: object) -> object:
        seen.append(x)
        return honest(x, *rest)

    monkeypatch.setattr(probes, "fit", watched)
    probe(x_NLD, labels, x_NLD[:4], labels[:4])
    *choosing, last = seen
    own = [Standard.of(x_NLD[~out_N]).apply(x_NLD[~out_N]) for out_N in parts]
    own = [x for x in own for _ in probes.WEIGHT_DECAYS]
    assert len(parts) == 3 and all(np.array_equal(*pair) for pair in zip(choosing, own, strict=True))
    assert len(last) == len(x_NLD)


def test_the_penalty_is_that_of_the_fewest_held_out_errors() -> None:
    """Here cross-entropy would prefer another one."""
    generator = np.random.default_rng(0)
    y_N = np.repeat(np.arange(40), 4)
    x_NLD = generator.standard_normal((160, 1, 20)).astype(np.float32)
    x_NLD[:, 0] += generator.standard_normal((40, 20))[y_N]
    labels = [f"{y:02}" for y in y_N]
    parts = held_out_parts(labels, None, 0)
    drawn = [probes._held_out_results(x_NLD, y_N, out_N, 40) for out_N in parts]
    results = [probes.HeldOut(*np.mean(each, axis=0).tolist()) for each in zip(*drawn, strict=True)]
    found = probe(x_NLD, labels, x_NLD, labels)
    assert found.held_out == min(results) and found.held_out.error == min(one.error for one in results)
    assert found.held_out.loss > min(one.loss for one in results)


def test_the_same_seed_gives_the_same_bits_and_torch_draws_nothing() -> None:
    x_NLD, labels = planted(120, strength=1.0)
    before = torch.get_rng_state()
    one, two = (probe(x_NLD[:80], labels[:80], x_NLD[80:], labels[80:], seed=3) for _ in range(2))
    assert one.layer_weights_L.tobytes() == two.layer_weights_L.tobytes()
    assert one.held_out == two.held_out and one.predictions == two.predictions
    assert torch.equal(before, torch.get_rng_state())


def test_a_value_that_never_varies_is_ignored() -> None:
    x_NLD, labels = planted(100)
    x_NLD[:, :, -1] = 1e4
    assert (Standard.of(x_NLD).apply(x_NLD)[:, :, -1] == 0).all()
    assert np.isfinite(Standard.of(np.ones_like(x_NLD)).apply(x_NLD)).all()


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("pqrs"), st.sampled_from("xy")), min_size=2, max_size=40),
    st.integers(0, 5),
)
def test_folds_and_held_out_groups_are_disjoint(clips: list[tuple[str, str]], seed: int) -> None:
    speakers, labels = [speaker for speaker, _ in clips], [label for _, label in clips]
    parts, skipped = folds(speakers, labels)
    for name, train, test in parts:
        assert {speakers[i] for i in test} == {name}
        assert name not in {speakers[i] for i in train}
        assert sorted([*train, *test]) == list(range(len(clips)))
        assert len({labels[i] for i in test}) > 1
    single = {s for s in speakers if len({la for other, la in clips if other == s}) == 1}
    assert set(skipped) == single
    if len(set(speakers)) > 1:
        for held_out_N in held_out_parts(labels, speakers, seed):
            out = {speakers[i] for i in np.flatnonzero(held_out_N)}
            assert out and set(speakers) - out == {speakers[i] for i in np.flatnonzero(~held_out_N)} != set()
    for by_class_N in held_out_parts(labels, None, seed):
        assert {labels[i] for i in np.flatnonzero(~by_class_N)} == set(labels)


def test_small_parts_are_drawn_several_times() -> None:
    """So that few clips do not choose: 15 held out at once, as of 77 training clips, choose by chance."""
    few = held_out_parts(["a", "b"] * 38, None, 0)
    assert len(few) == 4 and len({part.tobytes() for part in few}) == 4
    assert [int(part.sum()) for part in few] == [16] * 4
    assert len(held_out_parts(["a", "b"] * 150, None, 0)) == 1
    assert len(held_out_parts(["a", "b"] * 5, None, 0)) == probes.MOST_DRAWS
    assert len(held_out_parts(["a"], None, 0)) == probes.MOST_DRAWS


def test_one_speaker_left_out_at_a_time() -> None:
    """A speaker with a single class is trained on, not tested."""
    x_NLD, labels = planted(240, y_N=np.where(np.arange(240) < 180, np.arange(240) % CLASSES, 0))
    speakers = [f"speaker {i // 60}" for i in range(240)]
    found = cross_validate(x_NLD, labels, speakers, grouped=True)
    assert found.skipped == ["speaker 3"] and list(found.folds) == ["speaker 0", "speaker 1", "speaker 2"]
    assert found.tested.tolist() == list(range(180)) and len(found.predictions) == 180
    assert found.accuracy > 0.9 and found.layer_weights_L[PLANTED] > 0.8
    right = [one == labels[i] for i, one in zip(found.tested, found.predictions, strict=True)]
    assert found.accuracy == np.mean(right)


def test_mistakes_are_named() -> None:
    x_NLD, labels = planted(20)
    with pytest.raises(ValueError, match="at least two classes"):
        probe(x_NLD, ["a"] * 20, x_NLD, labels)
    with pytest.raises(ValueError, match="with 19 labels"):
        probe(x_NLD, labels[1:], x_NLD, labels)
    with pytest.raises(ValueError, match="diverged"):
        probe(x_NLD, labels, np.full_like(x_NLD, np.nan), labels)
    with pytest.raises(ValueError, match="no fold to test: 20 folds, 20 of them with a single class"):
        cross_validate(x_NLD, labels, [str(i) for i in range(20)])
    with pytest.raises(ValueError, match="one of each per clip"):
        folds(["a"], [])


def voices(speakers: int, strength: float) -> tuple[np.ndarray, list[str]]:
    """Four clips of each speaker: in layer PLANTED his own point, in all layers noise."""
    generator = np.random.default_rng(1)
    number_N = np.repeat(np.arange(speakers), 4)
    x_NLD = generator.standard_normal((4 * speakers, LAYERS, WIDTH))
    x_NLD[:, PLANTED] += strength * generator.standard_normal((speakers, WIDTH))[number_N]
    return x_NLD.astype(np.float32), [f"s{number}" for number in number_N]


def test_unseen_speakers_are_verified() -> None:
    x_NLD, names = voices(50, strength=4.0)
    found = probe_verification(x_NLD[:160], names[:160], x_NLD[160:], names[160:])
    assert found.eer < 0.05 and found.min_dcf < 0.3 and found.layer_weights_L[PLANTED] > 0.9
    assert len(found.scores) == 40 * 39 // 2 and found.same.sum() == 10 * 6
    noise, names = voices(50, strength=0.0)
    assert 0.35 < probe_verification(noise[:160], names[:160], noise[160:], names[160:]).eer < 0.65


def test_trials_are_all_pairs_by_cosine() -> None:
    x_NE = np.array([[2.0, 0], [0, 3], [5, 5]], dtype=np.float32)
    scores, same = trials(x_NE, ["a", "b", "a"])
    np.testing.assert_allclose(scores, [0, 0.5**0.5, 0.5**0.5], atol=1e-7)
    assert same.tolist() == [False, True, False]


def test_two_clips_of_one_session_are_no_trial() -> None:
    x_NE = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    scores, same = trials(x_NE, list("aaabb"), list("xxyxz"))
    every, _ = trials(x_NE, list("aaabb"))
    assert same.tolist() == [True, False, True, False, False, False, True]  # not 01, 03 and 13
    np.testing.assert_allclose(scores, every[[1, 3, 4, 6, 7, 8, 9]])
    scores, same = trials(x_NE, list("aabbc"), list("xxyyz"))  # of speakers with one session each: all
    assert len(scores) == 10 and same.sum() == 2


def test_verification_refuses_speakers_it_has_heard() -> None:
    x_NLD, names = voices(8, strength=1.0)
    with pytest.raises(ValueError, match="speaker s7 is trained on and tested"):
        probe_verification(x_NLD, names, x_NLD[28:], names[28:])
    with pytest.raises(ValueError, match="five|5 speakers or more"):
        probe_verification(x_NLD[:16], names[:16], x_NLD[16:], names[16:])
    with pytest.raises(ValueError, match="pairs of one speaker"):
        probe_verification(x_NLD[:28], names[:28], x_NLD[28:], names[28:])
