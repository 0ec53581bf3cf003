"""The clips to hold out if a manifest does not say: whole recordings, or all clips of a speaker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from speech_ssl.data.splits import id_hash


def by_hash(labels: Sequence[str], groups: Sequence[str], wanted: Mapping[str, int]) -> NDArray[np.bool_]:
    """True for the clips to hold out: of each label at least `wanted`, where possible. Whole groups are
    chosen, by the hash of their names. The last remaining group with a label is never taken: that label would
    have nothing to train on."""
    own_groups: dict[str, set[str]] = {label: set() for label in labels}
    counts: dict[str, dict[str, int]] = {group: {} for group in groups}
    for label, group in zip(labels, groups, strict=True):
        own_groups[label].add(group)
        counts[group][label] = counts[group].get(label, 0) + 1
    taken: set[str] = set()
    for label in sorted(own_groups):
        have = sum(counts[group][label] for group in own_groups[label] & taken)
        for group in sorted(own_groups[label] - taken, key=id_hash):
            if have >= wanted[label]:
                break
            if all(own_groups[other] - taken - {group} for other in counts[group]):
                taken.add(group)
                have += counts[group][label]
    return np.array([group in taken for group in groups], dtype=bool)
