"""Which clips are trained on and which tested: no speaker, part or clip on both sides."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from speech_ssl.data.manifest import Utterance
from speech_ssl.evaluation.figures_probes import Column, draw_layers, nearness
from speech_ssl.evaluation.probe_tasks import (
    ABSENT,
    Problem,
    cut,
    emotion,
    intent,
    keyword,
    solve,
    solve_layers,
    speaker,
    verification,
)


def clip(number: int, duration_s: float = 2.0, **fields: str) -> Utterance:
    return Utterance(Path(f"{number}.wav"), duration_s, f"{number}.wav", **fields)


def test_keywords_are_tested_on_the_rows_that_the_manifest_says() -> None:
    splits = ["train", "dev", "test", "train", "test-clean", "train"]
    clips = [clip(i, label="ab"[i % 2], split=split) for i, split in enumerate(splits)]
    (found,) = keyword().problems(clips)
    assert np.flatnonzero(found.tested_N).tolist() == [2, 4]
    assert found.guessing == 1.0 and found.tested_labels == ["a", "a"] and found.metric == "accuracy"
    (found,) = keyword().problems([*clips[:2], clips[3], clips[5]])
    assert np.flatnonzero(found.tested_N).tolist() == [1]


def test_without_splits_a_fifth_of_every_class_is_tested() -> None:
    clips = [clip(i, label="abb"[i % 3]) for i in range(60)]
    (found,) = keyword().problems(clips)
    assert sorted(found.tested_labels) == ["a"] * 4 + ["b"] * 8
    (again,) = keyword().problems(clips[::-1])
    assert np.array_equal(again.tested_N[::-1], found.tested_N)
    assert keyword().clips([*clips, clip(99)]) == clips  # a row without a label


def test_emotions_leave_one_speaker_out() -> None:
    clips = [clip(i, label="ab"[i % 2], speaker=f"s{i // 4}") for i in range(12)]
    (found,) = emotion().problems(clips)
    assert found.keys == [c.speaker for c in clips] and found.tested_N is None
    (found,) = emotion().problems([clip(i, label="ab"[i % 2], split="dev" * (i > 7)) for i in range(12)])
    assert found.keys is None and found.tested_N.sum() == 4 and "also in training" in found.note


def order(number: int, name: str, **slots: str) -> Utterance:
    return clip(
        number, label=json.dumps({"intent": name, "slots": slots}).replace('"', '\\"' * (number % 2) or '"')
    )


def test_intents_and_where_there_is_one_only_its_slots() -> None:
    both = [order(i, "orderDrink" if i % 3 else "cancel") for i in range(30)]
    (found,) = intent().problems(both)
    assert (found.name, set(found.labels)) == ("intent", {"orderDrink", "cancel"})
    one = [order(i, "orderDrink", size=" small" if i % 3 else "large", kind="tea") for i in range(30)]
    one += [order(30, "orderDrink", kind="tea"), order(31, "orderDrink", kind="tea")]
    (found,) = intent().problems(one)
    assert found.name == "intent: size" and set(found.labels) == {"small", "large", ABSENT}
    assert "'orderDrink'" in found.note
    with pytest.raises(ValueError, match="no slot varies"):
        intent().problems([order(i, "orderDrink", kind="tea") for i in range(4)])
    with pytest.raises(ValueError, match="7.wav: the label is no JSON"):
        intent().problems([clip(7, label="tea")])


def test_one_clip_a_speaker_is_cut_into_parts_that_do_not_overlap() -> None:
    clips = [clip(i, 4.0 + i, speaker=f"s{i}") for i in range(20)]
    parts = speaker().clips(clips)
    assert {c.speaker for c in parts} == {f"s{i}" for i in range(2, 20)}  # 6 s or more
    for name in {c.speaker for c in parts}:
        own = [c for c in parts if c.speaker == name]
        assert all(one.end <= two.start for one, two in zip(own, own[1:], strict=False))
        assert all(c.end - c.start == 3.0 and c.end <= 4.0 + int(name[1:]) for c in own)
    assert len({c.id for c in parts}) == len(parts)
    (found,) = speaker().problems(parts)
    assert found.tested_N.sum() == 18 and "same session" in found.note
    tested = [c for c, out in zip(parts, found.tested_N, strict=True) if out]
    assert all(c.start == max(p.start for p in parts if p.path == c.path) for c in tested)


def test_a_part_of_a_part_begins_where_that_begins() -> None:
    whole = Utterance(Path("a.wav"), 7.0, "a.wav#5-12", start=5.0, end=12.0)
    assert [(c.start, c.end, c.duration_s) for c in cut(whole)] == [(5, 8, 3), (8, 11, 3)]


def test_speakers_with_several_clips_are_left_whole() -> None:
    clips = [clip(i, 9.0, speaker=f"s{i // 2}", split=("train", "dev")[i % 2]) for i in range(25)]
    found = speaker().clips(clips)
    assert found == clips[:24]
    (problem,) = speaker().problems(found)
    assert problem.note == "" and problem.tested_N.tolist() == [False, True] * 12


def test_verification_is_of_speakers_that_training_has_not_heard() -> None:
    clips = [clip(i, speaker=f"s{i // 3}") for i in range(90)]
    (found,) = verification().problems(clips)
    unseen = {s for s, out in zip(found.labels, found.tested_N, strict=True) if out}
    assert len(unseen) == 6 and not unseen & set(np.array(found.labels)[~found.tested_N])
    assert found.verify and found.metric == "EER" and found.guessing == 0.5
    with pytest.raises(ValueError, match="10 speakers"):
        verification().problems(clips[:27])


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="no row has a value in the column 'speaker'"):
        speaker().clips([clip(1, label="a")])
    with pytest.raises(ValueError, match="keyword: the labels are all 'a'"):
        keyword().problems([clip(i, label="a") for i in range(9)])
    with pytest.raises(ValueError, match="too few clips"):
        keyword().problems([clip(i, label="abcd"[i]) for i in range(4)])


def test_each_kind_of_problem_is_solved() -> None:
    """On the same planted features: layer 1 has the class in its first values."""
    generator = np.random.default_rng(0)
    y_N = np.arange(120) // 2 % 12
    x_NLD = generator.standard_normal((120, 2, 14)).astype(np.float32)
    x_NLD[:, 1, :12] += 9 * np.eye(12)[y_N]
    labels, seen_N = [f"l{y:02}" for y in y_N], np.arange(120) % 4 > 0
    split = Problem("split", labels, ~seen_N)
    cross = Problem("cross", labels, keys=[str(i % 3) for i in range(120)])
    pairs = Problem("pairs", labels, np.isin(y_N, (3, 7)), verify=True)
    for problem, wanted in ((split, 1.0), (cross, 1.0), (pairs, 0.0)):
        found = solve(problem, x_NLD, seed=0)
        assert found.score == pytest.approx(wanted, abs=0.1), problem.name
        assert found.layer_weights_L[1] > 0.9
    one, two = solve_layers(split, x_NLD, seed=0)
    assert one.score < 0.5 and two.score > 0.9 and two.held_out < one.held_out


def test_small_differences_look_small() -> None:
    scores_LK = np.array([[0.5, 0.53, 0.2], [0.9, 0.55, 0.4], [0.7, 0.55, 0.3]])
    shades_LK = nearness(scores_LK, np.array([False, False, True]))
    np.testing.assert_allclose(shades_LK, [[0, 0.8, 1], [1, 1, 0], [0.5, 1, 0.5]])


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    columns = [
        Column("keyword", "home", False, [0.5, 0.75], [0.1, 0.9]),
        Column("verification", "home", True, [0.25, 0.25], [0.5, 0.5]),
    ]
    draw_layers(columns, tmp_path / "new" / "layers.png", title="probes")
    assert (tmp_path / "new" / "layers.png").read_bytes().startswith(b"\x89PNG")
