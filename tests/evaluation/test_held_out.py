"""Clips held out by hash: groups stay together, and every label can still be learned."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from speech_ssl.data.splits import id_hash
from speech_ssl.evaluation.probes.held_out import by_hash

CLIPS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 6).map(str)), min_size=1, max_size=30)


@given(CLIPS, st.integers(0, 5), st.randoms(use_true_random=False))
def test_groups_stay_together_and_no_label_is_held_out_whole(clips, wanted: int, random) -> None:
    labels, groups = (list(part) for part in zip(*clips, strict=True))
    asked = dict.fromkeys("abc", wanted)
    held_out = by_hash(labels, groups, asked).tolist()
    sides = {group: {out for g, out in zip(groups, held_out, strict=True) if g == group} for group in groups}
    assert all(len(side) == 1 for side in sides.values())
    left = [label for label, out in zip(labels, held_out, strict=True) if not out]
    assert set(left) == set(labels)
    have = Counter(label for label, out in zip(labels, held_out, strict=True) if out)
    for label in set(labels):
        if have[label] < wanted:  # every other group of it is the last one with some label
            for group in {g for x, g in clips if x == label and sides[g] == {False}}:
                own = {x for x, g in clips if g == group}
                assert any(all(g == group or sides[g] == {True} for y, g in clips if y == x) for x in own)
    order = random.sample(range(len(clips)), len(clips))
    again = by_hash([labels[i] for i in order], [groups[i] for i in order], asked).tolist()
    assert again == [held_out[i] for i in order]


def test_of_single_clips_those_with_the_first_hashes_are_held_out() -> None:
    names = [f"{number}.wav" for number in range(12)]
    held_out = by_hash(["a", "b"] * 6, names, {"a": 2, "b": 1})
    first = sorted(names[::2], key=id_hash)[:2] + sorted(names[1::2], key=id_hash)[:1]
    assert {name for name, out in zip(names, held_out, strict=True) if out} == set(first)
