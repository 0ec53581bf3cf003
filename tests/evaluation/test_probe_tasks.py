"""Which clips are trained on and which tested: no speaker, part or clip on both sides."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from speech_ssl.data.manifest import Utterance
from speech_ssl.evaluation.probes.figures import Column, draw_layers, nearness
from speech_ssl.evaluation.probes.tasks import (
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

pytestmark = pytest.mark.numerical


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


def part(file: int, number: int, **fields: str) -> Utterance:
    """A part of a file, as a manifest with `start` and `end` has it."""
    name, start, end = f"{file}.wav", 2.0 * number, 2.0 * number + 2
    return Utterance(Path(name), 2.0, f"{name}#{start:g}-{end:g}", start=start, end=end, **fields)


def sides(problem: Problem, names: list[str]) -> tuple[set[str], set[str]]:
    """What is trained on, and what is tested."""
    found = [{n for n, out in zip(names, problem.tested_N, strict=True) if out == side} for side in (0, 1)]
    return found[0], found[1]


def test_parts_of_a_file_are_on_one_side() -> None:
    clips = [part(i % 10, i, label="abb"[i % 3]) for i in range(90)]
    (found,) = keyword().problems(clips)
    trained, tested = sides(found, [str(c.path) for c in clips])
    assert tested and not trained & tested and found.note == "a fifth of every class, by hash, is tested"
    assert 9 <= len(found.tested_labels) <= 36 and set(found.tested_labels) == {"a", "b"}

    clips = [part(0, i, label="ab"[i % 2]) for i in range(20)]  # there is one file
    (found,) = keyword().problems(clips)
    assert len(found.tested_labels) == 4 and "parts of the tested files are trained on" in found.note
    given = [replace(c, split="test" if i > 15 else "train") for i, c in enumerate(clips)]
    (found,) = keyword().problems(given)
    assert found.note == "parts of the tested files are trained on"


def test_speakers_are_on_one_side() -> None:
    clips = [clip(i, label="ab"[i // 2 % 2], speaker=f"s{i % 6}") for i in range(60)]
    (found,) = keyword().problems(clips)
    trained, tested = sides(found, [c.speaker for c in clips])
    assert tested and not trained & tested and "speakers" not in found.note
    given = [replace(c, split="test" if i > 50 else "train") for i, c in enumerate(clips)]
    (found,) = keyword().problems(given)
    assert found.note == "speakers of the test also in training"
    files = [part(i // 5, i, speaker=f"s{i // 20}") for i in range(60)]  # who is speaking, in another file
    (found,) = speaker().problems(speaker().clips(files))
    trained, tested = sides(found, [str(c.path) for c in files])
    assert len(tested) == 3 and not trained & tested and "speakers" not in found.note


def test_two_speakers_of_one_file_are_both_tested() -> None:
    clips = [part(i // 8, i, speaker=f"s{i // 4}") for i in range(32)]
    (found,) = speaker().problems(speaker().clips(clips))
    assert sorted(found.tested_labels) == [f"s{n}" for n in range(8)] and "same session" in found.note


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


def test_verification_is_across_recordings_where_speakers_have_several() -> None:
    """The features are those of the recording alone: of parts of one, they would say who speaks."""
    file_N = np.arange(450) // 9 * 2 + (np.arange(450) % 9 == 8)  # eight parts of one, and one of another
    clips = [part(int(file), i, speaker=f"s{i // 9}") for i, file in enumerate(file_N)]
    (problem,) = verification().problems(clips)
    assert problem.note == ""
    room = np.random.default_rng(0).standard_normal((100, 1, 8))[file_N].astype(np.float32)
    assert 0.3 < solve(problem, room, seed=0).score < 0.7
    assert solve(replace(problem, sessions=None), room, seed=0).score < 0.3
    (one_file,) = verification().problems([part(i // 9, i, speaker=f"s{i // 9}") for i in range(450)])
    assert "same session" in one_file.note and solve(one_file, room, seed=0).score < 0.3


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
    x_NLD[:, 1, :12] += 14 * np.eye(12)[y_N]
    labels, seen_N = [f"l{y:02}" for y in y_N], np.arange(120) % 4 > 0
    split = Problem("split", labels, ~seen_N)
    cross = Problem("cross", labels, keys=[str(i % 3) for i in range(120)])
    pairs = Problem("pairs", labels, np.isin(y_N, (3, 7)), verify=True)
    for problem, wanted, near in ((split, 1.0, 0.1), (cross, 1.0, 0.1), (pairs, 0.0, 0.3)):
        found = solve(problem, x_NLD, seed=0)
        assert found.score == pytest.approx(wanted, abs=near), problem.name
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
