"""Does pre-training help when labels are few? The trials of such a study, and the labels that each trial
gets.

One network is trained on shares of a task's labels, with several seeds, in three arms: from `scratch`;
pre-trained and `frozen`, where only the head is trained; pre-trained and `finetuned`, where everything is
trained. A `Trial` is one such training. Each trial is saved in its own file, so that an interrupted study can
go on where it stopped:

    done = {trial.key for trial in load_trials(folder)}

`python -m speech_ssl.evaluation.labels FOLDER` rebuilds a folder's report from its trials.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from operator import methodcaller
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from speech_ssl.files import write_atomically

Arm: TypeAlias = Literal["scratch", "frozen", "finetuned"]
ARMS: tuple[Arm, ...] = get_args(Arm)
SHARES = (0.01, 0.05, 0.1, 0.25, 1.0)
"""The usual shares of the labels."""

_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class Key(NamedTuple):
    """Identifies a trial: a study runs each key once."""

    task: str
    arm: Arm
    share: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task}-{self.arm}-{self.share:g}-{self.seed}"


class Point(NamedTuple):
    """Training and validation at one step. None for a number that is missing or not finite."""

    step: int
    train_loss: float | None = None
    valid_loss: float | None = None
    valid_metric: float | None = None


@dataclass(frozen=True)
class Confusion:
    """counts[i][j]: test clips of class i that were classified as class j."""

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if {len(self.counts), *map(len, self.counts)} != {len(self.classes)}:
            raise ValueError(f"a confusion matrix of {len(self.classes)} classes must be square of that size")


def check_task(name: str) -> None:
    """Raises ValueError for a name that cannot be used as a file name."""
    if not _SAFE.fullmatch(name):
        raise ValueError(f"task {name!r}: use letters, digits, '_', '.' and '-', it names a file")


@dataclass(frozen=True)
class Trial:
    """One finished training.

    share: of the training set's labels, above 0 and at most 1. labels: the number of clips in that share.
    value: `metric` on the test set, of the best checkpoint in validation, saved at `best_step`. seconds: of
    training. guessing: the metric without looking at the audio.
    """

    task: str
    arm: Arm
    share: float
    labels: int
    seed: int
    metric: str
    value: float
    higher_is_better: bool
    best_step: int
    steps: int
    seconds: float
    curve: tuple[Point, ...] = ()
    confusion: Confusion | None = None
    guessing: float | None = None

    def __post_init__(self) -> None:
        check_task(self.task)
        if self.arm not in ARMS:
            raise ValueError(f"arm {self.arm!r} is none of {', '.join(ARMS)}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share {self.share} must be above 0 and at most 1")
        if not math.isfinite(self.value):
            raise ValueError(
                f"value {self.value} of {self.key.name} must be finite: evaluate a kept checkpoint"
            )

    @property
    def key(self) -> Key:
        return Key(self.task, self.arm, self.share, self.seed)


@dataclass(frozen=True)
class Study:
    """What a reader wants to know and trials do not record; saved as `study.json`. Every field is optional.

    tasks: name -> a sentence on the task and its data. shares, seeds: the plan; the report lists what is
    missing from it. network, pretraining, training: a sentence or two each, for the method. command: what
    runs the study.
    """

    tasks: Mapping[str, str] = field(default_factory=dict)
    shares: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    network: str = ""
    pretraining: str = ""
    training: str = ""
    command: str = ""


def nested_subset(labels: Sequence[str], share: float, seed: int) -> list[int]:
    """The indices, ascending, of a share of the clips that keeps the proportions of the classes.

    A seed puts all clips in one order: first one clip of each class, then each class spread evenly. A share
    is the beginning of that order. So smaller subsets lie within larger ones of the same seed, and every
    class is present. The size is the share, rounded, but at least the number of classes.

    labels: the class of each clip; for a task without classes, the same for all, or a speaker or language.
    Raises ValueError for a share that is not above 0 and at most 1, and for empty labels.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share {share} must be above 0 and at most 1")
    if not labels:
        raise ValueError("there are no labels to take a subset of")
    generator = np.random.default_rng(seed)
    names, class_of = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    # Classes come in turn: with the same offset for all, every class would get its next clip at once.
    offsets = (generator.permutation(len(names)) + 0.5) / len(names)
    place = np.empty(len(labels))
    for number, offset in enumerate(offsets):
        members = generator.permutation(np.flatnonzero(class_of == number))
        place[members] = (np.arange(len(members)) + offset) / len(members)
        place[members[0]] -= 1.0
    size = max(len(names), round(share * len(labels)))
    return sorted(np.argsort(place, kind="stable")[:size].tolist())


def trial_path(folder: Path, key: Key) -> Path:
    return folder / "trials" / f"{key.name}.json"


def save_trial(folder: Path, trial: Trial) -> Path:
    """Writes the trial atomically, replacing an earlier one with its key."""
    path = trial_path(folder, trial.key)
    _write_json(path, asdict(trial) | {"curve": [tuple(map(_finite, point)) for point in trial.curve]})
    return path


def load_trials(folder: Path) -> list[Trial]:
    """The finished trials of a study, by name; none if the folder is new. Incomplete files are ignored.

    Raises ValueError for a complete file that is not a trial, for example one of an older version.
    """
    trials = []
    for path in sorted((folder / "trials").glob("*.json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError):
            continue
        try:
            trials.append(_trial(data))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a trial ({error}): move it away to run it anew") from None
    repeated = [key.name for key, count in Counter(trial.key for trial in trials).items() if count > 1]
    if repeated:
        raise ValueError(f"{folder / 'trials'} holds {repeated[0]} in more than one file: remove one")
    return trials


def save_study(folder: Path, study: Study) -> None:
    _write_json(folder / "study.json", asdict(study))


def load_study(folder: Path) -> Study:
    """The study in `study.json`; an empty study if there is none. Raises ValueError if it cannot be read."""
    path = folder / "study.json"
    if not path.exists():
        return Study()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        lists = {name: tuple(data[name]) for name in ("shares", "seeds") if name in data}
        return Study(**data | lists)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not describe a study: {error}") from None


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    plain = methodcaller("item")  # NumPy scalars to Python's own
    write_atomically(path, json.dumps(data, indent=1, allow_nan=False, default=plain).encode())


def _trial(data: dict[str, Any]) -> Trial:
    curve = tuple(Point(*point) for point in data.pop("curve"))
    confusion = data.pop("confusion")
    if confusion is not None:
        counts = tuple(tuple(row) for row in confusion["counts"])
        confusion = Confusion(tuple(confusion["classes"]), counts)
    return Trial(**data, curve=curve, confusion=confusion)


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None
