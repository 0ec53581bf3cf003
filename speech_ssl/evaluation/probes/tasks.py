"""Probing tasks: the clips of a manifest that each uses, their labels, and how they are split into training
and test.

keyword       `label`, tested on the manifest's test or validation rows
intent        the field "intent" of the JSON in `label`; if it never varies, each slot by itself
emotion       `label`, leaving one speaker out at a time if the manifest names speakers
speaker       `speaker`: which of the training speakers it is
verification  `speaker`: whether two clips, of speakers not in training, are of the same speaker

If every speaker has a single clip, that clip is cut into parts, and the figures are of one session: they
measure how well recordings are told apart, room and microphone included, not only voices.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from speech_ssl.data.manifest import Utterance
from speech_ssl.data.split_names import split_kind
from speech_ssl.data.splits import id_hash
from speech_ssl.evaluation.probes.held_out import by_hash
from speech_ssl.evaluation.probes.linear import Probed, cross_validate, probe
from speech_ssl.evaluation.probes.representations import Means
from speech_ssl.evaluation.probes.speakers import probe_verification

PART_S, MOST_PARTS = 3.0, 4
LEAST_SPEAKERS = 5  # to test whole speakers
TESTED = 0.2  # share of the clips or speakers, if the manifest marks none
ABSENT = "(none)"
SAME_SPEAKERS = "speakers of the test also in training"
SAME_SESSION = "parts of one clip per speaker: same session"


@dataclass(frozen=True)
class Problem:
    """Labels of clips, and which of them are tested.

    tested_N: True for the clips to test on. keys: instead, a fold for each clip; folds are tested in turn.
    verify: score trials of pairs of the test clips. sessions: the recording of each clip; two clips of one
    recording are no trial. note: what to know when reading the figures.
    """

    name: str
    labels: list[str]
    tested_N: NDArray[np.bool_] | None = None
    keys: list[str] | None = None
    verify: bool = False
    sessions: list[str] | None = None
    note: str = ""

    @property
    def metric(self) -> str:
        return "EER" if self.verify else "accuracy"

    @property
    def tested_labels(self) -> list[str]:
        if self.tested_N is None:
            return self.labels
        return [label for label, tested in zip(self.labels, self.tested_N, strict=True) if tested]

    @property
    def guessing(self) -> float:
        """The score of guessing: the share of the most frequent tested class, or an EER of 0.5."""
        if self.verify:
            return 0.5
        return Counter(self.tested_labels).most_common(1)[0][1] / len(self.tested_labels)


@dataclass(frozen=True)
class Outcome:
    """score: accuracy, or EER (lower is better). other: UAR, or minDCF at a prior of 0.05.

    held_out: error, then loss, on held-out training clips; lower is better. Layers may be chosen by it, but
    not by `score`.
    """

    score: float
    other: float
    layer_weights_L: NDArray[np.float32]
    held_out: tuple[float, ...]
    note: str = ""


@dataclass(frozen=True)
class Task:
    """clips: selects the clips to read from a manifest. problems: makes the problems from those that could be
    read; most tasks have one."""

    name: str
    clips: Callable[[Sequence[Utterance]], list[Utterance]]
    problems: Callable[[Sequence[Utterance]], list[Problem]]


def solve(problem: Problem, x_NLD: Means, *, seed: int) -> Outcome:
    """Probe all layers of a representation together, mixed by learned weights."""
    if problem.keys is not None:
        found = cross_validate(x_NLD, problem.labels, problem.keys, grouped=True, seed=seed)
        note = f"not tested, with a single class: {', '.join(found.skipped)}" if found.skipped else ""
        return Outcome(found.accuracy, found.uar, found.layer_weights_L, found.held_out, note)
    assert problem.tested_N is not None
    labels = np.array(problem.labels, dtype=object)
    train, test = ~problem.tested_N, problem.tested_N
    parts = x_NLD[train], list(labels[train]), x_NLD[test], list(labels[test])
    if problem.verify:
        names = None if problem.sessions is None else np.array(problem.sessions, dtype=object)
        sessions = None if names is None else (list(names[train]), list(names[test]))
        verified = probe_verification(*parts, sessions=sessions, seed=seed)
        return Outcome(verified.eer, verified.min_dcf, verified.layer_weights_L, (verified.held_out_eer,))
    probed: Probed = probe(*parts, seed=seed)
    return Outcome(probed.accuracy, probed.uar, probed.layer_weights_L, probed.held_out)


def solve_layers(problem: Problem, x_NLD: Means, *, seed: int) -> list[Outcome]:
    """Probe each layer alone."""
    return [solve(problem, x_NLD[:, [layer]], seed=seed) for layer in range(x_NLD.shape[1])]


def keyword() -> Task:
    return Task(
        "keyword", _with("label"), lambda clips: [_by_split("keyword", [c.label for c in clips], clips)]
    )


def emotion() -> Task:
    def problems(clips: Sequence[Utterance]) -> list[Problem]:
        labels = [clip.label for clip in clips]
        speakers = [clip.speaker for clip in clips]
        if not all(speakers) or len(set(speakers)) < 3:
            problem = _by_split("emotion", labels, clips)
            notes = dict.fromkeys(filter(None, (problem.note, SAME_SPEAKERS)))
            return [replace(problem, note="; ".join(notes))]
        return [_checked(Problem("emotion", labels, keys=speakers, note="one speaker left out at a time"))]

    return Task("emotion", _with("label"), problems)


def events() -> Task:
    """Which sound: by the manifest's folds where `split` names three or more, each tested in turn."""

    def problems(clips: Sequence[Utterance]) -> list[Problem]:
        labels, folds = [clip.label for clip in clips], [clip.split for clip in clips]
        if all(folds) and len(set(folds)) > 2:
            return [_checked(Problem("events", labels, keys=folds, note="one fold left out at a time"))]
        return [_by_split("events", labels, clips)]

    return Task("events", _with("label"), problems)


def intent() -> Task:
    def problems(clips: Sequence[Utterance]) -> list[Problem]:
        orders = [_order(clip) for clip in clips]
        if len({order["intent"] for order in orders}) > 1:
            return [_by_split("intent", [order["intent"] for order in orders], clips)]
        slots = sorted({slot for order in orders for slot in order} - {"intent"})
        only = f"all clips have the intent {orders[0]['intent']!r}"
        found = []
        for slot in slots:
            labels = [order.get(slot, ABSENT) for order in orders]
            if len(set(labels)) > 1:
                found.append(replace(_by_split(f"intent: {slot}", labels, clips), note=f"{only}; a slot"))
        if not found:
            raise ValueError(f"intent: {only}, and no slot varies: there is nothing to tell apart")
        return found

    return Task("intent", _with("label"), problems)


def speaker() -> Task:
    def problems(clips: Sequence[Utterance]) -> list[Problem]:
        names = [clip.speaker for clip in clips]
        if not _are_parts(clips):
            return [_by_split("speaker", names, clips)]
        last = {clip.speaker: number for number, clip in enumerate(clips)}
        tested_N = np.array([last[clip.speaker] == number for number, clip in enumerate(clips)])
        return [_checked(Problem("speaker", names, tested_N, note=SAME_SESSION))]

    return Task("speaker", _several_a_speaker, problems)


def verification() -> Task:
    def problems(clips: Sequence[Utterance]) -> list[Problem]:
        names = [clip.speaker for clip in clips]
        order = sorted(set(names), key=id_hash)
        if len(order) < 10:
            raise ValueError(f"verification needs 10 speakers with two clips or more, not {len(order)}")
        unseen = set(order[: max(3, round(TESTED * len(order)))])
        tested_N = np.array([name in unseen for name in names])
        sessions = [str(clip.path) for clip in clips]
        tested = {(clip.speaker, clip.path) for clip in clips if clip.speaker in unseen}
        note = SAME_SESSION if len(tested) == len(unseen) else ""
        return [Problem("verification", names, tested_N, verify=True, sessions=sessions, note=note)]

    return Task("verification", _several_a_speaker, problems)


def cut(clip: Utterance) -> Iterator[Utterance]:
    """The first MOST_PARTS parts of PART_S seconds, without overlap; the rest is not used."""
    begin = clip.start or 0.0
    for number in range(min(int(clip.duration_s / PART_S), MOST_PARTS)):
        start = begin + number * PART_S
        yield replace(
            clip,
            start=start,
            end=start + PART_S,
            duration_s=PART_S,
            id=f"{clip.id}#{start:.10g}-{start + PART_S:.10g}",
        )


def _several_a_speaker(utterances: Sequence[Utterance]) -> list[Utterance]:
    """The clips of speakers who have at least two; if nobody has, parts of each clip."""
    clips = _with("speaker")(utterances)
    counts = Counter(clip.speaker for clip in clips)
    if max(counts.values()) == 1:
        clips = [part for clip in clips for part in cut(clip)]
        counts = Counter(clip.speaker for clip in clips)
    return [clip for clip in clips if counts[clip.speaker] > 1]


def _are_parts(clips: Sequence[Utterance]) -> bool:
    """Whether each speaker's clips come from one file."""
    files = {(clip.speaker, clip.path) for clip in clips}
    return len(files) == len({clip.speaker for clip in clips}) < len(clips)


def _with(column: str) -> Callable[[Sequence[Utterance]], list[Utterance]]:
    def rows(utterances: Sequence[Utterance]) -> list[Utterance]:
        found = [utterance for utterance in utterances if getattr(utterance, column)]
        if not found:
            raise ValueError(f"no row has a value in the column {column!r}, which this task needs")
        return found

    return rows


def _by_split(name: str, labels: list[str], clips: Sequence[Utterance]) -> Problem:
    """Tested on the test rows, else on the validation rows, else on about a fifth of every class: on whole
    speakers if the manifest names them, else on whole files. Clips of a class without training clips count as
    errors."""
    kinds = [split_kind(clip.split) for clip in clips]
    for tested in ("test", "valid"):
        tested_N = np.array([kind == tested for kind in kinds])
        if tested_N.any() and not tested_N.all():
            return _checked(Problem(name, labels, tested_N, note=_shared(labels, clips, tested_N)))
    wanted = {label: round(TESTED * count) for label, count in Counter(labels).items()}
    note = "a fifth of every class, by hash, is tested"
    for groups in _apart(labels, clips):
        tested_N = by_hash(labels, groups, wanted)
        if tested_N.any():
            break
    notes = filter(None, (note, _shared(labels, clips, tested_N)))
    return _checked(Problem(name, labels, tested_N, note="; ".join(notes)))


def _apart(labels: Sequence[str], clips: Sequence[Utterance]) -> Iterator[list[str]]:
    """Groups not to split between training and test: speakers, else files, which share voice and room."""
    speakers = [clip.speaker for clip in clips]
    if all(speakers) and speakers != labels and len(set(speakers)) >= LEAST_SPEAKERS:
        yield speakers
    yield [clip.file_id for clip in clips]
    yield [clip.id for clip in clips]


def _shared(labels: Sequence[str], clips: Sequence[Utterance], tested_N: NDArray[np.bool_]) -> str:
    """What training and test have in common, for readers of the figures."""
    trained, tested = (
        [clip for clip, out in zip(clips, tested_N, strict=True) if out == side] for side in (False, True)
    )
    notes = []
    if {clip.path for clip in trained} & {clip.path for clip in tested}:
        notes.append("parts of the tested files are trained on")
    speakers = {clip.speaker for clip in trained if clip.speaker} & {clip.speaker for clip in tested}
    if speakers and [clip.speaker for clip in clips] != labels:
        notes.append(SAME_SPEAKERS)
    return "; ".join(notes)


def _checked(problem: Problem) -> Problem:
    if len(found := sorted(set(problem.labels))) < 2:
        raise ValueError(f"{problem.name}: the labels are all {found[0]!r}: there is nothing to tell apart")
    if not problem.tested_labels:
        raise ValueError(f"{problem.name}: too few clips of each class to test on any")
    return problem


def _order(clip: Utterance) -> dict[str, str]:
    """Intent and slots of a spoken command: {"intent": ..., "slots": {...}}, quotes escaped or not."""
    for text in (clip.label, clip.label.replace('\\"', '"')):
        try:
            found = json.loads(text)
            slots = {str(slot): str(value).strip() for slot, value in found.get("slots", {}).items()}
            return {**slots, "intent": str(found["intent"])}
        except (ValueError, KeyError, AttributeError):
            continue
    raise ValueError(f'{clip.id}: the label is no JSON with a field "intent": {clip.label[:60]}')
